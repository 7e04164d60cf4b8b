"""Dust: from one star's intrinsic log flux to the log flux that reaches the telescope.

In: ln_flux (channel,), any linear unit inside the log; E [mag]; the curve (channel,). Out: (channel,), same unit.
Not here: the prior on E (`posterior.py`), where the curve comes from (`inference/training.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

MAX_XI_ERROR = 0.7
"""Half of xi's variance at most may be its prior's for R(V) to mean anything."""


class NearInfraredLaw(NamedTuple):
    """The ratio of R in two near-infrared bands, known beforehand: what fixes the grey part of R.

    Spectra say nothing of it: R + b with every parallax times exp(b E / 2) predicts the same fluxes. Parallaxes derived from
    labels do not, for their errors are alike in stars that are alike. Measured ones do, but stars that are brighter than
    their labels say, binaries above all, are seen farther out and behind more dust.

    Attributes:
        numerator, denominator: the two channels, by number.
        ratio: R of the first over R of the second.
        of_variation: R1 is to obey it, too.
    """

    numerator: int
    denominator: int
    ratio: float
    of_variation: bool = True

    def in_words(self, names: Sequence[str]) -> str:
        """Say what it holds of bands with these names."""
        return f"R({names[self.numerator]}) / R({names[self.denominator]}) = {self.ratio:g}"


@dataclass(frozen=True)
class ReddeningLaw:
    """R(V) as a function of xi, by a published family of laws.

    Attributes:
        xi: (node,) rising.
        at: (node,) R(V) there.
    """

    xi: tuple[float, ...]
    at: tuple[float, ...]

    @classmethod
    def of_card(cls, about: Mapping[str, Any]) -> Self | None:
        """The law that a model's card, or what a catalogue says of its model, holds; None if it holds none."""
        law = about.get("reddening_law")
        return None if law is None else cls(tuple(law["xi"]), tuple(law["r_v"]))

    def r_v(self, xi: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """R(V) and its slope by xi, (star,) each; beyond the nodes R(V) stays at the last."""
        slope = np.gradient(self.at, self.xi)
        return np.interp(xi, self.xi, self.at), np.interp(xi, self.xi, slope)

    def measured_r_v(
        self, xi: NDArray[np.floating], error: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """R(V) and its 1-sigma error; NaN where xi is known to no better than `MAX_XI_ERROR`, or lies beyond the laws."""
        r_v, slope = self.r_v(xi)
        known = (error <= MAX_XI_ERROR) & (slope > 0) & (xi >= self.xi[0]) & (xi <= self.xi[-1])
        return np.where(known, r_v, np.nan), np.where(known, slope * error, np.nan)


def attenuate(
    ln_flux: Float[Array, " channel"], extinction: Float[Array, ""], curve: Float[Array, " channel"]
) -> Float[Array, " channel"]:
    """Dim one star by dust: ln f = ln f_abs - E R (ZGR23 Eq. 7).

    Args:
        ln_flux: (channel,) natural log of the intrinsic flux.
        extinction: () E [mag]. No sign check: traced values cannot raise; the prior owns E > 0.
        curve: (channel,) R [-], optical depth per unit E, of this star's dust.

    Returns:
        (channel,) log of the dimmed flux. A batch of stars is `jax.vmap(attenuate, (0, 0, None))`.
    """
    return ln_flux - extinction * curve


def grey_excess(curve: Float[Array, " channel"], law: NearInfraredLaw, *, positive: bool = True) -> Float[Array, ""]:
    """How much R, or R1, lies above a curve of the same shape that obeys a near-infrared law.

    Args:
        curve: (channel,) R, or R1.
        law: the law.
        positive: what is left must stay positive.

    Returns:
        () b with (R_1 - b) / (R_2 - b) = ratio; at most nine tenths of the smallest R where that must stay positive.
    """
    excess = (curve[law.numerator] - law.ratio * curve[law.denominator]) / (1.0 - law.ratio)
    return jnp.minimum(excess, 0.9 * jnp.min(curve)) if positive else excess
