from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.config import ConfidenceConfig
from xpbayes.errors import InputError
from xpbayes.models.reliability import feature_names
from xpbayes.training.reliability import (
    SURVEY_COLUMNS,
    Estimates,
    confidences,
    residual_chi2,
    star_features,
    train_confidence,
)

QUICK = ConfidenceConfig(max_epochs=24, min_batches=16)
NAMES = ("useful", "useless", "absent", "sometimes")


def test_eq_27_by_hand():
    """200 K off with errors of 30 and 40 K: 200^2 / (30^2 + 40^2 + 100^2) = 3.2."""
    assert_allclose(residual_chi2(np.array([0.2]), np.array([0.03]), np.array([0.04]), 0.1), [3.2])


def test_perfect_agreement_within_the_floor_is_good_however_small_the_errors():
    assert residual_chi2(np.array(0.1), np.array(1e-6), np.array(0.0), 0.1) < 4


def test_the_schedule_of_a_large_sample_is_appendix_b_s():
    assert ConfidenceConfig().schedule_for(2_000_000) == (256, 1024)
    assert ConfidenceConfig().schedule_for(100) == (16, 64)


@pytest.fixture(scope="module")
def simulated():
    """Two targets with known probabilities of being good; five stars in six train."""
    random = np.random.default_rng(1)
    n = 4200
    features = random.normal(size=(n, 4))
    features[:, 2] = np.nan
    features[random.random(n) < 0.3, 3] = np.nan
    # Being without the fourth feature is bad news by itself.
    ln_odds = np.stack([2.0 + 2.0 * features[:, 0], 3.0 - 3.0 * np.isnan(features[:, 3])], axis=1)
    truth = 1 / (1 + np.exp(-ln_odds))
    good = random.random((n, 2)) < truth
    chi2 = np.where(good, 1.0, 20.0)
    return features, truth, chi2, np.arange(n) % 6 == 0


@pytest.fixture(scope="module")
def learned(simulated):
    features, _, chi2, validation = simulated
    return train_confidence(features, chi2, validation, ("teff", "feh"), NAMES, QUICK)


@pytest.mark.thorough
def test_known_probabilities_are_learnt(simulated, learned):
    features, truth, _, validation = simulated
    p = confidences(learned.nets, features)
    assert np.sqrt(np.mean((p - truth)[validation] ** 2, axis=0)).max() < 0.05
    assert learned.record["features_unused"] == ["absent"]


def test_confidence_does_not_depend_on_the_batch(simulated, learned):
    features = simulated[0]
    assert np.array_equal(confidences(learned.nets, features)[17:40], confidences(learned.nets, features[17:40]))


def test_no_stars_have_no_confidences(learned):
    assert confidences(learned.nets, np.zeros((0, 4))).shape == (0, 2)


@pytest.mark.thorough
def test_weighting_the_rare_class_leaves_probabilities(simulated):
    """The shift of the odds is undone: the mean confidence is still the share of good stars."""
    features, truth, chi2, validation = simulated
    config = QUICK.model_copy(update={"balance": 1.0})
    p = confidences(train_confidence(features, chi2, validation, ("teff", "feh"), NAMES, config).nets, features)
    assert_allclose(p.mean(axis=0), truth.mean(axis=0), atol=0.03)


@pytest.mark.thorough
def test_nothing_is_learnt_where_there_is_nothing_to_learn(simulated):
    """Must fail to separate: outcomes shuffled among the stars leave the share of good ones, for every star."""
    features, _, chi2, validation = simulated
    shuffled = np.random.default_rng(2).permutation(chi2)
    p = confidences(train_confidence(features, shuffled, validation, ("teff", "feh"), NAMES, QUICK).nets, features)
    assert np.abs(p - np.mean(chi2 < 4, axis=0))[validation].mean() < 0.05


def test_what_lies_between_good_and_bad_trains_nothing(simulated, learned):
    features, _, chi2, validation = simulated
    more = np.concatenate([features, features[:600] + 5])
    between = np.concatenate([chi2, np.full((600, 2), 6.0)])
    record = train_confidence(
        more, between, np.concatenate([validation, np.arange(600) < 100]), ("teff", "feh"), NAMES,
        QUICK.model_copy(update={"max_epochs": 1}),
    ).record  # fmt: skip
    assert record["counts"] == learned.record["counts"] and record["n_training"] == 4000


