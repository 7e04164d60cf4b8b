"""chi^2, the model error folded into it, and the deviance of the Student t, against dense linear algebra and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal, multivariate_t, norm

from tests.conftest import as_double
from xpbayes.data.stars import ParallaxDoubt
from xpbayes.models.likelihood import (
    add_model_error,
    deviance,
    half_log_det_precision,
    ln_normalisation,
    n_observed,
    parallax_deviance,
    spurious_probability,
    whitened_residual,
)

RNG = np.random.default_rng(0)
N = 12


def _problem(missing=()):
    """Covariance of a measurement, a flux, S of a relative model error, what is present, and the whitening factor."""
    root = RNG.normal(size=(N, N))
    covariance = root @ root.T / N + 0.1 * np.eye(N)
    flux, factor = RNG.uniform(0.5, 2, N), 0.1 * RNG.normal(size=(N, 4))
    present = np.ones(N, bool)
    present[list(missing)] = False
    inside = np.ix_(present, present)
    whitening = np.zeros((N, N))
    whitening[inside] = np.linalg.inv(np.linalg.cholesky(covariance[inside]))
    return covariance, flux, factor @ factor.T, present, whitening


@pytest.mark.parametrize("missing", [(), (3,), (0, 11)])
def test_chi2_and_determinant_with_model_error_equal_the_direct_ones(x64, missing):
    covariance, flux, relative, present, whitening = _problem(missing)
    total = (covariance + np.outer(flux, flux) * relative)[np.ix_(present, present)]
    combined = add_model_error(*as_double((whitening, flux, relative)))
    residual = RNG.normal(size=N)
    expected = residual[present] @ np.linalg.solve(total, residual[present])
    white = whitened_residual(jnp.asarray(residual), jnp.zeros(N), combined)
    assert_allclose(np.sum(white**2), expected, rtol=1e-10)
    assert_allclose(half_log_det_precision(combined), -0.5 * np.linalg.slogdet(total)[1], rtol=1e-10)
    assert n_observed(combined) == present.sum()
    assert np.all(np.asarray(combined)[~present] == 0) and np.all(np.asarray(combined)[:, ~present] == 0)


def test_no_model_error_changes_nothing(x64):
    _, flux, relative, _, whitening = _problem()
    assert_allclose(add_model_error(jnp.asarray(whitening), jnp.asarray(flux), jnp.asarray(0 * relative)), whitening)


def test_model_error_only_ever_weakens_a_measurement(x64):
    _, flux, relative, _, whitening = _problem()
    combined = np.asarray(add_model_error(*as_double((whitening, flux, relative))))
    weaker = whitening.T @ whitening - combined.T @ combined
    assert np.linalg.eigvalsh(weaker)[0] > -1e-10


def test_a_singular_model_error_is_as_good_as_a_full_one(x64):
    """S of rank one, as a single bad direction has it: no factor of S is ever taken."""
    covariance, flux, _, _, whitening = _problem()
    direction = RNG.normal(size=N)
    combined = np.asarray(add_model_error(*as_double((whitening, flux, np.outer(direction, direction)))))
    expected = covariance + np.outer(flux * direction, flux * direction)
    assert_allclose(np.linalg.inv(combined.T @ combined), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("inv_dof", [0.0, 1e-3, 0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("missing", [(), (0, 5, 11)])
def test_deviance_and_normalisation_make_scipy_s_density(x64, inv_dof, missing):
    """ln N - rho / 2 of the fluxes that are there equals the log density of SciPy's Student t, or Gaussian."""
    covariance, _, _, present, whitening = _problem(missing)
    inside = covariance[np.ix_(present, present)]
    for scale in (0.1, 1.0, 30.0):
        residual = scale * RNG.normal(size=N)
        seen = residual[present]
        reference = (
            multivariate_t(shape=inside, df=1 / inv_dof) if inv_dof else multivariate_normal(cov=inside)
        )  # fmt: skip
        chi2 = jnp.sum(whitened_residual(jnp.asarray(residual), jnp.zeros(N), jnp.asarray(whitening)) ** 2)
        rho = deviance(chi2, n_observed(jnp.asarray(whitening)), jnp.asarray(inv_dof)).value
        ours = ln_normalisation(jnp.asarray(whitening), jnp.asarray(inv_dof)) - 0.5 * rho
        assert_allclose(ours, reference.logpdf(seen), rtol=1e-9)


