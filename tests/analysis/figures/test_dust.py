import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from tests.analysis.rows import halves, make_rows
from xpbayes.analysis.figures.dust import AgainstSfd, draw_sfd, galactic_latitude, near_clouds

RNG = np.random.default_rng(0)
N = 6000


def _positions():
    return RNG.uniform(0, 360, N), np.degrees(np.arcsin(RNG.uniform(-1, 1, N)))


def test_latitude_and_the_clouds_are_those_of_astropy():
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    ra, dec = _positions()
    stars = SkyCoord(ra * u.deg, dec * u.deg)
    assert_allclose(galactic_latitude(ra, dec), stars.galactic.b.deg, atol=1e-5)
    lmc, smc = SkyCoord(80.894 * u.deg, -69.756 * u.deg), SkyCoord(13.187 * u.deg, -72.829 * u.deg)
    near = (stars.separation(lmc).deg < 8) | (stars.separation(smc).deg < 6)
    assert_array_equal(near_clouds(ra, dec), near)
    assert near.any()


def test_cuts_and_percentiles_against_numpy():
    ra, dec = _positions()
    ra[:30] = np.nan
    estimate = np.tile([5.0, 0.0, 3.0, 0.2, 1.0], (N, 1))
    estimate[:, 4] = RNG.gamma(2, 0.5, N)
    dust = 0.05 + 0.3 * RNG.random(N)
    estimate[:, 3] = dust + RNG.normal(0.02, 0.03, N)
    flags = RNG.choice([0, 8], N, p=[0.9, 0.1]).astype(np.uint8)
    of_position = dict(zip(ra.tolist(), dust.tolist(), strict=True))
    numbers = AgainstSfd(lambda a, d: np.array([of_position[x] for x in a.tolist()]))
    rows = make_rows(N, None, RNG.random(N) < 0.95, ra=ra, dec=dec, stellar_params_est=estimate, quality_flags=flags)
    for part in halves(rows):
        numbers.add(part)
    b = galactic_latitude(ra, dec)
    height = np.abs(np.sin(np.radians(b)) / estimate[:, 4])
    use = rows.solved & (flags < 8) & (np.abs(b) > 10) & ~near_clouds(ra, dec) & (height > 0.4)
    assert numbers.n == use.sum() and sum(numbers.cuts.values()) == (rows.solved & ~use).sum()
    assert numbers.cuts["no position"] == (rows.solved & (flags < 8) & np.isnan(ra)).sum()
    for i in np.flatnonzero(numbers.density.n >= 100):
        low, high = numbers.density.x_edges[i : i + 2]
        inside = use & (dust >= low) & (dust < high)
        expected = np.percentile((estimate[:, 3] - dust)[inside], [15, 50, 84])
        assert_allclose(numbers.density.percentiles[i], expected, atol=0.0026)  # cells of 0.0025
    assert draw_sfd(numbers).axes
