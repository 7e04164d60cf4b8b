import jax
import numpy as np
from numpy.testing import assert_allclose

from xpbayes.analysis.figures.prior_corner import corner, draw_corner
from xpbayes.models.prior import draw_labels

NAMES = ("teff", "feh", "logg")


def test_marginals_are_normalised_and_agree_with_draws(trained):
    numbers = corner(trained.prior, NAMES)
    draws = np.asarray(draw_labels(trained.prior, jax.random.key(0), 100_000), np.float64)
    for i in range(3):
        edges = numbers.edges[i]
        assert_allclose(np.sum(numbers.one[i] * np.diff(edges)), 1 - 4e-4, atol=1e-6)
        expected = np.add.reduceat(numbers.one[i] * np.diff(edges), np.arange(0, 240, 24)) * len(draws)
        seen = np.histogram(draws[:, i], edges[::24])[0]
        assert (np.abs(seen - expected) < 5 * np.sqrt(expected + 1)).all()


def test_contours_hold_what_they_say(trained):
    """Share of draws above each level, by looking every draw up in the density."""
    numbers = corner(trained.prior, NAMES)
    draws = np.asarray(draw_labels(trained.prior, jax.random.key(1), 40_000), np.float64)
    for (i, j), density in numbers.two.items():
        at = [np.searchsorted(numbers.edges[k], draws[:, k]) - 1 for k in (i, j)]
        inside = (at[0] >= 0) & (at[0] < 240) & (at[1] >= 0) & (at[1] < 240)
        here = np.where(inside, density[at[0].clip(0, 239), at[1].clip(0, 239)], 0.0)
        for share, level in zip((0.68, 0.95, 0.99), numbers.levels[i, j], strict=True):
            assert abs(np.mean(here > level) - share) < 0.015


def test_every_panel_is_drawn(trained):
    assert len(draw_corner(corner(trained.prior, NAMES)).axes) == 6
