"""One posterior, written once: the NumPyro models against the solver's objective, and METHOD 3's traps."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import log_density
from scipy.stats import chi2 as chi2_law
from scipy.stats import f, kstest, multivariate_normal, multivariate_t

from tests.conftest import as_double
from xpbayes.data.stars import ParallaxDoubt, Stars
from xpbayes.models.forward import initial_model
from xpbayes.models.objective import curvature, objective
from xpbayes.models.posterior import (
    LabelMixture,
    ModelShape,
    WhitenedStudent,
    model_from_sites,
    model_site_values,
    star_posterior,
    star_sites,
    theta_from_sites,
    training_posterior,
)
from xpbayes.models.star_model import StarModel

RNG = np.random.default_rng(0)
N = 1000


def _random_stars(stars: Stars) -> Stars:
    """Real stars with random bands and parallaxes missing, a third of them Gaussian, in float64."""
    stars = jax.tree.map(np.array, stars)
    n, n_channels = stars.flux.shape
    whitening = stars.whitening.astype(float)
    for i in np.flatnonzero(RNG.random(n) < 0.5):
        gone = RNG.choice(n_channels, RNG.integers(1, 4), replace=False)
        # Marginalising a channel: drop its row and column of the covariance, not of its inverse.
        present = np.setdiff1d(np.arange(n_channels), gone)
        covariance = np.linalg.inv(whitening[i].T @ whitening[i])[np.ix_(present, present)]
        whitening[i] = 0
        whitening[i][np.ix_(present, present)] = np.linalg.inv(np.linalg.cholesky(covariance))
    parallax = np.abs(RNG.normal(1, 0.5, n))
    return replace(
        stars,
        whitening=whitening,
        parallax=parallax,
        parallax_inv_error=np.where(RNG.random(n) < 0.5, 1 / 0.05, 0.0),
        reddening_inv_error=np.where(RNG.random(n) < 0.5, stars.reddening_inv_error, 0.0),
        inv_dof=np.where(RNG.random(n) < 1 / 3, 0.0, RNG.uniform(0.01, 1.0, n)),
    )


@pytest.fixture(scope="module")
def problem(trained, sample):
    stars = _random_stars(sample.take(np.arange(N)).stars(trained.labels, label_error_floor=(0.02, 0.02, 0.02)))
    start = np.concatenate([trained.prior.mean[RNG.integers(0, 8, N)], RNG.normal([-2, 0.3], 0.5, (N, 2))], axis=1)
    points = start + RNG.normal(0, 0.1, start.shape), start
    return stars, points


def _per_star(density, points):
    """Differences of a per-star function between two points: constants drop out."""
    return density(points[0]) - density(points[1])


def test_inference_objective_equals_numpyro(problem, trained, x64):
    """L(u1) - L(u2) = -2 [ln p(u1) - ln p(u2)] for each of 1,000 real stars.

    Missing bands and parallaxes, Gaussian fluxes and Student t are all among them; all parallaxes are doubted.
    """
    stars, points = as_double(problem)
    assert 0.2 < np.mean(np.asarray(stars.inv_dof) == 0) < 0.5
    doubt = ParallaxDoubt(jnp.asarray(RNG.uniform(0.0, 0.9, N)), jnp.full(N, 0.125))
    stars, model = replace(stars, doubt=doubt).blind(), as_double(trained.star_model.without_error)
    each = jax.jit(jax.vmap(partial(objective, model)))
    ours = _per_star(lambda u: each(stars, jnp.asarray(u)), points)

    @jax.jit
    @jax.vmap
    def one(star, u):
        batch = jax.tree.map(lambda leaf: leaf[None], star)
        return log_density(star_posterior, (batch, model), {}, star_sites(u[None]))[0]

    theirs = _per_star(lambda u: one(stars, jnp.asarray(u)), points)
    assert len(ours) == 1000
    assert_allclose(ours, -2 * theirs, rtol=1e-8, atol=1e-8)


def test_objectives_equal_numpyro_where_the_curve_varies(problem, trained, x64):
    """Both posteriors with xi among the sites, N(0, 1): of stars without labels, and of the training stars."""
    stars, points = as_double(problem)
    few = stars.take(slice(0, 40))
    points = tuple(np.insert(u[:40], 3, RNG.normal(0, 1.5, 40), axis=1) for u in points)
    variation = 0.1 * jnp.asarray(RNG.normal(size=64)) * jnp.exp(trained.forward.ln_curve)
    forward = as_double(replace(trained.forward, curve_variation=variation))
    model = StarModel(forward, as_double(trained.prior))
    blind = few.blind()

    @jax.jit
    def of_stars(u):
        return log_density(star_posterior, (blind, model), {}, star_sites(u, curve_varies=True))[0]

    each = jax.jit(jax.vmap(partial(objective, model)))
    ours = sum(_per_star(lambda u: each(blind, jnp.asarray(u)), points))
    assert_allclose(ours, -2 * _per_star(lambda u: of_stars(jnp.asarray(u)), points), rtol=1e-8)

    shape = ModelShape((32, 32, 32), 64, 40, forward.label_center, forward.label_scale, curve_varies=True)

    @jax.jit
    def of_training(u):
        sites = model_site_values(forward) | star_sites(u, curve_varies=True)
        return log_density(training_posterior, (few, shape), {}, sites)[0]

    each = jax.jit(jax.vmap(partial(objective, StarModel(forward))))
    ours = sum(_per_star(lambda u: each(few, jnp.asarray(u)), points))
    assert_allclose(ours, -2 * _per_star(lambda u: of_training(jnp.asarray(u)), points), rtol=1e-8)


def test_sites_of_a_star_and_back():
    u = jnp.asarray(RNG.normal(size=(4, 6)))
    assert_allclose(theta_from_sites(star_sites(u, curve_varies=True)), u)
    assert_allclose(theta_from_sites(star_sites(u[:, :5])), u[:, :5])


def test_training_objective_equals_numpyro(problem, trained, x64):
    """The same for the training posterior's star terms, over the whole batch at once."""
    stars, points = as_double(problem)
    model = as_double(trained.forward)
    shape = ModelShape((32, 32, 32), 64, N, model.label_center, model.label_scale)

    @jax.jit
    def numpyro_density(u):
        return log_density(training_posterior, (stars, shape), {}, model_site_values(model) | star_sites(u))[0]

    each = jax.jit(jax.vmap(partial(objective, StarModel(model))))
    ours = sum(_per_star(lambda u: each(stars, u), points))
    assert_allclose(ours, -2 * _per_star(numpyro_density, points), rtol=1e-8)


