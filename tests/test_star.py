"""One star from its identifier alone: from an archive on loopback, from what was kept of it, and from a file."""

import json

import numpy as np
import pytest

from tests.archive.test_tap import QUICK as SOON
from tests.archive.test_tap import archive  # noqa: F401 - a fixture
from tests.command_line import refused, run
from tests.conftest import QUICK, inference_toml
from xpbayes.errors import InputError
from xpbayes.runs import star as runs_star
from xpbayes.runs.star import fetch_stars, star

CONFIG = QUICK.model_copy(update={"use_parallax": True})


@pytest.fixture
def one(sample, archive):  # noqa: F811
    """The archive has one real star, sampled."""
    row = sample.take(np.arange(1))
    error = row.flux_error()[0]
    lines = [
        f"{row.source_id[0]},{wavelength},{1e-18 * flux:.9e},{1e-18 * sigma:.9e}"
        for wavelength, flux, sigma in zip(row.channels.wavelengths[:61], row.flux[0], error, strict=False)
    ]
    archive.csv = ("source_id,wavelength,flux,flux_error\n" + "\n".join(lines) + "\n").encode()
    archive.stars = row.source_id
    return row


@pytest.fixture
def here(archive):  # noqa: F811
    return {"tap_url": f"{archive.url}/tap", "data_url": f"{archive.url}/data", "patience": SOON}


@pytest.mark.filterwarnings("ignore")
def test_a_star_is_fetched_solved_and_drawn(one, archive, here, trained, tmp_path):  # noqa: F811
    source_id = int(one.source_id[0])
    found = star(trained, source_id, tmp_path / "star", CONFIG, **here)
    assert found.status == "ok" and found.n_obs == 64 and found.parallax_used
    assert found.measured_parallax == 2.5 and np.isfinite(found.value).all()
    page = (tmp_path / "star" / "index.html").read_text()
    assert str(source_id) in page and "ZGR23-compatible" in page and "data:image/png;base64," in page
    (numbers,) = json.loads((tmp_path / "star" / "fit.json").read_text())
    assert numbers["p16"]["teff"] < numbers["value"]["teff"] < numbers["p84"]["teff"]
    n_asked = len(archive.queries), len(archive.asked)
    assert n_asked == (2, 1)
    again = star(trained, source_id, tmp_path / "star", CONFIG, **here)  # what was fetched is kept
    assert (len(archive.queries), len(archive.asked)) == n_asked
    np.testing.assert_array_equal(again.value, found.value)


@pytest.mark.filterwarnings("ignore")
def test_fetched_stars_have_parallaxes_and_magnitudes(one, here):
    stars = fetch_stars(one.source_id.tolist(), **here)
    assert stars.channels.band_names == ("J", "H", "Ks") and (stars.band_inverse_error > 0).all()
    np.testing.assert_allclose(stars.column("parallax"), 2.5)
    np.testing.assert_allclose(stars.flux[:, :61], one.flux[:, :61], rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_star_without_a_spectrum_is_one_sentence(archive, here, trained, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="Gaia DR3 11: the archive has no XP spectrum of it"):
        star(trained, 11, tmp_path / "star", CONFIG, **here)


def test_a_file_is_enough(one, archive, model_folder, tmp_path, monkeypatch):  # noqa: F811
    """Offline: the archive is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs_star, "fetch_stars", None)
    (tmp_path / "xp.csv").write_bytes(archive.csv)
    (tmp_path / "run.toml").write_text(inference_toml(CONFIG))
    words = ("--model", model_folder, "--from", "xp.csv", "--settings", "run.toml")
    result = run("star", one.source_id[0], *words)
    assert result.returncode == 0, result.stderr
    assert "16 %" in result.stdout and f"star-{one.source_id[0]}/index.html" in result.stdout
    (numbers,) = json.loads((tmp_path / f"star-{one.source_id[0]}" / "fit.json").read_text())
    assert numbers["parallax_used"] is False and numbers["measured_parallax"] is None
    assert "1 of 1 source_ids are not there" in refused("star", 5, *words)
