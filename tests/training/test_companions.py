"""Stars that are two are told by their labels and parallaxes, and stars of which nothing tells keep their count."""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.inference.test_second_source import N, ridge, simulated  # noqa: F401 - fixtures
from xpbayes.inference.second_source import EVOLVED
from xpbayes.training import companions
from xpbayes.training.companions import counts_of, single_probabilities

PLACE = SimpleNamespace(at=(0, 1, 2))


def _asked(monkeypatch, ln_odds, logg):
    """Probabilities of stars with such odds."""
    monkeypatch.setattr(companions, "in_memory", lambda stars, rows: rows)
    monkeypatch.setattr(companions, "_ln_odds", lambda model, place, rows, theta_log: ln_odds[rows])
    theta_log = np.column_stack([np.full(len(logg), 5.0), np.zeros(len(logg)), logg, np.zeros((len(logg), 2))])
    return single_probabilities(None, PLACE, None, theta_log)


def test_the_share_of_binaries_is_found_from_the_odds(monkeypatch):
    """30 % of 5,000 stars are two, by one number that says so: mean probability and calibration."""
    random = np.random.default_rng(5)
    two = random.random(5000) < 0.3
    seen = random.normal(np.where(two, 2.0, 0.0))
    single = _asked(monkeypatch, 2.0 * seen - 2.0, np.full(5000, 4.5))
    assert np.mean(1.0 - single) == pytest.approx(0.3, abs=0.03)
    unsure = (single > 0.4) & (single < 0.6)
    assert np.mean(~two[unsure]) == pytest.approx(0.5, abs=0.1)


def test_giants_and_stars_without_an_optimum_are_single(monkeypatch):
    single = _asked(monkeypatch, np.array([9.0, np.nan, 9.0, -9.0]), np.array([EVOLVED - 0.5, 4.5, 4.5, 4.5]))
    assert_allclose(single, [1.0, 1.0, 0.0, 1.0], atol=0.01)


def test_without_parallaxes_every_star_counts(trained, monkeypatch):
    """And for E as its fluxes fit."""
    n = 4
    stars = SimpleNamespace(parallax_inv_error=np.zeros(n))
    monkeypatch.setattr(companions, "replace", lambda stars, **changes: stars)
    monkeypatch.setattr(companions, "initial_theta", lambda stars, curve_varies: jnp.zeros((n, 5)))
    monkeypatch.setattr(companions, "fold_in_model_error", lambda model, stars, theta_log: stars)
    monkeypatch.setattr(companions, "solve", lambda *args: SimpleNamespace(theta_log=np.zeros((n, 5))))
    monkeypatch.setattr(companions, "star_weights", lambda *args, by_measurements: np.array([1.0, 0.5, 0.1, 1.0]))
    counts = counts_of(trained.star_model, stars, trained.labels, np.ones(1))
    assert_array_equal(counts[:, [0, 1, 2, 4]], 1.0)
    assert_array_equal(counts[:, 3], [1.0, 0.5, 0.1, 1.0])


@pytest.mark.thorough
def test_pairs_of_known_labels_are_told_from_singles(trained, simulated, ridge):  # noqa: F811 - fixtures
    """A dwarf of 5,000 K with and without companions of 30 to 100 % of its light; labels, parallax and E as measured."""
    stars, _, theta = simulated
    labelled = replace(
        stars,
        labels=theta[:, :3].astype(np.float32),
        label_inv_error=np.tile(np.float32([1 / 0.06, 1 / 0.08, 1 / 0.1]), (N, 1)),
        reddening=np.full(N, 0.1, np.float32),
        reddening_inv_error=np.full(N, 25.0, np.float32),
    )
    start = np.delete(theta, 3, axis=1)
    single = single_probabilities(trained.star_model.without_error, ridge, labelled, start)
    assert np.all(single[: N // 2] > 0.8)
    assert np.all(single[N // 2 :] < 0.3)
