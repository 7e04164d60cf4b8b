"""The star table: what goes in comes out, and every kind of bad file is one sentence."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from tests.conftest import with_columns
from xpbayes.channels import Channels, xp_channels
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.spectra_file import read_star_table, read_star_table_rows, write_star_table
from xpbayes.errors import InputError


def test_round_trip_is_exact(sample, tmp_path):
    path = write_star_table(sample, tmp_path / "deep" / "stars.parquet")
    back = read_star_table(path)
    assert_array_equal(back.source_id, sample.source_id)
    assert_array_equal(back.flux, sample.flux)
    assert_array_equal(back.xp_whitening, sample.xp_whitening)
    assert_array_equal(back.band_inverse_error, sample.band_inverse_error)
    for name, values in sample.columns.items():
        assert_array_equal(back.columns[name], values)
    assert (back.cuts, back.provenance, back.channels) == (sample.cuts, sample.provenance, sample.channels)
    assert back.label_names == ("teff", "feh", "logg", "alpha_m")


def test_64_bit_ids_survive(sample, tmp_path):
    ids = np.arange(len(sample), dtype=np.int64) + 6_917_528_997_577_384_320
    back = read_star_table(write_star_table(replace(sample, source_id=ids), tmp_path / "s.parquet"))
    assert_array_equal(back.source_id, ids)


def test_units_are_in_the_file(star_file):
    schema = pq.read_schema(star_file)
    assert schema.field("teff").metadata[b"unit"] == b"kK"
    assert schema.field("flux").metadata[b"unit"] == b"1e-18 W m-2 nm-1"
    assert schema.field("phot_g_mean_mag").metadata[b"unit"] == b"mag"


def test_a_set_without_xp_samples_works(tmp_path):
    channels = Channels(("g", "r"), (480.0, 620.0), 0)
    table = Spectra(
        channels, ("teff",), np.array([1, 2]), np.ones((2, 2), np.float32), np.zeros((2, 0), np.float32),
        np.ones((2, 2), np.float32), {"teff": np.array([5.0, 6.0], np.float32)},
    )  # fmt: skip
    back = read_star_table(write_star_table(table, tmp_path / "bands.parquet"))
    assert back.xp_whitening.shape == (2, 0) and back.stars().whitening.shape == (2, 2, 2)


def test_missing_values_have_weight_zero(sample):
    n = len(sample)
    table = with_columns(sample, parallax=np.full(n, np.nan), reddening=np.full(n, np.nan))
    stars = table.stars(("teff", "feh", "logg"))
    assert np.all(stars.parallax_inv_error == 0) and np.all(stars.reddening_inv_error == 0)
    assert np.all(np.isfinite(stars.parallax))
    missing = np.isnan(table.column("feh"))
    assert missing.any() and np.all(stars.label_inv_error[missing, 1] == 0)


def test_spectroscopic_parallax_is_used_only_when_asked(sample):
    assert np.all(sample.stars().parallax_inv_error == 0)
    assert np.mean(sample.stars(spectroscopic_parallax=True).parallax_inv_error > 0) > 0.99


def test_the_scale_cancels(sample):
    """chi^2 of any offset is the same in the star's own units as in the file's."""
    stars = sample.stars()
    offset = 0.01 * sample.flux[7]
    white = stars.whitening[7] @ (offset / np.exp(stars.ln_scale[7]))
    n = sample.channels.n_xp
    xp = np.zeros((n, n))
    xp[np.tril_indices(n)] = sample.xp_whitening[7]
    chi2 = np.sum((xp @ offset[:n]) ** 2) + np.sum((sample.band_inverse_error[7] * offset[n:]) ** 2)
    assert np.isclose(np.sum(white**2), chi2, rtol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t.flux.__setitem__((3, 5), np.nan), "flux is not finite"),
        (lambda t: t.band_inverse_error.__setitem__((3, 1), -1.0), "flux error is negative"),
        (lambda t: t.xp_whitening.__setitem__((3, 0), np.inf), "flux error is not finite"),
        (
            lambda t: (t.xp_whitening.__setitem__(3, 0), t.band_inverse_error.__setitem__(3, 0)),
            "no channel was measured",
        ),
        (lambda t: t.columns["teff_error"].__setitem__(3, -0.1), "teff_error is not positive"),
        (lambda t: t.flux.__setitem__((3, slice(0, 61)), 2.5), "flux is the same at all wavelengths"),
        (
            lambda t: t.flux.__setitem__((3, slice(0, 61)), np.linspace(2.5, 2.502, 61)),
            "flux is the same at all wavelengths",
        ),
    ],
)
def test_a_bad_star_has_a_reason(sample, spoil, reason):
    part = sample.take(np.arange(10))
    copy = replace(
        part,
        flux=part.flux.copy(),
        xp_whitening=part.xp_whitening.copy(),
        band_inverse_error=part.band_inverse_error.copy(),
        columns={k: v.copy() for k, v in part.columns.items()},
    )
    spoil(copy)
    problems = copy.problems(labelled=True)
    assert problems[3] == reason
    assert np.all(np.delete(problems, 3) == OK)


def test_labels_that_inference_does_not_read_make_no_star_unusable(sample):
    part = with_columns(sample.take(np.arange(4)), teff_error=np.full(4, -1.0), reddening_error=np.zeros(4))
    assert np.all(part.problems() == OK)
    assert set(part.problems(labelled=True)) == {"reddening_error is not positive"}


def test_stars_are_picked_by_mask_slice_and_row(sample):
    warm = sample[sample.column("teff") > 5]
    assert np.all(warm.column("teff") > 5) and 0 < len(warm) < len(sample)
    assert_array_equal(sample[2:8:3].source_id, sample.source_id[[2, 5]])
    assert_array_equal(sample[-1].flux, sample.flux[-1:])
    assert_array_equal(sample[np.array([3, 1])].columns["teff"], sample.columns["teff"][[3, 1]])
    with pytest.raises(IndexError, match="of a table of"):
        sample[len(sample)]
    assert [len(star) for star in sample[:3]] == [1, 1, 1]


def test_a_table_says_what_it_is(sample):
    assert repr(sample[:7]) == "<Spectra: 7 stars; 61 XP samples, J, H, Ks; teff, feh, logg, alpha_m>"


def test_signal_to_noise_is_the_median_over_what_was_observed(sample):
    part = sample[:3]
    bands = part.band_inverse_error.copy()
    bands[1] = 0
    weights = part.xp_whitening.copy()
    weights[2], bands[2] = 0, 0
    part = part.replace(xp_whitening=weights, band_inverse_error=bands)
    n = part.channels.n_xp
    lower = np.zeros((n, n))
    lower[np.tril_indices(n)] = weights[1]
    sigma = np.sqrt(np.diag(np.linalg.inv(lower.T @ lower)))
    assert np.isclose(part.snr[1], np.median(part.flux[1, :n] / sigma), rtol=1e-4)
    assert np.isfinite(part.snr[0]) and np.isnan(part.snr[2])


@pytest.mark.parametrize(("start", "stop", "at_once"), [(0, None, 7), (3, 50, 20), (10, 11, 100), (0, 64, 64)])
def test_rows_are_those_of_the_whole_table(sample, tmp_path, start, stop, at_once):
    table = sample[:64]
    path = write_star_table(table, tmp_path / "whole.parquet")
    pq.write_table(pq.read_table(path), tmp_path / "stars.parquet", row_group_size=9)
    parts = list(read_star_table_rows(tmp_path / "stars.parquet", start, stop, at_once))
    wanted = table[start:stop]
    assert [len(p) for p in parts[:-1]] == [at_once] * (len(parts) - 1)
    for name in ("source_id", "flux", "xp_whitening", "band_inverse_error"):
        assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(wanted, name))
    for name, values in wanted.columns.items():
        assert_array_equal(np.concatenate([p.columns[name] for p in parts]), values)
    assert all(
        (p.cuts, p.provenance, p.extra_units) == (table.cuts, table.provenance, table.extra_units) for p in parts
    )


def test_reading_rows_takes_no_memory_for_the_others(tmp_path, sample):
    """A table of ten row groups, read in tenths, needs a fraction of what the whole of it needs."""
    table = sample[np.arange(20_480) % len(sample)].replace(source_id=np.arange(1, 20_481))
    pq.write_table(
        pq.read_table(write_star_table(table, tmp_path / "a.parquet")), tmp_path / "b.parquet", row_group_size=2048
    )

    def peak(at_once):
        tracemalloc.start()
        for part in read_star_table_rows(tmp_path / "b.parquet", at_once=at_once):
            assert len(part)
            del part
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(2048) < 0.2 * peak(None)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([], 0),
        (np.ma.array([True, True, True], mask=[0, 1, 0]), 2),
        (np.ma.array([2, 1], mask=[1, 0]), 1),
        (np.array([[0, 1], [1, 2]]), None),
        ("teff", None),
        (np.array([0.0, 1.0]), None),
    ],
)
def test_an_index_is_a_mask_a_slice_or_row_numbers(sample, index, expected):
    three = sample[:3]
    if expected is None:
        with pytest.raises(InputError, match="selects no stars; give a mask"):
            three[index]
    else:
        assert len(three[index]) == expected == len(three[index].flux)


# ------------------------------------------------------------------------------------------- bad files, one sentence


def _rewrite(path, target, change):
    table = pq.read_table(path)
    pq.write_table(change(table), target)
    return target


def _set_unit(table: pa.Table, name: str, unit: bytes) -> pa.Table:
    i = table.schema.get_field_index(name)
    field = table.schema.field(i).with_metadata({b"unit": unit})
    return table.cast(table.schema.set(i, field))


def _with_about(table: pa.Table, **changes) -> pa.Table:
    about = json.loads(table.schema.metadata[b"xpbayes"]) | changes
    return table.replace_schema_metadata({"xpbayes": json.dumps(about)})


def _with_null(table: pa.Table, name: str) -> pa.Table:
    i = table.schema.get_field_index(name)
    column = table.column(i).combine_chunks()
    with_null = pa.concat_arrays([pa.nulls(1, column.type), column.slice(1)])
    return table.set_column(i, table.schema.field(i), with_null)


def _with_null_id(table: pa.Table) -> pa.Table:
    return _with_null(table, "source_id")


BAD_FILES = {
    "missing column": (
        lambda t: t.drop_columns(["xp_whitening"]),
        r"required column is missing \(first: xp_whitening\)",
    ),
    "wrong unit": (lambda t: _set_unit(t, "teff", b"K"), "column teff is in 'K', expected 'kK'"),
    "wrong type": (
        lambda t: t.set_column(0, "source_id", t["source_id"].cast(pa.int32(), safe=False)),
        "source_id has type int32, expected int64",
    ),
    "duplicate": (lambda t: pa.concat_tables([t, t.slice(4, 2)]), "2 source_ids occur more than once"),
    "empty": (lambda t: t.slice(0, 0), "has no stars"),
    "no metadata": (lambda t: t.replace_schema_metadata({}), "not a file of xpbayes"),
    "other kind": (
        lambda t: t.replace_schema_metadata({"xpbayes": json.dumps({"kind": "catalogue"})}),
        "holds a catalogue, not a star table",
    ),
    "newer": (
        lambda t: t.replace_schema_metadata({"xpbayes": json.dumps({"kind": "star table", "version": 99})}),
        "newer than this xpbayes reads",
    ),
    "null id": (_with_null_id, "1 rows have no source_id; leave these rows out"),
    "id that is none": (
        lambda t: t.set_column(0, "source_id", pa.array([-7, 0, *range(1, t.num_rows - 1)], pa.int64())),
        r"2 source_ids are outside 1 ... 2\^63 - 1 .first: -7, row 0.; leave these rows out",
    ),
    "null flux": (lambda t: _with_null(t, "flux"), "1 rows have no flux; write zeros"),
    "metadata no JSON": (lambda t: t.replace_schema_metadata({"xpbayes": "{"}), "its metadata are damaged"),
    "metadata not UTF-8": (lambda t: t.replace_schema_metadata({"xpbayes": b"\xff\xfe{}"}), "its metadata are damaged"),
    "metadata a list": (lambda t: t.replace_schema_metadata({"xpbayes": "[]"}), "its metadata are damaged"),
    "metadata deep": (lambda t: t.replace_schema_metadata({"xpbayes": "[" * 100_000}), "its metadata are damaged"),
    "version a word": (lambda t: _with_about(t, version="one"), "its metadata are damaged"),
    "no channels": (lambda t: _with_about(t, channels=None), "metadata: is damaged .channels"),
    "channels of the wrong length": (
        lambda t: _with_about(t, channels={"names": ["a"], "wavelength_nm": [1, 2], "n_xp": 1}),
        "metadata: is damaged .channels",
    ),
    "labels a word": (lambda t: _with_about(t, labels="teff"), "metadata: is damaged .labels"),
    "labels twice": (lambda t: _with_about(t, labels=["teff", "teff"]), "metadata: is damaged"),
    "a cut without counts": (lambda t: _with_about(t, cuts=[{"what": "x"}]), "metadata: is damaged .cuts.0.removed"),
    "provenance a list": (lambda t: _with_about(t, provenance=[1]), "metadata: is damaged .provenance"),
    "a column twice": (lambda t: t.append_column(t.schema.field("teff"), t["teff"]), "several columns teff"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_sentence(kind, star_file, tmp_path):
    change, message = BAD_FILES[kind]
    path = _rewrite(star_file, tmp_path / "bad.parquet", change)
    with pytest.raises(InputError, match=message) as caught:
        read_star_table(path)
    assert "bad.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_file_is_one_sentence(star_file, tmp_path):
    path = tmp_path / "cut.parquet"
    path.write_bytes(star_file.read_bytes()[: star_file.stat().st_size // 2])
    with pytest.raises(InputError, match="not a complete Parquet file"):
        read_star_table(path)


def test_a_file_damaged_inside_is_one_sentence(star_file, tmp_path):
    path = tmp_path / "damaged.parquet"
    raw = bytearray(star_file.read_bytes())
    raw[2000:60_000] = b"\x5a" * 58_000
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        read_star_table(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_star_table(tmp_path / "none.parquet")


def test_an_unwritable_output_is_one_sentence(sample, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written"):
        write_star_table(sample, tmp_path / "file" / "stars.parquet")


def test_nothing_half_written_stays(sample, tmp_path):
    write_star_table(sample, tmp_path / "stars.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["stars.parquet"]


def test_other_bands_are_left_out_and_new_ones_missing(sample):
    stars = sample.take(np.arange(5))
    other = stars.on(xp_channels(("Ks", "W1", "J")))
    assert other.channels.band_names == ("Ks", "W1", "J")
    n = stars.channels.n_xp
    ks, j = (stars.channels.names.index(name) for name in ("Ks", "J"))
    np.testing.assert_array_equal(
        other.flux[:, n:], np.stack([stars.flux[:, ks], np.zeros(5), stars.flux[:, j]], axis=1)
    )
    assert not other.channel_present()[:, n + 1].any() and other.channel_present()[:, [n, n + 2]].all()
    assert stars.on(stars.channels) is stars
    with pytest.raises(InputError, match="channels"):
        stars.on(Channels(("g", "r"), (480.0, 620.0), 0))


def test_spectra_are_the_same_if_they_are_one_object(sample):
    assert sample == sample and sample != sample.take(np.arange(3)) and hash(sample)
