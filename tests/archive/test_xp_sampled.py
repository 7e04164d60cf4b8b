"""Sampled XP spectra: the 61 samples, their implied correlation, and the door that tells the two products apart."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive.xp import read_xp, xp_product
from xpbayes.archive.xp_sampled import SAMPLED_GRID_NM, read_xp_sampled
from xpbayes.channels import XP_GRID_NM
from xpbayes.errors import InputError
from xpbayes.instrument.bases import implied_correlation
from xpbayes.instrument.error_model import gaia_covariance, inflate
from xpbayes.instrument.xp_covariance import calibrate_sampled

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real spectra are not beside the project")


def test_each_format_gives_the_flux_at_the_grid(tmp_path):
    from astropy.table import Table

    rng = np.random.default_rng(0)
    flux, error = rng.uniform(1, 2, (4, 343)) * 1e-16, rng.uniform(1, 2, (4, 343)) * 1e-18
    ids = np.arange(4) + 5853498713190525696
    Table({"source_id": ids, "flux": flux, "flux_error": error}).write(tmp_path / "x.fits")
    Table({"source_id": ids, "flux": flux, "flux_error": error}).write(tmp_path / "x.parquet")
    lines = ["source_id,flux,flux_error"]
    lines += [f'{i},"{f.tolist()}","{e.tolist()}"' for i, f, e in zip(ids, flux, error, strict=True)]
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    at = [int(np.flatnonzero(w == SAMPLED_GRID_NM)[0]) for w in XP_GRID_NM]
    for name in ("x.fits", "x.parquet", "x.csv.gz"):
        (batch,) = read_xp_sampled(tmp_path / name)
        assert_array_equal(batch.source_id, ids)
        assert_allclose(batch.flux, flux[:, at] / 1e-18)
        assert_allclose(batch.error, error[:, at] / 1e-18)
        assert xp_product(tmp_path / name) == "sampled"


@needs_data
@pytest.mark.parametrize("suffix", ["csv", "ecsv", "fits"])
def test_the_archives_files_read(suffix):
    (rows,) = read_xp(DATA / "xp_sampled" / f"XP_SAMPLED_RAW_dr3int6.{suffix}")
    assert len(rows) == 2 and rows.rejected == () and rows.xp.present.all()
    assert np.isfinite(rows.xp.whitening).all()
    (reference,) = read_xp(DATA / "xp_sampled" / "XP_SAMPLED_RAW_dr3int6.csv")
    assert_allclose(rows.xp.flux, reference.xp.flux, rtol=1e-6)


def test_covariance_has_the_implied_correlation_and_is_no_diagonal():
    rng = np.random.default_rng(1)
    flux, error = rng.uniform(50, 100, (3, 61)), rng.uniform(1, 3, (3, 61))
    present = np.ones((3, 61), bool)
    present[1, :25] = False
    out = calibrate_sampled(flux, error, present)
    expected = inflate(gaia_covariance(error, implied_correlation()), flux, XP_GRID_NM)
    factor = np.zeros((3, 61, 61))
    row, column = np.tril_indices(61)
    factor[:, row, column] = out.whitening
    precision = factor.transpose(0, 2, 1) @ factor
    assert_allclose(precision[0] @ expected[0], np.eye(61), atol=1e-4)
    assert (precision[1][:25] == 0).all()
    assert_allclose(precision[1][25:, 25:] @ expected[1][25:, 25:], np.eye(36), atol=1e-4)
    assert np.abs(np.diag(expected[0], 1)).min() > 0


def test_bad_rows_are_quarantined_and_missing_samples_are_not(tmp_path):
    good = [1e-16] * 343
    gap = [float("nan")] * 40 + [1e-16] * 303
    rows = [(11, good, good), (12, good[:-1], good), (13, gap, good), (14, good, [0.0] * 343), (15, None, good)]
    text = "source_id,flux,flux_error\n" + "\n".join(
        f'{i},{"null" if f is None else chr(34) + str(f) + chr(34)},"{e}"' for i, f, e in rows
    )
    (tmp_path / "x.csv").write_text(text)
    (batch,) = read_xp_sampled(tmp_path / "x.csv")
    assert_array_equal(batch.source_id, [11, 13])
    assert batch.present[1].sum() == 61 - (XP_GRID_NM < 336 + 80).sum()
    assert [(r.row, r.source_id) for r in batch.rejected] == [(2, 12), (4, 14), (5, 15)]
    assert "342 values, not 343" in batch.rejected[0].reason


def test_coefficients_that_no_instrument_model_knows_are_quarantined(tmp_path):
    k = 47
    numbers = "[" + ",".join(["1.5"] * k) + "]"
    names = [f"{s}_{n}" for s in ("bp", "rp") for n in ("coefficients", "coefficient_errors")]
    (tmp_path / "x.csv").write_text(",".join(["source_id", *names]) + "\n7" + f',"{numbers}"' * 4 + "\n")
    (rows,) = read_xp(tmp_path / "x.csv")
    assert len(rows) == 0 and rows.rejected[0].reason == "47 BP coefficients where the instrument model has 55"


def test_dividing_by_an_unknown_standard_deviation_is_refused_row_by_row(tmp_path):
    numbers = "[" + ",".join(["1.5"] * 55) + "]"
    names = [f"{s}_{n}" for s in ("bp", "rp") for n in ("coefficients", "coefficient_errors")]
    (tmp_path / "x.csv").write_text(",".join(["source_id", *names]) + "\n7" + f',"{numbers}"' * 4 + "\n")
    (rows,) = read_xp(tmp_path / "x.csv", "divided")
    assert len(rows) == 0 and "no BP standard deviation" in rows.rejected[0].reason
    (rows,) = read_xp(tmp_path / "x.csv")
    assert len(rows) == 1 and xp_product(tmp_path / "x.csv") == "continuous"


def test_a_table_without_spectra_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("source_id,ra\n1,2\n")
    with pytest.raises(InputError, match="neither coefficients"):
        read_xp(tmp_path / "x.csv")
