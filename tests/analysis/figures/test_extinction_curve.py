import numpy as np
from numpy.testing import assert_allclose

from xpbayes.analysis.figures.extinction_curve import compare_with_published, scale_to
from xpbayes.channels import xp_channels

RNG = np.random.default_rng(0)


def test_scaling_minimises_the_rms_of_the_ratio():
    published = np.linspace(3, 1, 50)
    learned = 2.2 * published * (1 + 0.05 * RNG.normal(size=50))
    scaled, rms = scale_to(learned, published)
    trial = [np.sqrt(np.mean((learned / (published * s) - 1) ** 2)) for s in np.linspace(1.8, 2.6, 4001)]
    assert_allclose(rms, min(trial), rtol=1e-6)
    assert_allclose(scaled[0] / published[0], np.linspace(1.8, 2.6, 4001)[np.argmin(trial)], atol=3e-4)


def test_a_published_curve_is_recognised():
    from astropy import units as u
    from dust_extinction.parameter_averages import G23

    wavelength = xp_channels().wavelengths
    rows = {c.name: c for c in compare_with_published(wavelength, 3 * G23(Rv=3.1)(wavelength * u.nm))}
    assert rows["G23, R_V = 3.1"].rms < 1e-6
    assert rows["CCM89, R_V = 5"].rms > rows["CCM89, R_V = 3.1"].rms


def test_ccm89_is_not_stretched_to_wise():
    wavelength = xp_channels().wavelengths
    for curve in compare_with_published(wavelength, np.ones(66)):
        assert len(curve.wavelength_nm) == (66 if curve.name.startswith("G23") else 64)


def test_the_papers_own_curve_is_near_ccm89(shared_data):
    published = np.loadtxt(shared_data / "zgr23" / "extinction_curve.txt")
    rows = {c.name: c.rms for c in compare_with_published(published[:, 0], published[:, 1])}
    assert rows["CCM89, R_V = 3.1"] < 0.1
