import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from tests.analysis.rows import halves, make_rows
from xpbayes.analysis.figures.correlations import (
    Correlations,
    correlation_of_inverse,
    draw_correlations,
    unpacked,
)

RNG = np.random.default_rng(0)
N = 5
NAMES = ("teff", "feh", "logg", "extinction", "parallax")


def _fisher(n, parallax_error=None):
    """Fisher matrices of fluxes that parallax and log g change almost alike, as those of XP spectra."""
    jacobian = RNG.normal(size=(n, 30, N))
    jacobian[:, :, 4] = 0.9 * jacobian[:, :, 2] + 0.3 * jacobian[:, :, 4]
    fisher = 50 * np.einsum("sci,scj->sij", jacobian, jacobian)
    if parallax_error is not None:
        fisher[:, 4, 4] += parallax_error**-2.0
    return fisher


def _triangle(fisher):
    return fisher[:, *np.triu_indices(N)].astype(np.float32)


def _medians(fisher):
    """By a loop over stars, with NumPy's own inverse and median."""
    found = []
    for matrix in fisher:
        covariance = np.linalg.inv(matrix)
        sigma = np.sqrt(np.diag(covariance))
        found.append(covariance / np.outer(sigma, sigma))
    return np.median(found, axis=0)


def _gathered(rows, uses_parallax):
    numbers = Correlations(NAMES, uses_parallax)
    for part in halves(rows):
        numbers.add(part)
    return numbers


def test_medians_without_parallaxes_against_a_loop():
    fisher = _fisher(501)
    result = _gathered(make_rows(501, stellar_params_icov_triu=_triangle(fisher)), False)
    assert_allclose(result.medians(False), _medians(fisher), atol=2e-4)
    assert (result.n_stars, result.n_failed) == ([501, 0], 0)


def test_parallaxes_are_taken_out_of_the_fisher_matrix():
    """Of 401 stars 100 have none: both panels against the loop, on their own stars (odd numbers have one middle)."""
    error = RNG.uniform(0.02, 0.5, 401)
    flux, state = _fisher(401), np.arange(401) >= 100
    fisher = flux.copy()
    fisher[state, 4, 4] += error[state] ** -2.0
    rows = make_rows(
        401, {"parallax_error": error}, stellar_params_icov_triu=_triangle(fisher), dof=np.where(state, 60, 59)
    )
    result = _gathered(rows, True)
    assert_allclose(result.medians(False), _medians(flux), atol=2e-4)
    assert_allclose(result.medians(True), _medians(fisher[state]), atol=2e-4)
    assert result.n_stars == [401, 301]


def test_a_parallax_loosens_log_g_and_leaves_teff_and_extinction():
    """The paper's pattern: parallax - log g drops, Teff - E stays."""
    rows = make_rows(
        300, {"parallax_error": np.full(300, 0.01)}, stellar_params_icov_triu=_triangle(_fisher(300, np.float64(0.01))),
        dof=np.full(300, 60),
    )  # fmt: skip
    result = _gathered(rows, True)
    assert abs(result.medians(False)[2, 4]) > 0.9 > 0.7 > abs(result.medians(True)[2, 4])
    assert abs(result.medians(False)[0, 3] - result.medians(True)[0, 3]) < 0.05


def test_unusable_matrices_are_counted_not_averaged():
    fisher = _fisher(100)
    fisher[:10, 0, 0] = -1
    fisher[10:20] = np.nan
    fisher[20:25, 3, :] = fisher[20:25, :, 3] = 0
    rows = make_rows(100, stellar_params_icov_triu=_triangle(fisher), solved=np.arange(100) < 90)
    result = _gathered(rows, False)
    assert (result.n_stars[0], result.n_failed) == (65, 25)
    assert_allclose(result.medians(False), _medians(fisher[25:90]), atol=2e-4)


def test_a_star_whose_parallax_error_is_not_known_is_left_out_of_flux_only():
    rows = make_rows(
        40, {"parallax_error": np.where(np.arange(40) < 10, np.nan, 0.1)},
        stellar_params_icov_triu=_triangle(_fisher(40, np.float64(0.1))), dof=np.full(40, 60),
    )  # fmt: skip
    result = _gathered(rows, True)
    assert (result.n_stars, result.n_failed) == ([30, 40], 10)


def test_correlation_is_one_on_the_diagonal_and_scale_free():
    fisher = np.moveaxis(_fisher(20), 0, -1)
    scale = 10.0 ** RNG.uniform(-4, 4, (N, 20))
    a, good = correlation_of_inverse(fisher)
    b, _ = correlation_of_inverse(fisher * scale[:, None] * scale[None, :])
    assert good.all()
    assert_allclose(a, b, atol=1e-8)
    assert_allclose(np.diagonal(a), 1.0)


def test_every_correlation_is_that_of_numpy_s_inverse():
    """More stars than one block, one in a hundred of them with an eigenvalue below zero."""
    fisher = _fisher(5000)
    bad = np.arange(5000) % 100 == 7
    values, vectors = np.linalg.eigh(fisher[bad])
    fisher[bad] -= 1.5 * values[:, :1, None] * vectors[:, :, :1] * vectors[:, :, :1].transpose(0, 2, 1)
    found, good = correlation_of_inverse(np.moveaxis(fisher, 0, -1))
    assert_array_equal(good, ~bad)
    covariance = np.linalg.inv(fisher[good])
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert_allclose(
        np.moveaxis(found, -1, 0)[good], covariance / (sigma[:, :, None] * sigma[:, None, :]), rtol=0, atol=1e-9
    )


def test_triangles_are_row_by_row():
    matrix = RNG.normal(size=(3, N, N))
    matrix += np.swapaxes(matrix, 1, 2)
    assert_allclose(np.moveaxis(unpacked(matrix[:, *np.triu_indices(N)], N), -1, 0), matrix)


def test_the_drawing_prints_the_numbers_and_the_papers():
    result = _gathered(make_rows(50, stellar_params_icov_triu=_triangle(_fisher(50))), False)
    texts = [t.get_text() for t in draw_correlations(result).axes[0].texts]
    assert f"{result.medians(False)[4, 2]:+.3f}" in texts and "(+0.987)" in texts