def test_a_batch_estimates_the_whole(problem, trained, x64):
    """Scaled densities of the two halves average to the density of all stars; the weight prior counts once."""
    stars, points = as_double(problem)
    model, u = as_double(trained.forward), points[0]
    shape = ModelShape((32, 32, 32), 64, N, model.label_center, model.label_scale)

    @jax.jit
    def density_of(part, u):
        return log_density(training_posterior, (part, shape), {}, model_site_values(model) | star_sites(u))[0]

    def density(part):
        return density_of(stars.take(part), u[part])

    halves = 0.5 * (density(slice(0, N // 2)) + density(slice(N // 2, N)))
    assert_allclose(halves, density(slice(0, N)), rtol=1e-10)


def test_weight_prior_is_n_w_over_n_star(trained, x64):
    """Doubling one weight changes ln p by its Gaussian term with variance n_W / N alone, far from the data."""
    model = as_double(trained.forward)
    stars = as_double(_no_stars(trained))
    shape = ModelShape((32, 32, 32), 64, 500, model.label_center, model.label_scale)
    u = star_sites(jnp.zeros((1, 5)))

    @jax.jit
    def density(w):
        values = model_site_values(model) | {"weights_1": w} | u
        return log_density(training_posterior, (stars, shape), {}, values)[0]

    n_weights = 3 * 32 + 2 * 32 * 32 + 32 * 64
    expected = -0.5 * 3 * jnp.sum(model.weights[1] ** 2) / (n_weights / 500)
    assert_allclose(density(2 * model.weights[1]) - density(model.weights[1]), expected, rtol=1e-10)


def _no_stars(trained) -> Stars:
    """One star that was not observed at all."""
    n = len(trained.channels)
    zero = np.zeros((1,), np.float32)
    return Stars(
        np.ones((1, n), np.float32), np.zeros((1, n, n), np.float32), zero, zero, zero,
        np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32), zero, zero, zero,
    )  # fmt: skip


def test_curvature_of_real_stars_equals_automatic_differentiation(problem, trained, x64):
    """The trained network and real covariances; every case of small models is in test_objective."""
    stars, points = as_double(problem)
    model = as_double(trained.star_model.without_error)
    ours = jax.jit(lambda star, u: curvature(model, star, u)[0])
    target = partial(objective, model)
    differentiated = [jax.jit(g) for g in (target, jax.grad(target, argnums=1), jax.hessian(target, argnums=1))]
    tails = np.asarray(stars.inv_dof)
    for i in (*np.flatnonzero(tails == 0)[:2], *np.flatnonzero(tails > 0)[:3]):
        star, u = stars.take(int(i)), jnp.asarray(points[1][i])
        at = ours(star, u)
        value, gradient, hessian = (g(star, u) for g in differentiated)
        assert_allclose(at.value, value, rtol=1e-12)
        assert_allclose(at.gradient, gradient, rtol=1e-9, atol=1e-7)
        assert_allclose(at.hessian, hessian, rtol=1e-9, atol=1e-9 * np.abs(hessian).max())


def test_jacobian_puts_the_mode_where_it_belongs(trained):
    """With E-hat = sigma_E = 0.03 as the only information, the mode in ln E is E = 0.0485, not 0.03 (METHOD 3)."""
    star = replace(
        _no_stars(trained),
        reddening=np.array([0.03], np.float32),
        reddening_inv_error=np.array([1 / 0.03], np.float32),
        parallax=np.array([1.0], np.float32),
        parallax_inv_error=np.array([10.0], np.float32),
        label_inv_error=np.ones((1, 3), np.float32),
    )
    shape = ModelShape((32, 32, 32), 64, 1, trained.forward.label_center, trained.forward.label_scale)
    model = handlers.condition(training_posterior, data=model_site_values(trained.forward))
    start = {"labels": jnp.zeros((1, 3)), "ln_E": jnp.log(jnp.array([0.03])), "ln_plx": jnp.zeros(1)}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
    svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO())
    result = jax.jit(lambda key: svi.run(key, 2000, star, shape, progress_bar=False).params)(jax.random.key(0))
    expected = (0.03 + np.sqrt(0.03**2 + 4 * 0.03**2)) / 2
    assert_allclose(np.exp(result["ln_E_auto_loc"]), expected, rtol=1e-3)
    assert_allclose(expected, 0.0485, rtol=2e-3)


def _scale_matrix(missing=()):
    """A 5 x 5 scale matrix and its whitening factor with rows and columns of missing components zero."""
    root = RNG.normal(size=(5, 5))
    matrix = root @ root.T + np.eye(5)
    present = np.setdiff1d(np.arange(5), missing)
    whitening = np.zeros((5, 5))
    inside = np.ix_(present, present)
    whitening[inside] = np.linalg.inv(np.linalg.cholesky(matrix[inside]))
    return matrix[inside], present, jnp.asarray(whitening)


@pytest.mark.parametrize("missing", [(), (2,), (0, 4)])
@pytest.mark.parametrize("inv_dof", [0.0, 0.02, 0.25, 1.0])
def test_density_is_scipy_s(x64, inv_dof, missing):
    """SciPy's Student t, or Gaussian, of the components that are there; normalised, a batch at once."""
    matrix, present, whitening = _scale_matrix(missing)
    mean, x = np.arange(5.0), RNG.normal(0, 3, (7, 5))
    kind = (
        partial(multivariate_t, df=1 / inv_dof, shape=matrix) if inv_dof else partial(multivariate_normal, cov=matrix)
    )
    ours = WhitenedStudent(jnp.asarray(mean), whitening, inv_dof)
    assert_allclose(ours.log_prob(jnp.asarray(x)), kind(mean[present]).logpdf(x[:, present]), rtol=1e-10)


def test_a_batch_may_mix_gaussians_and_students(x64):
    """One whitening and tail per star, as the models use it."""
    parts = [_scale_matrix(m) for m in ((), (1,), (3,))]
    tails, x = np.array([0.0, 0.1, 0.5]), RNG.normal(size=(3, 5))
    batch = WhitenedStudent(jnp.zeros((3, 5)), jnp.stack([p[2] for p in parts]), jnp.asarray(tails))
    assert batch.batch_shape == (3,) and batch.event_shape == (5,)
    found = batch.log_prob(jnp.asarray(x))
    for i, (_, _, whitening) in enumerate(parts):
        alone = WhitenedStudent(jnp.zeros(5), whitening, tails[i]).log_prob(jnp.asarray(x[i]))
        assert_allclose(found[i], alone, rtol=1e-12)


def test_gaussian_draws_have_the_covariance(x64):
    matrix, _, whitening = _scale_matrix()
    draws = np.asarray(WhitenedStudent(jnp.arange(5.0), whitening).sample(jax.random.key(0), (40_000,)))
    assert_allclose(draws.mean(0), np.arange(5.0), atol=5 * np.sqrt(matrix.max() / 40_000))
    assert_allclose(np.cov(draws.T), matrix, atol=5 * matrix.max() * np.sqrt(2 / 40_000))


def test_student_draws_have_their_moments_and_their_tail(x64):
    """Covariance nu / (nu - 2) times the scale matrix; chi^2 / n follows Fisher's F of n and nu."""
    matrix, _, whitening = _scale_matrix()
    nu, n = 8.0, 40_000
    draws = np.asarray(WhitenedStudent(jnp.zeros(5), whitening, 1 / nu).sample(jax.random.key(1), (n,)))
    assert_allclose(np.cov(draws.T), matrix * nu / (nu - 2), atol=10 * matrix.max() * np.sqrt(2 / n))
    chi2 = np.einsum("si,si->s", draws, np.linalg.solve(matrix, draws.T).T)
    assert kstest(chi2 / 5, f(5, nu).cdf).pvalue > 0.01
    assert kstest(chi2, chi2_law(5).cdf).pvalue < 1e-6, "a Gaussian's would fit: nothing was tested"


def test_draws_of_a_mixed_batch_keep_to_their_own_law(x64):
    """Per batch element, with a sample shape in front."""
    mixed = WhitenedStudent(jnp.zeros((2, 5)), jnp.eye(5), jnp.array([0.0, 0.5]))
    chi2 = np.sum(np.asarray(mixed.sample(jax.random.key(2), (20_000,))) ** 2, axis=-1)
    assert chi2.shape == (20_000, 2)
    assert kstest(chi2[:, 0], chi2_law(5).cdf).pvalue > 0.01 and kstest(chi2[:, 1] / 5, f(5, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("inv_dof", [0.0, 0.3])
def test_missing_components_are_drawn_at_their_mean(inv_dof):
    whitening = jnp.eye(4).at[2, 2].set(0.0)
    draw = np.asarray(WhitenedStudent(jnp.full(4, 7.0), whitening, inv_dof).sample(jax.random.key(0), (3,)))
    assert np.all(draw[:, 2] == 7.0) and np.all(draw[:, [0, 1, 3]] != 7.0)


def test_robust_scale_flattens_the_tail():
    """s asinh(rho / s): unchanged for small rho, logarithmic beyond."""
    normal, robust = (WhitenedStudent(jnp.zeros(3), jnp.eye(3), 0.0, s) for s in (0.0, 10.0))
    near, far = jnp.full(3, 0.1), jnp.full(3, 100.0)
    assert_allclose(robust.log_prob(near), normal.log_prob(near), rtol=1e-4)
    at_mean = float(normal.log_prob(jnp.zeros(3)))
    assert_allclose(robust.log_prob(far) - at_mean, -0.5 * 10 * np.arcsinh(3e4 / 10), rtol=1e-4)


def test_label_mixture_draws(trained):
    draws = LabelMixture(trained.prior).sample(jax.random.key(0), (2, 50))
    assert draws.shape == (2, 50, 3) and bool(jnp.all(jnp.isfinite(draws)))


def test_sites_round_trip():
    model = initial_model(jax.random.key(0), RNG.normal(size=(50, 3)), np.zeros(6), np.zeros(6), hidden=(4, 5))
    back = model_from_sites(model_site_values(model), model.label_center, model.label_scale)
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True))