@pytest.mark.parametrize("inv_dof", [0.0, 1e-3, 0.2, 2.0])
def test_slope_and_bend_are_the_derivatives(x64, inv_dof):
    for chi2 in (0.0, 3.0, 66.0, 1e4):
        found = deviance(jnp.asarray(chi2), jnp.asarray(66), jnp.asarray(inv_dof))
        value = lambda x: deviance(x, jnp.asarray(66), jnp.asarray(inv_dof)).value  # noqa: E731
        assert_allclose(found.slope, jax.grad(value)(chi2), rtol=1e-12)
        assert_allclose(found.bend, jax.grad(jax.grad(value))(chi2), rtol=1e-10, atol=1e-300)


def test_a_light_tail_is_a_gaussian(x64):
    """The limit from above meets the value at zero."""
    whitening = jnp.asarray(_problem((2,))[-1])
    for part in (
        lambda inv_dof: deviance(jnp.asarray(20.0), jnp.asarray(11), inv_dof).value,
        lambda inv_dof: ln_normalisation(whitening, inv_dof),
    ):
        assert_allclose(part(jnp.asarray(1e-7)), part(jnp.asarray(0.0)), rtol=1e-4)


def test_a_bad_fit_weighs_less_and_a_good_one_more():
    """A Student t gives every star a noise amplitude of its own; a Gaussian treats all alike."""
    n = jnp.asarray(60)
    good, typical, bad = (float(deviance(jnp.asarray(c), n, jnp.asarray(0.2)).slope) for c in (10.0, 60.0, 600.0))
    assert good > 1.0 > bad
    assert_allclose(typical, 1.0, rtol=1e-6)
    assert deviance(jnp.asarray(600.0), n, jnp.asarray(0.0)).slope == 1.0


def test_gradients_are_finite_for_a_gaussian():
    """The branch that is not taken must not spoil the derivative of the one that is."""
    grad = jax.grad(lambda t: deviance(jnp.asarray(5.0), jnp.asarray(6), t).value + ln_normalisation(jnp.eye(6), t))
    assert bool(jnp.isfinite(grad(jnp.asarray(0.0)))) and bool(jnp.isfinite(grad(jnp.asarray(0.1))))


@pytest.mark.parametrize(("prior", "narrowing"), [(0.02, 0.125), (0.6, 0.5), (0.0, 0.125)])
def test_a_doubted_parallax_has_two_gaussians(x64, prior, narrowing):
    doubt = ParallaxDoubt(jnp.asarray(prior), jnp.asarray(narrowing))
    z = np.linspace(0.0, 12.0, 9)
    both = np.array([(1 - prior) * norm.pdf(z), prior * norm.pdf(z, scale=1 / narrowing)])
    found = jax.vmap(parallax_deviance, (0, None))(jnp.asarray(z**2), doubt)
    expected = -2 * np.log(both.sum(axis=0))
    assert_allclose(found.value - found.value[0], expected - expected[0], rtol=1e-10, atol=1e-10)
    assert_allclose(spurious_probability(jnp.asarray(z**2), doubt), both[1] / both.sum(axis=0), rtol=1e-10)
    slope = jax.grad(lambda square: parallax_deviance(square, doubt).value)
    assert_allclose(found.slope, [slope(square) for square in z**2], rtol=1e-10)
    assert_allclose(found.bend, [jax.grad(slope)(square) for square in z**2], rtol=1e-8, atol=1e-12)
    alone = parallax_deviance(jnp.asarray(7.0), None)
    assert [float(v) for v in alone] == [7.0, 1.0, 0.0]
