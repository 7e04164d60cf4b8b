"""What people really have, at every door and in every format: ids, units, sentinels, shapes and flags decided once."""

import csv
import gzip
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive import text_file
from xpbayes.archive.cells import ArrayParser, LineParser, integer
from xpbayes.archive.columns import SOURCE_ID, Column, ReadOptions
from xpbayes.archive.gaia_source import read_gaia_source
from xpbayes.archive.label_surveys import FlagRule, LabelColumns, LabelSurvey
from xpbayes.archive.labels import read_labels
from xpbayes.archive.photometric import (
    TwoMassCuts,
    UnwiseCuts,
    read_two_mass,
    read_unwise,
    two_mass_fluxes,
    unwise_fluxes,
)
from xpbayes.archive.reddening import read_reddening
from xpbayes.archive.survey_config import expand, read_survey
from xpbayes.archive.tables import read_blocks, read_table
from xpbayes.archive.text_file import TextFile
from xpbayes.archive.units import unit_change
from xpbayes.archive.xp import read_xp
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.archive.xp_sampled import SAMPLED_GRID_NM, read_xp_sampled
from xpbayes.errors import InputError

IDS = np.array([5853498713190525696, 5853498713190525697, 5762406957886626816])
FORMATS = ("csv", "ecsv", "fits", "tabledata", "binary", "binary2", "parquet", "hdf5", "avro")
WITH_UNITS = ("ecsv", "fits", "tabledata", "binary", "binary2", "parquet", "hdf5")


def write(folder: Path, kind: str, columns: dict, units: dict | None = None, name: str = "x") -> Path:
    """The same table in any format; masked values as the format has nulls."""
    from astropy.table import Table

    units = units or {}
    path = folder / f"{name}.{ {'tabledata': 'vot', 'binary': 'vot', 'binary2': 'vot'}.get(kind, kind) }"
    table = Table(columns, units=units)
    if kind in ("csv", "ecsv", "fits"):
        if kind == "csv":
            table = Table({k: [json.dumps(list(v)) for v in c] if c.ndim > 1 else c for k, c in table.items()})
        table.write(path, format=f"ascii.{kind}" if kind != "fits" else "fits", overwrite=True)
    elif kind in ("tabledata", "binary", "binary2"):
        table.write(path, format="votable", tabledata_format=kind, overwrite=True)
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = {k: np.ma.getdata(c).tolist() for k, c in table.items()}
        arrays = {
            k: pa.array(v, mask=np.ma.getmaskarray(table[k]), type=pa.uint64() if table[k].dtype == "u8" else None)
            if table[k].ndim == 1
            else pa.array(v)
            for k, v in values.items()
        }
        fields = [pa.field(k, a.type, metadata={"unit": units[k]} if k in units else None) for k, a in arrays.items()]
        pq.write_table(pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields)), path)
    elif kind == "hdf5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for k, c in table.items():
                values = np.ma.getdata(c)
                data = file.create_dataset(
                    f"table/{k}", data=values.astype("S") if values.dtype.kind == "U" else values
                )
                if k in units:
                    data.attrs["unit"] = units[k]
    else:
        import fastavro

        kinds = {"i": "long", "f": "double", "U": "string"}
        fields = []
        for k, c in table.items():
            item = kinds[c.dtype.kind]
            fields.append({"name": k, "type": ["null", item if c.ndim == 1 else {"type": "array", "items": item}]})
        masks = {k: np.ma.getmaskarray(c) for k, c in table.items()}
        rows = [
            {k: None if np.any(masks[k][i]) else np.ma.getdata(c)[i].tolist() for k, c in table.items()}
            for i in range(len(table))
        ]
        with open(path, "wb") as stream:
            fastavro.writer(stream, {"type": "record", "name": "t", "fields": fields}, rows)
    return path


def two_mass(**changes) -> dict:
    columns: dict = {"source_id": IDS}
    for band in ("j", "h", "ks"):
        columns |= {f"{band}_m": np.array([9.0, 10.0, 11.0]), f"{band}_msigcom": np.full(3, 0.02)}
    return {**columns, "ph_qual": np.array(["AAA"] * 3), **changes}


def sampled(n: int = 3) -> dict:
    flux = np.random.default_rng(0).uniform(1, 2, (n, 343)) * 1e-16
    return {"source_id": IDS[:n], "flux": flux, "flux_error": 0.01 * flux}


LABELS = {"teff": [5000.0, 6000.0, 7000.0], "feh": [0.0, -1.0, -2.0], "logg": [4.0, 4.5, 2.0]}


def labels(**changes) -> dict:
    columns: dict = {"source_id": IDS}
    for k, v in LABELS.items():
        columns |= {k: np.array(v), f"{k}_err": np.full(3, 50.0 if k == "teff" else 0.1)}
    return {**columns, **changes}


def labels_of(path: Path, **settings):
    return read_labels(LabelSurvey(files=("x",), **settings), [path], ("teff", "feh", "logg"), None)


DOORS = {
    "2MASS": (two_mass, lambda path: read_two_mass([path])),
    "unWISE": (
        lambda: {"source_id": IDS, "flux_w1": np.ones(3), "dflux_w1": np.ones(3)},
        lambda path: read_unwise([path]),
    ),
    "Gaia": (lambda: {"source_id": IDS, "parallax": np.ones(3)}, lambda path: read_gaia_source([path])),
    "reddening": (
        lambda: {"source_id": IDS, "reddening": np.ones(3), "reddening_error": np.ones(3)},
        lambda path: read_reddening([path]),
    ),
    "labels": (labels, labels_of),
    "spectra": (sampled, lambda path: list(read_xp(path))),
}


# ------------------------------------------------------------------------------------------------------- identifiers


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("door", list(DOORS))
def test_identifiers_that_went_through_floats_are_refused(tmp_path, door, kind):
    columns, read = DOORS[door]
    path = write(tmp_path, kind, {**columns(), "source_id": IDS.astype(np.float64)})
    with pytest.raises(InputError, match="^[^\n]*floating point[^\n]*$"):
        read(path)


