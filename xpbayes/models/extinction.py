"""Dust: from one star's intrinsic log flux to the log flux that reaches the telescope, and R(V) from xi.

Not here: the prior on E (`posterior.py`), where the curve comes from (`training/`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

STEEPEST, TINY = 1.7, 1e-6
MAX_XI_ERROR = 0.7
"""Half of xi's variance at most may be its prior's for R(V) to mean anything."""


class FallOff(NamedTuple):
    """How a ratio of R in two bands goes with the way R falls off, which spectra do tell: whatever is grey drops out.

    ratio + slope (fall - typical), fall = (R_a - R_b) / (R_c - R_d); none beyond `STEEPEST` times the typical one is known.
    """

    channels: tuple[int, int, int, int]  # a, b, c, d, by number
    typical: float  # the fall at which the ratio is what it is said to be
    slope: float


class NearInfraredLaw(NamedTuple):
    """The ratio of R in two near-infrared bands, known beforehand: what fixes the grey part of R.

    Spectra say nothing of it: R + b with every parallax times exp(b E / 2) predicts the same fluxes. Parallaxes derived from
    labels do not, for their errors are alike in stars that are alike. Measured ones do, but stars that are brighter than
    their labels say, binaries above all, are seen farther out and behind more dust.
    """

    numerator: int  # the two channels, by number
    denominator: int
    ratio: float  # R of the first over R of the second
    of_variation: bool = True  # R1 is to obey it, too
    fall_off: FallOff | None = None  # how the ratio goes with the shape of R; None if it does not

    def in_words(self, names: Sequence[str]) -> str:
        """Say what it holds of bands with these names."""
        said = f"R({names[self.numerator]}) / R({names[self.denominator]}) = {self.ratio:g}"
        if self.fall_off is None:
            return said
        a, b, c, d = (f"R({names[i]})" for i in self.fall_off.channels)
        return f"{said} + {self.fall_off.slope:g} (({a} - {b}) / ({c} - {d}) - {self.fall_off.typical:g})"

    def ratio_of(self, curve: Float[Array, " channel"]) -> Float[Array, ""] | float:
        """The ratio that a curve of this shape has, without what is grey in it."""
        if self.fall_off is None:
            return self.ratio
        channels, typical, slope = self.fall_off
        a, b, c, d = (curve[i] for i in channels)
        fall = jnp.clip((a - b) / jnp.maximum(c - d, TINY), typical / STEEPEST, typical * STEEPEST)
        return self.ratio + slope * (fall - typical)


@dataclass(frozen=True)
class ReddeningLaw:
    """R(V) as a function of xi, by a published family of laws."""

    xi: tuple[float, ...]  # (node,) rising
    at: tuple[float, ...]  # (node,) R(V) there

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
    """Dim one star by dust: ln f = ln f_abs - E R (ZGR23 Eq. 7), in any linear unit inside the log; E in mag.

    No sign check of E: traced values cannot raise; the prior owns E > 0.
    """
    return ln_flux - extinction * curve


def grey_excess(curve: Float[Array, " channel"], law: NearInfraredLaw, *, positive: bool = True) -> Float[Array, ""]:
    """How much R, or R1, lies above a curve of its shape that obeys a law: b with (R_1 - b) / (R_2 - b) = ratio.

    At most nine tenths of the smallest R if what is left must stay `positive`.
    """
    ratio = law.ratio_of(curve)
    excess = (curve[law.numerator] - ratio * curve[law.denominator]) / (1.0 - ratio)
    return jnp.minimum(excess, 0.9 * jnp.min(curve)) if positive else excess
