"""Gaia's source table and its parallax zero point."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.archive.gaia_source import parallax_zero_point, read_gaia_source
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
