"""Kiel diagrams and the reliability map: counts in cells against plain NumPy."""

import numpy as np
from numpy.testing import assert_array_equal

from tests.analysis.rows import halves, make_rows
from xpbayes.analysis.figures.star_counts import (
    COLOUR_EDGES,
    LOGG_EDGES,
    MAGNITUDE_EDGES,
    TEFF_EDGES,
    Kiel,
    Reliability,
    coarser,
    draw_kiel,
    draw_reliability,
    suitable_factor,
)

RNG = np.random.default_rng(0)
N = 3000


def _estimate():
    estimate = np.tile([5.0, 0.0, 3.0, 0.2, 1.0], (N, 1))
    estimate[:, 0], estimate[:, 2] = RNG.uniform(3, 25, N), RNG.uniform(0, 5, N)
    estimate[:, 4] = RNG.gamma(2, 0.5, N)
    return estimate


def test_kiel_counts_and_coverage():
    estimate, solved = _estimate(), np.arange(N) % 5 > 0
    teff, logg = RNG.uniform(3, 12, 500), RNG.uniform(2, 5, 500)
    teff[:20] = np.nan
    joined = {"teff": np.where(np.arange(N) < 100, 5.0, np.nan), "logg": np.full(N, 4.0)}
    numbers = Kiel(("teff", "feh", "logg"), teff, logg)
    for part in halves(make_rows(N, joined, solved, stellar_params_est=estimate)):
        numbers.add(part)
    expected = np.zeros((180, 70), int)
    covered = 0
    labelled = {
        (int((t - 2) / 0.1), int((g + 1) / 0.1)) for t, g in zip(teff, logg, strict=True) if np.isfinite(t)
    }  # fmt: skip
    for t, g in estimate[solved][:, [0, 2]]:
        i, j = np.searchsorted(TEFF_EDGES, t, "right") - 1, np.searchsorted(LOGG_EDGES, g, "right") - 1
        if 0 <= i < 180 and 0 <= j < 70:
            expected[i, j] += 1
            covered += (i, j) in labelled
    assert_array_equal(numbers.inferred, expected)
    assert (numbers.n_labelled, numbers.n_inferred, numbers.n_matched, numbers.n_rows) == (480, solved.sum(), 100, N)
    assert abs(numbers.covered - covered / solved.sum()) < 2e-3  # a label on a cell's edge may fall to either side
    assert len(draw_kiel(numbers).axes) == 3


def test_reliability_counts():
    estimate = _estimate()
    flags = RNG.choice([0, 1, 8, 16], N).astype(np.uint8)
    photometry = {
        "phot_g_mean_mag": RNG.uniform(8, 17, N), "phot_bp_mean_mag": RNG.uniform(9, 18, N),
        "phot_rp_mean_mag": RNG.uniform(8, 16, N),
    }  # fmt: skip
    photometry["phot_rp_mean_mag"][:50] = np.nan
    numbers = Reliability()
    for part in halves(make_rows(N, photometry, stellar_params_est=estimate, quality_flags=flags)):
        numbers.add(part)
    colour = photometry["phot_bp_mean_mag"] - photometry["phot_rp_mean_mag"]
    magnitude = photometry["phot_g_mean_mag"] - 10 + 5 * np.log10(estimate[:, 4])
    known = np.isfinite(colour)
    for found, use in ((numbers.count, known), (numbers.reliable, known & (flags < 8))):
        cells = np.histogram2d(colour[use], magnitude[use], (COLOUR_EDGES, MAGNITUDE_EDGES))[0]
        assert_array_equal(found, cells)
    assert (numbers.n, numbers.n_without, numbers.n_reliable) == (N - 50, 50, (known & (flags < 8)).sum())
    factor = suitable_factor(numbers)
    assert coarser(numbers.count, factor).sum() == numbers.count.sum()
    assert draw_reliability(numbers).axes[0].get_ylim()[0] > draw_reliability(numbers).axes[0].get_ylim()[1]
