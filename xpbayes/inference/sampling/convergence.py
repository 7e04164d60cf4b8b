"""Whether Markov chains agree and how much their draws are worth: split R-hat and effective sizes, many series at once.

Rank-normalised as in Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021). ArviZ is the reference in tests; ours exists
because ArviZ takes as long as the chains themselves, and NumPyro's are not rank-normalised.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtri

MAX_R_HAT = 1.01
MIN_ESS_PER_CHAIN = 100
"""Vehtari et al. (2021) ask for both of every parameter, bulk and tail."""
TAILS = (0.05, 0.95)
"""Quantiles whose indicators give the tail's effective size."""


def _split(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Halve every chain: (..., chain, draw) to (..., 2 chain, draw // 2); of an odd number the middle one goes."""
    half = draws.shape[-1] // 2
    return np.concatenate([draws[..., :half], draws[..., -half:]], axis=-2)


def _normal_scores(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace draws by the normal quantiles of their ranks among all chains of their series."""
    from scipy.stats import rankdata  # takes long to import

    flat = draws.reshape(*draws.shape[:-2], -1)
    rank = rankdata(flat, axis=-1)
    return np.asarray(ndtri((rank - 0.375) / (flat.shape[-1] + 0.25))).reshape(draws.shape)


def _plain_r_hat(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    n = draws.shape[-1]
    within = draws.var(axis=-1, ddof=1).mean(axis=-1)
    between = draws.mean(axis=-1).var(axis=-1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((between + within * (n - 1) / n) / within)


def _plain_ess(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Effective number of draws by Geyer's initial monotone sequence; as many as there are where nothing varies."""
    n_chains, n = draws.shape[-2:]
    centred = draws - draws.mean(axis=-1, keepdims=True)
    size = next_fast_len(2 * n, real=True)
    power = np.abs(rfft(centred, size, axis=-1)) ** 2
    covariance = irfft(power, size, axis=-1)[..., :n] / n
    within = (covariance[..., 0] * n / (n - 1)).mean(axis=-1)
    variance = within * (n - 1) / n + draws.mean(axis=-1).var(axis=-1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = 1.0 - (within[..., None] - covariance.mean(axis=-2)) / variance[..., None]
    rho[..., 0] = 1.0
    # Sums of neighbouring pairs, as long as they are positive, made to fall.
    n_pairs = (n - 1) // 2
    even, odd = rho[..., : 2 * n_pairs : 2], rho[..., 1 : 2 * n_pairs : 2]
    pair = even + odd
    going_on = np.logical_and.accumulate(pair > 0, axis=-1)
    going_on[..., -1] = False
    total = np.sum(np.where(going_on, np.minimum.accumulate(pair, axis=-1), 0.0), axis=-1)
    # The even term of the first pair that is not counted improves an antithetic chain's estimate.
    rest = np.maximum(np.take_along_axis(even, going_on.sum(axis=-1)[..., None], axis=-1)[..., 0], 0.0)
    tau = np.maximum(-1.0 + 2.0 * total + rest, 1.0 / np.log10(n_chains * n))
    return np.where(variance > 0, n_chains * n / tau, float(n_chains * n))


def r_hat(draws: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rank-normalised split R-hat of (..., chain, draw) and of distances from the median; NaN if nothing varies."""
    halves = _split(np.asarray(draws, np.float64))
    apart = np.abs(halves - np.median(halves, axis=(-2, -1), keepdims=True))
    return np.maximum(_plain_r_hat(_normal_scores(halves)), _plain_r_hat(_normal_scores(apart)))


def ess_bulk(draws: NDArray[np.floating]) -> NDArray[np.float64]:
    """Effective number of draws, (..., chain, draw), for the centre of the distribution."""
    return _plain_ess(_normal_scores(_split(np.asarray(draws, np.float64))))


def ess_tail(draws: NDArray[np.floating]) -> NDArray[np.float64]:
    """Effective number of draws, (..., chain, draw), for the 5 and 95 % quantiles, the smaller of both."""
    x = np.asarray(draws, np.float64)
    limits = np.quantile(x, TAILS, axis=(-2, -1), keepdims=True)
    return np.minimum(*(_plain_ess(_split((x <= limit).astype(np.float64))) for limit in limits))


class Diagnostics(NamedTuple):
    """Whether chains can be trusted, per star."""

    r_hat: NDArray[np.float64]  # (star, parameter) rank-normalised split R-hat
    ess_bulk: NDArray[np.float64]  # (star, parameter) effective number of draws, as the next
    ess_tail: NDArray[np.float64]
    n_divergent: NDArray[np.int64]  # (star,) divergent transitions among the draws
    settled: NDArray[np.bool_]  # (star,) R-hat and both ESS are good enough for every parameter


def diagnose(theta: NDArray[np.floating], diverging: NDArray[np.bool_]) -> Diagnostics:
    """Diagnose chains of theta (star, chain, draw, parameter)."""
    series = np.moveaxis(np.asarray(theta, np.float64), -1, 1)
    hat, bulk, tail = (f(series) for f in (r_hat, ess_bulk, ess_tail))
    enough = MIN_ESS_PER_CHAIN * theta.shape[1]
    settled = ((hat < MAX_R_HAT) & (bulk > enough) & (tail > enough)).all(axis=1)
    return Diagnostics(hat, bulk, tail, diverging.sum(axis=(1, 2)), settled)