def test_too_few_bad_stars_are_one_sentence(simulated):
    features, _, chi2, validation = simulated
    fine = np.where(np.arange(len(chi2))[:, None] < 10, chi2, 1.0)
    with pytest.raises(InputError, match=r"good and \d+ bad ones, 30 of each are needed, and some held out"):
        train_confidence(features, fine, validation, ("teff", "feh"), NAMES, QUICK)


def test_a_label_without_bad_stars_stays_without_a_classifier(simulated, said):
    features, _, chi2, validation = simulated
    config = QUICK.model_copy(update={"max_epochs": 1})
    one = np.stack([np.ones(len(chi2)), chi2[:, 1]], axis=1)
    trained = train_confidence(features, one, validation, ("teff", "feh"), NAMES, config)
    assert trained.nets.targets == ("feh",) and "no classifier" in said[0]


def test_features_by_hand(trained, sample):
    """Each formula of Appendix B in plain arithmetic, in the order of the names."""
    n = 2
    stars = sample.take(np.arange(n)).stars(trained.labels)
    estimate = np.array([[5.0, -0.2, 3.0, 0.1, 2.0], [4.5, 0.1, 2.0, 0.2, 1.0]])
    fit = Estimates(estimate, 0.1 * np.abs(estimate), np.array([122.0, 0.0]), np.array([-3.0, -4.0]))
    survey = {name: np.full(n, np.nan) for name in SURVEY_COLUMNS} | {
        "parallax": np.array([2.3, 1.0]),
        "parallax_error": np.array([0.1, 0.5]),
        "phot_bp_mean_flux": np.array([500.0, 10.0]),
        "phot_bp_mean_flux_error": np.array([10.0, np.nan]),
        "ruwe": np.array([1.2, 1.0]),
        "phot_g_mean_mag": np.array([14.0, 15.0]),
    }
    got = star_features(trained.star_model, stars, fit, survey)
    at = {name: i for i, name in enumerate(feature_names(trained.labels, trained.channels.names))}
    assert got.shape == (n, len(at))
    expected = {
        "ln_rchi2_opt": [np.log(2.0), np.log(1e-7)],
        "ln_dplx2": [np.log(3.0), np.log(1e-7)],
        "ln_prior": [-3, -4],
        "teff_est": [5.0, 4.5],
        "logg_est_err": [0.3, 0.2],
        "asinh_plx_snr": np.arcsinh([23.0, 2.0]),
        "asinh_bp_snr": [np.arcsinh(50.0), np.nan],
        "asinh_rp_snr": [np.nan, np.nan],
        "ln_ruwe": [np.log(1.2), 0.0],
        "phot_g_mean_mag": [14.0, 15.0],
    }
    for name, values in expected.items():
        assert_allclose(got[:, at[name]], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.isfinite(got[:, at["asinh_residual_xp392"] :]).all()


def test_features_do_not_depend_on_the_batch(trained, sample):
    stars = sample.take(np.arange(30)).stars(trained.labels)
    estimate = np.tile([5.0, -0.2, 3.0, 0.1, 2.0], (30, 1))
    survey = {name: np.full(30, np.nan) for name in SURVEY_COLUMNS}
    every = star_features(trained.star_model, stars, Estimates(estimate, estimate, np.ones(30), np.ones(30)), survey)
    some = Estimates(estimate[7:9], estimate[7:9], np.ones(2), np.ones(2))
    few = star_features(trained.star_model, stars.take(slice(7, 9)), some, {k: v[7:9] for k, v in survey.items()})
    assert np.array_equal(every[7:9], few, equal_nan=True)


def test_a_missing_band_is_a_missing_feature(trained, sample):
    table = sample.take(np.arange(1))
    table = replace(table, band_inverse_error=np.zeros_like(table.band_inverse_error))
    fit = Estimates(np.array([[5.0, 0, 3, 0.1, 1]]), np.ones((1, 5)), np.ones(1), np.ones(1))
    survey = {name: np.full(1, np.nan) for name in SURVEY_COLUMNS}
    got = star_features(trained.star_model, table.stars(trained.labels), fit, survey)
    assert np.isnan(got[0, -3:]).all() and np.isfinite(got[0, -64:-3]).all()
