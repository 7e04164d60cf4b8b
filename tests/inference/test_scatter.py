"""Stars of the same labels differ: what measured parallaxes and reddenings are then worth."""

from dataclasses import make_dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import ndtr

from tests.inference.test_recalibration import _inferred_from_labels
from xpbayes.data.stars import ParallaxDoubt
from xpbayes.inference import scatter
from xpbayes.inference.scatter import fit_scatter, loosened, settled

NAMES = (
    "estimate",
    "runner_up",
    "mean",
    "std",
    "median",
    "low",
    "high",
    "fisher",
    "covariance",
    "laplace",
    "unbounded",
)
Found = make_dataclass("Found", [*NAMES, ("spurious", object, None)], frozen=True)
Batch = make_dataclass("Batch", ["parallax", "parallax_inv_error", ("doubt", object, None)], frozen=True)


def _found(value, sigma):
    """Gaussian results of stars: (star, parameter) value and (star,) error of the parallax; others 0.1."""
    errors = np.full(value.shape, 0.1)
    errors[:, -1] = sigma
    square = errors[:, :, None] * errors[:, None, :] * np.eye(value.shape[1])
    return Found(
        value, value, value, errors, value, value - errors, value + errors, np.linalg.inv(square), square, square,
        np.column_stack([value[:, -2], np.full(len(value), 0.01)]),
    )  # fmt: skip


@pytest.mark.parametrize("gaia_error", [0.002, 0.05, 1.0])
def test_a_star_gets_the_parallax_that_the_joint_posterior_has(gaia_error):
    """Against the Gaussian in (parallax, parallax of the fluxes) itself: fluxes with an error, the scatter, Gaia's error."""
    flux, flux_error, spread, measured = 1.02, 0.03, 0.08, 0.97
    precision = np.array([[gaia_error**-2 + spread**-2, -(spread**-2)], [-(spread**-2), flux_error**-2 + spread**-2]])
    covariance = np.linalg.inv(precision)
    exact = covariance @ [measured / gaia_error**2, flux / flux_error**2]
    stars = Batch(np.array([measured]), np.array([1 / gaia_error]))
    relative = np.array([[0.02, spread / measured]])
    inverse = float(loosened(stars, relative).parallax_inv_error[0])
    assert_allclose(1 / inverse, np.hypot(gaia_error, spread), rtol=1e-5)
    weight = np.array([flux_error**-2, inverse**2])
    seen = weight @ [flux, measured] / weight.sum()
    relative[0, 1] = spread / seen  # of the star's parallax there
    found = _found(np.array([[5.0, 0.0, 3.0, 0.5, seen]]), weight.sum() ** -0.5)
    after = settled(found, stars, relative, use_parallax=True)
    assert_allclose(after.estimate[0, -1], exact[0], rtol=1e-5)
    for sigma in (after.std[0, -1], np.sqrt(after.covariance[0, -1, -1]), after.high[0, -1] - after.median[0, -1]):
        assert_allclose(sigma, np.sqrt(covariance[0, 0]), rtol=1e-3)
    assert_allclose(after.covariance[0] @ after.fisher[0], np.eye(5), atol=1e-4)


def test_extinction_keeps_its_value_and_is_as_uncertain_as_the_scatter():
    found = _found(np.array([[5.0, 0.0, 3.0, 0.05, 1.0]]), 0.1)
    after = settled(found, Batch(np.ones(1), np.zeros(1)), np.array([[0.2, 0.0]]), use_parallax=True)
    assert_array_equal(after.median, np.float32(found.median))
    assert_allclose(after.std[0, 3], np.hypot(0.1, 0.2), rtol=1e-6)
    assert after.low[0, 3] == 0.0
    assert_allclose(after.unbounded[0], [0.05, np.hypot(0.01, 0.2)], rtol=1e-6)


def test_no_scatter_changes_nothing():
    found = _found(np.array([[5.0, 0.0, 3.0, 0.5, 1.0]]), 0.1)
    stars = Batch(np.ones(1), np.array([20.0]))
    after = settled(found, stars, np.zeros((1, 2)), use_parallax=True)
    assert_array_equal(loosened(stars, np.zeros((1, 2))).parallax_inv_error, stars.parallax_inv_error)
    for name in NAMES:
        assert_allclose(getattr(after, name), getattr(found, name), rtol=1e-6)


def test_a_doubted_parallax_is_a_mixture_of_a_sound_and_a_spurious_one():
    """Against draws: of each case as it settles alone, as often as the case is likely."""
    n, random = 400_000, np.random.default_rng(0)
    share, narrowing, spread = 0.3, 0.1, np.array([[0.0, 0.08]])
    found = _found(np.array([[5.0, 0.0, 3.0, 0.5, 1.0]]), 0.03)
    sound, spurious = Batch(np.array([1.3]), np.array([50.0])), Batch(np.array([1.3]), np.array([50.0 * narrowing]))
    each = [settled(found, stars, spread, use_parallax=True) for stars in (sound, spurious)]
    numbers = (round(n * (1 - share)), round(n * share))
    draws = np.concatenate(
        [of.mean[0, -1] + of.std[0, -1] * random.normal(size=k) for of, k in zip(each, numbers, strict=True)]
    )
    doubted = replace(sound, doubt=ParallaxDoubt(np.array([0.1]), np.array([narrowing])))
    after = settled(replace(found, spurious=np.array([share])), doubted, spread, use_parallax=True)
    expected = np.quantile(draws, ndtr([-1.0, 0.0, 1.0]))
    assert_allclose([getattr(after, name)[0, -1] for name in ("low", "median", "high")], expected, atol=2e-3)
    assert_allclose([after.mean[0, -1], after.std[0, -1]], [draws.mean(), draws.std()], atol=1e-3)
    for certain, of in zip((0.0, 1.0, np.nan), (*each, each[0]), strict=True):
        alone = settled(replace(found, spurious=np.array([certain])), doubted, spread, use_parallax=True)
        for name in NAMES:
            assert_allclose(getattr(alone, name), getattr(of, name), rtol=1e-5, err_msg=name)


