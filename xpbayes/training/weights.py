"""How much every training star counts: weights instead of cuts (METHOD 9 and 12).

A star with a companion, another extinction law, a spurious parallax or wrong labels is answered by a distance, an E or
labels that are not its own, and pulls the model after it. Such stars fit worse than their like, or are far from their
own measurements. Both are judged by the star's neighbours and its stated errors, never by classes: the fluxes' chi^2
under the measurement's own errors against the median of the nearest stars in labels and S/N, so that a kind that the
model does not describe yet (luminous, rare, bright) keeps its weight; the pulls likewise, as a Student t weighs them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import cKDTree

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, in_memory, pieces
from xpbayes.models.forward import ForwardModel
from xpbayes.models.model_error import mean_ln_snr
from xpbayes.models.objective import flux_chi2, measurement_residuals

N_NEIGHBOURS = 60
LN_SNR_UNIT = 0.5
"""Distances in ln S/N are measured in this, those in labels in the spread of the training labels."""
POOR_FIT = 2.0
"""Ratio of chi^2 to the neighbours' median around which a star begins to lose its weight, as 1 / ratio."""
DOF = 4.0
"""Of the Student t that weighs a star's pulls."""


@jax.jit
def _judge(forward: ForwardModel, stars: Stars, theta_log: Array) -> tuple[Array, Array, Array]:
    """(star,) chi^2 of the fluxes, sum of squared measurement residuals, mean ln S/N."""

    def one(star: Stars, u: Array) -> tuple[Array, Array, Array]:
        pulls = jnp.delete(measurement_residuals(star, u), slice(forward.n_labels, -2))  # without xi, if it is one
        return flux_chi2(forward, star, u), pulls @ pulls, mean_ln_snr(star)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, theta_log)


def star_weights(
    forward: ForwardModel, stars: Stars, theta_log: Float[Array, "star parameter"], *, by_measurements: bool = True
) -> Float[NDArray, " star"]:
    """How much each star counts, at most about 1, by its fluxes and, if asked, by its pulls.

    Stars, in memory or in files, have the measurement's own whitening, without the model's error.
    """
    found = [
        by_blocks(partial(_judge, forward), STAR_BLOCK, in_memory(stars, at), theta_log[at])
        for at in pieces(len(stars))
    ]
    chi2, pulls2, ln_snr = (np.concatenate([np.asarray(part[i], np.float64) for part in found]) for i in range(3))
    labels = np.asarray(theta_log, np.float64)[:, : forward.n_labels] / np.asarray(forward.label_scale, np.float64)
    measured = np.column_stack(
        [np.asarray(v) > 0 for v in (stars.label_inv_error, stars.parallax_inv_error, stars.reddening_inv_error)]
    ).sum(axis=1)
    pulls2 = pulls2 if by_measurements else np.zeros_like(pulls2)
    return weights_from(np.column_stack([labels, ln_snr / LN_SNR_UNIT]), chi2, pulls2, measured)


def weights_from(
    place: Float[NDArray, "star place"],
    chi2: Float[NDArray, " star"],
    pulls2: Float[NDArray, " star"],
    n_measured: NDArray[np.integer],
) -> Float[NDArray, " star"]:
    """The same from each star's place among its like, its fluxes' chi^2, and the sum of its squared pulls."""
    n = min(N_NEIGHBOURS + 1, len(place))
    _, near = cKDTree(place).query(place, k=n)
    near = near.reshape(len(place), n)
    ratio = chi2 / np.maximum(np.median(chi2[near], axis=1), 1e-30)
    by_fluxes = np.hypot(1.0, 1.0 / POOR_FIT) / np.hypot(1.0, ratio / POOR_FIT)
    # As long as the model describes a kind badly, all of its stars are far from their measurements.
    expected = np.maximum(stats.chi2.median(np.maximum(n_measured, 1)), 1e-30)
    usual = np.maximum(np.median(pulls2[near], axis=1) / expected, 1.0)
    by_measurements = np.minimum(1.0, (DOF + n_measured) / (DOF + pulls2 / usual))
    return np.asarray(by_fluxes * by_measurements)


# ------------------------------------------------------------------------------------------------------ kinds of star

GIANT_LOGG, LUMINOUS_LOGG = 3.8, 1.5
COOL_TEFF, WARM_TEFF, HOT_TEFF = 5.0, 6.5, 8.5
POOR_FEH = -1.0


def kinds_of_star(
    labels: NDArray[np.floating], names: tuple[str, ...] = ("teff", "feh", "logg")
) -> dict[str, NDArray[np.bool_]]:
    """(star,) which stars belong to each kind, by its name; kinds overlap, and all of them need Teff and log g.

    Labels are (star, label) [kK, dex, dex, ...].
    """
    if not {"teff", "logg"} <= set(names):
        return {"all": np.ones(len(labels), bool)}
    teff, logg = labels[:, names.index("teff")], labels[:, names.index("logg")]
    dwarf = logg >= GIANT_LOGG
    kinds = {
        "all": np.ones(len(labels), bool),
        "luminous giants": logg < LUMINOUS_LOGG,
        "giants": (logg >= LUMINOUS_LOGG) & ~dwarf,
        "cool dwarfs": dwarf & (teff < COOL_TEFF),
        "sun-like dwarfs": dwarf & (teff >= COOL_TEFF) & (teff < WARM_TEFF),
        "warm dwarfs": dwarf & (teff >= WARM_TEFF) & (teff < HOT_TEFF),
        "hot dwarfs": dwarf & (teff >= HOT_TEFF),
    }
    if "feh" in names:
        kinds["metal-poor stars"] = labels[:, names.index("feh")] < POOR_FEH
    return kinds


def kept_by_kind(
    weight: NDArray[np.floating] | NDArray[np.bool_], kinds: dict[str, NDArray[np.bool_]]
) -> dict[str, float]:
    """Mean weight of every kind of star that there is."""
    return {name: round(float(np.mean(weight[there])), 3) for name, there in kinds.items() if there.any()}
