"""The adaptive rule, differences, FITS, queries."""

import dataclasses

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy_healpix import healpix_to_lonlat
from numpy.testing import assert_allclose, assert_array_equal

from tests.analysis.dust_map.conftest import measured
from xpbayes.analysis.dust_map.healpix_map import QUANTITIES, DustMap, map_of_piece
from xpbayes.analysis.dust_map.means import voxel_means
from xpbayes.errors import InputError

EDGES = np.array([0.0, 1.0, 2.0, 3.0])
FIRST = 5 * 64


@pytest.fixture(scope="module")
def crowded_piece():
    """64 pixels of nside 32 (one of nside 4), stars crowding into some: every resolution of 32, 16, 8 is needed."""
    rng = np.random.default_rng(0)
    pixel = FIRST + (64 * rng.random(1500) ** 2.5).astype(np.int64)
    distance = rng.uniform(0.05, 3.2, 1500)
    stars = measured(0.3 * distance + 0.02 * rng.standard_normal(1500), 1 / distance, 0.02, 0.01, pixel=pixel)
    made = map_of_piece(stars, range(FIRST, FIRST + 64), EDGES, (32, 16, 8), 10, voxel_means)
    return stars, DustMap.join([made], {"method": "bins", "kept": 1500}, edges=EDGES, finest=32)


def test_each_voxel_uses_the_finest_pixel_with_enough_stars(crowded_piece):
    stars, dust_map = crowded_piece
    used = set()
    for row, p in enumerate(range(FIRST, FIRST + 64)):
        for k in range(3):
            in_bin = (1 / stars.parallax >= EDGES[k]) & (1 / stars.parallax < EDGES[k + 1])
            wanted, chosen = 0, None
            for nside, shift in ((32, 0), (16, 2), (8, 4)):
                inside = in_bin & (stars.pixel >> shift == p >> shift)
                if inside.sum() >= 10:
                    wanted, chosen = nside, inside
                    break
            row = dust_map.rows_of(np.array([p]))[0]
            if row < 0:
                assert wanted == 0
                continue
            used.add(int(dust_map.nside[row, k]))
            assert dust_map.nside[row, k] == wanted
            if wanted:
                assert dust_map.stars[row, k] == chosen.sum() >= 10
                assert_allclose(dust_map.mean[row, k], np.mean(stars.extinction[chosen]), rtol=1e-5)
            else:
                assert np.isnan(dust_map.mean[row, k]) and np.isnan(dust_map.sigma[row, k])
    assert used >= {32, 16, 8}


def test_differential_extinction_is_the_step_between_bins(crowded_piece):
    _, dust_map = crowded_piece
    assert_array_equal(dust_map.differential[:, 0], dust_map.mean[:, 0])
    assert_allclose(dust_map.differential[:, 1:], np.diff(dust_map.mean, axis=1), atol=1e-6)
    assert_allclose(
        dust_map.differential_sigma[:, 1:], np.hypot(dust_map.sigma[:, 1:], dust_map.sigma[:, :-1]), rtol=1e-5
    )


def test_a_map_that_begins_away_from_the_sun_has_no_first_difference(crowded_piece):
    stars, _ = crowded_piece
    made = map_of_piece(stars, range(FIRST, FIRST + 64), EDGES[1:], (32, 16, 8), 10, voxel_means)
    assert np.isnan(made.differential[:, 0]).all() and np.isfinite(made.differential[:, 1]).any()


def test_fits_comes_back_and_follows_the_conventions(crowded_piece, tmp_path):
    _, dust_map = crowded_piece
    path = dust_map.write(tmp_path / "map.fits")
    back = DustMap.read(path)
    for field in dataclasses.fields(DustMap):
        if field.name != "about":
            assert_array_equal(getattr(back, field.name), getattr(dust_map, field.name))
    assert back.about == {"method": "bins", "kept": "1500"}
    with fits.open(path) as units:
        for name, *_ in QUANTITIES.values():
            header = units[name].header
            keys = ("PIXTYPE", "ORDERING", "COORDSYS", "NSIDE", "INDXSCHM", "OBJECT")
            assert [header[k] for k in keys] == ["HEALPIX", "NESTED", "G", 32, "EXPLICIT", "PARTIAL"]
            assert units[name].data.names[0] == "PIXEL"
        assert units["EXTINCTION"].columns["BIN_00"].unit == "mag"


