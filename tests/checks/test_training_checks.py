"""Every named check passes a healthy model and rejects the mistake that it is named for."""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SHORT_TRAINING
from xpbayes.checks.training_checks import (
    Check,
    channel_residuals,
    channel_zero_points,
    check_training,
    gauge_at_rest,
    held_out_skill,
    kinds_kept,
    label_directions,
    label_ranges,
    parallax_scale,
)

NAMES = ("teff", "feh", "logg")
BRIEF = SHORT_TRAINING.model_copy(
    update={"model_error": False, "phases": SHORT_TRAINING.phases[:2], "calibration_fraction": 0.0}
)


@pytest.fixture(scope="module")
def labels(trained, sample):
    value = sample.labels(NAMES)[0]
    return value[np.isfinite(value).all(axis=1) & (value[:, 0] < 8.5)]


def _learn(table):
    """Train as `xpbayes.train` does, briefly, and make the checks."""
    from xpbayes.runs.train import train

    return {c["name"]: c["passed"] for c in train(table, config=BRIEF).card["checks"]}


def test_a_healthy_model_passes(trained, labels):
    checks = check_training(trained.forward, trained.channels, NAMES, labels, {})
    assert {c.name: c.passed for c in checks} == {
        "label_ranges": True,
        "label_directions": True,
        "parallax_scale": True,
        "channel_zero_points": True,
        "channel_residuals": None,
        "held_out_skill": None,
        "gauge_at_rest": None,
        "kinds_kept": None,
    }
    assert [Check(**c).name for c in trained.card["checks"]][: len(checks)] == [c.name for c in checks]


@pytest.mark.thorough
def test_a_wrong_parallax_unit_is_caught(sample):
    """Trained on parallaxes in arcseconds; everything else as it should be."""
    columns = sample.columns | {
        f"spectroscopic_parallax{e}": 1e-3 * sample.column(f"spectroscopic_parallax{e}") for e in ("", "_error")
    }
    assert [name for name, passed in _learn(replace(sample, columns=columns)).items() if passed is False] == [
        "parallax_scale"
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("pair", [("teff", "logg"), ("feh", "logg")])
def test_a_swapped_label_column_is_caught(sample, pair):
    a, b = pair
    swap = {a: b, b: a, f"{a}_error": f"{b}_error", f"{b}_error": f"{a}_error"}
    columns = sample.columns | {to: sample.columns[origin] for to, origin in swap.items()}
    failed = [name for name, passed in _learn(replace(sample, columns=columns)).items() if passed is False]
    assert {"label_ranges", "label_directions"} & set(failed)


def test_teff_exchanged_with_logg_among_dwarfs_is_in_range_and_still_caught(trained, labels):
    """Both columns lie in the other's range: only the directions tell."""
    dwarfs = labels[(labels[:, 2] > 3.9) & (labels[:, 0] < 6.4)]
    exchanged = dwarfs[:, [2, 1, 0]]
    assert label_ranges(NAMES, exchanged).passed
    first = trained.forward.weights[0]
    swapped = eqx.tree_at(
        lambda m: (m.weights, m.label_center, m.label_scale),
        trained.forward,
        (
            (first[jnp.array([2, 1, 0])], *trained.forward.weights[1:]),
            trained.forward.label_center[jnp.array([2, 1, 0])],
            trained.forward.label_scale[jnp.array([2, 1, 0])],
        ),
    )
    assert label_directions(trained.forward, trained.channels, NAMES, dwarfs).passed
    assert label_directions(swapped, trained.channels, NAMES, exchanged).passed is False


def test_teff_in_kelvin_is_caught(labels):
    assert label_ranges(NAMES, labels).passed
    assert label_ranges(NAMES, labels * [1000, 1, 1]).passed is False


def _shifted(model, channel, magnitude):
    """The model that would have been learned had a band's magnitudes been off by so much."""
    bias = model.biases[-1].at[channel].add(-0.4 * np.log(10) * magnitude)
    return eqx.tree_at(lambda m: m.biases, model, (*model.biases[:-1], bias))


def test_a_wrong_zero_point_is_caught(trained, labels):
    """J taken as AB instead of Vega is 0.91 mag off, H 1.39, Ks 1.85."""
    names = trained.channels.names
    assert channel_zero_points(trained.forward, trained.channels, NAMES, labels).passed
    for band, offset in (("J", 0.91), ("H", 1.39), ("Ks", -1.85)):
        wrong = _shifted(trained.forward, names.index(band), offset)
        check = channel_zero_points(wrong, trained.channels, NAMES, labels)
        assert check.passed is False and f"channel {band} is" in check.line


def test_stars_of_two_calibrations_are_caught(trained):
    n = len(trained.channels)
    assert channel_residuals(trained.channels, [0.01] * n).passed
    check = channel_residuals(trained.channels, [0.01] * (n - 1) + [-0.17])
    assert check.passed is False and "channel Ks" in check.line


@pytest.mark.thorough
def test_shuffled_labels_have_no_skill(sample):
    """The whole way: labels of other stars, trained and inferred; the healthy run is in test_model_card."""
    from xpbayes.runs.train import train

    order = np.random.default_rng(0).permutation(len(sample))
    names = [f"{n}{e}" for n in NAMES for e in ("", "_error")]
    columns = sample.columns | {n: sample.columns[n][order] for n in names}
    model = train(replace(sample, columns=columns), config=BRIEF.model_copy(update={"held_out_stars": 128}))
    check = next(Check(**c) for c in model.card["checks"] if c["name"] == "held_out_skill")
    assert check.passed is False and all(value < 0.25 for value in model.card["held_out"]["skill"].values())
    assert held_out_skill({"teff": 0.99, "feh": 0.6, "logg": 0.95}).passed


def test_labels_that_no_check_knows_are_not_judged(trained, labels):
    model, channels = trained.forward, trained.channels
    for check in (
        label_ranges(("a", "b", "c"), labels),
        label_directions(model, channels, ("a", "b", "c"), labels),
        parallax_scale(model, channels, ("a", "b", "c"), labels),
        channel_zero_points(model, channels, ("a", "b", "c"), labels),
    ):
        assert check.passed is None and "not made" in check.line


GAUGE = {
    "update": "gauge",
    "scale_of_E": 1.002,
    "moves": {"all": [0, 0, 0, 0.001, 0.001], "giants": [0, 0, 0, 0.004, -0.03]},
}


def test_the_gauge_must_be_at_rest():
    assert gauge_at_rest([GAUGE]).passed
    assert gauge_at_rest([]).passed is None
    for spoiled in ({"scale_of_E": 0.94}, {"moves": {"all": [0, 0, 0, 0, 0], "luminous giants": [0, 0, 0, 0, -0.28]}}):
        found = gauge_at_rest([GAUGE, GAUGE | spoiled])
        assert found.passed is False and "FAILED" in found.line
    assert gauge_at_rest([GAUGE, GAUGE | {"moves": {"all": [0, 0, 0, 0.05, 0]}}]).passed is False


def test_no_kind_may_be_lost():
    assert kinds_kept([{"kept_by_kind": {"all": 0.9, "giants": 0.8}}]).passed
    assert kinds_kept([{"update": "model"}]).passed is None
    found = kinds_kept([{"kept_by_kind": {"all": 0.9, "luminous giants": 0.17}}])
    assert found.passed is False and "luminous giants count 17%" in found.measured
