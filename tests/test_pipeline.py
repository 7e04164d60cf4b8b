"""The Python API on real stars."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

import xpbayes
from tests.conftest import QUICK, SHORT_TRAINING, with_columns
from xpbayes.errors import InputError
from xpbayes.identity import Side
from xpbayes.runs.inputs import choose_random, choose_stars
from xpbayes.training.training_set import training_set


def test_training_reports_its_cuts(trained, sample):
    cuts = {c["what"]: c["removed"] for c in trained.card["cuts"]}
    assert cuts["held out for validation, by source_id"] == trained.card["n_held_out"]
    assert trained.card["cuts"][-1]["left"] == trained.card["n_training"]
    assert "derived from the labels" in trained.card["parallax_used"]


def test_sides_are_those_of_training(trained, sample):
    """Every star is on one side, and 'training' is what the model was trained on: not stars kept aside."""
    chosen = {side: set(choose_stars(trained, sample, side).source_id.tolist()) for side in Side}
    assert sum(map(len, chosen.values())) == len(set.union(*chosen.values())) == len(sample)
    used = training_set(sample, SHORT_TRAINING, "the sample")
    assert trained.card["n_training"] == len(used.table)
    assert set(used.table.source_id.tolist()) <= chosen["training"]
    assert len(used.aside) and set(used.aside.source_id.tolist()) <= chosen["kept-aside"]


def test_uncertainty_looks_at_stars_trained_on(trained, sample, monkeypatch):
    """In 0.1.0 stars chosen at random with the default seed were exactly those kept aside."""
    picked = []

    def choose(table, n, seed):
        picked.append(choose_random(table, n, seed))
        raise InterruptedError

    monkeypatch.setattr("xpbayes.runs.uncertainty.choose_random", choose)
    with pytest.raises(InterruptedError):
        xpbayes.uncertainty(trained, sample, n_stars=100)
    used = training_set(sample, SHORT_TRAINING, "the sample").table.source_id
    assert len(picked[0]) == 100 and np.isin(picked[0].source_id, used).all()


def test_a_random_choice_is_no_side(trained, sample):
    """Of all stars, as many are kept aside as there are in the table."""
    some = choose_random(sample, 500, 0)
    for side in Side:
        share = len(choose_stars(trained, sample, side)) / len(sample)
        sigma = np.sqrt(share * (1 - share) / len(some))
        assert abs(len(choose_stars(trained, some, side)) / len(some) - share) < 4 * sigma


def test_unknown_selection_is_one_sentence(trained, sample):
    with pytest.raises(InputError, match="did you mean 'held-out'"):
        choose_stars(trained, sample, "heldout")


def test_a_missing_label_column_is_one_sentence(sample):
    columns = {k: v for k, v in sample.columns.items() if k != "logg"}
    with pytest.raises(InputError, match="has no column 'logg'"):
        xpbayes.train(replace(sample, columns=columns), config=SHORT_TRAINING)


def test_too_few_stars_is_one_sentence(sample):
    with pytest.raises(InputError, match=r"training stars are left after the cuts, at least 200"):
        xpbayes.train(sample.take(np.arange(100)), config=SHORT_TRAINING)


def test_other_samples_are_refused(trained, sample):
    from xpbayes.channels import Channels

    channels = Channels(sample.channels.names[1:], sample.channels.wavelength_nm[1:], 60)
    fewer = replace(sample, channels=channels, flux=sample.flux[:, 1:], xp_whitening=sample.xp_whitening[:, :1830])
    with pytest.raises(InputError, match=r"has 63 channels and the model has 64: 1 missing \(first: xp392\)"):
        xpbayes.infer(trained, fewer)


def test_no_usable_star_is_one_sentence(trained, sample):
    part = sample.take(np.arange(5))
    with pytest.raises(InputError, match="none of its 5 stars can be used"):
        xpbayes.infer(trained, replace(part, flux=np.full_like(part.flux, np.nan)))


def test_an_unwritable_output_is_refused_before_the_work(trained, sample, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        xpbayes.infer(trained, sample, out=tmp_path / "file" / "c.parquet")


class TestPrediction:
    def test_distance_and_dust(self, trained):
        near = xpbayes.predict_flux(trained, teff=5800, feh=0, logg=4.4, parallax=2)
        far = xpbayes.predict_flux(trained, teff=5800, feh=0, logg=4.4, parallax=1)
        dusty = xpbayes.predict_flux(trained, teff=5800, feh=0, logg=4.4, parallax=1, extinction=0.3)
        assert_allclose(near.flux, 4 * far.flux, rtol=1e-6)
        reddened = np.log(far.flux / dusty.flux)
        assert np.all(reddened > 0) and reddened[0] > reddened[-1]

    def test_the_sun_at_one_kiloparsec(self, trained):
        """m_V = 14.83 at 1 kpc: 4.3e-17 W m^-2 nm^-1 at 550 nm. The model is rough and its distances are 20 %."""
        sun = xpbayes.predict_flux(trained, teff=5772, feh=0, logg=4.44)
        at_550 = np.interp(550, sun.wavelength_nm[:61], sun.flux[:61])
        assert 25 < at_550 < 70

    def test_extrapolation_is_marked(self, trained):
        assert not xpbayes.predict_flux(trained, teff=4800, feh=-0.1, logg=2.5).unlikely
        assert xpbayes.predict_flux(trained, teff=30000, feh=2, logg=8).unlikely

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ({"teff": 5.8, "feh": 0, "logg": 4.4}, "it is in kelvin"),
            ({"teff": 5800, "feh": 0}, "label 'logg' is missing"),
            ({"teff": 5800, "feh": 0, "logg": 4.4, "alpha": 0}, "no label 'alpha'"),
            ({"teff": 5800, "feh": 0, "logg": 4.4, "extinction": -1}, "must not be negative"),
            ({"teff": 5800, "feh": np.nan, "logg": 4.4}, "must be finite"),
            ({"teff": [5800, 5000], "feh": 0, "logg": 4.4}, "teff is not one number; predict_fluxes takes arrays"),
        ],
    )
    def test_bad_arguments_are_one_sentence(self, trained, labels, message):
        with pytest.raises(InputError, match=message):
            xpbayes.predict_flux(trained, **labels)


@pytest.mark.slow  # trains a second model; benchmarks/alpha.py does so on the full table
def test_alpha_as_a_fourth_label(sample):
    """Labels are free: the same code trains and infers with [alpha/M] as a fourth."""
    config = SHORT_TRAINING.model_copy(
        update={"labels": ("teff", "feh", "logg", "alpha_m"), "phases": SHORT_TRAINING.phases[:2]}
    )
    model = xpbayes.train(sample, config=config)
    assert model.labels[-1] == "alpha_m"
    catalogue = xpbayes.infer(model, sample.take(np.arange(64)), config=QUICK)
    assert catalogue.schema.field("stellar_params_est").type.list_size == 6
    assert catalogue.schema.field("stellar_params_cov_triu").type.list_size == 21


def test_measured_parallaxes_train_too(sample):
    measured = with_columns(
        sample,
        parallax=sample.columns["spectroscopic_parallax"],
        parallax_error=0.05 * sample.columns["spectroscopic_parallax"],
    )
    config = SHORT_TRAINING.model_copy(update={"phases": SHORT_TRAINING.phases[:2], "calibration_fraction": 0.0})
    assert xpbayes.train(measured, config=config).card["parallax_used"] == "measured"
    some = np.where(np.arange(len(sample)) % 2, measured.column("parallax"), np.nan)
    mixed = with_columns(measured, parallax=some)
    assert xpbayes.train(mixed, config=config).card["parallax_used"] == "measured, spectroscopic where missing"