def test_scatter_narrows_the_gap_between_a_sound_and_a_spurious_parallax():
    stars = Batch(np.array([2.0]), np.array([10.0]), ParallaxDoubt(np.array([0.1]), np.array([0.125])))
    looser = loosened(stars, np.array([[0.0, 0.1]]))
    stated = 1 / looser.parallax_inv_error[0]
    assert_allclose([stated, stated / looser.doubt.narrowing[0]], np.hypot([0.1, 0.8], 0.2), rtol=1e-6)


def test_an_unused_parallax_settles_nothing():
    found = _found(np.array([[5.0, 0.0, 3.0, 0.5, 1.0]]), 0.1)
    after = settled(found, Batch(np.array([3.0]), np.array([100.0])), np.array([[0.0, 0.2]]), use_parallax=False)
    assert_array_equal(after.estimate[0, -1], 1.0)
    assert_allclose(after.std[0, -1], np.hypot(0.1, 0.2), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_star_without_a_solution_has_none_and_changes_no_other(bad):
    value = np.array([[5.0, 0.0, 3.0, 0.5, 1.0]] * 2)
    spread, batch = np.full((2, 2), 0.1), Batch(np.array([3.0, 3.0]), np.array([100.0, 0.0]))
    alone = settled(_found(value, 0.1), batch, spread, use_parallax=True)
    found = _found(value, 0.1)
    for name in NAMES:
        getattr(found, name)[1] = bad
    after = settled(found, batch, spread, use_parallax=True)
    for name in NAMES:
        assert_array_equal(getattr(after, name)[0], getattr(alone, name)[0])
        assert not np.isfinite(getattr(after, name)[1]).any()


@pytest.fixture
def _two_kinds(monkeypatch):
    """Every second star is of another kind."""

    def weights(function, size, stars):
        del function, size
        return np.eye(2)[np.arange(len(stars.parallax)) % 2]

    monkeypatch.setattr(scatter, "by_blocks", weights)


def _with_scatter(planted, outliers=0.0):
    """Stars whose own E and parallax differ from what their fluxes say, by kind; some measurements are of other stars."""
    found, stars, *_ = _inferred_from_labels(1)
    n = len(stars.parallax)
    random = np.random.default_rng(2)
    differ = np.asarray(planted)[np.arange(n) % 2] * random.normal(size=(n, 2))
    wrong = random.random(n) < outliers
    stars.reddening = stars.reddening + differ[:, 0] + 3.0 * wrong
    stars.parallax = stars.parallax * np.exp(differ[:, 1]) * np.where(wrong, 4.0, 1.0)
    return found, stars


@pytest.mark.usefixtures("_two_kinds")
@pytest.mark.parametrize("outliers", [0.0, 0.02])
def test_planted_scatter_comes_back_by_kind(outliers):
    """3,000 stars a kind: its own error is taken off, so it comes out low rather than high."""
    planted = np.array([[0.10, 0.3], [0.15, 0.15]])
    found = fit_scatter(*_with_scatter(planted, outliers), error=None)
    assert np.all(found > 0.85 * planted) and np.all(found < 1.12 * planted)


@pytest.mark.usefixtures("_two_kinds")
def test_no_scatter_is_invented_where_measurements_are_poor():
    """Nothing planted: what comes out is small beside the measurements' errors, 0.05 mag and 5 %."""
    found = fit_scatter(*_with_scatter(np.zeros((2, 2))), error=None)
    assert np.all(found <= [0.02, 0.05])


@pytest.mark.usefixtures("_two_kinds")
def test_nothing_measured_is_no_scatter():
    found, stars = _with_scatter(np.full((2, 2), 0.3))
    stars.reddening_inv_error, stars.parallax_inv_error = 0 * stars.reddening_inv_error, 0 * stars.parallax_inv_error
    assert not fit_scatter(found, SimpleNamespace(**vars(stars)), error=None).any()


@pytest.mark.usefixtures("_two_kinds")
def test_stars_of_no_count_leave_no_scatter_of_e():
    """A fifth of the stars is behind dust of another law: planted as E off by 0.5, counting for nothing."""
    found, stars = _with_scatter(np.zeros((2, 2)))
    odd = np.arange(len(stars.parallax)) % 5 == 0
    stars.reddening = stars.reddening + 0.5 * odd * np.random.default_rng(4).normal(size=len(odd))
    assert np.all(fit_scatter(found, stars, error=None, counts=np.where(odd, 0.0, 1.0))[:, 0] < 0.02)
    assert np.all(fit_scatter(found, stars, error=None)[:, 0] > 0.02)
