"""Files without a survey.toml: what they are, what is found beside them, and the survey.toml that is the same input."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from pyarrow.csv import read_csv

from tests.command_line import refused, run
from tests.conftest import QUICK, inference_toml
from xpbayes.archive.companions import read_companions
from xpbayes.archive.direct import kinds_of, open_inputs, survey_toml
from xpbayes.archive.label_surveys import surveys_of
from xpbayes.archive.survey_config import Survey, read_survey
from xpbayes.channels import xp_channels
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import join_star_tables
from xpbayes.data.spectra_file import write_star_table
from xpbayes.errors import InputError
from xpbayes.files import file_checksum
from xpbayes.production.inputs import lay_out
from xpbayes.production.table import list_column
from xpbayes.runs.infer import infer
from xpbayes.runs.inputs import check_writable, stream_tables

TMASS = "source_id,j_m,j_msigcom,h_m,h_msigcom,ks_m,ks_msigcom,ph_qual\n"
GAIA = "source_id,ra,dec,parallax,parallax_error\n"
UNWISE = "source_id,flux_w1,dflux_w1,flux_w2,dflux_w2\n"
N = 6


@pytest.fixture
def desk(sample, tmp_path, monkeypatch) -> Path:
    """A folder with the spectra of some real stars, a sample a row, and companions of them."""
    stars = sample.take(np.arange(N))
    error = stars.flux_error()
    lines = [
        f"{source_id},{wavelength},{1e-18 * flux:.9e},{1e-18 * sigma:.9e}"
        for source_id, row, errors in zip(stars.source_id, stars.flux, error, strict=True)
        for wavelength, flux, sigma in zip(stars.channels.wavelengths[:61], row, errors, strict=False)
    ]
    (tmp_path / "xp.csv").write_text("source_id,wavelength,flux,flux_error\n" + "\n".join(lines) + "\n")
    ids = stars.source_id.tolist()
    (tmp_path / "2mass.csv").write_text(TMASS + "".join(f"{i},9.1,0.02,8.8,0.02,8.7,0.02,AAA\n" for i in ids))
    (tmp_path / "gaia.csv").write_text(GAIA + "".join(f"{i},10.0,20.0,2.5,0.02\n" for i in ids))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only(inputs, companions=None) -> Survey:
    (survey,) = open_inputs(inputs, companions)
    assert isinstance(survey, Survey)
    return survey


def files(survey: Survey) -> dict[str, tuple[str, ...]]:
    return {kind: getattr(survey.settings, kind).files for kind in ("xp", "gaia", "two_mass", "unwise")}


def test_companions_are_found_by_their_columns(desk, said):
    (desk / "notes.txt").write_text("a colour,another\n1,2\n")
    (desk / "LICENSE").write_text("words\n")
    found = only("xp.csv")
    assert files(found) == {"xp": ("xp.csv",), "gaia": ("gaia.csv",), "two_mass": ("2mass.csv",), "unwise": ()}
    assert found.settings.bands == ("J", "H", "Ks")
    (line,) = [line for line in said if "XP spectra" in line]
    assert "2MASS from 2mass.csv (found beside)" in line and "no unWISE" in line


def test_companions_by_option_replace_what_is_beside(desk):
    (desk / "w").mkdir()
    (desk / "w" / "w.csv").write_text(UNWISE)
    found = only("xp.csv", {"gaia": [], "unwise": desk / "w" / "w.csv"})
    assert files(found)["gaia"] == () and files(found)["unwise"] == (str(desk / "w" / "w.csv"),)
    assert files(found)["two_mass"] == ("2mass.csv",) and found.settings.bands == ("J", "H", "Ks", "W1", "W2")
    alone = only("xp.csv", {"gaia": (), "two_mass": (), "unwise": ()})
    assert alone.settings.bands == () and files(alone)["two_mass"] == ()


def test_what_is_in_doubt_is_not_chosen(desk):
    (desk / "gaia2.csv").write_text(GAIA)
    with pytest.raises(InputError, match=r"could be Gaia's source table; say which with --gaia, or --alone"):
        open_inputs("xp.csv")
    assert files(only("xp.csv", {"gaia": "gaia2.csv"}))["gaia"] == ("gaia2.csv",)


@pytest.mark.parametrize(
    ("header", "kinds"),
    [
        (TMASS, ["two_mass"]),
        (TMASS.replace(",ph_qual", ""), []),
        (GAIA.upper(), ["gaia"]),
        (GAIA.replace(",parallax_error", ""), []),
        (GAIA.replace("source_id", "id"), []),
        ("gaiadr3_source_id,Plx,e_Plx,Jmag,e_Jmag,Qflg,mag_w1_vg", ["gaia", "two_mass", "unwise"]),
        ("source_id,ra,dec,teff,teff_err,parallax,parallax_err", []),  # what `infer` writes
        ("source_id,bp_coefficients", []),
    ],
)
def test_only_what_is_beyond_doubt_is_a_companion(header, kinds):
    assert kinds_of(header.strip().split(",")) == kinds


def test_columns_of_the_spectra_themselves_come_first(desk):
    lines = (desk / "xp.csv").read_text().splitlines()
    with_parallax = [f"{lines[0]},parallax,parallax_error", *(f"{line},3.0,0.1" for line in lines[1:])]
    (desk / "xp.csv").write_text("\n".join(with_parallax))
    assert files(only("xp.csv"))["gaia"] == ("xp.csv",)
    stream, _ = stream_tables(only("xp.csv"), None)
    assert_array_equal(next(stream).column("parallax"), np.full(N, 3.0, np.float32))


def test_folders_and_patterns_stand_for_the_spectra_in_them(desk):
    text = (desk / "xp.csv").read_text().splitlines(keepends=True)
    (desk / "xp.csv").unlink()
    half = 1 + 61 * (N // 2)
    (desk / "xp[1].csv").write_text("".join(text[:half]))
    (desk / "xp[2].csv").write_text("".join([text[0], *text[half:]]))
    expected = ["xp[1].csv", "xp[2].csv"]
    for given in (".", "xp*.csv", ["xp[2].csv", "xp[1].csv"]):
        found = only(given)
        assert sorted(path.name for path in found.files if path.name.startswith("xp")) == expected
        assert found.files[-1].name == "2mass.csv" and files(found)["gaia"] == ("gaia.csv",)
    with pytest.raises(InputError, match="no such file"):
        open_inputs("yp*.csv")


def as_hats(folder: Path, table: pa.Table, kind: str = "object", properties: str = "hats.properties") -> None:
    """A HATS catalogue of two partitions."""
    for pixel, rows in ((11, table.slice(0, len(table) // 2)), (4, table.slice(len(table) // 2))):
        place = folder / f"dataset/Norder=1/Dir=0/Npix={pixel}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, place)
    (folder / properties).write_text(f"obs_collection={folder.name}\ndataproduct_type={kind}\n")


def test_hats_catalogues_are_named_and_found_like_files(desk):
    for name in ("xp", "2mass", "gaia"):
        as_hats(desk / "hats" / name, read_csv(desk / f"{name}.csv"))
    as_hats(desk / "hats" / "2mass_margin", read_csv(desk / "2mass.csv"), kind="margin", properties="properties")
    from_files, _ = stream_tables(only("xp.csv"), None)
    expected = next(from_files)
    assert (expected.band_inverse_error > 0).all() and expected.is_measured("parallax").all()
    named = {"two_mass": desk / "hats" / "2mass", "gaia": "hats/gaia"}
    for given, tables in (("hats", None), ("hats/xp", None), ("hats/x*", None), ("xp.csv", named)):
        found = only(given, tables)
        assert {name: len(of) for name, of in files(found).items()} == {"xp": 1, "gaia": 1, "two_mass": 1, "unwise": 0}
        stream, _ = stream_tables(found, None)
        table = join_star_tables(parts := list(stream), ["spectra"] * len(parts))
        table = table.take(rows_of(expected.source_id, table.source_id))
        assert_array_equal(table.band_inverse_error, expected.band_inverse_error)
        assert_array_equal(table.column("parallax"), expected.column("parallax"))
    assert files(only("hats/xp", {"gaia": [], "two_mass": []}))["two_mass"] == ()
    with pytest.raises(InputError, match=r"2mass_margin: is a folder, but no HATS catalogue"):
        only("xp.csv", {"two_mass": "hats/2mass_margin"}).files  # noqa: B018 - looking is what is tested
    as_hats(desk / "hats" / "copy", read_csv(desk / "2mass.csv").slice(1))
    with pytest.raises(InputError, match=r"2mass and 1 more tables beside the spectra could be 2MASS"):
        open_inputs("hats/xp")


@pytest.mark.filterwarnings("ignore")
def test_a_catalogue_that_lsdb_wrote_is_a_companion(desk):
    lsdb = pytest.importorskip("lsdb", reason="the extra dist is not installed")
    rows = read_csv(desk / "gaia.csv").join(read_csv(desk / "2mass.csv"), "source_id")
    whole = lsdb.from_dataframe(
        rows.to_pandas(), ra_column="ra", dec_column="dec", lowest_order=0, highest_order=0, margin_threshold=None
    )
    whole.write_catalog(desk / "both", catalog_name="both", npix_suffix="/", should_write_skymap=False)
    for name in ("gaia.csv", "2mass.csv"):
        (desk / name).unlink()
    found = only("xp.csv")
    assert files(found) == {"xp": ("xp.csv",), "gaia": ("both",), "two_mass": ("both",), "unwise": ()}
    table = next(stream_tables(found, None)[0])
    assert_array_equal(table.column("parallax"), np.full(N, 2.5, np.float32))
    assert (table.band_inverse_error > 0).all()


def test_the_survey_toml_is_the_same_input(desk):
    (desk / "survey.toml").write_text(survey_toml(["xp.csv"]))
    direct = only("xp.csv")
    assert read_survey(desk / "survey.toml") == direct.settings
    assert file_checksum(desk / "survey.toml") == direct.checksum
    channels = xp_channels(("J", "H", "Ks"))
    assert lay_out(["xp.csv"], channels, 100).identity() == lay_out(["survey.toml"], channels, 100).identity()
    printed = run("survey", "xp.csv")
    assert printed.stdout == (desk / "survey.toml").read_text() and "found beside" in printed.stderr


OWN = "source_id,teff,teff_err,feh,feh_err,logg,logg_err"
APOGEE = "APOGEE_ID,GAIAEDR3_SOURCE_ID,SNR,TEFF,TEFF_ERR,FE_H,FE_H_ERR,LOGG,LOGG_ERR"


@pytest.mark.parametrize(
    ("header", "surveys"),
    [
        (OWN, {"custom": None}),
        (OWN.upper(), {"custom": None}),
        (f"{OWN},ra,dec,snrg,snrr,snri", {"lamost_afgk": None, "hot_payne": None}),
        (APOGEE, {"apogee": None}),
        ("gaiadr3_source_id,teff,e_teff,fe_h,e_fe_h,logg,e_logg", {"galah": None}),
        ("gaia_dr3_source_id,snr,teff,e_teff,fe_h,e_fe_h,logg,e_logg", {"sdssv": None}),
        ("target_ra,target_dec,teff,teff_err,feh,feh_err,logg,logg_err,sn_b,sn_r,sn_z", {"desi": None}),
        (OWN.replace("feh_err", "e_metal"), {}),
        (OWN.replace("source_id", "star"), {}),
        (f"{OWN},teff_p16,teff_p84", {}),  # what `infer` writes
        (GAIA, {}),
    ],
)
def test_label_tables_are_told_by_their_columns(header, surveys):
    assert surveys_of(header.strip().split(",")) == surveys


def test_labels_and_companions_among_the_files_get_their_sections(desk):
    ids = [int(line.split(",")[0]) for line in (desk / "gaia.csv").read_text().splitlines()[1:]]
    rows = "".join(f"{i},5000,50,-0.1,0.1,4.0,0.1\n" for i in ids)
    (desk / "mine.csv").write_text("source_id,T_eff,e_T_eff,[Fe/H],e_[Fe/H],logg,logg_error\n" + rows)
    (desk / "theirs.csv").write_text(OWN.replace("source_id", "dr3_source_id") + "\n" + rows)
    (desk / "cat.csv").write_text(f"{OWN},teff_p16\n")
    (desk / "both.csv").write_text(f"{OWN},parallax,parallax_error\n")
    for names, of in ((["both.csv"], '"both.csv"'), (["both.csv", "gaia.csv"], '"gaia.csv"')):
        assert f"[gaia]\nfiles = [{of}]" in survey_toml(["xp.csv", *names])
    (desk / "both.csv").unlink()
    written = survey_toml(["theirs.csv", "2mass.csv", "xp.csv", "mine.csv"])
    assert (
        survey_toml(["."]).count("[[labels]]")
        == survey_toml(["xp.csv", "mine.csv", "./theirs.csv"]).count("[[labels]]")
        == 2
    )
    (desk / "survey.toml").write_text(written)
    settings = read_survey(desk / "survey.toml")
    assert settings.two_mass.files == ("2mass.csv",) and settings.gaia.files == ("gaia.csv",)
    assert [(one.survey, one.files) for one in settings.labels] == [
        ("custom", ("theirs.csv",)),
        ("custom", ("mine.csv",)),
    ]
    assert settings.labels[1].columns.labels == {"teff": ("t_eff",), "feh": ("[fe/h]",), "logg": ("logg",)}
    found = read_companions(settings, desk).star_labels
    assert len(found) == N and np.isfinite(found.error).all()
    (desk / "dust.csv").write_text("source_id,ebv,ebv_err\n1,0.2,0.1\n")
    assert survey_toml(["xp.csv", "dust.csv"]).endswith('\n[reddening]\nsource = "columns"\nfiles = ["dust.csv"]\n')
    (desk / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="notes.csv: holds no XP spectra, is no table of Gaia"):
        survey_toml(["xp.csv", "notes.csv"])
    with pytest.raises(InputError, match="no file of XP spectra is named"):
        survey_toml(["mine.csv"])


def test_star_tables_and_surveys_are_passed_on(desk, sample):
    write_star_table(sample.take(np.arange(20, 23)), desk / "stars.parquet")
    (desk / "tables").mkdir()
    write_star_table(sample.take(np.arange(30, 33)), desk / "tables" / "a.parquet")
    opened = open_inputs(["stars.parquet", "xp.csv", "tables"])
    assert [getattr(one, "name", "") for one in opened] == ["stars.parquet", "xp.csv", "tables"]
    assert isinstance(opened[1], Survey) and open_inputs(opened) == opened
    assert open_inputs("gone.parquet") == [Path("gone.parquet")]  # whoever reads it says so


def test_what_gives_nothing_and_what_some_stars_lack_is_said(desk, said):
    text = (desk / "2mass.csv").read_text()
    (desk / "2mass.csv").write_text("".join(text.splitlines(keepends=True)[:-2]))
    stream, source = stream_tables(only("xp.csv"), None)
    assert len(list(stream)) == 1 and source["notes"][-1] == f"2 of the {N} stars are not in 2MASS"
    (desk / "2mass.csv").write_text(text.replace("ph_qual", "flag"))
    assert files(only("xp.csv"))["two_mass"] == ()
    assert "2mass.csv has 2MASS magnitudes without ph_qual, and is left out" in said[-1]


@pytest.mark.parametrize(
    ("spectra", "sentence"),
    [
        ("", "x.csv: has no rows of spectra$"),
        ("5,440.0,inf,1\n", "x.csv: none of its 1 rows of spectra can be used; the first, row 1: "),
    ],
)
def test_spectra_without_a_star_are_one_sentence(spectra, sentence, desk):
    (desk / "x.csv").write_text("source_id,wavelength,flux,flux_error\n" + spectra)
    with pytest.raises(InputError, match=sentence):
        list(stream_tables(only("x.csv"), None)[0])


def test_refusals(desk, sample):
    write_star_table(sample.take(np.arange(3)), desk / "stars.parquet")
    (desk / "empty").mkdir()
    for arguments, words in (
        (("stars.parquet", {"gaia": "gaia.csv"}), "is for files of spectra"),
        (("empty",), "empty: holds neither files of XP spectra nor star tables"),
        (("xp.csv", {"2mass": "2mass.csv"}), "there is no table '2mass'.*two_mass"),
        (("gaia.csv",), "has neither coefficients.*as Gaia's source table it is named by --gaia"),
        ((["xp.csv", "./xp.csv"],), "named twice"),
    ):
        with pytest.raises(InputError, match=words):
            open_inputs(*arguments)
    with pytest.raises(InputError, match="is no file of XP spectra"):
        survey_toml(["stars.parquet"])
    with pytest.raises(InputError, match=r"gone\.csv: no such file"):
        survey_toml(["gone.csv"])
    (desk / "others").mkdir()
    (desk / "others" / "lines.csv").write_text("source_id,flux,width\n1,2,3\n")
    with pytest.raises(InputError, match="others: holds neither files of XP spectra"):
        open_inputs("others")
    with pytest.raises(InputError, match="2mass"):
        check_writable("2mass.csv", open_inputs("xp.csv"))


@pytest.fixture
def settings(desk):
    (desk / "run.toml").write_text(inference_toml(QUICK.model_copy(update={"use_parallax": True})))
    return desk / "run.toml"


def test_one_command_from_a_file_to_a_table(desk, model_folder, settings, trained):
    """Without a toml, and with the toml of five bands where the model knows three."""
    result = run("infer", model_folder, "xp.csv", "--out", "cat.csv", "--settings", settings)
    assert result.returncode == 0, result.stderr
    assert "found beside" in result.stderr and f"2MASS {N} of {N} rows used" in result.stderr
    header, *rows = (desk / "cat.csv").read_text().splitlines()
    assert header.startswith("source_id,ra,dec,teff,teff_err,teff_p16,teff_p84,feh") and len(rows) == N

    text = 'bands = ["J", "H", "Ks", "W1", "W2"]\n[xp]\nfiles = ["xp.csv"]\n[gaia]\nfiles = ["gaia.csv"]\n'
    (desk / "survey.toml").write_text(text + '[two_mass]\nfiles = ["2mass.csv"]\n')
    config = QUICK.model_copy(update={"use_parallax": True})
    by_toml, direct = (infer(trained, given, config=config) for given in ("survey.toml", "xp.csv"))
    assert direct.equals(by_toml)
    assert (direct["n_obs"].to_numpy() == 64).all() and (list_column(direct, "stellar_params_est")[:, -1] > 0).all()
    about = json.loads(direct.schema.metadata[b"xpbayes"])
    assert about["n_with_parallax"] == N and about["input"]["path"] == "xp.csv"


def test_options_of_parts_and_of_files_are_told_apart(desk, model_folder):
    assert "name a folder" in refused("infer", model_folder, "xp.csv", "--out", "c.fits", "--resume")
    assert "--flat is for one file" in refused("infer", model_folder, "xp.csv", "--out", "parts", "--flat")


@pytest.mark.parametrize("name", ["c.txt", "c.FITS", "c.csv.gz", "c.xml"])
def test_a_folder_is_not_made_where_a_file_was_asked_for(name, desk):
    sentence = refused("infer", "xp.csv", "--out", name)
    assert f"{name}: '{Path(name).suffix}' is no format of catalogues" in sentence and not Path(name).exists()


def test_a_model_that_is_nearly_one_of_the_packages_is_named(desk):
    assert "did you mean 'apogee-dr17'?" in refused("infer", "apogee-dr16", "xp.csv", "--out", "c.csv")