@pytest.mark.parametrize("text", ["5.853498713190526e18", "5853498713190525696.0"])
@pytest.mark.parametrize("door", list(DOORS))
def test_text_that_went_through_floats_is_refused(tmp_path, door, text):
    columns, read = DOORS[door]
    path = write(tmp_path, "csv", {**columns(), "source_id": np.array([text] * 3)})
    with pytest.raises(InputError, match="floating point"):
        read(path)


def test_whole_numbers_that_a_float_can_hold_are_identifiers(tmp_path):
    for kind in FORMATS:
        path = write(tmp_path, kind, two_mass(source_id=np.array([123.0, 2.0**53 - 1, 7.0])))
        assert_array_equal(read_two_mass([path]).columns["source_id"], [123, 2**53 - 1, 7])
    (tmp_path / "t.csv").write_text("source_id,x\n123.0,1\n1.5,1\n9007199254740991,1\n")
    table = read_table(tmp_path / "t.csv", (SOURCE_ID, Column("x")))
    assert_array_equal(table.columns["source_id"], [123, 2**53 - 1])
    single = write(tmp_path, "fits", two_mass(source_id=np.array([2.0**24, 1, 2], np.float32)))
    with pytest.raises(InputError, match="floating point"):
        read_two_mass([single])


@pytest.mark.parametrize("kind", ["csv", "ecsv", "tabledata", "binary2", "parquet", "avro"])
@pytest.mark.parametrize("door", ["2MASS", "spectra"])
def test_a_null_identifier_is_one_bad_row(tmp_path, door, kind):
    columns, read = DOORS[door]
    path = write(tmp_path, kind, {**columns(), "source_id": np.ma.array(IDS, mask=[0, 1, 0])})
    out = read(path)
    ids, rejected = (
        (out[0].source_id, out[0].rejected) if door == "spectra" else (out.columns["source_id"], out.rejected)
    )
    assert_array_equal(ids, IDS[[0, 2]])
    assert [(r.row, r.reason) for r in rejected] == [(2, "source_id is missing")]


