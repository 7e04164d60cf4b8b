"""Closed-form starts against brute force over extinction and amplitude."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.inference.search.starts import (
    LOG_FLUX_SOFTENING,
    MAX_EXTINCTION,
    MIN_EXTINCTION,
    _node_fits,
    find_starts,
    first_guess,
    make_grid,
)
from xpbayes.models.forward import predict_flux
from xpbayes.models.objective import objective
from xpbayes.models.prior import component_ln_density


@pytest.fixture(scope="module")
def grid(trained):
    return make_grid(trained.star_model.without_error, 64)


@pytest.fixture(scope="module")
def stars(trained, sample):
    return jax.tree.map(jnp.asarray, sample.take(np.arange(8)).stars(trained.labels).blind())


@pytest.mark.parametrize("with_parallax", [False, True])
def test_closed_form_equals_brute_force(trained, grid, stars, with_parallax):
    if with_parallax:
        stars = replace(stars, parallax=jnp.full(8, 0.7), parallax_inv_error=jnp.full(8, 20.0))
    extinction, a, _ = (np.asarray(x, float) for x in _node_fits(trained.forward, grid, stars))
    curve = np.exp(np.asarray(trained.forward.ln_curve, float))
    for i in range(8):
        flux = np.asarray(stars.flux[i], float)
        precision = np.sum(np.asarray(stars.whitening[i], float) ** 2, axis=0)
        weight = np.where(flux > 0, 1 / (1 / (precision * flux**2) + LOG_FLUX_SOFTENING**2), 0)
        y = np.log(np.where(flux > 0, flux, 1)) + float(stars.ln_scale[i])
        for k in (0, 13, 40):
            d = y - np.asarray(grid.ln_flux[k], float)
            e = np.geomspace(MIN_EXTINCTION, MAX_EXTINCTION, 4001)
            p_weight, p_a = ((0.5 * 0.7 * 20) ** 2, 2 * np.log(0.7)) if with_parallax else (0.0, 0.0)
            best_a = ((weight * (d + e[:, None] * curve)).sum(1) + p_weight * p_a) / (weight.sum() + p_weight)
            model = best_a[:, None] - e[:, None] * curve
            chi2 = (weight * (d - model) ** 2).sum(1) + p_weight * (best_a - p_a) ** 2
            j = np.argmin(chi2)
            # The scan's own step is 0.17 % in E; the closed form cancels sums of order 1e5 in float32.
            assert_allclose(extinction[i, k], e[j], rtol=0.02, atol=0.02)
            assert_allclose(a[i, k], best_a[j], atol=0.05)


def test_first_start_is_the_best_of_all(trained, grid, stars):
    starts = find_starts(trained.star_model.without_error, grid, stars, 3)
    value = jax.jit(
        jax.vmap(lambda star, u: jax.vmap(lambda v: objective(trained.star_model.without_error, star, v))(u))
    )(stars, starts)
    assert np.all(np.argmin(np.asarray(value), axis=1) == 0)


def test_starts_of_one_component_are_apart(trained, stars):
    grid = make_grid(trained.star_model.without_error, 512)
    of_one = grid._replace(members=np.ones((1, 512), bool))
    starts = np.asarray(find_starts(trained.star_model.without_error, of_one, stars, 2))
    distance = np.linalg.norm((starts[:, 0, :3] - starts[:, 1, :3]) / np.asarray(trained.forward.label_scale), axis=1)
    assert np.mean(distance > 0.5) > 0.5


def test_starts_are_of_different_components(trained, stars):
    """While there are components left: those of the prior that are likeliest to have a start are all different."""
    grid = make_grid(trained.star_model.without_error, 512)
    members = np.asarray(grid.members)
    assert_array_equal(members.sum(axis=0), 1)
    starts = find_starts(trained.star_model.without_error, grid, stars, 4)
    density = jax.vmap(jax.vmap(lambda labels: component_ln_density(trained.prior, labels)))(starts[:, :, :3])
    component = np.sort(np.argmax(np.asarray(density), axis=2), axis=1)
    assert members.any(axis=1).sum() >= 4
    assert np.all(np.diff(component, axis=1) > 0)


def test_the_first_guess_is_the_best_node_of_the_linear_problem(trained, grid, stars):
    extinction, a, score = (np.asarray(x) for x in _node_fits(trained.forward, grid, stars))
    best, row = np.argmin(score, axis=1), np.arange(8)
    guess = np.asarray(first_guess(trained.forward, grid, stars))
    assert_array_equal(guess[:, :3], np.asarray(grid.labels)[best])
    assert_allclose(np.exp(guess[:, 3]), extinction[row, best], atol=1e-5)
    assert_allclose(guess[:, 4], 0.5 * a[row, best], rtol=1e-5)


def test_a_star_on_a_node_starts_there(trained, grid):
    """A noiseless star made from a node's labels: the search finds node, extinction and parallax."""
    from xpbayes.data.stars import Stars

    truth = jnp.concatenate([grid.labels[5], jnp.log(jnp.array([0.4, 1.3]))])
    flux = predict_flux(trained.forward, truth)
    n = len(flux)
    zero = jnp.zeros(1)
    star = Stars(
        (flux / jnp.max(flux))[None], jnp.diag(jnp.max(flux) / (0.01 * flux))[None], jnp.log(jnp.max(flux))[None],
        zero, zero, jnp.zeros((1, 3)), jnp.zeros((1, 3)), zero, zero, zero,
    )  # fmt: skip
    found = np.asarray(find_starts(trained.star_model.without_error, grid, star, 1))[0, 0]
    assert n == 64
    assert_allclose(found, truth, atol=0.02)


def test_missing_bands_and_negative_fluxes_are_harmless(trained, grid, stars):
    flux = stars.flux.at[0, :5].set(-0.01)
    whitening = stars.whitening.at[1].set(0.0).at[1, 61:, 61:].set(stars.whitening[1, 61:, 61:])
    starts = find_starts(trained.star_model.without_error, grid, replace(stars, flux=flux, whitening=whitening), 2)
    assert bool(jnp.all(jnp.isfinite(starts)))
