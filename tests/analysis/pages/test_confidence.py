"""Confidences from end to end on real held-out stars, and the diagnostics on simulated ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK, with_columns
from xpbayes.analysis.figures.confidence import judge, reliability, reliability_figure, residual_figure
from xpbayes.analysis.pages.confidence import print_check
from xpbayes.config import ConfidenceConfig
from xpbayes.errors import InputError
from xpbayes.production.model_file import load_model
from xpbayes.runs.confidence import confidence
from xpbayes.runs.infer import infer
from xpbayes.runs.inputs import choose_stars

RNG = np.random.default_rng(0)


class TestReliability:
    def test_probabilities_that_hold_pass(self):
        p = RNG.beta(3, 1, 4000)
        curve = reliability("teff", p, RNG.random(4000) < p)
        assert curve.calibration_error < curve.by_chance_95
        inside = (curve.low <= curve.confidence) & (curve.confidence <= curve.high)
        assert inside[curve.n > 0].mean() > 0.4

    def test_overconfidence_is_rejected(self):
        p = RNG.beta(3, 1, 4000)
        curve = reliability("teff", p, RNG.random(4000) < 0.85 * p)
        assert curve.calibration_error > 3 * curve.by_chance_95

    def test_two_bins_by_hand(self):
        """0.2 with 1 of 4 good, 0.9 with 3 of 4: the mean of 0.05 and 0.15 is 0.1."""
        p = np.array([0.2] * 4 + [0.9] * 4)
        good = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
        curve = reliability("teff", p, good, edges=(0, 0.5, 1))
        assert_allclose([curve.calibration_error, *curve.share_good], [0.1, 0.25, 0.75])
        # Jeffreys: the 15.85 and 84.15 % points of Beta(1.5, 3.5), by numerical integration.
        x = np.linspace(0, 1, 200_001)
        cumulative = np.cumsum(x**0.5 * (1 - x) ** 2.5)
        edge = [x[np.searchsorted(cumulative / cumulative[-1], q)] for q in (0.1585, 0.8415)]
        assert_allclose([curve.low[0], curve.high[0]], edge, atol=1e-4)

    def test_certainty_falls_into_the_last_bin(self):
        assert reliability("teff", np.ones(3), np.ones(3, bool)).n[-1] == 3

    def test_no_outcome_is_one_sentence(self):
        with pytest.raises(InputError, match="no star is either good or bad"):
            reliability("teff", np.zeros(0), np.zeros(0, bool))


@pytest.fixture(scope="module")
def held_out(trained, bundled):
    """Labels of most of the hottest fifth are wrong by far: real stars alone leave too few bad ones among so few.

    Of the stars with all labels, for no other is judged: most of the hottest lack one, and a catalogue whose errors
    hold for all stars kept aside has few bad ones of its own.
    """
    stars = choose_stars(trained, bundled, "held-out")
    stars = stars.take(np.isfinite(np.hstack(stars.labels(trained.labels))).all(axis=1)).take(np.arange(750))
    hot = stars.column("teff") > np.quantile(stars.column("teff"), 0.8)
    wrong = hot & (np.random.default_rng(3).random(len(stars)) < 0.7)
    shift = {"teff": -1.5, "feh": 1.5, "logg": -3.0}
    return with_columns(stars, **{k: np.where(wrong, stars.column(k) + v, stars.column(k)) for k, v in shift.items()})


@pytest.fixture(scope="module")
def catalogue(model_folder, held_out, tmp_path_factory):
    path = tmp_path_factory.mktemp("confidence") / "catalogue.parquet"
    infer(model_folder, held_out, out=path, config=QUICK)
    return path


@pytest.fixture(scope="module")
def run(model_folder, held_out, catalogue):
    """Model with classifiers, its check, and where figures went."""
    folder = catalogue.parent
    model, check = confidence(
        model_folder, catalogue, held_out, folder / "model",
        ConfidenceConfig(max_epochs=48, min_batches=16, validation_fraction=0.4), folder / "figures",
    )  # fmt: skip
    return model, check, folder


@pytest.mark.thorough
def test_estimates_that_are_trusted_less_are_worse(run):
    """On stars that trained neither model nor classifiers, the less trusted half has more bad log g."""
    model, check, _ = run
    i = check.targets.index("logg")
    low = check.confidence[:, i] < np.median(check.confidence[:, i])
    far = np.abs(check.difference[:, i])
    assert np.percentile(far[low], 90) > 1.3 * np.percentile(far[~low], 90)


@pytest.mark.thorough
def test_the_judged_stars_did_not_train(run, trained, held_out):
    record = run[0].card["confidence"]
    assert len(run[1].confidence) == record["n_validation"]
    value, error = held_out.labels(trained.labels)
    labelled = int((np.isfinite(value) & np.isfinite(error)).all(axis=1).sum())
    assert record["n_training"] + record["n_validation"] + record["n_failed_basic_cut"] == labelled


@pytest.mark.thorough
def test_card_and_files_hold_the_numbers(run):
    model, check, folder = run
    card = load_model(folder / "model").card["confidence"]
    assert {"features_unused", "features_present", "counts", "reliability", "residuals", "split", "catalogue"} <= set(
        card
    )
    assert "ln_ruwe" in card["features_unused"] and "ln_prior" not in card["features_unused"]
    written = json.loads((folder / "figures" / "confidence.json").read_text())
    assert written["reliability"] == card["reliability"]
    for name in ("residuals", "residuals_normalised", "reliability"):
        assert (folder / "figures" / f"confidence_{name}.png").stat().st_size > 10_000


@pytest.mark.thorough
def test_sides_add_up(run):
    by_side = {(s.label, s.side): s for s in run[1].sides}
    for name in run[1].targets:
        assert by_side[name, "good"].n + by_side[name, "bad"].n == by_side[name, "all"].n
        difference = run[1].difference[:, run[1].targets.index(name)]
        assert_allclose(by_side[name, "all"].rms, np.sqrt(np.mean(difference**2)))


@pytest.mark.thorough
def test_a_label_without_bad_stars_is_drawn_and_printed(run, capsys):
    check = replace(run[1], confidence=np.ones_like(run[1].confidence))
    residual_figure(check), reliability_figure(check)
    print_check(run[1])
    assert "expected calibration error" in capsys.readouterr().out


@pytest.mark.thorough
def test_the_classified_model_infers_confidences(run, held_out):
    model, _, _ = run
    again = infer(model, held_out.take(np.arange(40)), config=QUICK)
    assert again["logg_confidence"].null_count == 0


@pytest.mark.thorough
def test_judging_by_foreign_confidences_is_rejected(run, held_out, model_folder, catalogue):
    """Must fail: confidences handed to other stars are not reliable."""
    from xpbayes.analysis.pages.confidence import held_out_fits
    from xpbayes.data.spectra import Spectra
    from xpbayes.production.table import catalogue_about, read_catalogue

    assert isinstance(held_out, Spectra)
    rows = read_catalogue(catalogue)
    fits = held_out_fits(load_model(model_folder), rows, catalogue_about(rows), held_out, "catalogue")
    upside_down = (fits.chi2_eps > 4) * 0.9 + 0.05
    curve = judge(fits.comparison, fits.targets, upside_down).reliability[0]
    assert curve.calibration_error > 5 * curve.by_chance_95


def test_stars_that_the_model_was_trained_on_are_refused(model_folder, trained, sample, tmp_path):
    part = sample.take(np.arange(100))
    infer(model_folder, part, out=tmp_path / "c.parquet", config=QUICK)
    labelled = part.take(np.isfinite(np.hstack(part.labels(trained.labels))).all(axis=1))
    n = len(labelled) - len(choose_stars(trained, labelled, "held-out"))
    with pytest.raises(InputError, match=rf"{n} of {len(labelled)} stars with labels were not held out"):
        confidence(model_folder, tmp_path / "c.parquet", part)


def test_a_catalogue_of_another_model_is_refused(model_folder, trained, catalogue, held_out):
    other = load_model(model_folder)
    other = replace(other, card={**other.card, "arrays_checksum": "sha256:0"})
    with pytest.raises(InputError, match="was inferred with another model"):
        confidence(other, catalogue, held_out)


def test_too_few_stars_are_one_sentence(model_folder, held_out, tmp_path):
    part = held_out.take(np.arange(60))
    infer(model_folder, part, out=tmp_path / "c.parquet", config=QUICK)
    with pytest.raises(InputError, match="too few to train confidences"):
        confidence(model_folder, tmp_path / "c.parquet", part)
