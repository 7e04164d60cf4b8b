"""Self-cleaning: training stars whose solution is far from what was measured (ZGR23 Section 3.2, Fig. 4).

An unresolved binary of two equal stars is twice as bright as its labels say; the model answers with a lower log g or a
larger parallax. Stars that moved too far, or whose spectrum fits badly, are marked and leave the training of the model.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import marginal_sigma

if TYPE_CHECKING:
    from xpbayes.config import HighQuality, Phase

DIAGNOSTIC_PULL = 3.5
"""Radius in (delta log g / sigma, delta parallax / sigma) beyond which Fig. 4 counts a star as an outlier."""
SUN_LIKE = {"teff": (5.7, 0.05, 0.1), "logg": (4.5, 0.1, 0.1), "feh": (0.0, 0.1, 0.1)}
"""Eq. 16: centre, half width and largest error of each label [kK, dex, dex]."""
MAX_RELATIVE_PARALLAX_ERROR = 0.1
MAX_EXTINCTION, MAX_EXTINCTION_ERROR = 0.05, 0.05
"""Eq. 16 [mag]."""


class Pulls(NamedTuple):
    """How far stars are from their measurements, in sigma; NumPy."""

    labels: NDArray[np.float32]  # (star, label) solution minus measurement; 0 where not measured
    parallax: NDArray[np.float32]
    flux: NDArray[np.float32]  # (star,) largest residual of any channel over that channel's own sigma
    # (star,) mean over the observed channels of squared residuals over their own sigma
    mean_square: NDArray[np.float32]


@jax.jit
def _pulls(forward: ForwardModel, stars: Stars, theta_log: Array) -> tuple[Array, Array, Array, Array]:
    def one(star: Stars, u: Array) -> tuple[Array, Array, Array, Array]:
        present = jnp.diagonal(star.whitening) > 0
        residual = predict_flux(forward, u, star.ln_scale) - star.flux
        pull = jnp.where(present, residual / marginal_sigma(star.whitening), 0.0)
        return (
            (u[: star.labels.size] - star.labels) * star.label_inv_error,
            (jnp.exp(u[-1]) - star.parallax) * star.parallax_inv_error,
            jnp.max(jnp.abs(pull)),
            jnp.sum(pull**2) / jnp.maximum(jnp.sum(present), 1),
        )

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, theta_log)


def pulls(forward: ForwardModel, stars: Stars, theta_log: Float[Array, "star parameter"]) -> Pulls:
    """Compare (star, label + 2) solutions with measurements, whose whitening is the one that the fit used."""
    found = by_blocks(partial(_pulls, forward), STAR_BLOCK, stars, theta_log)
    return Pulls(*map(np.asarray, found))


def survivors(found: Pulls, phase: "Phase") -> dict[str, NDArray[np.bool_]]:
    """Which stars pass each rule of a phase: 'parameters', 'fluxes' and 'both', (star,) True where the star stays."""
    parameters = (np.abs(found.labels) <= phase.max_parameter_pull).all(axis=1)
    parameters &= np.abs(found.parallax) <= phase.max_parameter_pull
    fluxes = np.isfinite(found.flux)
    if phase.max_flux_pull > 0:
        fluxes &= found.flux <= phase.max_flux_pull
    if phase.max_mean_square > 0:
        fluxes &= found.mean_square <= phase.max_mean_square
    return {"parameters": parameters, "fluxes": fluxes, "both": parameters & fluxes}


def high_quality(stars: Stars, limits: "HighQuality") -> dict[str, NDArray[np.bool_]]:
    """(star,) which stars pass each cut of Eq. 15, by name; a star without a measurement fails its cut."""
    inverse = np.asarray(stars.label_inv_error)
    largest = limits.errors_for(inverse.shape[1])
    snr = np.asarray(stars.parallax) * np.asarray(stars.parallax_inv_error)
    return {
        "high_quality.max_label_error": (inverse > 1.0 / np.asarray(largest)).all(axis=1),
        "high_quality.min_parallax_over_error": snr > limits.min_parallax_over_error,
        "high_quality.max_reddening_error": np.asarray(stars.reddening_inv_error) > 1.0 / limits.max_reddening_error,
    }


def sun_like(stars: Stars, labels: tuple[str, ...]) -> NDArray[np.bool_]:
    """(star,) low-extinction Sun-like stars by their measurements (Eq. 16); none without these three labels."""
    chosen = np.ones(len(stars), bool)
    if not set(SUN_LIKE) <= set(labels):
        return ~chosen
    value, inverse = np.asarray(stars.labels), np.asarray(stars.label_inv_error)
    for name, (center, half_width, largest) in SUN_LIKE.items():
        i = labels.index(name)
        chosen &= (np.abs(value[:, i] - center) < half_width) & (inverse[:, i] > 1.0 / largest)
    chosen &= np.asarray(stars.parallax) * np.asarray(stars.parallax_inv_error) > 1.0 / MAX_RELATIVE_PARALLAX_ERROR
    chosen &= np.asarray(stars.reddening) < MAX_EXTINCTION
    return chosen & (np.asarray(stars.reddening_inv_error) > 1.0 / MAX_EXTINCTION_ERROR)


def fig4_outliers(logg_pull: NDArray[Any], parallax_pull: NDArray[Any]) -> NDArray[np.bool_]:
    """(star,) outside of the circle of Fig. 4: (delta log g / sigma)^2 + (delta parallax / sigma)^2 > 3.5^2."""
    return np.asarray(logg_pull**2 + parallax_pull**2 > DIAGNOSTIC_PULL**2)


def diagnostic(
    stars: Stars, theta_log: Float[Array, "star parameter"], found: Pulls, labels: tuple[str, ...]
) -> dict[str, Any]:
    """What Fig. 4 draws, as plain data: one entry per low-extinction Sun-like star among all training stars.

    'row' (of the training stars), 'logg_pull', 'parallax_pull', 'parallax' (the solution, [mas]), 'outlier'.
    """
    row = np.flatnonzero(sun_like(stars, labels))
    logg = found.labels[row, labels.index("logg")] if len(row) else np.zeros(0, np.float32)
    parallax = found.parallax[row]
    return {
        "row": row.tolist(),
        "logg_pull": logg.round(3).tolist(),
        "parallax_pull": parallax.round(3).tolist(),
        "parallax": np.exp(np.asarray(theta_log)[row, -1]).round(4).tolist(),
        "outlier": fig4_outliers(logg, parallax).tolist(),
    }


def with_absolute_magnitudes(found: dict[str, Any], magnitude: NDArray[Any]) -> dict[str, Any]:
    """Add 'absolute_magnitude', m - 10 + 5 log10(parallax / mas), to a `diagnostic`; null where the star has none.

    Apparent magnitudes are of all training stars [mag], NaN where missing.
    """
    row = np.asarray(found["row"], dtype=np.int64)
    absolute = magnitude[row] - 10.0 + 5.0 * np.log10(np.asarray(found["parallax"], dtype=np.float64))
    return found | {"absolute_magnitude": [round(float(m), 3) if np.isfinite(m) else None for m in absolute]}
