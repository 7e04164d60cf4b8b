"""Inputs that people really have, from ../shared/cases: what `prepare` makes of each.

Small inputs of the same kinds, in every format and at every door, are in `test_doors.py`; this reads the originals.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.listening import heard
from xpbayes.archive.prepare import prepare
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")

STARS = {
    **{f"03-sampled-individual/{n}": 2 for n in ("survey", "fits", "long")},
    "04-votable-many-tables/chunks-tabledata": 10,
    **{f"09-numpy-repr-csv/{n}": 3 for n in ("survey", "gxp")},
    "11-vaex-hdf5/survey": 10,
    **{f"18-compressed-without-suffix/{n}": 10 for n in ("datalink.zip", "zip_as.xml")},
    **{f"21-votable-id-not-name/{n}": 2 for n in ("binary2", "tabledata")},
    **{f"24-sampled-other-unit/{n}": 10 for n in ("erg.fits", "si.fits", "erg_infer")},
    **{f"25-wide-sampled/{n}": 10 for n in ("idx", "nm", "onebased")},
    **{f"26-lsdb-nested-hats/{n}": 10 for n in ("hatsdir", "hatsglob", "hatsrec", "nested")},
}
"""Spectra alone: stars that are written, of as many rows."""
JOINED = {
    **{
        f"{n}/survey": "2MASS 10 of 10 rows used, 0 quarantined"
        for n in ("06-votable-no-datatype", "07-bytes-repr-phqual")
    },
    "08-astra-dr19-hdu2/survey": "labels 10 stars, 0 rows quarantined",
    "10-sentinel-magnitudes/j_only": "2MASS 10 of 10 rows used, 0 quarantined",
    "10-sentinel-magnitudes/survey": "unWISE 10 of 10 rows used, 0 quarantined",
    "10-sentinel-magnitudes/flux": "unWISE 10 of 10 rows used, 0 quarantined",
    "16-label-quality-flags/apogee": "labels 6 stars, 0 rows quarantined",
    "16-label-quality-flags/galah": "labels 8 stars, 0 rows quarantined",
    **{f"27-quote-all/{n}": "2MASS 10 of 10 rows used, 0 quarantined" for n in ("survey", "apos", "des", "eq")},
    "29-hdf5-column-vectors/tm": "2MASS 10 of 10 rows used, 0 quarantined",
}
"""With a companion: what the last line says of it."""
REFUSED = {
    **{f"05-float-source-id/{n}": "have been through floating point" for n in ("xp.parquet", "xp_dot0.csv")},
    **{f"07-bytes-repr-phqual/{n}": "has no ph_qual.*quality_columns.*go without" for n in ("noqual", "sep")},
    "09-numpy-repr-csv/coeff": "no star is left of 3 rows",  # abbreviated with "..."
    "11-vaex-hdf5/tm": "has no ph_qual",
    "12-votable-overflow/survey": "Row limit reached.*allow_truncated = true",
    "12-votable-overflow/error": "Cannot parse query: column two_mass.foo is unknown",
    "25-wide-sampled/gap": "has 54 columns bp_coeff_... but no bp_coeff_50",
}
"""One sentence."""


def run(survey: Path, out: Path):
    """The star table of a case, and the last line."""
    with heard() as lines:
        (path,) = prepare(survey, out)[:1]
    return read_star_table(path), lines[-1]


def written(name: str, out: Path):
    return run(CASES / f"{name}.toml", out)


@pytest.mark.parametrize("name", STARS)
def test_spectra(tmp_path, name):
    n = STARS[name]
    with heard() as lines:
        paths = prepare(CASES / f"{name}.toml", tmp_path)
    assert sum(len(read_star_table(path)) for path in paths) == n
    assert lines[-1].startswith(f"{n} rows read: {n} stars written, 0 cut, 0 quarantined")


@pytest.mark.parametrize("name", JOINED)
def test_spectra_with_companions(tmp_path, name):
    table, last = written(name, tmp_path)
    assert len(table) == 10 and last.startswith("10 rows read: 10 stars written, 0 cut, 0 quarantined")
    assert JOINED[name] in last
    weights = table.band_inverse_error > 0
    if name.startswith("10"):
        assert_array_equal(weights[:, 0], np.arange(10) >= 5)
        assert weights[:, 1:3].all()
    elif "2MASS" in last:
        assert weights.all()
    if name == "10-sentinel-magnitudes/flux":
        assert_array_equal(weights[:, 3], np.isin(np.arange(10), [5, 7, 8]))
        assert weights[:, 4].all()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(tmp_path, name):
    with pytest.raises(InputError, match=f"^[^\n]*{REFUSED[name]}[^\n]*$"):
        prepare(CASES / f"{name}.toml", tmp_path)


ALIKE = [
    ("24-sampled-other-unit/erg.fits", "24-sampled-other-unit/si.fits"),
    ("25-wide-sampled/idx", "25-wide-sampled/nm"),
    ("21-votable-id-not-name/binary2", "21-votable-id-not-name/tabledata"),
    ("03-sampled-individual/survey", "03-sampled-individual/fits"),
    ("18-compressed-without-suffix/datalink.zip", "18-compressed-without-suffix/zip_as.xml"),
    ("26-lsdb-nested-hats/hatsdir", "26-lsdb-nested-hats/hatsrec"),
    ("06-votable-no-datatype/survey", "27-quote-all/survey"),
]
"""Two forms of the same stars."""


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_two_forms_of_a_star_are_the_same_star(tmp_path, one, other):
    tables = []
    for i, name in enumerate((one, other)):
        paths = prepare(CASES / f"{name}.toml", tmp_path / str(i))
        tables.append([read_star_table(path) for path in paths])
    ids, flux = ([np.concatenate([getattr(t, k) for t in ts]) for ts in tables] for k in ("source_id", "flux"))
    order = [np.argsort(i) for i in ids]
    assert_array_equal(ids[0][order[0]], ids[1][order[1]])
    n = min(f.shape[1] for f in flux)
    assert_allclose(flux[0][order[0], :n], flux[1][order[1], :n], rtol=2e-6)


@pytest.mark.parametrize(
    ("case", "table", "setting"),
    [
        ("07-bytes-repr-phqual", "tmass_sep.csv", 'quality_columns = ["j_ph_qual", "h_ph_qual", "ks_ph_qual"]'),
        ("07-bytes-repr-phqual", "tmass_noqual.csv", 'cuts.quality = ""'),
        ("11-vaex-hdf5", "vaex_tm.hdf5", 'cuts.quality = ""'),
        ("12-votable-overflow", "tmass.vot", "allow_truncated = true"),
    ],
)
def test_the_setting_that_the_sentence_names_helps(tmp_path, case, table, setting):
    xp, companion = (CASES / case / n for n in ("xp.csv", table))
    survey = tmp_path / "survey.toml"
    survey.write_text(
        f'bands = ["J", "H", "Ks"]\n[xp]\nfiles = ["{xp}"]\n[two_mass]\nfiles = ["{companion}"]\n{setting}\n'
    )
    found, last = run(survey, tmp_path / "stars")
    assert "0 quarantined" in last and (found.band_inverse_error > 0).any(axis=0).all()