@pytest.mark.parametrize("kind", ["csv", "ecsv", "fits", "parquet", "hdf5"])
@pytest.mark.parametrize("door", [d for d in DOORS if d != "labels"])
def test_an_identifier_beyond_63_bits_is_one_bad_row_that_says_so(tmp_path, door, kind):
    columns, read = DOORS[door]
    path = write(tmp_path, kind, {**columns(), "source_id": np.array([IDS[0], 2**63 + 1, IDS[2]], np.uint64)})
    out = read(path)[0] if door == "spectra" else read(path)
    assert_array_equal(out.source_id if door == "spectra" else out.columns["source_id"], IDS[[0, 2]])
    assert [r.reason for r in out.rejected] == [f"source_id {2**63 + 1} is outside 1 ... 2^63 - 1"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_flag_beyond_63_bits_is_one_bad_row(tmp_path, kind):
    path = write(tmp_path, kind, labels(bits=np.array([0, 2**63, 8], np.uint64)))
    out = labels_of(path, flags=(FlagRule(column="bits", forbidden_bits=(3,)),))
    assert_array_equal(out.source_id, IDS[:1])
    assert [r.reason for r in out.rejected] == [f"bits {2**63} is beyond 2^63 - 1"]


def test_labels_of_ones_own_say_which_column_is_the_identifier(tmp_path):
    path = write(tmp_path, "parquet", {**labels(), "gaia_source_id": IDS + 1})
    for named in ({}, {"columns": LabelColumns(snr=())}):
        with pytest.raises(InputError, match=r"2 columns could be .*source_id, gaia_source_id.*labels"):
            labels_of(path, **named)
    chosen = labels_of(path, columns=LabelColumns(source_id=("gaia_source_id",)))
    assert_array_equal(chosen.source_id, IDS + 1)
    del (other := labels(gaiadr3_source_id=IDS))["source_id"]
    assert_array_equal(labels_of(write(tmp_path, "csv", other)).source_id, IDS)
    other["gaia_source_id"] = other.pop("gaiadr3_source_id")  # DR2's, most often
    with pytest.raises(InputError, match="neither a source_id nor ra and dec"):
        labels_of(write(tmp_path, "csv", other))


def test_cards_that_name_several_stars_are_refused(tmp_path):
    from astropy.io import fits

    whole = sampled(1)
    columns = [
        fits.Column(k, "D", array=v) for k, v in zip(("flux", "flux_error"), (whole["flux"][0],) * 2, strict=True)
    ]
    hdu = fits.BinTableHDU.from_columns([fits.Column("wavelength", "D", array=SAMPLED_GRID_NM), *columns])
    hdu.header["SOURCEID"] = int(IDS[0])
    hdu.header["HIERARCH SOURCE_ID"] = f"Gaia DR3 {IDS[0]}"
    hdu.writeto(tmp_path / "x.fits")
    assert_array_equal(next(read_xp_sampled(tmp_path / "x.fits")).source_id, IDS[:1])
    hdu.header["HIERARCH SOURCE_ID"] = int(IDS[1])
    hdu.writeto(tmp_path / "x.fits", overwrite=True)
    with pytest.raises(InputError, match="its header names several stars"):
        read_xp_sampled(tmp_path / "x.fits")


def test_a_line_that_tells_a_spreadsheet_how_cells_are_apart(tmp_path):
    (tmp_path / "x.csv").write_text("sep=;\nsource_id;j_m;j_msigcom;ph_qual\n7;9,5;0.1;AAA\n8;9.5;0.1;AAA\n")
    table = read_two_mass([tmp_path / "x.csv"])
    assert_array_equal(table.columns["source_id"], [8])
    assert "j_m is not a number" in table.rejected[0].reason


DRESSED = ("'{}", '"=""{}"""', "Gaia DR3 {}", "b'{}'", '"{}"', "gaia_edr3 {}")


@pytest.mark.parametrize("form", DRESSED)
def test_identifiers_as_spreadsheets_and_python_write_them(tmp_path, form):
    lines = ["source_id,j_m,j_msigcom,ph_qual", *(f"{form.format(i)},9,0.1,\"b'AAA'\"" for i in IDS)]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    table = read_two_mass([tmp_path / "x.csv"])
    assert_array_equal(table.columns["source_id"], IDS)
    assert_array_equal(table.columns["ph_qual"], ["AAA"] * 3)
    columns = sampled()
    lines = ["source_id,flux,flux_error"]
    for i, f, e in zip(IDS, columns["flux"], columns["flux_error"], strict=True):
        lines.append(f'{form.format(i)},"{f.tolist()}","{e.tolist()}"')
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    (batch,) = read_xp_sampled(tmp_path / "s.csv")
    assert_array_equal(batch.source_id, IDS)


def test_an_identifier_of_dr2_is_no_identifier(tmp_path):
    (tmp_path / "x.csv").write_text("source_id,j_m,j_msigcom,ph_qual\nGaia DR2 7,9,0.1,AAA\n8,9,0.1,AAA\n")
    assert read_two_mass([tmp_path / "x.csv"]).rejected[0].reason == "source_id is of Gaia DR2, not DR3 or DR4"


@pytest.mark.parametrize("other", ["gaia_source_id", "SOURCE_ID", "gaiadr3_source_id"])
@pytest.mark.parametrize("door", list(DOORS))
def test_two_columns_that_could_be_the_identifier_are_refused(tmp_path, door, other):
    columns, read = DOORS[door]
    path = write(tmp_path, "parquet", {**columns(), other: IDS + 1})
    with pytest.raises(InputError, match=f"source_id, {other}.*say which with source_id"):
        read(path)


def test_the_user_says_which_column_is_the_identifier(tmp_path):
    path = write(tmp_path, "parquet", {**two_mass(), "SOURCE_ID": IDS + 1})
    assert_array_equal(read_two_mass([path], options=ReadOptions("SOURCE_ID")).columns["source_id"], IDS + 1)
    assert_array_equal(read_two_mass([path], options=ReadOptions("source_id")).columns["source_id"], IDS)
    with pytest.raises(InputError, match="no column sourceid"):
        read_two_mass([path], options=ReadOptions("sourceid", section="[two_mass]"))
    path = write(tmp_path, "parquet", {**labels(), "SOURCE_ID": IDS})
    with pytest.raises(InputError, match="2 columns could be"):
        labels_of(path)


# ------------------------------------------------------------------------------------------------------------- units


def test_units_are_read_as_any_standard_spells_them():
    assert unit_change("mag(ST)", "W / (m2 nm)") is None  # a logarithm, too
    assert unit_change("mas.yr**-1", "mas / yr") == (1.0, 0.0)
    assert_allclose(unit_change("arcsec", "mas"), (1000.0, 0.0))
    assert_allclose(unit_change("erg s-1 cm-2 Angstrom-1", "W / (m2 nm)"), (0.01, 0.0))
    assert_allclose(unit_change("10**-18 W/m2/nm", "W / (m2 nm)"), (1e-18, 0.0))
    assert unit_change("log(cm.s**-2)", "dex(cm / s2)") == unit_change("[cm/s2]", "dex(cm / s2)") == (1.0, 0.0)
    assert_allclose(unit_change("dex(m/s2)", "dex(cm / s2)"), (1.0, 2.0))
    assert unit_change("'electron'.s**-1", "1 / s") == (1.0, 0.0)
    assert (
        unit_change("mag", "dex") is None and unit_change("furlong", "mas") is None and unit_change("K", "mas") is None
    )
    assert unit_change("m/s2", "dex(cm s-2)") is None and unit_change("dex(K)", "K") is None
    assert unit_change("mag(AB)", "mag") is None and unit_change("", "dex") == (1.0, 0.0)


@pytest.mark.parametrize("kind", WITH_UNITS)
def test_declared_units_are_honoured_at_every_door(tmp_path, kind):
    gaia = {"source_id": IDS, "parallax": np.array([1e-3, 2e-3, 3e-3]), "parallax_error": np.full(3, 1e-4)}
    table = read_gaia_source([write(tmp_path, kind, gaia, {"parallax": "arcsec", "parallax_error": "arcsec"})])
    assert_allclose(table.columns["parallax"], [1, 2, 3])
    assert_allclose(table.columns["parallax_error"], 0.1)
    path = write(tmp_path, kind, two_mass(j_m=np.array([9e3, 1e4, 1.1e4])), {"j_m": "mmag"})
    assert_allclose(read_two_mass([path]).columns["j_m"], [9, 10, 11])
    path = write(tmp_path, kind, labels(teff=np.array([5.0, 6.0, 7.0])), {"teff": "kK"})
    assert_allclose(labels_of(path).value[:, 0], [5, 6, 7])
    assert_allclose(labels_of(path).error[:, 0], 0.05)  # its own unit is not declared: the documented K
    reddening = {"source_id": IDS, "reddening": np.full(3, 100.0), "reddening_error": np.full(3, 10.0)}
    path = write(tmp_path, kind, reddening, {"reddening": "mmag", "reddening_error": "mmag"})
    assert_allclose(read_reddening([path]).columns["reddening"], 0.1)
    spectra = sampled()
    other = {**spectra, "flux": spectra["flux"] / 1e4, "flux_error": spectra["flux_error"] / 1e4}
    unit = "W / (cm2 nm)"
    (batch,) = read_xp_sampled(write(tmp_path, kind, other, {"flux": unit, "flux_error": unit}))
    (plain,) = read_xp_sampled(write(tmp_path, kind, spectra))
    assert_allclose(batch.flux, plain.flux)
    assert_allclose(batch.error, plain.error)


@pytest.mark.parametrize("kind", WITH_UNITS)
def test_a_unit_that_cannot_be_converted_is_refused(tmp_path, kind):
    path = write(tmp_path, kind, two_mass(), {"h_m": "Jy"})
    with pytest.raises(InputError, match="column h_m has the unit 'Jy', which cannot be converted to mag"):
        read_two_mass([path])
    path = write(tmp_path, kind, sampled(), {"flux": "Jy"})
    with pytest.raises(InputError, match="column flux has the unit 'Jy'"):
        list(read_xp_sampled(path))


@pytest.mark.parametrize("kind", ["ecsv", "parquet", "hdf5"])
def test_percents_and_units_of_coefficients(tmp_path, kind):
    gaia = {"source_id": IDS, "fidelity_v2": np.array([90.0, 50.0, 10.0])}
    table = read_gaia_source([write(tmp_path, kind, gaia, {"fidelity_v2": "%"})])
    assert_allclose(table.columns["fidelity_v2"], [0.9, 0.5, 0.1])
    names = [f"bp_coefficient{end}" for end in ("s", "_errors")]
    columns = {"source_id": IDS, **dict.fromkeys(names, np.ones((3, 55)))}
    (batch,) = read_xp_continuous(write(tmp_path, kind, columns, {names[0]: "electron / s"}))
    assert_array_equal(batch.source_id, IDS)
    with pytest.raises(InputError, match="bp_coefficients has the unit 'mJy'"):
        read_xp_continuous(write(tmp_path, kind, columns, {names[0]: "mJy"}))
    with pytest.raises(InputError, match="bp_coefficient_errors is not in electrons a second"):
        list(read_xp_continuous(write(tmp_path, kind, columns, {names[1]: "1 / ms"})))


# ---------------------------------------------------------------------------------------------- cells that are missing


@pytest.mark.parametrize("kind", ["hdf5", "parquet", "ecsv"])
def test_masks_that_astropy_writes_beside_a_column_are_honoured(tmp_path, kind):
    from astropy.table import MaskedColumn, Table

    table = Table(labels())
    for name in ("teff", "source_id"):
        table[name] = MaskedColumn(table[name], mask=[name == "teff", False, name == "source_id"])
    path = tmp_path / f"x.{kind}"
    how = {"hdf5": {"path": "t", "serialize_meta": True}, "ecsv": {"serialize_method": "data_mask"}}.get(kind, {})
    table.write(path, **how)
    out = labels_of(path)
    assert_array_equal(out.source_id, IDS[1:2])  # the first has no Teff, the last belongs to no star
    spectra = Table(sampled())
    spectra["flux"] = MaskedColumn(spectra["flux"], mask=np.zeros((3, 343), bool))
    spectra["flux"].mask[1, 100:] = True
    spectra.write(path, overwrite=True, **how)
    (batch,) = read_xp_sampled(path)
    assert_array_equal(batch.present.sum(axis=1) == 61, [True, False, True])


def test_masks_and_strings_of_vaex(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for name, values in two_mass().items():
            at = file.create_group(f"table/columns/{name}")
            at["data"] = np.frombuffer(b"AAABAAB", np.uint8) if name == "ph_qual" else values
        file["table/columns/ph_qual/indices"] = np.array([0, 3, 6, 7])
        file["table/columns/j_m/mask"] = np.array([True, False, False])
        file["table/columns/h_m/null_bitmap"] = np.array([0b101], np.uint8)
    table = read_two_mass([tmp_path / "x.hdf5"])
    assert_array_equal(table.columns["source_id"], IDS)
    assert_array_equal(table.columns["ph_qual"], ["AAA", "BAA", "B"])
    assert_array_equal(np.isnan(table.columns["j_m"]), [True, False, False])
    assert_array_equal(np.isnan(table.columns["h_m"]), [False, True, False])
    with h5py.File(tmp_path / "x.hdf5", "r+") as file:
        file["table/columns/ph_qual/indices"][...] = [0, 900, 6, 7]
    (bad,) = read_two_mass([tmp_path / "x.hdf5"]).rejected
    assert bad.row == 1 and "impossible places" in bad.reason


# --------------------------------------------------------------------------------------------- sentinels and errors


@pytest.mark.parametrize("kind", FORMATS)
def test_what_nobody_can_have_measured_is_missing_and_counted(tmp_path, kind):
    path = write(tmp_path, kind, two_mass(j_m=np.array([99.999, -999.0, 0.0]), h_msigcom=np.array([9.999, -1.0, 0.0])))
    table = read_two_mass([path])
    out = two_mass_fluxes(table, np.full(3, np.nan), TwoMassCuts())
    assert_array_equal(out.inverse_error > 0, [[0, 0, 1]] * 3)
    assert table.missing == {
        "j_m outside -5 ... 30": 2,
        "j_m exactly 0": 1,
        "h_msigcom not positive": 2,
        "h_msigcom at or above 5": 1,
    }
    fluxes = {"source_id": IDS, "flux_w1": np.array([1e9, 1e-30, 1e4]), "dflux_w1": np.array([0.0, 1e-32, -5.0])}
    out = unwise_fluxes(read_unwise([write(tmp_path, kind, fluxes)]), np.full(3, np.nan), UnwiseCuts())
    assert (out.inverse_error == 0).all()
    gaia = {"source_id": IDS, "parallax": np.array([1.0, 1.0, -9999.0]), "parallax_error": np.array([-0.1, 0.0, 0.1])}
    table = read_gaia_source([write(tmp_path, kind, gaia)])
    assert np.isnan(table.floats("parallax_error")[:2]).all() and np.isnan(table.floats("parallax")[2])
    found = labels_of(
        write(tmp_path, kind, labels(feh=np.array([99.0, -9.99, 0.0]), logg_err=np.array([0.1, -9.0, 0.0])))
    )
    assert_array_equal(np.isnan(found.value), [[0, 1, 0], [0, 1, 1], [0, 0, 1]])
    assert {c.what: c.removed for c in found.cuts}["custom: feh outside -9 ... 5, taken for missing"] == 2
    reddening = {
        "source_id": IDS,
        "reddening": np.array([0.1, -999.0, 0.1]),
        "reddening_error": np.array([0.0, 0.1, 0.1]),
    }
    table = read_reddening([write(tmp_path, kind, reddening)])
    assert_array_equal(table.columns["source_id"], IDS[2:])
    assert [r.reason for r in table.rejected] == ["reddening_error not positive", "reddening outside -5 ... 50"]


def test_samples_of_a_spectrum_with_sentinels_are_missing(tmp_path):
    columns = sampled()
    columns["flux"][0, 100], columns["flux_error"][1, 100], columns["flux_error"][2, 100] = -999.0, -1.0, 0.0
    at = int(np.flatnonzero(np.arange(392, 993, 10) >= 336 + 200)[0])
    columns["flux"][0, (392 + 10 * at - 336) // 2] = 99.0
    (batch,) = read_xp_sampled(write(tmp_path, "fits", columns))
    assert not batch.present[0, at] and batch.present[0].sum() >= 59 and (batch.error > 0).all()


# -------------------------------------------------------------------------------------------------- tables of a file


@pytest.mark.parametrize("serialisation", ["tabledata", "binary", "binary2"])
def test_all_tables_of_a_votable_are_read(tmp_path, serialisation, caplog):
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Resource, TableElement, VOTableFile
    from astropy.table import Table

    file = VOTableFile()
    resource = Resource()
    file.resources.append(resource)
    whole = sampled()
    parts = [Table({"ra": [1.0]}), *(Table({k: v[i : i + 1] for k, v in whole.items()}) for i in range(3))]
    for part in parts:
        element = TableElement.from_table(file, part)
        element.format = serialisation
        resource.tables.append(element)
    file.to_xml(str(tmp_path / "x.vot"))
    (batch,) = read_xp_sampled(tmp_path / "x.vot")
    assert_array_equal(batch.source_id, IDS)
    assert_array_equal(batch.row, [1, 2, 3])
    assert "table 1 lacks the wanted columns" in caplog.text
    assert from_table(parts[0]) is not None


def test_one_table_a_star_with_its_identifier_in_a_param(tmp_path):
    rows = "".join(f"<TR><TD>{w}</TD><TD>1e-16</TD><TD>1e-18</TD></TR>" for w in SAMPLED_GRID_NM)
    fields = "".join(f'<FIELD name="{n}" datatype="double"/>' for n in ("wavelength", "flux", "flux_error"))
    tables = "".join(
        f'<TABLE><PARAM name="source_id" datatype="long" value="{i}"/>{fields}'
        f"<DATA><TABLEDATA>{rows}</TABLEDATA></DATA></TABLE>"
        for i in IDS
    )
    (tmp_path / "x.vot").write_text(f'<?xml version="1.0"?><VOTABLE><RESOURCE>{tables}</RESOURCE></VOTABLE>')
    (batch,) = read_xp_sampled(tmp_path / "x.vot")
    assert_array_equal(batch.source_id, IDS)
    assert batch.present.all()


def test_all_extensions_of_a_fits_file_or_the_one_that_is_named(tmp_path):
    from astropy.io import fits

    def hdu(name, ids):
        columns = two_mass(source_id=ids)
        kinds = {"i": "K", "f": "D", "U": "3A"}
        return fits.BinTableHDU.from_columns(
            [fits.Column(k, kinds[v.dtype.kind], array=v[: len(ids)]) for k, v in columns.items()], name=name
        )

    fits.HDUList([fits.PrimaryHDU(), hdu("EMPTY", IDS[:0]), hdu("A", IDS[:2]), hdu("B", IDS[2:])]).writeto(
        tmp_path / "x.fits"
    )
    assert_array_equal(read_two_mass([tmp_path / "x.fits"]).columns["source_id"], IDS)
    for hdu_setting in (3, "b"):
        table = read_two_mass([tmp_path / "x.fits"], options=ReadOptions(hdu=hdu_setting))
        assert_array_equal(table.columns["source_id"], IDS[2:])
    with pytest.raises(InputError, match=r"no table '7'.*correct hdu under \[two_mass\]"):
        read_two_mass([tmp_path / "x.fits"], options=ReadOptions(hdu=7, section="[two_mass]"))


def votable(body: str, fields: str = "", info: str = "") -> str:
    fields = fields or "".join(
        f'<FIELD name="{n}" datatype="{"long" if n == "source_id" else "char" if n == "ph_qual" else "double"}"/>'
        for n in ("source_id", "j_m", "j_msigcom", "ph_qual")
    )
    data = f"<TABLE>{fields}<DATA><TABLEDATA>{body}</TABLEDATA></DATA></TABLE>" if body else ""
    return f'<?xml version="1.0"?><VOTABLE><RESOURCE type="results">{data}{info}</RESOURCE></VOTABLE>'


ROW = f"<TR><TD>{IDS[0]}</TD><TD>9.5</TD><TD>0.02</TD><TD>AAA</TD></TR>"


def test_an_answer_that_its_server_has_cut_is_refused_unless_allowed(tmp_path):
    path = tmp_path / "x.vot"
    path.write_text(votable(ROW, info='<INFO name="QUERY_STATUS" value="OVERFLOW">Row limit reached</INFO>'))
    with pytest.raises(InputError, match="Row limit reached.*allow_truncated = true"):
        read_two_mass([path])
    assert len(read_two_mass([path], options=ReadOptions(allow_truncated=True))) == 1
    path.write_text(votable("", info='<INFO name="QUERY_STATUS" value="ERROR">column foo is unknown</INFO>'))
    with pytest.raises(InputError, match="refusal, not a table: column foo is unknown"):
        read_two_mass([path])


def test_fields_without_a_datatype_are_text_and_names_win_over_ids(tmp_path):
    fields = "".join(
        f'<FIELD ID="_{n}" name="{n}" arraysize="*"/>' for n in ("source_id", "j_m", "j_msigcom", "ph_qual")
    )
    (tmp_path / "x.xml").write_text(votable(ROW, fields))
    table = read_two_mass([tmp_path / "x.xml"])
    assert table.columns["source_id"].tolist() == [IDS[0]] and table.columns["j_m"].tolist() == [9.5]


# ------------------------------------------------------------------------------------------------- what a file is


@pytest.mark.parametrize("kind", FORMATS)
def test_first_bytes_tell_what_a_file_is(tmp_path, kind):
    path = write(tmp_path, kind, two_mass())
    raw = path.read_bytes()
    packed, archive = tmp_path / "packed", tmp_path / "archive.xml"
    packed.write_bytes(gzip.compress(raw))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("folder/member.data", raw)
    (tmp_path / "bare.csv").write_bytes(raw)
    for name in ("packed", "archive.xml", "bare.csv"):
        assert_array_equal(read_two_mass([tmp_path / name]).columns["source_id"], IDS)


def test_every_member_of_a_zip_file_is_read(tmp_path):
    whole = sampled()
    with zipfile.ZipFile(tmp_path / "datalink.zip", "w") as file:
        for i in range(3):
            path = write(
                tmp_path,
                "csv",
                {"wavelength": SAMPLED_GRID_NM, "flux": whole["flux"][i], "flux_error": whole["flux_error"][i]},
            )
            file.write(path, f"XP_SAMPLED-Gaia DR3 {IDS[i]}.csv")
    (batch,) = read_xp_sampled(tmp_path / "datalink.zip")
    assert_array_equal(batch.source_id, IDS)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!DOCTYPE html><html><head><title>404 Not found</title>", r"is a web page \(404 Not found\), not a table"),
        (b"BZh91AY", "is bzip2"),
        (b"PK\x03\x04broken", "not a complete zip file"),
        (b"\x00\x01\x02,", "unknown file format"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, content, sentence):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_two_mass([tmp_path / "x.csv"])


# ---------------------------------------------------------------------------------------------- shapes of spectra


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("with_column", [True, False])
def test_a_single_stars_file_has_one_sample_a_row(tmp_path, kind, with_column):
    whole = sampled()
    columns: dict = {"wavelength": SAMPLED_GRID_NM, "flux": whole["flux"][0], "flux_error": whole["flux_error"][0]}
    if with_column:
        columns = {"source_id": np.full(343, IDS[0]), **columns}
    path = write(tmp_path, kind, columns, name="x" if with_column else f"XP_SAMPLED-Gaia DR3 {IDS[0]}")
    (batch,) = read_xp_sampled(path)
    (reference,) = read_xp_sampled(write(tmp_path, "parquet", sampled(1), name="reference"))
    assert_array_equal(batch.source_id, IDS[:1])
    assert_allclose(batch.flux, reference.flux)


def test_samples_without_all_wavelengths_are_quarantined(tmp_path):
    whole = sampled()
    rows = {"source_id": np.repeat(IDS, 343), "wavelength": np.tile(SAMPLED_GRID_NM, 3)}
    rows |= {n: whole[n].ravel() for n in ("flux", "flux_error")}
    keep = np.ones(3 * 343, bool)
    keep[343 + 28] = False  # 392 nm of the second star
    (batch,) = read_xp_sampled(write(tmp_path, "parquet", {k: v[keep] for k, v in rows.items()}))
    assert_array_equal(batch.source_id, IDS[[0, 2]])
    assert batch.rejected[0].reason == "its wavelengths lack 1 of the 61 samples (first: 392 nm)"
    assert batch.rejected[0].source_id == IDS[1]


def test_one_column_a_sample(tmp_path):
    whole = sampled()
    (expected,) = read_xp_sampled(write(tmp_path, "parquet", whole, name="reference"))
    for numbers in (range(343), range(1, 344), [f"{w:g}" for w in SAMPLED_GRID_NM]):
        for kind in ("csv", "parquet", "fits"):
            columns = {"source_id": IDS}
            for n in ("flux", "flux_error"):
                columns |= {f"{n}_{k}": whole[n][:, i] for i, k in enumerate(numbers)}
            (batch,) = read_xp_sampled(write(tmp_path, kind, columns))
            assert_allclose(batch.flux, expected.flux)
    gap = {"source_id": IDS, **{f"bp_coeff_{i}": np.ones(3) for i in (0, 1, 3)}}
    with pytest.raises(InputError, match="has 3 columns bp_coeff_... but no bp_coeff_2"):
        read_xp_continuous(write(tmp_path, "csv", gap))


def test_nested_columns_and_a_hats_folder(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = sampled()
    (expected,) = read_xp_sampled(write(tmp_path, "parquet", whole, name="reference"))
    lists = [
        [{"wavelength": float(w), "flux": f, "flux_error": e} for w, f, e in zip(SAMPLED_GRID_NM, a, b, strict=True)]
        for a, b in zip(whole["flux"].tolist(), whole["flux_error"].tolist(), strict=True)
    ]
    structs = [{k: [sample[k] for sample in one] for k in one[0]} for one in lists]
    for column in (lists, structs):
        pq.write_table(pa.table({"source_id": IDS, "xp": column}), tmp_path / "nested.parquet")
        (batch,) = read_xp_sampled(tmp_path / "nested.parquet")
        assert_allclose(batch.flux, expected.flux)
    folder = tmp_path / "catalogue"
    for pixel in (11, 4):
        place = folder / f"dataset/Norder=1/Dir=0/Npix={pixel}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
    (folder / "dataset/_metadata.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="is a folder, but no HATS catalogue"):
        expand(("catalogue",), tmp_path)
    (folder / "hats.properties").write_text("obs_collection=xp\n")
    assert [p.name for p in expand(("catalogue",), tmp_path)] == ["Npix=4.parquet", "Npix=11.parquet"]


def test_vaex_files_and_column_vectors(tmp_path):
    h5py = pytest.importorskip("h5py")
    columns = two_mass()
    columns["ph_qual"] = columns["ph_qual"].astype("S3")
    for form in ("vaex", "vector", "matrix"):
        with h5py.File(tmp_path / f"{form}.h5", "w") as file:
            for name, values in columns.items():
                if form == "vaex":
                    file[f"table/columns/{name}/data"] = values
                else:
                    file[name] = (
                        values[:, None] if form == "vector" or name != "j_m" else np.stack([values] * 3, axis=1)
                    )
    for form in ("vaex", "vector"):
        table = read_two_mass([tmp_path / f"{form}.h5"])
        assert_array_equal(table.columns["source_id"], IDS)
        assert_array_equal(table.columns["ph_qual"], ["AAA"] * 3)
    with pytest.raises(InputError, match="column j_m has 3 numbers a row where one is wanted"):
        read_two_mass([tmp_path / "matrix.h5"])


@pytest.mark.parametrize("kind", ["fits", "tabledata", "binary", "binary2", "parquet", "hdf5", "avro"])
def test_one_number_in_an_array_is_a_number_and_several_are_refused(tmp_path, kind):
    table = read_two_mass(
        [write(tmp_path, kind, two_mass(j_m=np.array([[9.0], [10.0], [11.0]]), source_id=IDS[:, None]))]
    )
    assert_array_equal(table.columns["source_id"], IDS)
    assert_array_equal(table.columns["j_m"], [9, 10, 11])
    with pytest.raises(InputError, match="column j_m has 2 numbers a row where one is wanted"):
        read_two_mass([write(tmp_path, kind, two_mass(j_m=np.ones((3, 2))))])


def test_arrays_as_numpy_prints_them(tmp_path):
    whole = sampled()
    lines = ["source_id,flux,flux_error"]
    with np.printoptions(threshold=10_000, floatmode="unique"):
        for i in range(3):
            lines.append(f'{IDS[i]},"{whole["flux"][i]}","{whole["flux_error"][i]!r}"')
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    (batch,) = read_xp_sampled(tmp_path / "x.csv")
    (expected,) = read_xp_sampled(write(tmp_path, "parquet", whole))
    assert_array_equal(batch.flux, expected.flux)
    assert_array_equal(batch.row, [1, 2, 3])
    with np.printoptions(threshold=10):
        (tmp_path / "x.csv").write_text(f'source_id,flux,flux_error\n7,"{whole["flux"][0]}","{whole["flux"][0]}"\n')
    (batch,) = read_xp_sampled(tmp_path / "x.csv")
    assert "abbreviated with '...'" in batch.rejected[0].reason
    assert_array_equal(ArrayParser()(b"[np.float64(1.5), np.float32(2)]"), [1.5, 2.0])


# ------------------------------------------------------------------------------------------------------------- flags


def flagged(**columns) -> dict:
    return labels(**columns)


@pytest.mark.parametrize("kind", FORMATS)
def test_flags_cut_rows_or_single_labels(tmp_path, kind):
    path = write(
        tmp_path, kind, labels(good=np.array([0, 1, 0]), bits=np.array([0, 0, 1 << 23]), feh_flag=np.array([4, 0, 0]))
    )
    rules = (
        FlagRule(column="good", allowed=(0,)),
        FlagRule(column=("nope", "bits"), forbidden_bits=(23, 3)),
        FlagRule(column="feh_flag", allowed=(0,), label="feh"),
    )
    out = labels_of(path, flags=rules)
    assert_array_equal(out.source_id, IDS[:1])
    assert np.isnan(out.value[0, 1]) and out.value[0, 2] == 4
    counted = {c.what: c.removed for c in out.cuts}
    assert counted["custom: good not 0"] == counted["custom: nope with bit 23 or 3"] == 1
    assert counted["custom: feh where feh_flag not 0, taken for missing"] == 1
    assert len(labels_of(path)) == 3
    with pytest.raises(InputError, match=r"no column absent to cut on; correct \[\[labels.flags\]\]"):
        labels_of(path, flags=(FlagRule(column="absent", allowed=(1,)),))


def test_surveys_are_cut_on_the_flags_that_they_recommend(tmp_path):
    galah = {"gaiadr3_source_id": IDS, "flag_sp": np.array([0, 1, 0]), "flag_fe_h": np.array([1, 0, 0])}
    apogee = {"GAIAEDR3_SOURCE_ID": IDS, "ASPCAPFLAG": np.array([1 << 23, 0, 0]), "STARFLAG": np.array([0, 8, 1 << 9])}
    astra = {"gaia_dr3_source_id": IDS, "flag_bad": np.array([True, False, False])}
    for survey, flags, kept, names in (
        ("galah", galah, [0, 2], ("teff", "e_teff", "fe_h", "e_fe_h", "logg", "e_logg")),
        ("apogee", apogee, [2], ("TEFF", "TEFF_ERR", "FE_H", "FE_H_ERR", "LOGG", "LOGG_ERR")),
        ("sdssv", astra, [1, 2], ("teff", "e_teff", "fe_h", "e_fe_h", "logg", "e_logg")),
    ):
        columns = dict(zip(names, [v for k, v in labels().items() if k != "source_id"], strict=True))
        out = labels_of(write(tmp_path, "fits", {**flags, **columns}), survey=survey)
        assert_array_equal(out.source_id, IDS[kept])
        assert np.isnan(out.value[0, 1]) == (survey == "galah")
        assert len(labels_of(tmp_path / "x.fits", survey=survey, flags=())) == 3


def test_a_missing_flag_is_no_minus_one(tmp_path):
    path = write(tmp_path, "fits", labels(good=np.array([-1.0, np.nan, 0.0])))
    assert_array_equal(labels_of(path, flags=(FlagRule(column="good", allowed=(-1,)),)).source_id, IDS[:1])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ('flags = [{column = "x", allowed = [0], label = "fehh"}]', r"no label 'fehh'.*did you mean 'feh'"),
        ("error_floor = {tef = 0.1}", r"no label 'tef'.*did you mean 'teff'"),
        ("error_floor = {teff = -1}", "greater than or equal to 0"),
    ],
)
def test_settings_of_labels_that_there_are_not(tmp_path, setting, sentence):
    (tmp_path / "s.toml").write_text(f'[xp]\nfiles = ["x"]\n[[labels]]\nfiles = ["l"]\n{setting}\n')
    with pytest.raises(InputError, match=f"^[^\n]*{sentence}[^\n]*$"):
        read_survey(tmp_path / "s.toml")


def test_measurements_without_errors_or_flags_are_said(tmp_path, caplog):
    del (columns := two_mass())["h_msigcom"]
    read_two_mass([write(tmp_path, "fits", columns)])
    assert "has h_m but no h_msigcom, without which it does not count" in caplog.text
    read_unwise([write(tmp_path, "fits", {"source_id": IDS, "flux_w1": np.ones(3)})])
    assert "has flux_w1 but no dflux_w1" in caplog.text
    whole = write(tmp_path, "csv", two_mass(), name="whole")
    del (columns := two_mass(source_id=IDS + 10))["ph_qual"]
    with pytest.raises(InputError, match="other.csv: has no ph_qual"):
        read_two_mass([whole, write(tmp_path, "csv", columns, name="other")])


def test_a_flag_rule_says_either_what_is_good_or_what_is_bad():
    for wrong in (
        {"column": "x"},
        {"column": "x", "allowed": (1,), "forbidden_bits": (1,)},
        {"column": "x", "forbidden_bits": (63,)},
    ):
        with pytest.raises(ValueError, match="either allowed or forbidden_bits|0 to 62"):
            FlagRule(**wrong)


def test_two_mass_flags_apart_or_none(tmp_path):
    columns = two_mass()
    del columns["ph_qual"]
    path = write(tmp_path, "csv", columns)
    with pytest.raises(InputError, match="has no ph_qual.*quality_columns.*go without"):
        read_two_mass([path])
    table = read_two_mass([path], quality="")
    assert (two_mass_fluxes(table, np.full(3, np.nan), TwoMassCuts(quality="")).inverse_error > 0).all()
    apart = {f"{b}_flag": np.array(["A", "U", "A"]) if b == "j" else np.array(["A"] * 3) for b in ("j", "h", "k")}
    table = read_two_mass([write(tmp_path, "csv", {**columns, **apart})], quality_columns=tuple(apart))
    assert_array_equal(table.columns["ph_qual"], ["AAA", "UAA", "AAA"])


# ------------------------------------------------------------------------------------------- limits and the CSV parser


@pytest.mark.parametrize("cell", ["[" * 100_000, "(" * 100_000, "[" * 50_000 + "]" * 50_000])
@pytest.mark.parametrize("fast", [True, False])
def test_deep_nesting_is_one_bad_row(tmp_path, monkeypatch, cell, fast):
    if not fast:
        monkeypatch.setitem(__import__("sys").modules, "simdjson", None)
    good = '"[1e-16' + ",1e-16" * 342 + ']"'
    (tmp_path / "x.csv").write_text(f'source_id,flux,flux_error\n7,"{cell}",{good}\n8,{good},{good}\n')
    (batch,) = read_xp_sampled(tmp_path / "x.csv")
    assert batch.source_id.tolist() == [8] and [(r.row, r.source_id) for r in batch.rejected] == [(1, 7)]


NUMBERS = (
    st.floats(allow_nan=True).map(repr) | st.integers(-(2**63), 2**64).map(str) | st.sampled_from(["null", "", "x"])
)
ARRAYS = st.lists(NUMBERS, max_size=4).map(lambda v: "[" + ",".join(v) + "]") | st.just("(1,2)") | st.just("[[1],[2]]")
CELLS = (
    NUMBERS
    | ARRAYS.map(lambda a: f'"{a}"')
    | ARRAYS
    | st.text(st.sampled_from('[]"1,. -eé='), max_size=8)
    | st.text(st.sampled_from('1"",=[]'), max_size=6).map(lambda t: '"' + t.replace('"', '""') + '"')
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(CELLS, min_size=3, max_size=3))
def test_the_fast_parser_agrees_with_the_csv_module_cell_for_cell(tmp_path, cells):
    line = ",".join(cells)
    fast = LineParser(3, [0, 1, 2])(line.encode())
    if fast is None:
        return
    (tmp_path / "x.csv").write_text("a,b,c\n")
    careful = TextFile(tmp_path / "x.csv").split(line.encode())
    assert [c.decode() for c in careful] == next(csv.reader([line], strict=True, skipinitialspace=True))
    for one, text in zip(fast, careful, strict=True):
        if isinstance(one, int):
            assert one == integer(text)
        else:
            assert_array_equal(np.nan if one is None else one, np.nan if (v := ArrayParser()(text)) is None else v)


PLAIN = st.text(st.characters(exclude_characters='"\r\n,\x00', exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(PLAIN, st.text(st.sampled_from('a",\n é'), max_size=6), PLAIN), min_size=1, max_size=6))
def test_text_columns_are_those_of_the_csv_module(tmp_path, rows):
    """The block parser, quotes, doubled quotes and cells over several lines together; blanks around a cell are nothing."""
    with open(tmp_path / "x.csv", "w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "a", "b", "c"])
        writer.writerows((str(i), *row) for i, row in enumerate(rows))
    (batch,) = TextFileTable(tmp_path / "x.csv")
    expected = [tuple(c.strip() for c in row) for row in csv.reader(open(tmp_path / "x.csv", newline=""))][1:]  # noqa: SIM115
    got = list(
        zip(*(["" if v is None else v.strip() for v in batch.columns[n]] for n in ("id", "a", "b", "c")), strict=True)
    )
    assert got == expected and batch.bad == ()


def TextFileTable(path: Path):  # noqa: N802 - reads like a constructor
    return text_file.open_text(path).tables[0].batches(["id", "a", "b", "c"], 10, True)


# --------------------------------------------------------------------------------------------- other releases, the rest


def test_records_of_a_later_release_are_refused_in_one_sentence(tmp_path):
    import fastavro

    array = {"type": "array", "items": "double"}
    solution = {
        "type": "record",
        "name": "S",
        "fields": [{"name": n, "type": array} for n in ("parameters", "covariance", "sqrtCov")]
        + [{"name": "standardDeviation", "type": "double"}],
    }
    spectrum = {"type": "record", "name": "P", "fields": [{"name": "solution", "type": ["null", solution]}]}
    schema = {
        "type": "record",
        "name": "X",
        "fields": [
            {"name": "sourceId", "type": "long"},
            {"name": "bpSpec", "type": spectrum},
            {"name": "rpSpec", "type": ["null", "P"]},  # by name: it was there before
        ],
    }
    numbers = {**{n: [1.0] for n in ("parameters", "covariance", "sqrtCov")}, "standardDeviation": 1.0}
    record = {"sourceId": 7, "bpSpec": {"solution": numbers}, "rpSpec": {"solution": numbers}}
    with open(tmp_path / "x.avro", "wb") as stream:
        fastavro.writer(stream, schema, [record])
    with pytest.raises(InputError, match="^[^\n]*1 BP and 1 RP coefficients[^\n]*install one that has it[^\n]*$"):
        list(read_xp(tmp_path / "x.avro"))


def test_rows_of_all_tables_are_accounted_for(tmp_path):
    path = tmp_path / "x.vot"
    bad = ROW.replace(str(IDS[0]), "0")
    path.write_text(
        votable(ROW + bad).replace(
            "</TABLE>", "</TABLE>" + votable(bad + ROW).partition('results">')[2].partition("</RESOURCE>")[0]
        )
    )
    table = read_two_mass([path])
    assert table.n_read == 4 == len(table) + len(table.rejected)
    assert [r.row for r in table.rejected] == [2, 3]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_that_can_give_nothing_is_refused(tmp_path, kind):
    path = write(tmp_path, kind, {"source_id": IDS, "other": np.ones(3)})
    for _, read in DOORS.values():
        with pytest.raises(InputError, match="^[^\n]*has (no|neither)[^\n]*$"):
            read(path)


def test_options_reach_every_block(tmp_path):
    path = write(tmp_path, "parquet", {"a": IDS, "x": np.arange(3.0)})
    column = replace(SOURCE_ID, required=False)
    (block,) = read_blocks(path, (column, Column("x")), ReadOptions("a"))
    assert_array_equal(block.columns["source_id"], IDS)
