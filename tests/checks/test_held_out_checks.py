"""Every check of held-out stars passes honest answers and rejects the fault that it is named for: synthetic arrays alone."""

from dataclasses import replace

import numpy as np
import pytest

from xpbayes.channels import xp_channels
from xpbayes.checks.held_out_checks import HeldOut, Inferred, check_held_out, extinction_unit, measure, straight_line

RNG = np.random.default_rng(11)
N = 4000
SIGMA = np.array([0.1, 0.15, 0.2, 0.03])
ERROR = np.array([0.05, 0.05, 0.05, 0.04])
RELATIVE = 0.2
"""Of the parallax that fluxes give."""


@pytest.fixture(scope="module")
def honest():
    """Stars whose answers have just the errors that they claim; parallax and flux are combined as Gaussians are."""
    truth = np.column_stack([RNG.uniform(3.6, 9.0, N), RNG.normal(-0.3, 0.4, N), RNG.uniform(0.5, 4.8, N),
                             RNG.uniform(0.0, 1.5, N), RNG.uniform(0.2, 2.0, N)])  # fmt: skip
    error = np.column_stack([np.tile(ERROR, (N, 1)), RNG.uniform(0.02, 0.2, N)])
    reference = truth + error * RNG.standard_normal(truth.shape)
    sigma = np.column_stack([np.tile(SIGMA, (N, 1)), RELATIVE * truth[:, 4]])
    alone = truth + sigma * RNG.standard_normal(truth.shape)
    weight = sigma[:, 4] ** -2, error[:, 4] ** -2
    both, both_sigma = alone.copy(), sigma.copy()
    both[:, 4] = (weight[0] * alone[:, 4] + weight[1] * reference[:, 4]) / sum(weight)
    both_sigma[:, 4] = sum(weight) ** -0.5

    def answer(value, spread):
        return Inferred(value, value - spread, value + spread, np.column_stack([value[:, 3], spread[:, 3]]))

    return HeldOut(("teff", "feh", "logg"), reference, error, answer(both, both_sigma), answer(alone, sigma))


def _shifted(answer, shift):
    """The same intervals elsewhere: shift (star, parameter)."""
    unbounded = answer.unbounded + np.column_stack([shift[:, 3], np.zeros(N)])
    return Inferred(answer.median + shift, answer.low + shift, answer.high + shift, unbounded)


def _spoiled(honest, change):
    return replace(honest, with_parallax=change(honest.with_parallax), flux_only=change(honest.flux_only))


def _only(parameter, shift):
    out = np.zeros((N, 5))
    out[:, parameter] = shift
    return out


def _failed(stars):
    return {check.name for check in check_held_out(measure(stars)) if check.passed is False}


def test_honest_answers_pass_every_check(honest):
    checks = check_held_out(measure(honest))
    assert all(check.passed for check in checks), [check.line for check in checks]
    assert len(checks) == 5


def test_another_scale_of_extinction_is_caught(honest):
    """E 8 % too small, as in version 0.1.0 with its R; and 0.03 mag too large everywhere."""
    small = _spoiled(honest, lambda a: _shifted(a, _only(3, -0.08 * a.median[:, 3])))
    assert "extinction_scale" in _failed(small)
    assert "extinction_scale" in _failed(_spoiled(honest, lambda a: _shifted(a, _only(3, 0.03))))


def test_extinction_of_one_kind_of_star_is_caught(honest):
    """Only hot stars: the whole sample's scale hardly moves."""
    hot = honest.reference[:, 0] > 8.5
    assert hot.mean() < 0.12
    spoiled = _spoiled(honest, lambda a: _shifted(a, _only(3, np.where(hot, -0.03, 0.0))))
    assert _failed(spoiled) == {"extinction_pulls"}


def test_luminous_giants_at_wrong_distances_are_caught(honest):
    """Parallaxes of giants 1.4 sigma too large, and their log g too small."""
    giant = honest.reference[:, 2] < 1.0
    spoiled = _spoiled(honest, lambda a: _shifted(a, _only(4, np.where(giant, 0.3 * a.median[:, 4], 0.0))))
    assert "parallax_pulls" in _failed(spoiled)


@pytest.mark.parametrize(("parameter", "factor"), [(0, 0.6), (2, 0.6), (3, 3.0), (4, 0.5)])
def test_intervals_of_wrong_width_are_caught(honest, parameter, factor):
    def stretched(answer):
        stretch = np.ones(5)
        stretch[parameter] = factor
        low, high = (answer.median + stretch * (end - answer.median) for end in (answer.low, answer.high))
        return replace(answer, low=low, high=high)

    assert "coverage" in _failed(_spoiled(honest, stretched))
    one_case = replace(honest, flux_only=stretched(honest.flux_only))
    assert "coverage" in _failed(one_case)


def test_parallaxes_that_fluxes_spoil_are_caught(honest):
    """Fluxes that know the parallax to 60 % and claim 20 %: what comes of both is worse than Gaia's."""
    alone, measured = honest.flux_only, honest.reference[:, 4]
    wrong = _shifted(alone, _only(4, 0.6 * alone.median[:, 4] * RNG.standard_normal(N)))
    sigma, error = RELATIVE * alone.median[:, 4], honest.error[:, 4]
    median = honest.with_parallax.median.copy()
    median[:, 4] = (wrong.median[:, 4] / sigma**2 + measured / error**2) / (sigma**-2 + error**-2)
    both = replace(honest.with_parallax, median=median)
    assert "parallax_gain" in _failed(replace(honest, flux_only=wrong, with_parallax=both))


def test_what_is_not_there_is_not_judged(honest):
    """No parallaxes and no reddening estimates: labels are judged, the rest is not made."""
    reference = honest.reference.copy()
    reference[:, 3:] = np.nan
    checks = check_held_out(measure(replace(honest, reference=reference, with_parallax=None)))
    assert [check.name for check in checks if check.passed is None] == [
        "extinction_scale",
        "extinction_pulls",
        "parallax_pulls",
        "parallax_gain",
    ]
    assert all(check.passed is None for check in check_held_out({}))


def test_a_line_with_errors_in_both_is_not_diluted():
    """A narrow range: ordinary least squares would find a slope of 0.8."""
    x = RNG.normal(0.3, 0.1, 20_000)
    measured, found = x + RNG.normal(0, 0.05, x.size), 0.01 + x + RNG.normal(0, 0.03, x.size)
    line = straight_line(measured, found, np.full(x.size, 0.05), np.full(x.size, 0.03))
    assert abs(line["slope"] - 1.0) < 3 * line["slope_error"] < 0.06
    assert abs(line["zero_point"] - 0.01) < 3 * line["zero_point_error"]
    assert np.polyfit(measured, found, 1)[0] < 0.85


def test_extinctions_taken_for_colour_excesses_are_caught():
    """R of CCM89 with R_V = 3.1 per unit of E(B-V), and per unit of A_V."""
    from astropy import units as u
    from dust_extinction.parameter_averages import CCM89

    wavelength = xp_channels(()).wavelengths
    curve = CCM89(Rv=3.1)(wavelength * u.nm) * 3.1 * 0.4 * np.log(10)
    assert extinction_unit(wavelength, curve).passed
    assert extinction_unit(wavelength, curve / 3.1).passed is False
    assert extinction_unit(wavelength[30:], curve[30:]).passed is None
