"""The whole map of a small catalogue: against the dust that is in it, from above, on disk, and beside the truth."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from benchmarks.dust_map_truth import blur_scale, compare, true_means
from tests.command_line import refused
from xpbayes.analysis.dust_map.birds_eye import birds_eye
from xpbayes.analysis.dust_map.build import build_dust_map
from xpbayes.analysis.dust_map.draw import draw_sky, sky_image
from xpbayes.analysis.dust_map.healpix_map import DustMap
from xpbayes.analysis.dust_map.means import profile_edges
from xpbayes.analysis.figures.dust import BIRDS_EYE_VIEW, DUST_SKY
from xpbayes.analysis.run_inputs import Run
from xpbayes.cli import app
from xpbayes.config import DustMapConfig, parse_settings
from xpbayes.errors import InputError
from xpbayes.runs.dust_map import dust_map

PLAIN = DustMapConfig(remove_prior=False, profile_bins=12, profile_reach=4.0, sky_edges=(0.0, 1.0, 2.0, 4.0))


def rising(longitude, latitude, distance):
    return 0.2 * distance


def whole_sky(e_of_r, edges, nside=4):
    """A map that holds a function of distance exactly, everywhere."""
    n, centre = 12 * nside**2, 0.5 * (edges[1:] + edges[:-1])
    mean = np.broadcast_to(e_of_r(centre), (n, len(centre))).astype(np.float32)
    one = np.ones_like(mean)
    rise = np.diff(mean, axis=1, prepend=0).astype(np.float32)
    distance = np.broadcast_to(centre, mean.shape).astype(np.float32)
    return DustMap(
        edges=edges, finest=nside, pixel=np.arange(n), mean=mean, sigma=0.01 * one, spread=one, distance=distance,
        stars=10 * one, nside=(nside * one).astype(np.int16), differential=rise, differential_sigma=0.01 * one, about={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def maps(patch_catalogue):
    return build_dust_map(patch_catalogue, PLAIN)


def test_the_map_is_the_dust_of_the_catalogue(maps):
    assert maps.tally.rows == maps.tally.kept == 6000
    there = SkyCoord(l=100.1 * u.deg, b=20.2 * u.deg, frame="galactic")
    for distance in (0.8, 1.7, 3.0):
        value, sigma = maps.profile.extinction(there, distance * u.kpc)
        assert abs(value - 0.2 * distance) < 5 * sigma and sigma < 0.02


def test_beside_the_truth_the_map_is_unbiased_and_its_errors_are_right(maps):
    distances = 4.0 * np.random.default_rng(5).random(20_000) ** 0.5
    for made in (maps.sky, maps.profile):
        rows = (made.nside > 0).any(axis=1)
        compared = compare(made, true_means(made, rising, distances), rows)
        n = len(compared.bin)
        assert n > 50
        # Differences share bins with their neighbours, and pixels at the rim have stars in a part of them only.
        assert_allclose(compared.pull.std(), 1.0, atol=0.2)
        assert abs(np.median(compared.relative_bias)) < 0.05


def test_voxels_are_counted_once(maps):
    compared = compare(maps.sky, true_means(maps.sky, rising))
    for k in range(3):
        of_bin = maps.sky.nside[:, k]
        before = np.maximum(of_bin, maps.sky.nside[:, k - 1]) if k else of_bin
        usable = np.isfinite(maps.sky.differential[:, k])
        parents = {
            (s, p >> 2 * int(np.log2(256 // s))) for s, p in zip(before[usable], maps.sky.pixel[usable], strict=True)
        }
        assert (compared.bin == k).sum() == len(parents)


def test_true_means_average_over_bin_and_pixel():
    made = whole_sky(lambda r: r, np.array([0.0, 1.0, 3.0]))
    assert_allclose(true_means(made, rising), np.broadcast_to([0.1, 0.4], (192, 2)), rtol=1e-12)
    crowd = np.concatenate([np.full(100, 0.9), np.full(100, 2.9)])
    assert_allclose(true_means(made, rising, crowd)[0], [0.18, 0.58])
    # sin b has a mean over a pixel that its own centre does not give near the pole
    by_latitude = true_means(made, lambda lon, lat, r: np.sin(np.radians(lat)))
    assert_allclose(by_latitude.mean(), 0.0, atol=1e-12)


def test_the_view_from_above_of_even_dust_is_its_density():
    """E = 0.3 mag/kpc x distance: dE/dr is 0.3 wherever |z| < 400 pc is on the map (Eq. 30)."""
    above = birds_eye(whole_sky(lambda r: 0.3 * r, np.linspace(0, 3, 16)), 0.4, 0.1)
    shown = np.isfinite(above.density)
    assert_allclose(above.density[shown], 0.3, rtol=1e-5)
    x, y = np.meshgrid(above.axis, above.axis)
    # beyond the last bin's stars at 2.9 kpc there is nothing
    assert shown[np.hypot(x, y) < 2.8].all() and not shown[np.hypot(x, y) > 3.0].any()


def test_the_view_from_above_integrates_in_height():
    """Against Eq. 30 by hand at one place: dust only beyond 1 kpc, so that only the upper ends of the column see it."""
    edges = np.linspace(0, 2, 41)
    made = whole_sky(lambda r: np.maximum(r - 1.0, 0.0), edges)
    above = birds_eye(made, 0.4, 0.05)
    i, j = np.argmin(np.abs(above.axis - 0.95)), np.argmin(np.abs(above.axis))
    r0 = np.hypot(above.axis[i], above.axis[j])
    z = np.linspace(-0.4, 0.4, 8001)
    # between the centres of two bins the slope is that of the means on both sides
    centre = np.append(0.0, 0.5 * (edges[1:] + edges[:-1]))
    slope = np.diff(np.append(0.0, np.maximum(centre[1:] - 1.0, 0.0))) / np.diff(centre)
    expected = slope[np.searchsorted(centre, np.hypot(r0, z)) - 1].mean()
    assert_allclose(above.density[j, i], expected, atol=0.02)


def test_blur_is_found():
    """A wall at 2 kpc seen through distances that are good to 0.2 kpc."""
    from scipy.special import erf

    edges = np.linspace(0, 4, 41)
    made = whole_sky(lambda r: 0.5 * (1 + erf((r - 2.0) / np.sqrt(2) / 0.2)), edges, 1)

    def wall(longitude, latitude, distance):
        return (distance > 2.0).astype(float)

    assert_allclose(blur_scale(made, wall, np.ones(12, bool), 1.0, 3.0), 0.2, atol=0.03)
    assert np.isnan(blur_scale(made, wall, np.zeros(12, bool), 1.0, 3.0))


def check_figure_numbers(folder):
    """What `analyse` writes beside Figs. 20 and 21, against the FITS files read plainly."""
    run = Run(dust_map=folder)
    (sky,) = DUST_SKY.start(run).product().tables.values()
    with fits.open(folder / "sky.fits") as units:
        pixel = units["DIFFERENTIAL"].data["PIXEL"]
        for name, unit in (("differential", "DIFFERENTIAL"), ("differential_sigma", "DIFFERENTIAL_SIGMA"),
                           ("stars", "STARS"), ("nside", "NSIDE")):  # fmt: skip
            plain = {(int(p), near): float(units[unit].data[f"BIN_{k:02d}"][row])
                     for k, near in enumerate((0.0, 1.0, 2.0)) for row, p in enumerate(pixel)}  # fmt: skip
            if unit == "DIFFERENTIAL":
                known = {key for key, value in plain.items() if np.isfinite(value)}
            keys = list(zip(sky["pixel"].values.tolist(), sky["near"].values.tolist(), strict=True))
            assert set(keys) == known and len(keys) == len(known)
            assert_allclose(sky[name].values, [plain[key] for key in keys])
    birds_eye(whole_sky(lambda r: 0.3 * r, np.linspace(0, 3, 13))).write(folder / "birds_eye.fits")
    (above,) = BIRDS_EYE_VIEW.start(run).product().tables.values()
    with fits.open(folder / "birds_eye.fits") as units:
        density, header = next((u.data, u.header) for u in units if u.data is not None)
    axis = header["CRVAL1"] + header["CDELT1"] * np.arange(density.shape[1])
    x, y, value = (above[n].values for n in ("x", "y", "density"))
    assert len(value) == np.isfinite(density).sum()
    for i in range(0, len(value), 50):
        assert_allclose(value[i], density[np.argmin(np.abs(axis - y[i])), np.argmin(np.abs(axis - x[i]))])


def test_products_on_disk(patch_catalogue, tmp_path):
    out = tmp_path / "map"
    made = dust_map(patch_catalogue, out, PLAIN)
    names = {"sky.fits", "profile.fits", "birds_eye.fits", "sky.png", "sky.pdf", "birds_eye.png", "birds_eye.pdf"}
    assert {p.name for p in out.iterdir()} == names | {"dust_map.json"}
    about = json.loads((out / "dust_map.json").read_text())
    assert about["rows"] == about["kept"] == 6000 and about["max_extinction_error"] == 0.04
    assert len(about["coverage"]["sky"]) == 3 and about["coverage"]["sky"][2]["sky_fraction"] > 0
    check_figure_numbers(out)
    back = DustMap.read(out / "profile.fits")
    there = SkyCoord(l=100 * u.deg, b=20 * u.deg, distance=2 * u.kpc, frame="galactic")
    assert_allclose(back.extinction(there), made.profile.extinction(there))


def test_a_folder_of_parts_gives_the_map_of_the_whole(patch_catalogue, maps, tmp_path, monkeypatch):
    """Parts as the reader opens them, and stars that wait on disk."""
    from xpbayes.analysis.dust_map import selection

    whole = pq.read_table(patch_catalogue)
    parts = [tmp_path / f"part-{i}.parquet" for i in range(3)]
    for i, path in enumerate(parts):
        pq.write_table(whole.slice(2000 * i, 2000), path)
    catalogue = selection.Catalogue(tuple(parts), 6000, {"labels": ["teff", "feh", "logg"]})
    monkeypatch.setattr(selection, "open_catalogue", lambda path: catalogue)
    monkeypatch.setattr(selection.SkyPieces.__init__, "__defaults__", (None, 10_000))
    again = build_dust_map(tmp_path, PLAIN, scratch=tmp_path)
    assert_allclose(again.profile.mean, maps.profile.mean, atol=1e-6)
    assert_allclose(again.sky.stars, maps.sky.stars)


def test_both_means_run_from_the_command_line(patch_catalogue, tmp_path):
    from xpbayes.analysis.dust_map import build

    assert set(build.MEANS) == {"bins", "joint"}
    run = CliRunner().invoke(
        app, ["dustmap", str(patch_catalogue), "--out", str(tmp_path / "m"), "--edges", "0,1,4", "--quiet"]
    )
    assert run.exit_code == 0, run.output
    assert DustMap.read(tmp_path / "m" / "sky.fits").edges.tolist() == [0, 1, 4]


def test_an_unfinished_catalogue_is_one_sentence(tmp_path):
    (tmp_path / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(InputError):
        dust_map(tmp_path)


def test_cuts_that_leave_nothing_say_which_took_most(patch_catalogue):
    with pytest.raises(InputError, match="largest cut: extinction error, 6000 stars"):
        build_dust_map(patch_catalogue, DustMapConfig(max_extinction_error=1e-4))


@pytest.mark.parametrize("edges", ["0,x", "2,1", "1"])
def test_edges_that_are_none_are_refused(edges):
    with pytest.raises(InputError, match="edges"):
        parse_settings(DustMapConfig, {"sky_edges": edges.split(",")}, "the dust map")


def test_profile_bins_are_sinh_spaced():
    edges = profile_edges(DustMapConfig().profile_bins, DustMapConfig().profile_reach)
    assert len(edges) == 41 and edges[0] == 0
    assert_allclose(edges[-1], 5.0)
    n = np.arange(1, 41)
    assert_allclose(np.diff(edges), np.sinh(n * np.arcsinh(5) / 40) - np.sinh((n - 1) * np.arcsinh(5) / 40))


def test_the_image_looks_up_the_pixel_under_each_point(maps):
    longitude, latitude = np.meshgrid(np.linspace(98, 102, 9), np.linspace(18, 22, 9))
    image = sky_image(maps.sky, maps.sky.mean[:, 1], longitude, latitude)
    # read off by the query, too: at a voxel's own mean distance a line passes through its mean
    distance = sky_image(maps.sky, maps.sky.distance[:, 1], longitude, latitude)
    value, _ = maps.sky.extinction(
        SkyCoord(l=longitude * u.deg, b=latitude * u.deg, frame="galactic"), distance * u.kpc
    )
    assert_allclose(image, value, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("n_bins", [2, 3, 5])
def test_a_map_of_the_whole_sky_has_a_panel_per_bin(n_bins, tmp_path):
    figure = draw_sky(whole_sky(lambda r: 0.3 * r, np.arange(n_bins + 1.0), 8))
    figure.savefig(tmp_path / "sky.png", dpi=40)
    assert len(figure.axes) == n_bins + 1  # and the colour bar


def test_a_map_of_a_patch_has_a_panel_per_bin(patch_catalogue, tmp_path):
    config = PLAIN.model_copy(update={"sky_edges": (0.0, 1.0, 2.0, 3.0, 3.5, 4.0)})
    assert len(draw_sky(build_dust_map(patch_catalogue, config).sky).axes) == 6


@pytest.mark.parametrize("memory_bytes", [10_000, 1 << 30])
def test_too_few_stars_everywhere_is_one_sentence_and_leaves_nothing(
    memory_bytes, patch_catalogue, tmp_path, monkeypatch
):
    from xpbayes.analysis.dust_map import selection

    monkeypatch.setattr(selection.SkyPieces.__init__, "__defaults__", (None, memory_bytes))  # on disk; in memory
    said = refused("dustmap", patch_catalogue, "--out", tmp_path / "m", "--min-stars", "7000", "--quiet")
    assert (
        "no pixel has 7000 of the 6000 stars in one distance bin, not even at nside 64" in said
        and "--min-stars" in said
    )
    assert not (tmp_path / "m").exists()


@pytest.mark.thorough
def test_a_profile_without_a_sky_map_is_written(patch_catalogue, tmp_path):
    config = PLAIN.model_copy(update={"sky_max_parallax_error": 1e-9})
    made = dust_map(patch_catalogue, tmp_path / "m", config)
    assert not len(made.sky.pixel) and len(made.profile.pixel)
    assert DustMap.read(tmp_path / "m" / "sky.fits").mean.shape == (0, 3)
