"""Every format holds the catalogue's own numbers, units, UCDs and descriptions."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Table
from numpy.testing import assert_array_equal

from xpbayes.errors import InputError
from xpbayes.instrument.instrument import DEFAULT_ID
from xpbayes.production.export import write_fits, write_hats, write_votable
from xpbayes.production.reader import open_catalogue
from xpbayes.production.table import describe, list_column, text_column, to_arrow, write_catalogue
from xpbayes.schema import catalogue_columns

N = 3000
ABOUT = {"labels": ["teff", "feh", "logg"], "instrument": DEFAULT_ID.to_json()}
PLAIN_UNITS = {c.name: c.unit for c in catalogue_columns(3) if "," not in c.unit}


def made_up(n: int, seed: int = 0) -> dict:
    """Rows of every column of the schema, whatever these are: random numbers, and nulls in one row of seven."""
    rng = np.random.default_rng(seed)
    rows = {}
    missing = np.arange(n) % 7 == 3
    for column in catalogue_columns(3):
        kind = column.type
        if pa.types.is_fixed_size_list(kind):
            rows[column.name] = np.where(missing[:, None], np.nan, rng.normal(size=(n, kind.list_size)))
        elif pa.types.is_string(kind):
            rows[column.name] = np.where(missing, "flux is not finite", "ok")
        elif pa.types.is_boolean(kind):
            rows[column.name] = ~missing
        elif pa.types.is_integer(kind):
            rows[column.name] = rng.integers(0, 100, n)
        else:
            rows[column.name] = np.where(missing, np.nan, rng.normal(size=n))
    # A patch of sky, and source_ids whose pixels contain their stars.
    rows["ra"], rows["dec"] = rng.uniform(130, 135, n), rng.uniform(-2, 2, n)
    from astropy_healpix import HEALPix

    pixel = HEALPix(2**12, order="nested").lonlat_to_healpix(*(np.deg2rad(rows[k]) * _radian() for k in ("ra", "dec")))
    rows["source_id"] = (pixel << 35) + np.arange(1, n + 1)
    return rows


def _radian():
    from astropy import units

    return units.rad


@pytest.fixture(scope="module")
def table():
    return to_arrow(made_up(N), 3)


@pytest.fixture(scope="module")
def catalogue(table, tmp_path_factory):
    return open_catalogue(write_catalogue(describe(table, ABOUT), tmp_path_factory.mktemp("c") / "c.parquet"))


def same(found, expected) -> None:
    assert_array_equal(np.ma.filled(np.ma.asarray(found).astype(float), np.nan), expected)


def test_votable(catalogue, table, tmp_path):
    write_votable(catalogue, tmp_path / "c.vot")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Invalid UCD")  # the schema's own affair, see test_ucds
        votable = parse(tmp_path / "c.vot", verify="warn").get_first_table()
    assert len(votable.array) == N
    for column, field in zip(catalogue.columns, votable.fields, strict=True):
        assert field.name == column.name and (field.ucd or "") == column.ucd
        description = " ".join(field.description.split())
        assert description.startswith(column.description)
        if column.name in PLAIN_UNITS:
            assert ("" if field.unit is None else field.unit.to_string("vounit")) == column.unit
        else:
            assert column.unit in description
        found = votable.array[column.name]
        if pa.types.is_fixed_size_list(column.type):
            same(found, list_column(table, column.name).astype(np.float32))
        elif pa.types.is_string(column.type):
            assert_array_equal(np.asarray(found, str), text_column(table, column.name))
        else:
            same(found, table[column.name].to_numpy(zero_copy_only=False).astype(float))


def test_a_null_integer_stays_one_in_votable(table, tmp_path):
    at = table.schema.get_field_index("n_obs")
    kind = table.schema.field(at).type
    nulls = pa.array([None if i % 5 == 0 else i % 60 for i in range(N)], type=kind)
    path = write_catalogue(describe(table.set_column(at, table.schema.field(at), nulls), ABOUT), tmp_path / "c.parquet")
    write_votable(open_catalogue(path), tmp_path / "c.vot")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Invalid UCD")
        found = parse(tmp_path / "c.vot", verify="warn").get_first_table().array["n_obs"]
    assert_array_equal(np.ma.getmaskarray(found), np.arange(N) % 5 == 0)


def test_fits(catalogue, table, tmp_path):
    write_fits(catalogue, tmp_path / "c.fits")
    with fits.open(tmp_path / "c.fits") as hdus:
        hdus.verify("exception")
        header = hdus[1].header
        for i, column in enumerate(catalogue.columns, 1):
            assert header[f"TTYPE{i}"] == column.name and header[f"TUCD{i}"] == column.ucd
            assert header[f"TCOMM{i}"].startswith(column.description)
            assert header.get(f"TUNIT{i}", "") == PLAIN_UNITS.get(column.name, "")
    assert (tmp_path / "c.fits").stat().st_size % 2880 == 0
    found = Table.read(tmp_path / "c.fits")
    assert_array_equal(found["gdr3_source_id"], table["gdr3_source_id"].to_numpy())
    same(found["stellar_params_cov_triu"], list_column(table, "stellar_params_cov_triu").astype(np.float32))
    assert_array_equal(found["converged"], table["converged"].to_numpy(zero_copy_only=False))
    assert_array_equal(np.asarray(found["status"], str), text_column(table, "status"))
    assert found["ra"].unit == "deg"


def test_memory_does_not_grow_with_the_catalogue(catalogue, tmp_path, monkeypatch):
    """Blocks of any size make the same file."""
    from xpbayes.production.reader import Catalogue

    tables = Catalogue.tables
    for write, name in ((write_votable, "c.vot"), (write_fits, "c.fits")):
        write(catalogue, tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(Catalogue, "tables", lambda self, names=None: tables(self, names, rows_at_once=101))
            write(catalogue, tmp_path / f"small-{name}")
        assert (tmp_path / name).read_bytes() == (tmp_path / f"small-{name}").read_bytes()


def test_an_unwritable_file_is_one_sentence(catalogue, tmp_path):
    (tmp_path / "file").touch()
    for write in (write_votable, write_fits):
        with pytest.raises(InputError, match="cannot be written"):
            write(catalogue, tmp_path / "file" / "c")


class TestHats:
    @pytest.fixture(autouse=True)
    def _dist(self):
        pytest.importorskip("hats_import", reason="the extra dist is not installed")
        pytest.importorskip("lsdb", reason="the extra dist is not installed")

    @pytest.fixture(scope="class")
    def hats(self, catalogue, tmp_path_factory):
        out = tmp_path_factory.mktemp("hats") / "xpbayes_catalogue"
        write_hats(catalogue, out, processes=1)
        return out

    @pytest.mark.thorough
    def test_cone_search(self, hats, table):
        import lsdb

        ra, dec, radius = 132.5, 0.3, 0.6
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = lsdb.open_catalog(hats).cone_search(ra, dec, radius * 3600).compute()
        a, d = (np.deg2rad(table[n].to_numpy()) for n in ("ra", "dec"))
        a0, d0 = np.deg2rad(ra), np.deg2rad(dec)
        distance = np.arccos(np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(a - a0))
        expected = np.sort(table["gdr3_source_id"].to_numpy()[np.rad2deg(distance) < radius])
        assert 50 < len(expected) < N
        assert_array_equal(np.sort(found["gdr3_source_id"].to_numpy()), expected)

    @pytest.mark.thorough
    def test_cross_match(self, hats, table):
        """A survey displaced by half an arcsecond finds every star within one, and none within a tenth."""
        import lsdb
        import pandas as pd

        at = np.arange(0, N, 10)
        other = pd.DataFrame(
            {
                "name": at,
                "ra": table["ra"].to_numpy()[at],
                "dec": table["dec"].to_numpy()[at] + 0.5 / 3600,
            }
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = lsdb.from_dataframe(other, ra_column="ra", dec_column="dec", margin_threshold=5)
            ours = lsdb.open_catalog(hats)
            found = theirs.crossmatch(ours, radius_arcsec=1, suffixes=("_theirs", "")).compute()
            none = theirs.crossmatch(ours, radius_arcsec=0.1, suffixes=("_theirs", "")).compute()
        found = found.sort_values("name_theirs" if "name_theirs" in found else "name")
        expected = table["gdr3_source_id"].to_numpy()[at]
        column = "gdr3_source_id" if "gdr3_source_id" in found else "gdr3_source_id_ours"
        assert_array_equal(found[column].to_numpy(), expected)
        assert len(none) == 0

    @pytest.mark.thorough
    def test_stars_of_one_partition_are_not_counted_finely(self, hats):
        """Counts down to order 10, hats-import's own choice, take ten times as long as all the rest."""
        assert "hats_skymap_order=6" in (hats / "hats.properties").read_text().split()

    @pytest.mark.thorough
    def test_numbers_and_units_survive(self, hats, table):
        files = sorted((hats / "dataset").rglob("Npix=*.parquet"))
        found = pa.concat_tables([pq.read_table(f, partitioning=None) for f in files])
        assert len(found) == N
        order = np.argsort(found["gdr3_source_id"].to_numpy())
        expected = np.argsort(table["gdr3_source_id"].to_numpy())
        assert_array_equal(
            list_column(found, "stellar_params_est")[order], list_column(table, "stellar_params_est")[expected]
        )
        for column in catalogue_columns(3):
            metadata = found.schema.field(column.name).metadata
            assert metadata[b"unit"].decode() == column.unit and metadata[b"ucd"].decode() == column.ucd

    def test_missing_positions_are_refused_or_taken_from_source_ids(self, table, tmp_path):
        """A source_id's pixel is 52 arcsec wide: its corners are at most 54 arcsec from its centre."""
        at = table.schema.get_field_index("ra")
        ra = table["ra"].to_numpy().copy()
        ra[:100] = np.nan
        field = table.schema.field(at)
        path = write_catalogue(
            describe(
                table.set_column(at, field, pa.array(ra, from_pandas=True)),
                ABOUT,
            ),
            tmp_path / "c.parquet",
        )
        with pytest.raises(InputError, match=r"100 of 3000 rows have no ra and dec"):
            write_hats(open_catalogue(path), tmp_path / "hats", processes=1)
        from xpbayes.production.hats import positions_from_source_id

        found = positions_from_source_id(table["gdr3_source_id"].to_numpy())
        d_ra = (found[0] - table["ra"].to_numpy()) * np.cos(np.deg2rad(found[1])) * 3600
        d_dec = (found[1] - table["dec"].to_numpy()) * 3600
        distance = np.hypot(d_ra, d_dec)
        assert 15 < np.median(distance) < 25 and distance.max() < 54

    def test_source_ids_order_as_hats_does(self, hats):
        """_healpix_29 from positions and from source_ids agree to order 12."""
        file = next((hats / "dataset").rglob("Npix=*.parquet"))
        found = pq.read_table(file, partitioning=None)
        own = found["_healpix_29"].to_numpy() >> 34
        assert_array_equal(own, found["gdr3_source_id"].to_numpy() >> 35)

    def test_an_existing_folder_is_refused(self, catalogue, tmp_path):
        with pytest.raises(InputError, match="exists already"):
            write_hats(catalogue, tmp_path, processes=1)


def test_hats_without_the_extra_is_one_sentence(catalogue, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hats_import", None)
    with pytest.raises(InputError, match=r"xpbayes\[dist\]"):
        write_hats(catalogue, tmp_path / "hats")
