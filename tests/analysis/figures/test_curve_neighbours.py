"""xi of neighbours: fields whose correlation is known, a control that has none, components that neighbours share or not."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.analysis.rows import halves, make_rows
from xpbayes.analysis.figures.curve_neighbours import (
    DustyStars,
    components,
    draw_neighbours,
    neighbours,
    residuals_over_extinction,
)
from xpbayes.analysis.figures.flux_residuals import FluxSample, sky_residuals
from xpbayes.analysis.run_inputs import Run, open_stars
from xpbayes.analysis.topic import NotDrawnError, require_variation

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def clumps():
    """300 groups of 10 stars within 0.2 deg, far apart; a value that a group shares, with noise of half its variance."""
    ra, dec = np.repeat(RNG.uniform(0, 360, 300), 10), np.repeat(np.degrees(np.arcsin(RNG.uniform(-0.9, 0.9, 300))), 10)
    ra, dec = ra + RNG.uniform(-0.07, 0.07, 3000), dec + RNG.uniform(-0.07, 0.07, 3000)
    value = np.repeat(RNG.standard_normal(300), 10) + RNG.standard_normal(3000) * np.sqrt(0.5)
    return ra, dec, value


def test_neighbours_share_what_they_share_and_shuffled_ones_nothing(clumps):
    found = neighbours(*clumps)
    near = found.high <= 0.3
    assert_allclose(found.correlation[near], 1 / 1.5, atol=0.1)
    assert abs(found.correlation[-1]) < 0.05
    known = np.isfinite(found.shuffled)
    assert (np.abs(found.shuffled[known]) < 4 * found.shuffled_std[known] / np.sqrt(20) + 1e-3).all()


def test_pairs_are_counted_in_their_bins():
    ra, dec = np.array([10.0, 10.04, 10.5, 12.0]), np.zeros(4)
    found = neighbours(ra, dec, np.arange(4.0), edges=(0.1, 1.0, 3.0))
    assert found.n.tolist() == [1, 2, 3] and np.isnan(found.correlation).all()


def test_of_many_pairs_some_are_taken(clumps, monkeypatch):
    from xpbayes.analysis.figures import curve_neighbours

    monkeypatch.setattr(curve_neighbours, "MAX_PAIRS", 5000)
    found = neighbours(*clumps, edges=(0.3, 30.0))
    assert found.n[0] < 8000 and abs(found.correlation[0] - 1 / 1.5) < 0.15


def test_a_direction_that_neighbours_share_is_told_from_one_that_they_do_not(clumps):
    """Residuals of two directions, the stronger of the stars, the weaker of the sky."""
    ra, dec, value = clumps
    curve, weight = np.linspace(3, 1, 20), RNG.uniform(1e3, 2e3, 20)
    of_sky, of_star = np.sin(np.arange(20) / 3.0), np.cos(np.arange(20.0))
    noise = 0.01 * RNG.standard_normal((3000, 20))
    residual = 0.05 * value[:, None] * of_sky + 0.15 * RNG.standard_normal((3000, 1)) * of_star + noise
    mimics = np.stack([np.ones(20), curve], axis=1)
    found = components(residual + RNG.standard_normal((3000, 1)) * curve, mimics, of_sky, weight, ra, dec)
    assert found.share[0] > found.share[1] > 5 * found.share[2]
    assert abs(found.correlation[0]) < 0.1 and found.correlation[1] > 0.4 and (np.abs(found.shuffled) < 0.1).all()
    assert found.cosine[1] > 0.8
    beyond = components(residual, np.column_stack([mimics, of_sky]), of_sky, weight, ra, dec)
    assert np.abs(beyond.correlation).max() < 0.15  # nothing of the sky is left
    assert len(draw_neighbours(neighbours(ra, dec, value), {"mean curve": found, "beyond": beyond}).axes) == 3


def test_residuals_over_extinction_are_the_curve(trained, sample, analysed):
    """Stars as bright as the model says behind dust of xi = 1: E R1 is seen at the mean curve, nothing at their own."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp

    from xpbayes.models.forward import predict_flux

    forward = trained.forward
    variation = 0.05 * np.exp(np.asarray(forward.ln_curve)) * np.linspace(-1, 1, len(trained.channels))
    varied = replace(trained.star_model.forward, curve_variation=jnp.asarray(variation, jnp.float32))
    model = replace(trained, star_model=replace(trained.star_model, forward=varied), calibration=None)
    stars = sample.take(np.arange(8))
    estimate = np.tile([5.0, 0.0, 3.0, 0.8, 1.0], (8, 1))
    at = np.insert(np.append(estimate[0, :3], np.log(estimate[0, 3:])), 3, 1.0)
    flux = np.asarray(jax.jit(predict_flux)(varied, jnp.asarray(at, jnp.float32)))
    observed = stars.replace(flux=np.tile(flux, (8, 1)).astype(np.float32))

    class InMemory:
        def batches(self, most):
            return [observed]

    run = Run(model=model, stars=InMemory())
    found = {"source_id": stars.source_id, "stellar_params_est": estimate, "xi": np.ones(8)}
    there = stars.channel_present()
    own = residuals_over_extinction(run, found, own_curve=True)
    assert np.abs(own[there]).max() < 1e-3 and np.isnan(own[~there]).all()
    straight = residuals_over_extinction(run, found, own_curve=False)
    expected = np.tile((1.0 - np.exp(-0.8 * variation)) / 0.8, (8, 1))
    assert_allclose(straight[there], expected[there], atol=2e-3)


