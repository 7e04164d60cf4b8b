"""Learn how the extinction curve varies: R1, by which a star's curve R + xi R1 changes with its xi ~ N(0, 1) (METHOD 11).

Around a star's solution the relative residual of its fluxes is linear in xi: delta = -E xi R1. With the star's labels, E
and parallax marginalised as for the model's error, R1 is the loading of a factor model whose factors are the xi, and
follows by expectation-maximisation. The xi must be distributions here: with a point for each, R1 would grow without bounds
as all xi shrink. That their prior has unit width sets the scale of R1.

Beside dust the factors must not describe what the network does not: residuals of cool giants are larger than any xi's, and
the model's own error, learned by kind of star, takes the dust of a kind for its error. So R1 is learned from the stars that
are described best, under errors that know of no kinds.

R1 + a R + b predicts the same fluxes: E (1 + a xi) and ln parallax + b E xi / 2 undo it. Estimates of E and parallaxes
tell a and b, as they tell the unit and the zero point of R: E and parallax mean the same whatever xi is. (As functions of
solved xi, as in `gauge`, they would grow without bounds.) R1 orthogonal to R and to grey, what fluxes alone tell, would
make E of dust with R(V) = 5 a third too large, and R + xi R1 negative in the infrared. Larger xi is larger R(V): an optical
curve that falls less steeply to the red.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import Stars, evenly, in_memory
from xpbayes.models.extinction import ReddeningLaw
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import add_model_error
from xpbayes.models.model_error import ModelError, relative_sigma
from xpbayes.training.model_error import as_double, collect_sums

MIN_EXTINCTION = 0.4
"""Stars behind less dust [mag] say little of its curve."""
KEPT, FIRST_ITERATIONS = 0.4, 5
"""Share of them that is described best; all count in the first iterations."""
MIN_STARS = 300
"""With fewer stars behind dust every star keeps the same curve."""
MAX_STARS, BATCH = 5120, 256
FIRST_SIZE = 0.05
"""R1 over R to begin with, at wavelengths e times apart."""
LARGEST = 1.0 / 3.0
"""R1 over R at most, in any channel: R + xi R1 stays positive for |xi| < 3, in the near infrared too, where R is small."""
PRIOR_SIZE = 0.5
"""Prior width of R1 over R, where no star behind dust has the channel."""
FLOOR, DOF = 0.01, 20.0
"""Relative error per channel in the place of the model's own, and degrees of freedom of its Student t."""


class _Sums(NamedTuple):
    """Of each star, float64: E [mag], and what xi explains and what not, as of `model_error.Sums`, in all channels."""

    extinction: NDArray[np.float64]
    precision: NDArray[np.float64]
    pull: NDArray[np.float64]
    chi2: NDArray[np.float64]
    n_obs: NDArray[np.float64]


@jax.jit
def _with_floor(stars: Stars) -> Stars:
    floor = FLOOR**2 * jnp.eye(stars.flux.shape[1])
    return replace(stars, whitening=jax.vmap(add_model_error, (0, 0, None))(stars.whitening, stars.flux, floor))


@jax.jit
def _metric(forward: ForwardModel, stars: Stars, theta_log: Array) -> Array:
    """Sum over stars of the inverse covariance of ln flux."""

    def one(star: Stars, u: Array) -> Array:
        scaled = star.whitening * predict_flux(forward, u, star.ln_scale)[None, :]
        return scaled.T @ scaled

    return jnp.sum(jax.vmap(one)(stars, theta_log), axis=0)


def without_grey_and_curve(
    variation: Float[NDArray, " channel"], curve: Float[NDArray, " channel"], metric: Float[NDArray, "channel channel"]
) -> Float[NDArray, " channel"]:
    """What is left of R1 once it is orthogonal to R and to grey, in a metric of ln flux: what fluxes alone can tell."""
    mimics = np.stack([np.ones_like(curve), curve], axis=1)
    left: NDArray[np.float64] = variation - mimics @ np.linalg.solve(
        mimics.T @ metric @ mimics, mimics.T @ metric @ variation
    )
    return left


