"""R-hat and effective sizes of many series at once: ArviZ's numbers, and chains that must be refused."""

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose

from xpbayes.analysis.posterior_file import import_arviz
from xpbayes.inference.sampling.convergence import ess_bulk, ess_tail, r_hat

RNG = np.random.default_rng(0)


def _walks(memory: float, n_draws: int) -> np.ndarray:
    """Four chains of an autoregressive process, from its own law."""
    x = RNG.normal(size=(4, n_draws))
    for i in range(1, n_draws):
        x[:, i] = memory * x[:, i - 1] + np.sqrt(1 - memory**2) * x[:, i]
    return x


@pytest.mark.parametrize("n_draws", [100, 251])
def test_the_numbers_are_arvizs(n_draws):
    """Independent, sluggish, antithetic, skewed, repeating, drifting and disagreeing chains."""
    plain = _walks(0.0, n_draws)
    series = np.stack(
        [
            plain,
            _walks(0.9, n_draws),
            _walks(-0.6, n_draws),
            np.exp(2 * _walks(0.5, n_draws)),
            np.round(plain),
            np.cumsum(plain, axis=1),
            plain + np.array([0, 0, 0, 3])[:, None],
            plain * np.array([1, 1, 1, 5])[:, None],
        ]
    )
    az = import_arviz()
    data = xr.Dataset({"x": (("series", "chain", "draw"), series)})
    assert_allclose(r_hat(series), az.rhat(data)["x"], rtol=1e-9)
    assert_allclose(ess_bulk(series), az.ess(data, method="bulk")["x"], rtol=1e-7)
    # ArviZ 1.x takes its tails from the width of its intervals (89 %) unless they are named.
    assert_allclose(ess_tail(series), az.ess(data, method="tail", prob=(0.05, 0.95))["x"], rtol=1e-7)
    assert np.all(r_hat(series)[-3:] > 1.05)


def test_chains_that_never_move_have_no_r_hat():
    """Not a number is never below a limit: such chains do not count as settled."""
    assert np.isnan(r_hat(np.ones((4, 100))))
