"""D c and D C_c D^T against GaiaXPy's own calibrate, on every real source at hand."""

import contextlib
import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.channels import XP_GRID_NM
from xpbayes.instrument.bases import instrument_of
from xpbayes.instrument.error_model import inflate
from xpbayes.instrument.gaiaxpy import figures_left_alone
from xpbayes.instrument.whitening import EIGENVALUE_FLOOR, whiten_packed
from xpbayes.instrument.xp_covariance import (
    FLUX_UNIT_SI,
    XpSide,
    calibrate,
    coefficient_covariance,
    sample_spectra,
)

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real spectra are not beside the project")

REAL = ("XP_CONTINUOUS_RAW.csv", "XP_CONTINUOUS_RAW_with_missing_BP.csv", "18Sco-XP-spectra.csv")


def made_up_side(rng: np.random.Generator, n: int, k: int = 55, correlated: bool = True) -> XpSide:
    factor = rng.normal(size=(n, k, 3)) * 0.3
    matrix = factor @ factor.transpose(0, 2, 1) + np.eye(k)
    sigma = np.sqrt(np.diagonal(matrix, axis1=1, axis2=2))
    row, column = np.tril_indices(k, -1)
    correlation = (matrix / sigma[:, :, None] / sigma[:, None, :])[:, row, column]
    return XpSide(
        coefficient=rng.normal(size=(n, k)) * 100,
        error=rng.uniform(0.5, 2.0, (n, k)),
        correlation=correlation if correlated else None,
        standard_deviation=rng.uniform(1.0, 1.4, n),
        present=np.ones(n, bool),
    )


def by_gaiaxpy(table):
    with figures_left_alone():
        from gaiaxpy import calibrate as reference

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        spectra, _ = reference(table, sampling=XP_GRID_NM, save_file=False)
    order = np.argsort(spectra["source_id"].to_numpy())
    flux = np.stack(spectra["flux"].to_list())[order] / FLUX_UNIT_SI
    error = np.stack(spectra["flux_error"].to_list())[order] / FLUX_UNIT_SI
    return flux, error


@needs_data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REAL)
def test_real_sources_with_correlations_agree_with_gaiaxpy(name, tmp_path):
    import pandas as pd

    path = DATA / "xp_continuous" / name
    (batch,) = read_xp_continuous(path)
    order = np.argsort(batch.source_id)
    flux, covariance, present = sample_spectra(batch.bp.take(order), batch.rp.take(order))
    table = pd.read_csv(path)
    for band in ("bp", "rp"):  # 18 Sco has no standard deviations; they cancel from GaiaXPy's errors
        if f"{band}_standard_deviation" not in table:
            table[f"{band}_standard_deviation"] = 1.0
        if f"{band}_n_relevant_bases" not in table:
            table[f"{band}_n_relevant_bases"] = 55
    table.to_csv(tmp_path / "given.csv", index=False)
    expected_flux, expected_error = by_gaiaxpy(str(tmp_path / "given.csv"))
    assert (present == np.isfinite(expected_flux)).all()
    error = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    scale = np.nanmax(np.abs(expected_flux), axis=1, keepdims=True)
    assert_allclose((flux / scale)[present], (expected_flux / scale)[present], rtol=1e-9, atol=1e-12)
    assert_allclose(error[present], expected_error[present], rtol=1e-9)


@needs_data
@pytest.mark.filterwarnings("ignore")
def test_hundreds_of_sources_without_correlations_agree_with_gaiaxpy():
    import pandas as pd

    batches = read_xp_continuous(DATA / "xp_2000" / "xp_continuous_combined_chunk0.fits")
    for batch in islice(batches, 1):  # of these some; benchmarks/archive_speed.py compares them all
        assert not batch.rejected
        n = min(400, len(batch))
        rows = {"source_id": batch.source_id[:n]}
        for band, side in (("bp", batch.bp), ("rp", batch.rp)):
            rows[f"{band}_n_parameters"] = 55
            rows[f"{band}_standard_deviation"] = 1.0
            rows[f"{band}_coefficients"] = list(side.coefficient[:n])
            rows[f"{band}_coefficient_errors"] = list(side.error[:n])
            rows[f"{band}_coefficient_correlations"] = [np.eye(55)] * n
            rows[f"{band}_n_relevant_bases"] = 55
        expected_flux, expected_error = by_gaiaxpy(pd.DataFrame(rows))
        order = np.argsort(batch.source_id[:n])
        flux, covariance, present = sample_spectra(batch.bp.take(order), batch.rp.take(order))
        assert present.all()
        scale = np.abs(expected_flux).max(axis=1, keepdims=True)
        assert_allclose(flux / scale, expected_flux / scale, rtol=1e-9, atol=1e-12)
        assert_allclose(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), expected_error, rtol=1e-9)
        assert np.linalg.eigvalsh(covariance)[:, 0].min() > 0


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_every_real_covariance_is_positive_semidefinite_and_needs_no_floor(name):
    (batch,) = read_xp_continuous(DATA / "xp_continuous" / name)
    flux, covariance, present = sample_spectra(batch.bp, batch.rp)
    for i in range(len(batch)):
        kept = np.ix_(present[i], present[i])
        value = np.linalg.eigvalsh(covariance[i][kept])
        assert value[0] > -1e-13 * value[-1]
    assert not calibrate(batch.bp, batch.rp).floored.any()