def learn_curve_variation(
    forward: ForwardModel,
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
    wavelength_nm: Float[NDArray, " channel"],
    n_iterations: int,
) -> tuple[Float[Array, " channel"], list[float]]:
    """Estimate R1.

    Args:
        forward: the forward model; its R1, where that is not zero, is what is begun with.
        stars: stars with labels and the measurement's own whitening, in memory or in files.
        theta_log: (star, parameter) current solutions.
        wavelength_nm: of the channels.
        n_iterations: of expectation-maximisation. All stars count alike: one whose dust is not the mean has little weight
            (`weights`) as long as its xi is not known.

    Returns:
        R1 (channel,), zero if fewer than `MIN_STARS` stars are behind dust; and the mean ln likelihood per star before
        each iteration, up to a constant.
    """
    extinction = np.exp(np.asarray(theta_log, np.float64)[:, -2])
    behind = np.flatnonzero(extinction > MIN_EXTINCTION)
    if len(behind) < MIN_STARS:
        return jnp.zeros_like(forward.ln_curve), []
    some = behind[evenly(len(behind), MAX_STARS)]
    some = some[: len(some) - len(some) % BATCH] if len(some) > BATCH else some
    sums, metric = _collect(forward, in_memory(stars, some), theta_log[some])
    curve = np.exp(np.asarray(forward.ln_curve, np.float64))
    assert forward.curve_variation is not None
    variation = np.asarray(forward.curve_variation, np.float64)
    if not variation.any():
        variation = FIRST_SIZE * curve * np.log(wavelength_nm / np.exp(np.mean(np.log(wavelength_nm))))
        variation = without_grey_and_curve(variation, curve, metric)
    history: list[float] = []
    for iteration in range(n_iterations):
        kept = KEPT if iteration >= FIRST_ITERATIONS else 1.0
        variation, ln_likelihood = _improve(variation, curve, sums, kept)
        history.append(ln_likelihood)
    optical = wavelength_nm < 1000.0
    shape = without_grey_and_curve(variation, curve, metric) / curve
    rising = np.polyfit(np.log(wavelength_nm[optical]), shape[optical], 1)[0] > 0
    bounded = np.clip(variation if rising else -variation, -LARGEST * curve, LARGEST * curve)
    return jnp.asarray(bounded, jnp.float32), history


def _collect(forward: ForwardModel, stars: Stars, theta_log: Array) -> tuple[_Sums, NDArray[np.float64]]:
    stars = _with_floor(stars)
    every = np.eye(forward.ln_curve.size)
    parts, metric, size = [], np.zeros_like(every), min(BATCH, len(stars))
    with jax.enable_x64(True):
        model = as_double(forward)
        for begin in range(0, len(stars), size):
            rows = slice(begin, begin + size)
            batch, at = as_double(stars.take(rows)), as_double(theta_log[rows])
            parts.append(jax.tree.map(np.asarray, collect_sums(model, as_double(every), batch, at, 0.0)))
            metric += np.asarray(_metric(model, batch, at))
    precision, pull, chi2, n_obs = (np.concatenate(v) for v in zip(*parts, strict=True))
    extinction = np.exp(np.asarray(theta_log, np.float64)[:, -2])
    return _Sums(extinction, precision, pull, chi2, n_obs), metric / len(stars)


