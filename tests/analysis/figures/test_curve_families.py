"""The learned variation of the curve beside published families; laws with known answers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.analysis.figures.extinction_curve import FAMILIES, direction, draw_families, family, nearest
from xpbayes.channels import xp_channels

WAVELENGTH = np.asarray(xp_channels().wavelengths, float)
WEIGHT = np.random.default_rng(0).uniform(1e3, 1e4, len(WAVELENGTH))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_recognised(name):
    """R1 made of its own dA/dR_V, an amount and grey: the cosine is one, and so is the scale."""
    inside = FAMILIES[name] > WAVELENGTH
    curve, variation = np.ones(len(WAVELENGTH)), np.zeros(len(WAVELENGTH))
    curve[inside] = 3.1 * family(name, 3.1, WAVELENGTH[inside])
    change = (3.2 * family(name, 3.2, WAVELENGTH[inside]) - 3.0 * family(name, 3.0, WAVELENGTH[inside])) / 0.2
    variation[inside] = 0.2 * change + 0.3 * curve[inside] - 0.1
    found = direction(name, WAVELENGTH, curve, variation, WEIGHT)
    assert found.cosine > 0.9995
    assert_allclose(found.r_v_per_xi, 0.2, rtol=2e-2)
    assert_allclose(found.published, found.learned, atol=2e-3)


def test_what_mimics_alone_has_no_direction():
    curve = 3.1 * family("G23", 3.1, WAVELENGTH)
    rng = np.random.default_rng(1)
    cosines = [direction("G23", WAVELENGTH, curve, rng.standard_normal(66), WEIGHT).cosine for _ in range(200)]
    assert abs(np.mean(cosines)) < 0.05 and np.std(cosines) < 0.3


@pytest.mark.parametrize(("name", "r_v"), [("G23", 4.0), ("CCM89", 2.5), ("F99", 3.1), ("F19", 4.0)])
def test_the_nearest_law_is_found_whatever_amount_and_grey(name, r_v):
    inside = FAMILIES[name] > WAVELENGTH
    curve = np.ones(len(WAVELENGTH))
    curve[inside] = 0.7 * r_v * family(name, r_v, WAVELENGTH[inside]) + 0.05
    found = nearest(name, 0.0, WAVELENGTH, curve, WEIGHT)
    assert abs(found.r_v - r_v) < 0.03 and found.rms < 2e-3
    assert len(found.value) == (66 if name == "G23" else 64)


def test_it_is_drawn():
    curve = 3.1 * family("G23", 3.1, WAVELENGTH)
    curves = {xi: curve * (1 + 0.01 * xi) for xi in (-2.0, 0.0, 2.0)}
    laws = [nearest("G23", xi, WAVELENGTH, of, WEIGHT) for xi, of in curves.items()]
    variation = np.linspace(-0.1, 0.1, 66)
    figure = draw_families(
        WAVELENGTH, curves, laws, [direction("G23", WAVELENGTH, curve, variation, WEIGHT)], variation
    )
    assert len(figure.axes) == 2