@pytest.mark.thorough
def test_covariance_of_samples_is_that_of_drawn_coefficients():  # the definition of a covariance, by Monte Carlo
    rng = np.random.default_rng(1)
    one = made_up_side(rng, 1)
    n = 20_000

    def draw(side: XpSide) -> XpSide:
        shift = rng.multivariate_normal(np.zeros(55), coefficient_covariance(side)[0], size=n, method="cholesky")
        return XpSide(side.coefficient + shift, np.ones((n, 55)), None, np.ones(n), np.ones(n, bool))

    other = made_up_side(rng, 1)
    _, covariance, _ = sample_spectra(one, other)
    drawn, _, _ = sample_spectra(draw(one).take(slice(0, n)), draw(other))
    sigma = np.sqrt(np.diag(covariance[0]))
    difference = (np.cov(drawn.T) - covariance[0]) / np.outer(sigma, sigma)
    assert np.abs(difference).max() < 5 / np.sqrt(n) * np.sqrt(2)


def test_a_missing_side_leaves_the_other_sides_samples_only():
    rng = np.random.default_rng(2)
    bp, rp = made_up_side(rng, 3), made_up_side(rng, 3)
    bp.present[:] = [True, False, True]
    rp.present[:] = [True, True, False]
    flux, covariance, present = sample_spectra(bp, rp)
    assert present[0].all()
    assert (present[1] == (XP_GRID_NM > 640)).all() and (present[2] == (XP_GRID_NM < 640)).all()
    assert (flux[~present] == 0).all()
    full, full_covariance, _ = sample_spectra(bp.take(slice(0, 1)), rp.take(slice(0, 1)))
    assert_allclose(flux[0], full[0])
    w = np.flatnonzero(XP_GRID_NM == 642)[0]
    both_rp, _, _ = sample_spectra(made_up_zero(rp), rp)  # 642 nm keeps no merge weight without BP
    assert_allclose(flux[1, w], both_rp[1, w] / instrument_of().sides()[1][1][w])
    assert_allclose(full_covariance[0], full_covariance[0].T, rtol=1e-9, atol=1e-9 * full_covariance.max())


def made_up_zero(like: XpSide) -> XpSide:
    n = len(like)
    return XpSide(np.zeros((n, 55)), np.ones((n, 55)), None, np.ones(n), np.ones(n, bool))


def test_merge_weights_share_the_samples_between_635_and_643_nm():
    (_, bp), (_, rp) = instrument_of().sides()
    assert_allclose(rp, np.clip((XP_GRID_NM - 635.0) / 8.0, 0.0, 1.0), atol=1e-15)
    assert_allclose(bp + rp, 1.0, atol=1e-15)


def test_divided_errors_scale_the_covariance_by_the_standard_deviation():
    rng = np.random.default_rng(3)
    side = made_up_side(rng, 4)
    ratio = coefficient_covariance(side, "published") / coefficient_covariance(side, "divided")
    assert_allclose(ratio, np.broadcast_to((side.standard_deviation**2)[:, None, None], ratio.shape), rtol=1e-12)


@pytest.mark.parametrize("correlated", [True, False])
def test_fast_whitening_equals_the_eigenvalue_recipe(correlated):
    rng = np.random.default_rng(4)
    bp, rp = made_up_side(rng, 40, correlated=correlated), made_up_side(rng, 40, correlated=correlated)
    rp.present[3] = bp.present[7] = False
    flux, covariance, present = sample_spectra(bp, rp)
    covariance = inflate(covariance, flux, XP_GRID_NM)
    covariance[11] *= 1e-12  # so small that the paper's floor binds
    covariance[12] = np.outer(flux[12], flux[12])  # rank one: Cholesky fails
    slow = np.zeros(covariance.shape)
    binds = np.zeros(len(covariance), bool)
    for i, (matrix, there) in enumerate(zip(covariance, present, strict=True)):  # the paper's recipe, one by one
        kept = np.ix_(there, there)
        value, vector = np.linalg.eigh(matrix[kept])
        binds[i] = value[0] < EIGENVALUE_FLOOR
        slow[i][kept] = vector / np.maximum(value, EIGENVALUE_FLOOR) @ vector.T
    fast, floored = whiten_packed(covariance, present)
    assert (binds == floored).all() and floored[[11, 12]].all() and floored.sum() == 2
    factor = np.zeros(covariance.shape)
    row, column = np.tril_indices(61)
    factor[:, row, column] = fast
    precision = factor.transpose(0, 2, 1) @ factor
    for i in range(len(covariance)):
        assert_allclose(precision[i], slow[i], atol=2e-5 * np.abs(slow[i]).max())


def test_chi_squared_is_the_definition():
    rng = np.random.default_rng(5)
    bp, rp = made_up_side(rng, 70), made_up_side(rng, 70)
    flux, covariance, _ = sample_spectra(bp, rp)
    covariance = inflate(covariance, flux, XP_GRID_NM)
    out = calibrate(bp, rp)
    r = rng.normal(size=(70, 61)) * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    factor = np.zeros((70, 61, 61))
    row, column = np.tril_indices(61)
    factor[:, row, column] = out.whitening
    expected = np.einsum("ni,ni->n", r, np.linalg.solve(covariance, r[:, :, None])[:, :, 0])
    assert_allclose(((factor @ r[:, :, None])[:, :, 0] ** 2).sum(1), expected, rtol=1e-4)
    assert_allclose(out.flux, flux, rtol=1e-6)
