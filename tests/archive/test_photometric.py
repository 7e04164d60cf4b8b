"""Scalar tables, 2MASS and unWISE: exact round trips, every cut counted."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive.columns import SOURCE_ID, Column
from xpbayes.archive.photometric import (
    TwoMassCuts,
    UnwiseCuts,
    read_two_mass,
    read_unwise,
    two_mass_fluxes,
    unwise_fluxes,
)
from xpbayes.archive.tables import Table, concatenate, read_table
from xpbayes.channels import BANDS
from xpbayes.errors import InputError
from xpbayes.instrument.photometry import magnitude_from_flux

NAN = float("nan")


def two_mass(**changes) -> Table:
    n = 4
    columns = {"source_id": np.arange(1, n + 1)}
    for i, band in enumerate(("j", "h", "ks")):
        columns[f"{band}_m"] = np.linspace(8, 14, n) + 0.1 * i
        columns[f"{band}_msigcom"] = np.full(n, 0.02)
    columns["ph_qual"] = np.array(["AAA", "AAB", "UAA", "AAA"])
    return Table({**columns, **changes}, (), n)


def test_magnitudes_go_to_flux_and_back_exactly():
    table = two_mass(ph_qual=np.array(["AAA"] * 4))
    out = two_mass_fluxes(table, np.full(4, NAN), TwoMassCuts(error_floor=0))
    for i, band in enumerate(("J", "H", "Ks")):
        assert_allclose(
            magnitude_from_flux(out.flux[:, i], BANDS[band]), table.columns[f"{band.lower()}_m"], atol=1e-13
        )
        assert_allclose(1 / (out.inverse_error[:, i] * out.flux[:, i]), 0.02 * np.log(10) / 2.5, rtol=1e-12)


def test_two_mass_cuts_are_per_band_and_counted():
    out = two_mass_fluxes(two_mass(), np.array([NAN, -6.0, -5.0, -4.9]), TwoMassCuts())
    assert_array_equal(out.inverse_error > 0, [[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
    assert [(c.removed, c.left) for c in out.cuts] == [(0, 12), (2, 10), (3, 7)]
    assert "ph_qual not in 'A'" in out.cuts[1].what and "norm_dg > -5" in out.cuts[2].what


def test_the_error_floor_is_added_in_quadrature():
    out = two_mass_fluxes(two_mass(), np.full(4, NAN), TwoMassCuts(error_floor=0.01))
    relative = 1 / (out.inverse_error[0, 0] * out.flux[0, 0])
    assert_allclose(relative, np.hypot(0.02 * np.log(10) / 2.5, 0.01))


def unwise(**changes) -> Table:
    n = 4
    columns: dict = {"source_id": np.arange(1, n + 1)}
    for i in ("1", "2"):
        columns[f"flux_w{i}"] = np.array([1000.0, 2000.0, -3.0, 5000.0])
        columns[f"dflux_w{i}"] = np.array([5.0, 5.0, 5.0, 50.0])
        columns[f"fracflux_w{i}"] = np.array([0.99, 0.3 if i == "1" else 0.9, 0.99, 0.99])
        columns[f"qf_w{i}"] = np.full(n, 1.0)
        columns[f"flags_unwise_w{i}"] = np.array([0, 0, 0, 4 if i == "2" else 0])
    return Table({**columns, **changes}, (), n)


def test_unwise_nanomaggies_are_vega_with_zero_point_22p5():
    out = unwise_fluxes(unwise(), np.full(4, NAN), UnwiseCuts(error_floor=0))
    assert_allclose(magnitude_from_flux(out.flux[:1, 0], BANDS["W1"]), 22.5 - 2.5 * 3.0, atol=1e-12)
    assert_allclose(out.flux[0, 1] * out.inverse_error[0, 1], 1000 / 5)


def test_unwise_cuts_are_counted_and_a_negative_flux_is_missing():
    out = unwise_fluxes(unwise(), np.array([NAN, -20.0, -20.0, -20.0]), UnwiseCuts())
    assert_array_equal(out.inverse_error > 0, [[1, 1], [0, 1], [0, 0], [1, 0]])
    assert [c.removed for c in out.cuts] == [2, 1, 0, 1, 0]
    loose = UnwiseCuts(fracflux_min=0, flags_allowed=4)
    assert (unwise_fluxes(unwise(), np.full(4, NAN), loose).inverse_error > 0).sum() == 6
    crowded = unwise_fluxes(unwise(), np.array([-9.0, -11.0, NAN, -10.0]), loose)
    assert_array_equal((crowded.inverse_error > 0).any(axis=1), [False, True, False, True])


def test_unwise_magnitudes_serve_where_there_are_no_fluxes():
    table = Table({"source_id": np.array([1]), "mag_w1_vg": np.array([12.0]), "mag_w1_error": np.array([0.03])}, (), 1)
    out = unwise_fluxes(table, np.array([NAN]), UnwiseCuts(error_floor=0))
    assert_allclose(magnitude_from_flux(out.flux[:, 0], BANDS["W1"]), 12.0)
    assert out.inverse_error[0, 1] == 0


def test_a_star_without_a_match_has_no_band():
    aligned, known = two_mass().align(np.array([3, 99]))
    out = two_mass_fluxes(aligned, np.full(2, NAN), TwoMassCuts())
    assert_array_equal(known, [True, False])
    assert (out.inverse_error[1] == 0).all() and (out.inverse_error[0] > 0).sum() == 2


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.fits", "x.vot", "x.parquet", "x.ecsv"])
def test_every_format_gives_the_same_columns(tmp_path, name):
    from astropy.table import MaskedColumn
    from astropy.table import Table as Astropy

    ids = np.array([5853498713190525696, 5853498713190525697, 5762406957886626816])
    mags = np.array([9.25, np.nan, 12.5])
    table = Astropy(
        {"source_id": ids, "j_m": MaskedColumn(mags, mask=np.isnan(mags)), "ph_qual": ["AAA", "UBA", "AAU"]}
    )
    if name == "x.csv.gz":
        lines = ["source_id,j_m,ph_qual", f"{ids[0]},9.25,AAA", f'{ids[1]},null,"UBA"', f"{ids[2]},12.5,AAU"]
        (tmp_path / name).write_bytes(gzip.compress("\n".join(lines).encode()))
    elif name == "x.vot":
        table.write(tmp_path / name, format="votable")
    else:
        table.write(tmp_path / name)
    read = read_two_mass([tmp_path / name])
    assert_array_equal(read.columns["source_id"], ids)
    assert_allclose(read.columns["j_m"], mags)
    assert_array_equal(read.columns["ph_qual"], ["AAA", "UBA", "AAU"])
    assert read.n_read == 3 and read.rejected == ()


def test_bad_rows_of_a_text_table_are_quarantined(tmp_path):
    (tmp_path / "x.csv").write_text("source_id,j_m\n1,9.5\n2,bright\nx,9\n,9\n5\n6,null\n7,inf\n")
    table = read_table(tmp_path / "x.csv", (SOURCE_ID, Column("j_m")))
    assert_array_equal(table.columns["source_id"], [1, 6, 7])
    assert [(r.row, r.source_id, r.reason) for r in table.rejected] == [
        (2, 2, "j_m is not a number (bright)"),
        (3, -1, "source_id is not a whole number (x)"),
        (4, -1, "source_id is missing"),
        (5, 5, "1 fields where the header has 2"),
    ]
    assert table.n_read == 7


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.sampled_from('0123456789.,"eE-+naul# \u00e9'), max_size=25), max_size=8))
def test_whatever_the_text_no_row_is_lost(tmp_path, lines):
    assume(sum(line.count('"') % 2 for line in lines) < 2)  # two open quotes may be one cell over several lines
    path = tmp_path / "x.csv"
    path.write_bytes(("source_id,j_m,ph_qual\n" + "\n".join(lines) + "\n").encode())
    n = sum(bool(line.strip()) and not line.startswith("#") for line in lines)
    table = read_table(path, (SOURCE_ID, Column("j_m"), Column("ph_qual", "text")))
    assert len(table) + len(table.rejected) == table.n_read == n


def test_a_cut_gzip_keeps_its_whole_rows(tmp_path):
    rng = np.random.default_rng(0)
    text = "source_id,j_m\n" + "".join(f"{i},{m:.6f}\n" for i, m in enumerate(rng.uniform(5, 15, 20000), 1))
    raw = gzip.compress(text.encode())
    (tmp_path / "x.csv.gz").write_bytes(raw[: len(raw) // 2])
    table = read_table(tmp_path / "x.csv.gz", (SOURCE_ID, Column("j_m")))
    assert 5000 < len(table) < 15000 and len(table.rejected) == 1 and table.n_read == len(table) + 1
    assert "cut short" in table.rejected[0].reason


def test_source_ids_in_floating_point_are_refused(tmp_path):
    from astropy.table import Table as Astropy

    Astropy({"source_id": np.array([5853498713190525696.0]), "j_m": [1.0]}).write(tmp_path / "x.fits")
    with pytest.raises(InputError, match="floating point"):
        read_two_mass([tmp_path / "x.fits"])


def test_tables_without_the_surveys_columns_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("source_id,ra\n1,2\n")
    with pytest.raises(InputError, match="no 2MASS magnitudes"):
        read_two_mass([tmp_path / "x.csv"])
    with pytest.raises(InputError, match="no unWISE fluxes"):
        read_unwise([tmp_path / "x.csv"])
    with pytest.raises(InputError, match="no such file"):
        read_unwise([Path("nowhere.csv")])
    with pytest.raises(InputError, match="at least one"):
        concatenate([])