def _improve(
    variation: NDArray[np.float64],
    curve: NDArray[np.float64],
    sums: _Sums,
    kept: float,
) -> tuple[NDArray[np.float64], float]:
    """One iteration: moments of every xi given R1, then R1 given these, from the share of stars that fit best."""
    by_xi = sums.precision @ variation  # (star, channel)
    information = sums.extinction**2 * (by_xi @ variation)
    pull = sums.extinction * (sums.pull @ variation)
    chi2 = np.maximum(sums.chi2 - pull**2 / (1.0 + information), 0.0)
    amplitude = (DOF + sums.n_obs) / (DOF + chi2)
    ln_likelihood = -0.5 * (DOF + sums.n_obs) * np.log1p(chi2 / DOF) - 0.5 * np.log1p(information)
    # At the best xi of each: its prior would choose stars whose xi are small.
    rest = (sums.chi2 - pull**2 / np.maximum(information, 1e-30)) / sums.n_obs
    counts = (rest <= np.quantile(rest, kept)).astype(np.float64)
    variance = 1.0 / (1.0 + amplitude * information)
    mean = variance * amplitude * pull
    weight = counts * amplitude
    normal = np.einsum("s,sij->ij", weight * sums.extinction**2 * (mean**2 + variance), sums.precision)
    normal += np.diag(1.0 / (PRIOR_SIZE * curve) ** 2)
    target = (weight * sums.extinction * mean) @ sums.pull
    # Where every star tells its xi well, iterations alone would keep the scale that they began with: R1 twice as large and
    # every xi half as large describe the same fluxes. So both are brought to xi of unit width (Liu, Rubin & Wu 1998).
    width = np.sqrt(np.average(mean**2 + variance, weights=counts))
    return width * np.linalg.solve(normal, target), float(np.average(ln_likelihood, weights=counts))


# ------------------------------------------------------------------------------------------------------ R(V) along xi

LOWEST, HIGHEST, N_LAWS = 2.3, 5.6, 34
"""R(V) for which the laws are defined."""
SHORTEST_NM, LONGEST_NM = 91.2, 32_000.0
LAW_FLOOR = 0.005
"""Relative error per channel beside the model's own."""
N_NODES, MAX_XI = 33, 8.0


def fit_law(
    forward: ForwardModel, wavelength_nm: Float[NDArray, " channel"], error: ModelError | None
) -> ReddeningLaw | None:
    """Tabulate R(V) along xi by the laws of Gordon et al. (2023), channels weighing less where the model's error is large.

    Along its own R(V) a published law A is, to first order, a R + b R1 + c: a is its amount of dust, c the grey part that
    no spectrum sees, and b / a the xi of such dust. R itself need not be a published law: xi is counted from the R(V) whose
    law R resembles most. None where the curve does not vary, or where xi does not rise with R(V).
    """
    if forward.curve_variation is None:
        return None
    import astropy.units as u
    from dust_extinction.parameter_averages import G23

    wavelength_nm = np.asarray(wavelength_nm, np.float64)
    known = (wavelength_nm > SHORTEST_NM) & (wavelength_nm < LONGEST_NM)
    curve, variation = np.exp(np.asarray(forward.ln_curve, np.float64)), np.asarray(forward.curve_variation, np.float64)
    sigma = np.full(len(curve), LAW_FLOOR) if error is None else np.hypot(LAW_FLOOR, relative_sigma(error))
    weight = known / sigma
    r_v = np.linspace(LOWEST, HIGHEST, N_LAWS)
    laws = np.zeros((N_LAWS, len(curve)))
    laws[:, known] = [G23(Rv=value)(wavelength_nm[known] * u.nm) for value in r_v]
    basis = np.stack([curve, variation, np.ones_like(curve)], axis=1)
    amount, along, _ = np.linalg.lstsq(basis * weight[:, None], (laws * weight).T, rcond=None)[0]
    xi = along / amount
    scale = laws @ (weight**2 * curve) / (laws**2 @ weight**2)
    misfit = np.sum((weight * (curve - scale[:, None] * laws)) ** 2, axis=1)
    xi -= xi[np.argmin(misfit)]
    if not (np.diff(xi) > 0).all():
        return None
    nodes = np.linspace(-MAX_XI, MAX_XI, N_NODES)
    at = np.interp(nodes, xi, r_v)
    return ReddeningLaw(tuple(nodes.round(6).tolist()), tuple(at.round(5).tolist()))
