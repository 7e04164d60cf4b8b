"""The known dust distribution: integrals, regions, stars where they would be seen."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.simulation.test_survey import small_model
from xpbayes.config import Recipe
from xpbayes.data.directions import unit_vectors
from xpbayes.errors import InputError
from xpbayes.simulation.sky import SUN_RADIUS_KPC, Dust, Region, disc_with_clouds, dusty_sky, simulate_sky
from xpbayes.simulation.stars import BRIGHT_G, FAINT_G


def density(dust, point):
    """The definition, at (point, 3) positions."""
    radius = np.hypot(SUN_RADIUS_KPC - point[:, 0], point[:, 1])
    out = dust.disc_density * np.exp(
        -(radius - SUN_RADIUS_KPC) / dust.disc_length - np.abs(point[:, 2]) / dust.disc_height
    )
    for centre, width, depth in zip(dust.cloud_position, dust.cloud_radius, dust.cloud_depth, strict=True):
        out += depth / np.sqrt(2 * np.pi) / width * np.exp(-0.5 * ((point - centre) ** 2).sum(axis=1) / width**2)
    return out


@pytest.fixture(scope="module")
def dust():
    return disc_with_clouds(3, n_clouds=150, reach_kpc=1.5)


def test_extinction_is_the_integral_of_the_density(dust):
    rng = np.random.default_rng(0)
    # half of the lines through clouds, some ending inside of them
    centre = dust.cloud_position[:6]
    far = np.linalg.norm(centre, axis=1)
    longitude = np.append(np.degrees(np.arctan2(centre[:, 1], centre[:, 0])), rng.uniform(0, 360, 6))
    latitude = np.append(np.degrees(np.arcsin(centre[:, 2] / far)), rng.uniform(-90, 90, 6))
    distance = np.append(far * rng.uniform(0.95, 1.2, 6), rng.uniform(0.1, 6, 6))
    found = dust.extinction(longitude, latitude, distance)
    towards = unit_vectors(longitude, latitude)
    for i, r in enumerate(distance):
        grid = np.linspace(0, r, 5001)
        assert_allclose(found[i], np.trapezoid(density(dust, grid[:, None] * towards[i]), grid), rtol=2e-5)


def test_extinction_does_not_depend_on_its_company(dust):
    """Clouds are chosen by the cone of all points together: each point alone must give the same."""
    longitude, latitude = Region().draw(40, np.random.default_rng(1))
    together = dust.extinction(longitude, latitude, np.full(40, 3.0))
    alone = [dust.extinction(longitude[i : i + 1], latitude[i : i + 1], np.array([3.0]))[0] for i in range(40)]
    assert_allclose(together, alone, atol=1e-8)


@pytest.mark.parametrize("region", [Region(), Region(80, 0, 6), Region(350, -70, 30), Region(10, 90, 5)])
def test_directions_are_uniform_on_the_region(region):
    longitude, latitude = region.draw(20_000, np.random.default_rng(2))
    cosine = unit_vectors(longitude, latitude) @ unit_vectors(np.array(region.longitude), np.array(region.latitude))
    low = np.cos(np.radians(region.radius))
    assert cosine.min() >= low - 1e-9
    # uniform in the cosine: mean in the middle, to 5 sigma
    assert_allclose(cosine.mean(), 0.5 * (1 + low), atol=5 * (1 - low) / np.sqrt(12 * 20_000))


def test_stars_stand_where_they_are_bright_enough_behind_the_dust_of_that_place(dust):
    rng = np.random.default_rng(3)
    absolute = rng.normal(3.0, 2.0, 400)

    def magnitude(e, parallax):
        return absolute + 5 * np.log10(100 / parallax) + 2.5 * e

    place = dusty_sky(dust, Region(80, 0, 20))(400, magnitude, rng)
    g = magnitude(place.extinction, place.parallax)
    assert ((g >= BRIGHT_G) & (g <= FAINT_G)).mean() > 0.99
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    galactic = SkyCoord(place.ra * u.deg, place.dec * u.deg).galactic
    expected = dust.extinction(galactic.l.deg, galactic.b.deg, 1 / place.parallax)
    assert_allclose(place.extinction, np.maximum(expected, 0.003), rtol=1e-6)


def test_stars_that_are_nowhere_visible_still_have_a_place(dust):
    place = dusty_sky(dust, Region(80, 0, 5))(5, lambda e, parallax: np.full(5, 25.0), np.random.default_rng(4))
    assert np.isfinite([place.ra, place.dec, place.extinction, place.parallax]).all()


def test_the_truth_comes_back_from_disk(dust, tmp_path):
    back = Dust.read(dust.write(tmp_path / "sky.json"))
    where = np.array([80.0]), np.array([1.0]), np.array([1.3])
    assert back.extinction(*where) == dust.extinction(*where)
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "nothing.json"):
        with pytest.raises(InputError, match=name):
            Dust.read(tmp_path / name)


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "0,95,3", "0,0,0", "0,0,nan"])
def test_regions_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="region"):
        Region.parse(text)


def test_a_survey_is_written_with_its_dust_beside_it(tmp_path):
    import pyarrow.parquet as pq

    files = simulate_sky(small_model(), 6, tmp_path / "s", Recipe(seed=1), "80,0,3")
    assert [f.name for f in files[:3]] == ["survey.toml", "truth.parquet", "sky.json"]
    truth = pq.read_table(files[1])
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    at = SkyCoord(truth["ra"].to_numpy() * u.deg, truth["dec"].to_numpy() * u.deg).galactic
    expected = Dust.read(files[2]).extinction(at.l.deg, at.b.deg, 1 / truth["parallax"].to_numpy())
    assert_allclose(truth["extinction"].to_numpy(), np.maximum(expected, 0.003), rtol=1e-6)