def test_healpy_reads_the_map(crowded_piece, tmp_path):
    healpy = pytest.importorskip("healpy")
    _, dust_map = crowded_piece
    path = dust_map.write(tmp_path / "map.fits")
    whole = healpy.read_map(path, field=1, hdu=2, nest=True)
    assert whole.shape == (12 * 32**2,)
    assert_allclose(whole[dust_map.pixel], dust_map.mean[:, 1])


def line_of_sight(means, distances, edges=EDGES):
    """A map of one pixel, 7 of nside 4."""
    row = np.array([means], np.float32)
    one = np.ones_like(row)
    return DustMap(
        edges=edges, finest=4, pixel=np.array([7]), mean=row, sigma=0.1 * one + 0 * row, spread=one,
        distance=np.array([distances], np.float32), stars=one, nside=one.astype(np.int16), differential=row,
        differential_sigma=one, about={},
    )  # fmt: skip


def centre_of(pixel, nside=4):
    lon, lat = healpix_to_lonlat(pixel, nside, order="nested")
    return SkyCoord(l=lon, b=lat, frame="galactic")


def test_queries_interpolate_between_the_stars_and_bridge_gaps():
    dust_map = line_of_sight([0.2, np.nan, 0.8], [0.6, np.nan, 2.6])
    here = centre_of(7)
    asked = [0.0, 0.3, 0.6, 1.6, 2.6, 2.9]
    value, sigma = dust_map.extinction(here, asked * u.kpc)
    assert_allclose(value, [0, 0.1, 0.2, 0.5, 0.8, 0.8], atol=1e-6)
    assert_allclose(sigma, [0, 0.05, 0.1, 0.1, 0.1, 0.1], atol=1e-6)
    # any frame, any unit, distances in the coordinates
    there = SkyCoord(here.icrs.ra, here.icrs.dec, distance=1600 * u.pc)
    assert_allclose(dust_map.extinction(there)[0], 0.5, atol=1e-6)


def test_queries_outside_the_map_are_nan():
    dust_map = line_of_sight([0.2, 0.4, np.nan], [0.6, 1.5, np.nan])
    elsewhere, here = centre_of(8), centre_of(7)
    value, sigma = dust_map.extinction(SkyCoord([elsewhere, here, here]), [1.0, 3.1, 1.6] * u.kpc)
    assert np.isnan(value).all() and np.isnan(sigma).all()
    empty = DustMap.join([], {}, edges=EDGES, finest=4)
    assert np.isnan(empty.extinction(here, 1 * u.kpc)[0])


def test_positions_that_must_be_covered_are_refused_elsewhere():
    dust_map = line_of_sight([0.2, 0.4, np.nan], [0.6, 1.5, np.nan])
    here = centre_of(7)
    near = [0.5, 1.0] * u.kpc
    assert_allclose(dust_map.extinction(here, near, covered=True), dust_map.extinction(here, near))
    place = rf"l = {here.l.deg:.3f}, b = {here.b.deg:.3f} deg, 9 kpc"
    sentence = rf"1 of 3 positions are not covered by the dust map \(first: {place}"
    with pytest.raises(InputError, match=sentence):
        dust_map.extinction(here, [0.5, 9.0, 1.0] * u.kpc, covered=True)


def test_queries_keep_the_shape_of_what_was_asked():
    dust_map = line_of_sight([0.2, 0.4, 0.6], [0.6, 1.5, 2.5])
    both = SkyCoord([centre_of(7), centre_of(8)])
    value, sigma = dust_map.extinction(both[:, None], [0.5, 1.0, 2.0] * u.kpc)
    assert value.shape == sigma.shape == (2, 3)
    assert np.isfinite(value[0]).all() and np.isnan(value[1]).all()


@pytest.mark.parametrize(
    ("distance", "sentence"), [(None, "with a unit"), (2 * u.mas, "with a unit"), (-1 * u.kpc, "negative")]
)
def test_a_query_without_a_distance_is_one_sentence(distance, sentence):
    with pytest.raises(InputError, match=sentence):
        line_of_sight([0.2, 0.4, 0.6], [0.6, 1.5, 2.5]).extinction(centre_of(7), distance)


def test_what_is_no_map_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read as a dust map"):
        DustMap.read(tmp_path / "nothing.fits")
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    with pytest.raises(InputError, match="no dust map"):
        DustMap.read(tmp_path / "empty.fits")
    (tmp_path / "text.fits").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as a dust map"):
        DustMap.read(tmp_path / "text.fits")
