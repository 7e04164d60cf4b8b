"""A trained model brought to a few stars whose labels are on another scale."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import xpbayes
from tests.conftest import with_columns
from xpbayes.analysis.pages.model_card import model_card
from xpbayes.analysis.pages.page import Table
from xpbayes.analysis.validation import Accuracy
from xpbayes.errors import InputError
from xpbayes.models.forward import ln_absolute_flux
from xpbayes.models.prior import ln_priors
from xpbayes.runs.adapt import _with_distances, adapt, check_adaptation
from xpbayes.training.adapt import (
    LARGEST_OFFSET,
    AdaptationConfig,
    at_limit,
    find_scale,
    fixed_sites,
    move_network,
    on_scale,
)
from xpbayes.training.training_set import has_distance, training_cuts

OFFSET_DEX, STRETCH = 0.25, 1.03
"""Of [Fe/H] and Teff on the other scale."""
TITLES = ("What it was trained on", "How good it is")


@pytest.fixture(scope="module")
def own(sample):
    """300 stars on the scale of another survey."""
    stars = sample.take(np.arange(1500, 1800))
    return with_columns(
        stars, feh=stars.column("feh") + np.float32(OFFSET_DEX), teff=stars.column("teff") * np.float32(STRETCH)
    )


@pytest.fixture(scope="module")
def adapted(trained, own, short_settings, tmp_path_factory):
    return adapt(trained, own, tmp_path_factory.mktemp("adapted") / "model")


@pytest.fixture(scope="module")
def short_settings():
    from tests.conftest import QUICK, _set_defaults
    from xpbayes.config import InferenceConfig

    before = _set_defaults(InferenceConfig, {n: getattr(QUICK, n) for n in QUICK.model_fields_set - {"use_parallax"}})
    yield
    _set_defaults(InferenceConfig, before)


def accuracy(rows: list[dict], label: str) -> Accuracy:
    return next(Accuracy(**row) for row in rows if row["label"] == label and row["group"] == "all")


def test_held_out_stars_come_out_on_the_new_scale(adapted, trained):
    before, after = adapted.card["adapted"]["accuracy_before"], adapted.card["held_out"]["accuracy"]
    for label in ("teff", "feh"):
        old, new = accuracy(before, label), accuracy(after, label)
        assert abs(new.bias) < 0.5 * abs(old.bias)
    checks = {check["name"]: check["passed"] for check in adapted.card["checks"]}
    assert checks["adaptation"] is True
    moved = adapted.card["adapted"]["labels_moved"]
    assert moved["offset"][1] > 0.5 * OFFSET_DEX and abs(moved["offset"][2]) < 0.2
    assert adapted.card["adapted"]["from"]["n_training"] == trained.card["n_training"] != adapted.card["n_training"]


def test_the_card_tells_of_the_adaptation(adapted, trained):
    origin, how_good = (next(s for s in model_card(adapted) if s.title == title) for title in TITLES)
    moved = adapted.card["adapted"]["labels_moved"]
    assert (
        origin.parts[0].startswith("Adapted ") and f"on {trained.card['n_training']:,}; labels moved" in origin.parts[0]
    )
    assert f"[Fe/H] [dex] {moved['offset'][1]:+.3f} (x {moved['stretch'][1]:.3f})" in origin.parts[0]
    now, before = (part for part in how_good.parts if isinstance(part, Table))
    assert "before" in before.caption and now.rows != before.rows


def test_only_the_scale_moves(adapted, trained):
    for name in ("weights", "biases"):
        for one, other in zip(getattr(adapted.forward, name), getattr(trained.forward, name), strict=True):
            assert_array_equal(one, other)
    assert_array_equal(adapted.forward.ln_curve, trained.forward.ln_curve)
    assert adapted.second_stage is None and adapted.calibration is not None


@pytest.mark.parametrize("layers", ["last", "all"])
def test_layers_move_if_asked(trained, own, layers):
    stars = own.take(np.arange(64)).stars(trained.labels, spectroscopic_parallax=True)
    config = AdaptationConfig(layers=layers, rounds=1, epochs=1)
    forward = move_network(trained.star_model, stars, config).forward
    moved = [not np.array_equal(a, b) for a, b in zip(forward.weights, trained.forward.weights, strict=True)]
    assert moved == ([True] * 4 if layers == "all" else [False, False, False, True])
    assert_array_equal(forward.ln_curve, trained.forward.ln_curve)
    assert "ln_R" in fixed_sites(forward, layers)


def test_the_scale_is_found_among_outliers_and_not_invented():
    rng = np.random.default_rng(0)
    center, spread = np.array([5.0, -0.2]), np.array([0.6, 0.3])
    inferred = center + spread * rng.normal(size=(400, 2))
    truth = np.array([[0.3, -0.5], np.log([1.2, 0.9])])
    labels = (
        center + spread * truth[0] + np.exp(truth[1]) * (inferred - center) + 0.1 * spread * rng.normal(size=(400, 2))
    )
    labels[::20] += 9.0
    np.testing.assert_allclose(find_scale(inferred, labels, center, spread), truth, atol=0.03)
    few = slice(1, 13)
    noisy = inferred[few] + spread * rng.normal(size=(12, 2))
    assert np.abs(find_scale(inferred[few], noisy, center, spread)[1]).max() < 0.1


def test_worse_labels_fail_the_check():
    old = [Accuracy("teff", "all", 100, 0.1, 0.01, 0.68, 0.95), Accuracy("feh", "all", 100, 0.1, 0.0, 0.68, 0.95)]
    assert check_adaptation(old, old).passed
    worse = [old[0], replace(old[1], scatter=0.2)]
    found = check_adaptation(old, worse)
    assert found.passed is False and "feh got worse" in found.line
    assert check_adaptation(old, [old[0], replace(old[1], bias=0.08)]).passed is False
    far = check_adaptation(old, old, ["teff"])
    assert far.passed is False and "teff is too far off" in far.line and "got worse" not in far.line


def test_a_zero_point_that_is_gone_outweighs_a_little_scatter():
    old = [Accuracy("feh", "all", 33, 0.042, -0.2, 0.68, 0.95)]
    assert check_adaptation(old, [replace(old[0], scatter=0.053, bias=-0.009)]).passed
    assert check_adaptation([replace(old[0], bias=0.0)], [replace(old[0], scatter=0.062, bias=0.0)]).passed is False


def test_no_scale_moves_without_limit():
    inferred = np.random.default_rng(0).normal(size=(100, 2))
    move = find_scale(inferred, inferred + [-15.0, 0.2], np.zeros(2), np.ones(2))
    np.testing.assert_allclose(move, [[-LARGEST_OFFSET, 0.2], [0.0, 0.0]], atol=1e-6)
    assert at_limit(move).tolist() == [True, False]
    assert at_limit(np.array([[0.2, 0.0], [0.1, np.log(1.5)]])).tolist() == [False, True]


def test_labels_that_nobody_measured_are_told_of(trained, own, said):
    feh = own.column("feh").copy()
    feh[:5] = -9999.0
    stars = with_columns(own, feh=feh).take(np.arange(30))
    with pytest.raises(InputError, match="most others went with"):
        xpbayes.adapt(trained, stars)
    rule = "feh outside -9 ... 5 dex, or its error too large"
    told = f"a table in memory: 5 labels taken for missing: {rule} (first: source_id {own.source_id[0]})"
    assert said == [told]


def test_too_few_stars_are_one_sentence(trained, own):
    with pytest.raises(InputError, match="stars are left to adapt to and .* to judge by"):
        xpbayes.adapt(trained, own.take(np.arange(30)))


def test_stars_without_a_parallax_count_for_the_scale_and_not_for_the_network(own, said):
    stars = own.take(np.flatnonzero(has_distance(own))[:100])
    lost = {f"spectroscopic_parallax{of}": stars.column(f"spectroscopic_parallax{of}").copy() for of in ("", "_error")}
    for values in lost.values():
        values[:20] = np.nan
    stars = with_columns(stars, **lost)
    kept = training_cuts(stars, stars.label_names, distances=False)
    assert_array_equal(training_cuts(stars, stars.label_names).source_id, kept.take(has_distance(kept)).source_id)
    assert not has_distance(kept).all()
    assert len(_with_distances(stars, AdaptationConfig(), "mine")) == 100 and not said
    assert len(_with_distances(stars, AdaptationConfig(layers="last"), "mine")) == 80
    assert said == ["20 of them have no parallax: they count for the labels' scale, not for the network"]
    with pytest.raises(InputError, match=r"mine: 10 of the 30 stars to adapt to have a parallax.*--layers none"):
        _with_distances(stars.take(np.arange(30)), AdaptationConfig(layers="all"), "mine")


def test_network_and_prior_move_together(trained, own):
    """Labels on another scale have the flux, and but for the Jacobian the probability, that they had on the former."""
    move = np.array([[0.3, -0.2, 0.1], [0.1, -0.2, 0.3]], np.float32)
    model, forward = trained.star_model, trained.forward
    other = on_scale(model, move)
    labels = own.labels(trained.labels)[0][:20].astype(np.float32)
    there = other.forward.label_center + np.exp(move[1]) * (labels - forward.label_center)
    fluxes = (ln_absolute_flux(one, at) for one, at in ((forward, labels), (other.forward, np.asarray(there))))
    np.testing.assert_allclose(*map(np.asarray, fluxes), rtol=1e-3, atol=2e-3)
    before, after = (
        np.asarray(ln_priors(p, np.asarray(at))) for p, at in ((model.prior, labels), (other.prior, there))
    )
    np.testing.assert_allclose(after + move[1].sum(), before, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(other.prior.ln_threshold + move[1].sum(), model.prior.ln_threshold, rtol=1e-5)
