"""One star or two: pairs made by the model itself are found, and singles are left as they were."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.config import InferenceConfig
from xpbayes.errors import InputError
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.ridge import companion_ridge
from xpbayes.inference.second_source import PairPosteriors, _moments, _with_steps, rows_asked
from xpbayes.models.pair import pair_of, predict_flux

N = 12
SETTINGS = {"n_draws": 0, "n_more_draws": 0, "n_nodes": 64, "n_starts": 2}


@pytest.fixture(scope="module")
def ridge(trained):
    return companion_ridge(trained.star_model, trained.labels, np.asarray(trained.channels.wavelengths))


@pytest.fixture(scope="module")
def simulated(trained, sample, ridge):
    """A dwarf of 5,000 K at 200 pc, first alone, then with companions that give 30 to 100 % of its light; no noise."""
    stars = jax.tree.map(np.array, sample.take(np.zeros(N, int)).stars(trained.labels))
    logg = float(ridge.logg_at(jnp.asarray(5.0), jnp.asarray(0.0)))
    pair = pair_of(trained.forward, ridge)
    theta = np.tile(np.asarray([5.0, 0.0, logg, -9.0, np.log(0.1), np.log(5.0)], np.float32), (N, 1))
    theta[N // 2 :, 3] = np.linspace(-0.5, 3.0, N // 2)
    flux = np.asarray(jax.vmap(lambda u: predict_flux(pair, u))(theta), np.float64)
    size = flux.mean(axis=1, keepdims=True)
    whitening = np.tile(np.diag(np.full(flux.shape[1], 100.0)), (N, 1, 1)) / (flux / size)[:, None, :]
    stars = replace(
        stars,
        flux=(flux / size).astype(np.float32),
        ln_scale=np.log(size[:, 0]).astype(np.float32),
        whitening=whitening.astype(np.float32),
        parallax=np.full(N, 5.0, np.float32),
        parallax_inv_error=np.full(N, 50.0, np.float32),
        inv_dof=np.zeros(N, np.float32),
    )
    return stars, np.exp(np.asarray(jax.vmap(pair.ln_flux_ratio)(theta))), theta


@pytest.mark.thorough
def test_companions_are_found_and_single_answers_stay(trained, simulated, ridge):
    stars, ratio, theta = simulated
    model = trained.star_model.without_error
    alone = fit_stars(model, stars, InferenceConfig(**SETTINGS))
    both = fit_stars(model, stars, InferenceConfig(**SETTINGS, binaries=True), ridge=ridge)
    assert alone.pair is None and both.pair is not None
    for name, value in vars(alone).items():
        if isinstance(value, np.ndarray):
            assert_array_equal(getattr(both, name), value, name)
    found, single, double = both.pair, slice(0, N // 2), slice(N // 2, N)
    assert np.isfinite(found.ln_odds).all()
    assert found.ln_odds[single].max() < found.ln_odds[double].min()
    assert_allclose(found.estimate[double, 2], theta[double, 2], atol=0.1)
    assert np.all(np.abs(found.flux_ratio - ratio)[double] < 3.0 * found.flux_ratio_error[double])
    suspected = fit_stars(model, stars, InferenceConfig(**SETTINGS, binaries="suspicious"), ridge=ridge)
    asked = np.isfinite(suspected.pair.ln_odds)
    assert asked[-3:].all()
    assert_allclose(suspected.pair.ln_odds[asked], found.ln_odds[asked], rtol=1e-3, atol=1e-3)


def test_evidence_is_the_mean_over_companions_and_moments_are_theirs(trained):
    """Two companions with odds of 3 : 1; a star without any optimum stays null."""
    nothing = [0.0, 0.0]
    first = (
        [np.log(3.0), -np.inf],
        [0.2, np.nan],
        nothing,
        [4.0, np.nan],
        nothing,
        [[1.0] * 5, [np.nan] * 5],
        [[0.0] * 5] * 2,
    )
    one = PairPosteriors(*(np.asarray(values, np.float32) for values in first))
    other = one._replace(
        ln_odds=np.asarray([0.0, -np.inf], np.float32),
        flux_ratio=np.asarray([0.6, np.nan], np.float32),
        estimate=np.asarray([[5.0] * 5, [np.nan] * 5], np.float32),
    )
    found = _moments([one, other], np.zeros(2), trained.forward)
    assert_allclose(found.ln_odds, [np.log(2.0), np.nan], rtol=1e-6)
    assert_allclose(found.flux_ratio, [0.3, np.nan], rtol=1e-6)
    assert_allclose(found.flux_ratio_error[0], np.sqrt(0.75 * 0.1**2 + 0.25 * 0.3**2), rtol=1e-6)
    assert_allclose(found.estimate[0], 2.0, rtol=1e-6)
    assert_allclose(_with_steps([one, other])[0].flux_ratio_error[0], 0.4 / 12**0.5, rtol=1e-6)


def test_suspicious_are_stars_above_the_ridge_and_poor_fits(ridge, sample, trained):
    stars = sample.take(np.arange(3)).stars(trained.labels)
    on_ridge = float(ridge.logg_at(jnp.asarray(5.0), jnp.asarray(0.0)))
    theta = np.asarray(
        [[5.0, 0.0, on_ridge, -2, 0], [5.0, 0.0, on_ridge - 0.2, -2, 0], [5.0, 0.0, 2.5, -2, 0]], np.float32
    )
    n = np.count_nonzero(np.diagonal(np.asarray(stars.whitening), axis1=1, axis2=2), axis=1)
    assert rows_asked(ridge, stars, theta, 0.5 * n, everywhere=False).tolist() == [1]
    assert rows_asked(ridge, stars, theta, [0.5, 0.5, 1.5] * n, everywhere=False).tolist() == [1, 2]
    assert rows_asked(ridge, stars, theta, 0.5 * n, everywhere=True).tolist() == [0, 1, 2]


def test_a_model_without_a_main_sequence_says_so(trained):
    wavelength = np.asarray(trained.channels.wavelengths)
    with pytest.raises(InputError, match="no main-sequence ridge.*without feh"):
        companion_ridge(trained.star_model, ("teff", "alpha_m", "logg"), wavelength)
    prior = trained.prior
    giants = replace(prior, mean=prior.mean.at[:, 2].set(2.0))
    with pytest.raises(InputError, match="no main-sequence ridge.*above 3.9"):
        companion_ridge(replace(trained.star_model, prior=giants), trained.labels, wavelength)
