"""Flat columns: the recommended value first, the same numbers, units and descriptions in every format."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

from tests.production.test_verify import plausible
from xpbayes.errors import InputError
from xpbayes.instrument.instrument import DEFAULT_ID
from xpbayes.production.export import WRITERS, save_catalogue
from xpbayes.production.flat import flat_columns, flat_table
from xpbayes.production.table import catalogue_about, describe, list_column, read_catalogue, to_arrow
from xpbayes.runs.export import export
from xpbayes.runs.verify import verify
from xpbayes.schema import catalogue_columns, columns_of

N = 40
ABOUT = {
    "labels": ["teff", "feh", "logg"],
    "instrument": DEFAULT_ID.to_json(),
    "settings": {"second_stage": True},
    "model": {"second_stage_checksum": "sha256:0"},
}


def made(refined: bool) -> pa.Table:
    """Rows of which every seventh has no solution, and every fifth no draws."""
    rows = plausible(N, 1)
    undrawn = np.arange(N) % 5 == 0
    for name in ("median", "p16", "p84"):
        rows[f"stellar_params_{name}"][undrawn] = np.nan
    if refined:
        rng = np.random.default_rng(0)
        for column in catalogue_columns(3, refined=True)[-7:]:
            shape = (N, column.type.list_size) if pa.types.is_fixed_size_list(column.type) else N
            rows[column.name] = rng.normal(size=shape)
    return describe(to_arrow(rows, 3), ABOUT if refined else {**ABOUT, "model": {}})


@pytest.fixture(scope="module", params=[False, True], ids=["forward", "refined"])
def catalogue(request):
    return made(request.param)


def test_the_recommended_value_is_the_refined_median_else_the_calibrated_one_else_the_mode(catalogue):
    flat = flat_table(catalogue).to_pandas()
    median, mode = (list_column(catalogue, f"stellar_params_{name}") for name in ("median", "est"))
    forward = np.where(np.isfinite(median), median, mode)
    best = forward.copy()
    if "refined_median" in catalogue.column_names:
        best[:, :3] = list_column(catalogue, "refined_median")
        assert_allclose(flat.logg_forward, forward[:, 2], rtol=1e-6)
    for i, name in enumerate(("teff", "feh", "logg", "extinction", "parallax")):
        scale = 1e3 if name == "teff" else 1.0
        assert_allclose(flat[name], scale * best[:, i], rtol=1e-6)
        assert_allclose(flat[f"{name}_mode"], scale * mode[:, i], rtol=1e-6)
        assert_allclose(flat[f"{name}_mode_err"], scale * list_column(catalogue, "stellar_params_err")[:, i], rtol=1e-6)
    undrawn = np.isnan(median[:, 3]) & np.isfinite(mode[:, 3])
    laplace = np.sqrt(list_column(catalogue, "laplace_cov_triu")[undrawn, 12])  # (3, 3) of five, row by row
    assert undrawn.any()
    assert_allclose(flat.extinction_err[undrawn], laplace, rtol=1e-6)
    assert_allclose(flat.extinction_p84[undrawn] - flat.extinction_p16[undrawn], 2 * laplace, rtol=1e-4, atol=1e-6)


def test_every_column_says_what_it_is_and_values_come_before_modes():
    columns = flat_columns(refined=True)
    names = [c.name for c in columns]
    assert len(set(names)) == len(names) and all(c.description and (c.ucd or "release" in c.name) for c in columns)
    assert names[3:7] == ["teff", "teff_err", "teff_p16", "teff_p84"]
    assert names.index("parallax_p84") < names.index("status") < names.index("teff_forward") < names.index("teff_mode")
    assert all(c.unit == "K" for c in columns if c.name.startswith("teff_") and c.ucd != "stat.probability")
    assert not any(pa.types.is_fixed_size_list(c.type) for c in columns)


def test_second_sources_are_flat_in_kelvin_and_null_where_not_compared():
    rows = plausible(N, 1)
    for column in catalogue_columns(3, binaries=True)[-7:]:
        shape = (N, column.type.list_size) if pa.types.is_fixed_size_list(column.type) else N
        rows[column.name] = np.where(
            np.arange(N).reshape(N, *(1,) * (np.size(shape) - 1)) % 3, np.full(shape, 5.5), np.nan
        )
    about = {**ABOUT, "settings": {"binaries": "suspicious"}, "model": {}}
    catalogue = describe(to_arrow(rows, 3), about)
    assert [c.name for c in columns_of(about)] == catalogue.column_names
    flat = flat_table(catalogue)
    assert {"ln_odds_binary", "binary_flux_ratio", "logg_binary", "parallax_binary_err"} < set(flat.column_names)
    for name, value in {"binary_teff2": 5500.0, "teff_binary": 5500.0, "logg_binary": 5.5}.items():
        found = flat[name].to_numpy(zero_copy_only=False)
        assert_allclose(found, np.where(np.arange(N) % 3, value, np.nan))
    assert flat.schema.field("binary_teff2").metadata[b"unit"] == b"K"


@pytest.mark.filterwarnings("ignore:.*(dex|UCD|solMass)")  # astropy does not take the unit dex from FITS and VOTable
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_numbers_back(catalogue, suffix, tmp_path):
    path = save_catalogue(catalogue, tmp_path / f"c{suffix}", flat=True)
    flat = flat_table(catalogue)
    found = Table.read(path)
    assert found.colnames == flat.column_names
    for name in flat.column_names:
        if pa.types.is_string(flat.schema.field(name).type):
            assert_array_equal(np.asarray(found[name], str), flat[name].to_pylist())
        else:
            values = np.ma.filled(np.ma.asarray(found[name], float), np.nan)
            assert_allclose(values, flat[name].to_numpy().astype(float), rtol=1e-6)
    if suffix != ".csv":
        assert found["teff_p16"].unit == "K" and found["parallax_err"].unit == "mas" and found["ra"].unit == "deg"
        assert str(found["feh"].unit) == "dex"
    if suffix in (".ecsv", ".vot", ".parquet"):
        assert found["teff"].description.startswith("effective temperature")
        assert found["teff"].meta["ucd"] == "phys.temperature.effective"


def test_pandas_reads_numbers_and_empty_cells(catalogue, tmp_path):
    frame = pd.read_csv(save_catalogue(catalogue, tmp_path / "c.csv"))
    assert frame.source_id.dtype == np.int64 and frame.teff.dtype == np.float64
    assert_array_equal(frame.teff_mode.isna(), frame.status != "ok")


def test_a_catalogue_opens_with_astropy_units_and_all(catalogue, tmp_path):
    path = save_catalogue(catalogue, tmp_path / "c.parquet")
    table = Table.read(path)
    assert table["ra"].unit == "deg" and table["stellar_params_est"].shape == (N, 5)
    assert "kK, dex, dex, mag, mas" in table["stellar_params_est"].description
    assert_array_equal(np.asarray(table["status"], str), catalogue["status"].to_pylist())
    again = read_catalogue(path)
    assert again.equals(catalogue) and catalogue_about(again) == catalogue_about(catalogue)


def test_exports_hold_what_is_saved_from_memory(catalogue, tmp_path):
    path = save_catalogue(catalogue, tmp_path / "c.parquet")
    for suffix in (".csv", ".ecsv", ".vot", ".fits"):
        direct = save_catalogue(catalogue, tmp_path / f"direct{suffix}").read_bytes()
        assert export(path, tmp_path / f"export{suffix}").read_bytes() == direct
    flat = Table.read(export(path, tmp_path / "flat.parquet"))
    assert flat["feh"].unit == "dex" and "stellar_params_est" not in flat.colnames


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("c.xlsx", {}, "is no format of catalogues"),
        ("c.csv", {"flat": False}, "one number a column"),
        ("c.hats", {"format": "hats", "flat": True}, "leave out --flat"),
        ("c.vot", {"format": "votabel"}, "did you mean 'votable'"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(catalogue, name, arguments, sentence, tmp_path):
    path = save_catalogue(catalogue, tmp_path / "catalogue.parquet")
    with pytest.raises(InputError, match=sentence):
        export(path, tmp_path / name, **arguments)
    assert not (tmp_path / name).exists()


def test_a_flat_file_is_no_catalogue_and_says_so(catalogue, tmp_path):
    path = save_catalogue(catalogue, tmp_path / "flat.parquet", flat=True)
    with pytest.raises(InputError, match="holds a flat table, not a catalogue"):
        read_catalogue(path)


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".vot"])
def test_what_only_parquet_can_be_asked_says_so(catalogue, suffix, tmp_path):
    path = save_catalogue(catalogue.slice(0, 3), tmp_path / f"cat{suffix}")
    with pytest.raises(InputError, match=r"is no Parquet file, and only such are read here; name the .parquet"):
        verify(path)


def test_catalogues_of_earlier_versions_are_flattened_too():
    """Text was dictionary-encoded, and the identifier had another name."""
    rows = to_arrow(plausible(N, 1), 3)
    for name in ("status", "method"):
        rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].combine_chunks().dictionary_encode())
    old = rows.drop_columns(["source_id", "release", "zgr23_flags"])
    flat = flat_table(old, json.loads(json.dumps(ABOUT)))
    assert flat["source_id"].to_pylist() == rows["source_id"].to_pylist()
    assert "release" not in flat.column_names and flat["status"].to_pylist() == rows["status"].to_pylist()
