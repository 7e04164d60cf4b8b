"""R1 from stars whose xi are known: its shape, its scale, its gauge and its sign; and R(V) along it."""

from dataclasses import replace

import astropy.units as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dust_extinction.parameter_averages import G23
from numpy.testing import assert_allclose

from xpbayes.models.forward import predict_flux
from xpbayes.training import unshared_xi
from xpbayes.training.curve_variation import (
    KEPT,
    LARGEST,
    MIN_STARS,
    fit_law,
    learn_curve_variation,
    without_grey_and_curve,
)

N = 1024
WAVELENGTH = np.append(np.arange(392.0, 1000.0, 10.0), [1235.0, 1662.0, 2159.0])


def _slope(r_v=3.1):
    """dA/dR(V) of G23 at fixed A(550 nm) and R(V) = 3.1, as far as R1 can be it."""
    a, b = (G23(Rv=r_v + step)(WAVELENGTH * u.nm) for step in (0.05, -0.05))
    return (a - b) / 0.1


@pytest.fixture(scope="module")
def forward(trained):
    curve = 2.5 * G23(Rv=3.1)(WAVELENGTH * u.nm)
    return replace(
        trained.forward, ln_curve=jnp.asarray(np.log(curve), jnp.float32), curve_variation=jnp.zeros(64, jnp.float32)
    )


def _planted(forward, trained, sample, truth):
    """Stars behind dust whose curves are R + xi times the truth; noise of 1 %, E known to 0.05 mag, parallax to 5 %."""
    random = np.random.default_rng(0)
    stars = sample.take(np.arange(N)).stars(trained.labels, label_error_floor=(0.02, 0.02, 0.02))
    known = np.isfinite(np.asarray(stars.labels)).all(axis=1) & (np.asarray(stars.label_inv_error) > 0).all(axis=1)
    stars = jax.tree.map(jnp.asarray, stars.take(known))
    n = len(stars)
    xi, extinction = random.standard_normal(n), random.uniform(0.5, 2.0, n)
    labels = np.asarray(stars.labels)
    theta = np.column_stack([labels, xi, np.log(extinction), random.normal(0, 0.3, n)]).astype(np.float32)
    model = replace(forward, curve_variation=jnp.asarray(truth, jnp.float32))
    flux = np.asarray(jax.vmap(predict_flux, (None, 0))(model, jnp.asarray(theta)), np.float64)
    whitening = np.stack([np.diag(1.0 / (0.01 * f)) for f in flux])
    flux *= 1 + 0.01 * random.standard_normal(flux.shape)
    stars = replace(
        stars, flux=jnp.asarray(flux, jnp.float32), whitening=jnp.asarray(whitening, jnp.float32),
        ln_scale=jnp.zeros(n), parallax=jnp.exp(theta[:, 5]), parallax_inv_error=jnp.exp(-theta[:, 5]) / 0.05,
        reddening=jnp.asarray(extinction, jnp.float32), reddening_inv_error=jnp.full(n, 20.0),
    )  # fmt: skip
    begin = theta.copy()
    begin[:, 3] = 0.0
    return stars, jnp.asarray(begin), jnp.asarray(xi, jnp.float32), truth


@pytest.fixture(scope="module")
def planted(forward, trained, sample):
    """R(V) = 3.1 + 0.3 xi of G23 to first order, R1 orthogonal to what dust and distance can mimic."""
    curve = np.exp(np.asarray(forward.ln_curve, np.float64))
    return _planted(forward, trained, sample, without_grey_and_curve(0.3 * 2.5 * _slope(), curve, np.eye(64)))


def test_parallaxes_and_reddenings_tell_what_fluxes_do_not(forward, trained, sample):
    """A law whose amount is E(B-V): R1 has a part along R and a grey one, both are found, and no channel is negative."""
    curve = np.exp(np.asarray(forward.ln_curve, np.float64))
    in_e_b_v = [2.5 / 3.1 * r_v * G23(Rv=r_v)(WAVELENGTH * u.nm) for r_v in (3.05, 3.15)]
    truth = 0.3 * (in_e_b_v[1] - in_e_b_v[0]) / 0.1
    stars, theta, xi, _ = _planted(forward, trained, sample, truth)
    found, _ = learn_curve_variation(forward, stars, theta, WAVELENGTH, 40)
    model = replace(forward, curve_variation=found)
    found, _ = learn_curve_variation(model, stars, theta.at[:, 3].set(xi), WAVELENGTH, 40)
    mimics = np.stack([np.ones(64), curve], axis=1)
    ours, theirs = (np.linalg.lstsq(mimics, np.asarray(v, np.float64), rcond=None)[0] for v in (found, truth))
    assert_allclose(ours, theirs, rtol=0.2)
    assert np.all(curve + 3.0 * found > 0) and np.all(curve - 3.0 * found > 0)


