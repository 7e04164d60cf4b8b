import numpy as np
from numpy.testing import assert_allclose

from xpbayes.archive.spectroscopic_parallax import spectroscopic_parallax


def test_the_sun_is_where_it_is():
    """M_Ks of the Sun is 3.27 (Willmer 2018, Vega): at that magnitude it stands at 10 pc."""
    parallax, error = spectroscopic_parallax(np.array([5.772]), np.array([4.438]), np.array([3.27]))
    assert_allclose(parallax, 100.0, rtol=0.02)
    assert_allclose(error, 0.25 * parallax)


def test_arcturus_is_where_it_is():
    """Arcturus: 4286 K, log g 1.66 (Ramirez & Allende Prieto 2011), Ks = -2.9; parallax 88.8 mas (Hipparcos)."""
    parallax, _ = spectroscopic_parallax(np.array([4.286]), np.array([1.66]), np.array([-2.9]))
    assert_allclose(parallax, 88.8, rtol=0.25)


def test_five_magnitudes_are_a_factor_ten():
    near, far = (spectroscopic_parallax(np.array([5.0]), np.array([2.5]), np.array([k]))[0] for k in (5.0, 10.0))
    assert_allclose(near / far, 10.0, rtol=1e-12)


def test_missing_stays_missing():
    assert np.isnan(spectroscopic_parallax(np.array([np.nan]), np.array([4.4]), np.array([5.0]))[0][0])
