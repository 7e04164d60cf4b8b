"""Gaia's source table and its parallax zero point."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.archive.columns import ReadOptions
from xpbayes.archive.gaia_source import parallax_zero_point, read_gaia_source, zero_point_name
from xpbayes.archive.tables import Table
from xpbayes.errors import InputError


def some_stars(**changes) -> Table:
    n = 5
    columns = {
        "source_id": np.arange(1, n + 1),
        "phot_g_mean_mag": np.array([12.0, 17.5, 15.0, 3.0, 15.0]),
        "nu_eff_used_in_astrometry": np.array([1.5, 1.6, np.nan, 1.5, 1.5]),
        "pseudocolour": np.array([np.nan, np.nan, 1.5, np.nan, np.nan]),
        "ecl_lat": np.array([10.0, -60.0, 30.0, 0.0, 0.0]),
        "astrometric_params_solved": np.array([31, 31, 95, 31, 3]),
    }
    return Table({**columns, **changes}, (), n)


def test_zero_point_is_the_published_one_and_nan_outside_its_range():
    pytest.importorskip("zero_point")
    zero_point = parallax_zero_point(some_stars())
    assert np.isfinite(zero_point[:3]).all() and np.isnan(zero_point[3:]).all()
    assert ((zero_point[:3] > -0.06) & (zero_point[:3] < 0.0)).all()


def test_zero_point_at_a_node_of_the_published_table():
    pytest.importorskip("zero_point")
    # Lindegren et al. 2021, Table 9: at nu_eff = 1.48 only the first three columns count, at G = 17.5 they are
    # -29.18, -0.09 and +2.41 uas, times 1, sin(beta) and sin(beta)^2 - 1/3.
    table = some_stars(
        phot_g_mean_mag=np.full(5, 17.5),
        nu_eff_used_in_astrometry=np.full(5, 1.48),
        ecl_lat=np.array([0.0, 90.0, -90.0, 30.0, -30.0]),
        astrometric_params_solved=np.full(5, 31),
    )
    sine = np.sin(np.radians(table.columns["ecl_lat"]))
    assert_allclose(parallax_zero_point(table), 1e-3 * (-29.18 - 0.09 * sine + 2.41 * (sine**2 - 1 / 3)), atol=1e-6)


def test_without_its_columns_or_package_the_zero_point_says_what_to_do(monkeypatch):
    table = some_stars()
    del table.columns["ecl_lat"]
    pytest.importorskip("zero_point")
    with pytest.raises(InputError, match="first: ecl_lat"):
        parallax_zero_point(table)
    monkeypatch.setitem(sys.modules, "zero_point", None)
    with pytest.raises(InputError, match="gaiadr3-zeropoint"):
        parallax_zero_point(some_stars())


def test_columns_of_the_spurious_and_summary_tables_are_read_where_present(tmp_path):
    (tmp_path / "g.csv").write_text(
        "source_id,parallax,parallax_error,norm_dg,fidelity_v2\n4295806720,1.5,0.1,null,0.99\n"
    )
    table = read_gaia_source([tmp_path / "g.csv"])
    assert np.isnan(table.floats("norm_dg")[0]) and table.floats("fidelity_v2")[0] == 0.99
    assert "ruwe" not in table and np.isnan(table.floats("ruwe")).all()


def test_only_the_bits_of_parallax_and_pseudocolour_decide():
    """The 19 values that DR4's draft data model lists: whatever else was fitted, none with a parallax is left out."""
    pytest.importorskip("zero_point")
    solved = [3, 7, 27, 31, 63, 95, 479, 2015, 2079, 2463, 3999, 4127, 4575, 6111, 6175, 8223, 8607, 10143, 10271]
    n = len(solved)
    columns = {"phot_g_mean_mag": 15.0, "nu_eff_used_in_astrometry": 1.5, "pseudocolour": 1.45, "ecl_lat": 20.0}
    table = Table(
        {
            "source_id": np.arange(n),
            **{k: np.full(n, v) for k, v in columns.items()},
            "astrometric_params_solved": np.array(solved),
        },
        (),
        n,
    )
    found = parallax_zero_point(table)
    by_value = dict(zip(solved, found, strict=True))
    has_parallax = np.array([bool(v & 4) for v in solved])
    assert (np.isfinite(found) == has_parallax).all() and has_parallax.sum() == 17
    six = np.array([bool(v & 64) for v in solved])
    assert_allclose(found[has_parallax & ~six], by_value[31], rtol=1e-12)
    assert_allclose(found[has_parallax & six], by_value[95], rtol=1e-12)
    assert by_value[31] != by_value[95]


def test_a_table_s_own_bias_comes_first_and_its_solution_s_code_has_two_names(tmp_path):
    pytest.importorskip("zero_point")
    names = "source_id,parallax,parallax_error,phot_g_mean_mag,nu_eff_used_in_astrometry,pseudocolour,ecl_lat"
    rows = ["1,2.0,0.1,15,1.5,,10,2079,-0.04", "2,2.0,0.1,15,1.5,,10,2079,", "3,2.0,0.1,15,1.5,,10,3,"]
    path = tmp_path / "g.csv"
    path.write_text("\n".join([f"{names},astrometric_params,tentative_parallax_bias", *rows]) + "\n")
    table = read_gaia_source([path], zero_point=True)
    assert table.floats("parallax")[0] == 2.04 and zero_point_name(table).startswith("the table's own")
    recipe = table.floats("parallax_zero_point")[1]
    assert -0.06 < recipe < 0 and recipe != -0.04 and table.floats("parallax")[1] == 2.0 - recipe
    assert np.isnan(table.floats("parallax_zero_point")[2]) and table.floats("parallax")[2] == 2.0


def test_a_bias_alone_needs_neither_package_nor_columns(monkeypatch):
    monkeypatch.setitem(sys.modules, "zero_point", None)
    table = Table({"source_id": np.arange(2), "tentative_parallax_bias": np.array([-0.03, np.nan])}, (), 2)
    assert_allclose(parallax_zero_point(table), [-0.03, np.nan])


def test_an_excess_factor_that_a_release_lacks_comes_from_the_fluxes(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("source_id,phot_g_mean_flux,phot_bp_mean_flux,phot_rp_mean_flux\n7,100,55,70\n8,,5,7\n")
    assert_allclose(
        read_gaia_source([path], options=ReadOptions(release="dr4")).floats("phot_bp_rp_excess_factor"), [1.25, np.nan]
    )
    assert "phot_bp_rp_excess_factor" not in read_gaia_source([path], options=ReadOptions(release="dr3"))


def test_a_source_table_of_another_release_is_refused_by_its_epoch(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("source_id,ref_epoch,parallax\n7,2016.0,1\n")
    assert len(read_gaia_source([path], options=ReadOptions(release="dr3"))) == 1
    with pytest.raises(InputError, match=r"1 rows at epoch 2016.0 \(first: source_id 7\), which is of Gaia DR3"):
        read_gaia_source([path], options=ReadOptions(release="dr4"))


def test_identifiers_that_are_another_release_s_are_not_taken(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("gaiadr3_source_id,gdr4_source_id,parallax\n7,8,1\n")
    for release, expected in (("dr3", 7), ("dr4", 8)):
        table = read_gaia_source([path], options=ReadOptions(release=release))
        assert table.columns["source_id"].tolist() == [expected]
    with pytest.raises(InputError, match="2 columns could be Gaia's source_id"):
        read_gaia_source([path])
