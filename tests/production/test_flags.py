"""Every bit: set where it must be, and not for a good star."""

import numpy as np
import pytest

from xpbayes.production.flags import Parallaxes, paper_flags, quality_flags
from xpbayes.schema import QualityFlag

NOTHING = np.array([np.nan])


def _parallaxes(mode=1.0, half=0.01, measured=1.0, error=0.05, drawn=True):
    median, low, high = (mode, mode - half, mode + half) if drawn else (np.nan,) * 3
    return Parallaxes(*(np.atleast_1d(v) for v in (mode, half, median, low, high, measured, error)))


def test_bits_of_the_paper():
    """ZGR23 Eq. 24 to 26, one star a bit, and one without any."""
    flags = paper_flags(
        np.array([61.0, 123.0, 61.0, 61.0, np.nan]),
        np.array([-2.0, -2.0, -20.0, -2.0, -2.0]),
        -10.0,
        _parallaxes(np.array([1.0, 1.0, 1.0, 2.0, 1.0]), 0.9, np.array([1.0, np.nan, 1.0, 1.0, 1.0])),
    )
    assert flags.tolist() == [0, 8, 16, 32, 8]


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize(
    ("half", "measured", "tense"),
    [(0.4, 2.0, False), (0.4, 0.05, False), (0.03, 2.0, True), (0.03, 0.05, True), (0.3, np.nan, False)],
)
def test_parallax_tension_knows_both_errors(half, measured, tense, drawn):
    """All but the last are more than 10 sigma of the measurement away; the paper's bit stays as it is in its own column."""
    parallaxes = _parallaxes(half=half, measured=measured, drawn=drawn)
    paper = np.array([QualityFlag.PARALLAX_TENSION], np.uint8) if np.isfinite(measured) else np.zeros(1, np.uint8)
    assert (paper_flags(np.array([50.0]), np.array([0.0]), -9.0, parallaxes) == paper).all()
    flags = quality_flags(paper, parallaxes, NOTHING, NOTHING, NOTHING)
    assert bool(flags[0] & QualityFlag.PARALLAX_TENSION) is tense


def test_the_side_of_the_measurement_counts():
    """A posterior with a long tail upwards: a measurement up there agrees, one below does not."""
    one = [np.array([v]) for v in (1.0, 0.1, 1.0, 0.95, 2.0)]
    above, below = (Parallaxes(*one, np.array([v]), np.array([0.01])) for v in (2.5, 0.7))
    assert above.tension[0] < 3 < below.tension[0]


def test_new_bits():
    of = np.array([0, 0, 8, 0], np.uint8)
    four = _parallaxes(np.ones(4))
    fit_quality, extrapolation = np.array([1e-4, 0.5, np.nan, 0.0]), np.array([0.5, 1.5, np.nan, 1.01])
    flags = quality_flags(of, four, fit_quality, extrapolation, np.array([0.4, 0.6, np.nan, 0.1]))
    assert flags.tolist() == [64, 160, 8, 192]