def test_shape_scale_and_sign_of_a_planted_variation(forward, planted):
    """1,000 xi tell R1 to a few per cent of its size; the unit width of the xi, not the start, sets its scale."""
    stars, theta, xi, truth = planted
    curve, plain = np.exp(np.asarray(forward.ln_curve, np.float64)), np.eye(64)

    def learned(forward, theta):
        found, history = learn_curve_variation(forward, stars, theta, WAVELENGTH, 20)
        assert history[-1] > history[0]
        assert np.all(np.abs(found) <= LARGEST * curve * 1.001)
        ours, theirs = (without_grey_and_curve(np.asarray(v, np.float64), curve, plain) for v in (found, truth))
        return found, ours @ theirs / np.sqrt(ours @ ours * (theirs @ theirs)), np.sqrt(ours @ ours / (theirs @ theirs))

    first, cosine, scale = learned(forward, theta)
    assert cosine > 0.99 and 0.5 < scale < 1.2
    # Once more around the xi that the stars' phase finds between: fluxes far from the mean curve are not linear in xi.
    second, cosine, scale = learned(replace(forward, curve_variation=first), theta.at[:, 3].set(xi / scale))
    assert cosine > 0.99
    assert_allclose(scale, np.std(xi), atol=4 * np.std(xi) / np.sqrt(2 * KEPT * len(xi)))


def test_what_dust_and_distance_can_mimic_is_taken_out():
    """A law: orthogonal to R and to grey in the metric, and nothing else is taken."""
    random = np.random.default_rng(1)
    curve, some = random.uniform(0.5, 3.0, 20), random.normal(size=20)
    root = random.normal(size=(20, 20))
    metric = root @ root.T
    left = without_grey_and_curve(some, curve, metric)
    assert_allclose([left @ metric @ np.ones(20), left @ metric @ curve], 0.0, atol=1e-8)
    again = without_grey_and_curve(left + 0.3 - 2.0 * curve, curve, metric)
    assert_allclose(again, left, atol=1e-8)


def test_few_stars_behind_dust_tell_nothing(forward, planted):
    stars, theta, _, _ = planted
    thin = theta.at[MIN_STARS - 1 :, -2].set(jnp.log(0.05))
    found, history = learn_curve_variation(forward, stars, thin, WAVELENGTH, 3)
    assert not np.any(found) and history == []


def test_xi_is_measured_and_an_unshared_part_of_it_becomes_its_error(forward, trained, planted, monkeypatch):
    """Pulls of unit width; a variance of 0.5 that neighbours did not share is what xi's variance rises by."""
    stars, theta, xi, truth = planted
    model = replace(trained.star_model, forward=replace(forward, curve_variation=jnp.asarray(truth, jnp.float32)))
    rows = np.arange(512)
    found, before, _ = unshared_xi._measured_xi(model, stars, theta.at[:, 3].set(xi), rows)
    pulls = (found - np.asarray(xi)[rows]) / np.sqrt(before)
    assert np.median(np.abs(pulls)) < 0.7 * 1.2  # the model's error is added to noise that has none
    monkeypatch.setattr(unshared_xi, "excess_by_kind", lambda *given: np.full(given[2].shape[1], 0.5))
    at_one_place = np.zeros(len(theta))
    thick = theta.at[:, -2].set(0.0)  # E = 1 mag
    error, excess = unshared_xi.with_unshared_xi(model, stars, thick, at_one_place, at_one_place)
    assert_allclose(excess, 0.5)
    _, before, _ = unshared_xi._measured_xi(model, stars, thick, rows)
    _, after, _ = unshared_xi._measured_xi(replace(model, error=error), stars, thick, rows)
    assert_allclose(np.median(after - before), 0.5, rtol=0.15)  # a star's amplitude changes, too


@pytest.mark.parametrize("r_v", [2.5, 3.1, 4.0, 5.0])
def test_r_v_of_published_laws(forward, r_v):
    """Dust of G23 with another R(V), as the model can describe it, has that R(V)."""
    curve, variation = np.exp(np.asarray(forward.ln_curve, np.float64)), 0.3 * 2.5 * _slope()
    model = replace(forward, curve_variation=jnp.asarray(variation, jnp.float32))
    law = fit_law(model, WAVELENGTH, None)
    basis = np.stack([curve, variation, np.ones(64)], axis=1)
    amount, along, _ = np.linalg.lstsq(basis, G23(Rv=r_v)(WAVELENGTH * u.nm), rcond=None)[0]
    found, slope = law.r_v(np.array([along / amount]))
    assert_allclose(found, r_v, atol=0.05)
    assert slope[0] > 0


def test_no_law_where_the_curve_does_not_vary(trained):
    assert fit_law(trained.forward, WAVELENGTH, None) is None
