"""A survey of Gaia DR4, as far as it is known: its columns, its identifiers, what it lacks, what is said of that."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import xpbayes
from tests.command_line import run
from tests.instrument.stub import coefficients_of, stub
from xpbayes.archive.prepare import prepare
from xpbayes.channels import XP_GRID_NM
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError
from xpbayes.instrument.bases import registered
from xpbayes.runs.doctor import doctor
from xpbayes.runs.inputs import stream_tables

N = 12
IDS = 4295806720 + np.arange(N, dtype=np.int64) * 34359738368
FLUX = np.linspace(50, 200, N)[:, None] * (XP_GRID_NM / 600) ** np.linspace(-2, 2, N)[:, None]


def survey(folder, extra: str = "", epoch: float = 2017.5):
    folder.mkdir()
    c = coefficients_of(FLUX, stub())
    rows = [
        f'{i},0,0,"{a[:51].tolist()}","{[0.5] * 51}","{a[51:].tolist()}","{[0.5] * 55}"'
        for i, a in zip(IDS, c, strict=True)
    ]
    names = ("coefficients", "coefficient_errors")
    header = ",".join(
        ["source_id", "bp_basis_function_id", "rp_basis_function_id"]
        + [f"{s}_{n}" for s in ("bp", "rp") for n in names]
    )
    (folder / "xp.csv").write_text("\n".join([header, *rows]) + "\n")
    ra, dec = np.linspace(1, 300, N), np.linspace(-30, 30, N)
    header = "source_id,ref_epoch,ra,dec,parallax,parallax_error,astrometric_params,tentative_parallax_bias,"
    header += "phot_g_mean_flux,phot_bp_mean_flux,phot_rp_mean_flux,ruwe"
    rows = [
        f"{i},{epoch},{a},{d},2.0,0.1,2079,{'' if k in (2, 5) else -0.04},100,50,70,1.0"
        for k, (i, a, d) in enumerate(zip(IDS, ra, dec, strict=True))
    ]
    (folder / "gaia.csv").write_text("\n".join([header, *rows]) + "\n")
    header = "gaiadr3_source_id,ra,dec,snr_px_ccd2,teff,e_teff,fe_h,e_fe_h,logg,e_logg"
    rows = [f"{IDS[0]},{a},{d},50,5500,30,-0.1,0.05,4.2,0.1" for a, d in zip(ra, dec, strict=True)]
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "survey.toml").write_text(
        extra + '\nbands = []\n[xp]\nfiles = ["xp.csv"]\n[gaia]\nfiles = ["gaia.csv"]\nparallax_zero_point = true\n'
        f'[[labels]]\nsurvey = "galah"\nfiles = ["labels.csv"]\nepoch = {epoch}\n'
    )
    return folder / "survey.toml"


@pytest.fixture
def instrument():
    with registered(stub()) as made:
        yield made


def test_a_survey_of_it_is_prepared_and_what_it_lacks_is_said(instrument, tmp_path, said):
    (path,) = prepare(survey(tmp_path / "s", 'select = "training"'), tmp_path / "out")
    table = read_star_table(path)
    assert table.instrument == instrument.about
    assert_array_equal(table.source_id, IDS)  # all labels by position: their identifiers are DR3's
    assert_allclose(table.flux, FLUX, rtol=1e-6)
    expected = np.full(N, 2.04)
    expected[[2, 5]] = 2.0  # no bias, and the recipe lacks its columns
    assert_allclose(table.column("parallax"), expected, rtol=1e-6)
    assert_allclose(table.column("phot_bp_rp_excess_factor"), 1.2, rtol=1e-6)
    rules = {c.what: (c.removed, c.left) for c in table.cuts}
    assert rules["fidelity_v2: Gaia DR4 has none, not cut on"] == (0, N)
    assert rules["phot_bp_rp_excess_factor < 1.3"] == (0, N)
    assert table.provenance["parallax_zero_point"].startswith("the table's own tentative_parallax_bias")
    assert table.provenance["phot_bp_rp_excess_factor"].startswith("from the mean fluxes")
    assert any("has no fidelity_v2, norm_dg" in line for line in said)
    assert "2 parallaxes without a known zero point left as they are" in said[-1]


def test_it_is_streamed_to_inference_with_the_same_count(instrument, tmp_path, said):
    stream, source = stream_tables(survey(tmp_path / "s"), None)
    (table,) = stream
    assert table.instrument == instrument.about and len(table) == N
    assert source["notes"][-1] == "2 parallaxes without a known zero point left as they are"


def test_without_an_instrument_the_sentence_says_what_to_install(tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*51 BP and 55 RP coefficients, as Gaia DR4,[^\n]*install one[^\n]*$"):
        prepare(survey(tmp_path / "s"), tmp_path / "out")
    with pytest.raises(InputError, match=r"^spectra of Gaia DR4, for which"):
        prepare(tmp_path / "s" / "survey.toml", tmp_path / "out2", "dr4")
    with pytest.raises(InputError, match=r"unknown release 'dr5' \(did you mean 'dr[34]'\?\)"):
        prepare(tmp_path / "s" / "survey.toml", tmp_path / "out3", "dr5")


def test_a_release_can_be_named_in_python(instrument, tmp_path):
    path = survey(tmp_path / "s").parent / "xp.csv"
    assert xpbayes.Spectra.read(path, release="dr4").instrument == instrument.about
    with pytest.raises(InputError, match="51 BP coefficients where the instrument model has 55"):
        xpbayes.Spectra.read(path, release="dr3")


def test_a_source_table_of_dr3_is_not_joined_to_it(instrument, tmp_path):
    with pytest.raises(
        InputError, match="rows at epoch 2016.0 .* which is of Gaia DR3, and the spectra are of Gaia DR4"
    ):
        prepare(survey(tmp_path / "s", epoch=2016.0), tmp_path / "out")


def test_the_doctor_says_what_is_missing_for_each_release():
    found = doctor()
    assert found.ready and found.changed == () and found.models["bp v375wi"] == 55
    assert any(line.startswith("instrument model: spectra of Gaia DR4") for line in found.missing["dr4"])
    assert not any(line.startswith("instrument model") for line in found.missing["dr3"])
    page, command = str(found), run("doctor")
    assert command.returncode == 0 and command.stdout == f"{page}\n" == f"{xpbayes.doctor()}\n"
    assert (
        "Gaia DR3: BP v375wi (55), RP v142r (55), basis functions 56/57" in page and found.versions["gaiaxpy"] in page
    )
    with registered(stub()):
        assert not any(line.startswith("instrument model") for line in doctor().missing["dr4"])


def test_the_doctor_tells_of_a_changed_gaiaxpy_and_of_packages_that_are_not_there(monkeypatch):
    import xpbayes.runs.doctor as module
    from xpbayes.instrument import gaiaxpy

    monkeypatch.setattr(gaiaxpy, "BUILDER", "__elsewhere")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    found = doctor()
    assert not found.ready and "GaiaXPy has changed" in str(found)
    assert [line.split(":")[0] for line in found.missing["dr3"]] == ["fetch", "parallax zero point"]