def test_which_stars_are_compared(analysed):
    run = Run(stars=open_stars(analysed / "stars.parquet"))
    source_id = run.stars.sampled_ids(None)[:200]
    estimate = np.tile([5.0, 0.0, 3.0, 0.2, 1.0], (200, 1))
    estimate[:150, 3] = 0.9
    xi = np.where(np.arange(200) < 10, np.nan, 0.3)
    stars = DustyStars(run)
    rows = make_rows(
        200, source_id=source_id, stellar_params_est=estimate, xi=xi, xi_err=np.ones(200),
        converged=np.arange(200) != 149,
    )  # fmt: skip
    for part in halves(rows):
        stars.add(part)
    assert len(stars.result()["xi"]) == 139
    few = DustyStars(run)
    few.add(make_rows(9, source_id=source_id[:9], stellar_params_est=estimate[:9], xi=xi[:9], xi_err=xi[:9]))
    with pytest.raises(NotDrawnError, match=r"0 stars of the catalogue have E > 0\.6"):
        few.result()


def test_without_variation_it_is_said(trained):
    from dataclasses import replace

    plain = replace(trained.star_model, forward=replace(trained.forward, curve_variation=None))
    with pytest.raises(NotDrawnError, match="one extinction curve for all stars"):
        require_variation(Run(model=replace(trained, star_model=plain)))


def test_the_sky_of_dusty_stars_alone():
    n = 400
    chi = np.ones((n, 1), np.float32)
    estimate = np.tile(np.float32([5, 0, 3, 0.2, 1]), (n, 1))
    estimate[:300, 3] = 0.5
    error = np.full((n, 5), 0.01, np.float32)
    columns = {
        "stellar_params_est": estimate, "stellar_params_err": error, "ra": RNG.uniform(0, 360, n), "dec": np.zeros(n),
        "chi2_opt": np.ones(n), "dof": np.ones(n),
    }  # fmt: skip
    sample = FluxSample(("J",), chi, columns, 3 * chi)
    found = sky_residuals(sample, ("J", "Ks"), 0.3)
    assert (
        found.channels == ("J",)
        and found.n_stars == 300
        and found.cuts == {"E < 0.3": 100} | {k: 0 for k in found.cuts if k != "E < 0.3"}
    )
