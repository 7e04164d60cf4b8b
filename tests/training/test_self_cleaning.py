"""Self-cleaning finds doubled stars, by the rules of ZGR23, and the cuts are the paper's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpbayes.config import HighQuality, Phase
from xpbayes.models.forward import predict_flux
from xpbayes.training.learn import initial_theta, run_star_phase
from xpbayes.training.self_cleaning import (
    diagnostic,
    fig4_outliers,
    high_quality,
    pulls,
    sun_like,
    survivors,
    with_absolute_magnitudes,
)

RNG = np.random.default_rng(1)
LABELS = ("teff", "feh", "logg")


@pytest.fixture(scope="module")
def doubled(trained, sample):
    """200 Sun-like stars drawn from the model with precise measurements, every fifth a binary of two equal stars."""
    n = 200
    real = jax.tree.map(jnp.asarray, sample.take(np.arange(n)).stars(LABELS))
    truth = np.tile([5.7, 0.0, 4.5], (n, 1))
    u = jnp.asarray(np.column_stack([truth, np.full(n, np.log(0.02)), np.zeros(n)]), jnp.float32)
    flux = jax.vmap(predict_flux, (None, 0, 0))(trained.forward, u, real.ln_scale)
    binary = np.arange(n) % 5 == 0
    whitening = real.whitening * (jnp.sum(real.flux**2, axis=1) / jnp.sum(flux**2, axis=1))[:, None, None] ** 0.5
    white = RNG.normal(size=flux.shape)
    noise = np.linalg.solve(np.asarray(whitening, np.float64), white[..., None])[..., 0]
    error = np.tile([0.05, 0.05, 0.04], (n, 1))
    stars = replace(
        real,
        flux=jnp.asarray(flux * np.where(binary, 2.0, 1.0)[:, None] + noise, jnp.float32),
        whitening=whitening,
        labels=jnp.asarray(truth + 0.3 * error * RNG.normal(size=(n, 3)), jnp.float32),
        label_inv_error=jnp.asarray(1 / error, jnp.float32),
        parallax=jnp.asarray(1 + 0.02 * RNG.normal(size=n), jnp.float32),
        parallax_inv_error=jnp.full(n, 50.0),
        reddening=jnp.full(n, 0.02),
        reddening_inv_error=jnp.full(n, 50.0),
    )
    solved, _, _ = run_star_phase(trained.forward, stars, initial_theta(stars), Phase(update="stars", epochs=30))
    return stars, solved, binary, pulls(trained.forward, stars, solved)


def test_binaries_are_found_and_singles_kept(doubled):
    _, _, binary, found = doubled
    stays = survivors(found, Phase(update="self_cleaning", max_flux_pull=0.0))["both"]
    assert (~stays[binary]).mean() > 0.9 and stays[~binary].mean() > 0.97


def test_binaries_pull_the_way_fig4_shows(doubled):
    """Towards a larger parallax and a lower log g; outliers of Fig. 4 are the binaries, 0.75 mag too bright."""
    stars, solved, binary, found = doubled
    assert np.all(found.labels[binary, 2] < 0) and np.all(found.parallax[binary] > 0)
    record = with_absolute_magnitudes(diagnostic(stars, solved, found, LABELS), np.full(len(binary), 14.7))
    row = np.asarray(record["row"])
    assert len(row) > 150 and np.mean(np.asarray(record["outlier"]) == binary[row]) > 0.95
    expected = 14.7 - 10 + 5 * np.log10(np.exp(np.asarray(solved)[row, -1]))
    np.testing.assert_allclose(record["absolute_magnitude"], expected, atol=2e-3)


def test_pulls_are_in_units_of_each_channels_own_sigma(doubled, trained):
    stars, solved, _, found = doubled
    i = 3
    covariance = np.linalg.inv(np.asarray(stars.whitening[i].T @ stars.whitening[i], np.float64))
    residual = np.asarray(predict_flux(trained.forward, solved[i], stars.ln_scale[i]) - stars.flux[i], np.float64)
    expected = residual / np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found.flux[i], np.abs(expected).max(), rtol=5e-3)
    np.testing.assert_allclose(found.mean_square[i], np.mean(expected**2), rtol=5e-3)


def test_a_missing_channel_is_not_judged(doubled, trained):
    stars, solved, _, found = doubled
    gone = replace(
        stars,
        flux=stars.flux.at[:, 63].set(1e6),
        whitening=stars.whitening.at[:, 63, :].set(0.0).at[:, :, 63].set(0.0),
    )
    again = pulls(trained.forward, gone, solved)
    assert np.all(again.flux <= found.flux * 1.001)


def test_each_rule_can_be_configured(doubled):
    *_, found = doubled
    odd = found._replace(
        flux=np.where(np.arange(200) == 1, 4.5, 1.0), mean_square=np.where(np.arange(200) == 2, 6.0, 1.0)
    )
    paper = survivors(odd, Phase(update="self_cleaning"))
    assert np.flatnonzero(~paper["fluxes"]).tolist() == [1]
    authors = survivors(odd, Phase(update="self_cleaning", max_flux_pull=0.0, max_mean_square=5.0))
    assert np.flatnonzero(~authors["fluxes"]).tolist() == [2]
    assert survivors(odd, Phase(update="self_cleaning", max_parameter_pull=1e9))["parameters"].all()
    np.testing.assert_array_equal(paper["both"], paper["parameters"] & paper["fluxes"])


def test_equation_15(doubled):
    stars = doubled[0]
    assert all(cut.all() for cut in high_quality(stars, HighQuality()).values())
    worse = replace(stars, reddening_inv_error=stars.reddening_inv_error.at[0].set(10.0))
    worse = replace(worse, parallax_inv_error=worse.parallax_inv_error.at[1].set(0.0))
    worse = replace(worse, label_inv_error=worse.label_inv_error.at[2, 1].set(5.0))
    cuts = high_quality(worse, HighQuality())
    assert [np.flatnonzero(~cut).tolist() for cut in cuts.values()] == [[2], [1], [0]]


def test_equation_16(doubled):
    stars = doubled[0]
    assert sun_like(stars, LABELS).mean() > 0.9
    assert not sun_like(stars, ("teff", "feh", "alpha_m")).any()
    assert not sun_like(replace(stars, reddening=stars.reddening + 0.1), LABELS).any()
    assert not sun_like(replace(stars, labels=stars.labels.at[:, 2].set(2.5)), LABELS).any()


def test_the_circle_of_fig4():
    assert fig4_outliers(np.array([3.4, -3.6, 2.6]), np.array([0.0, 0.0, 2.6])).tolist() == [False, True, True]
