"""Where simulated stars are and how much dust is before them: one function, a `Sky`, that can be replaced.

In: how many stars, and how bright they would look. Out: a `Placement`. `smooth_disc` is the default sky.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BRIGHT_G, FAINT_G = 8.0, 17.65
"""XP spectra of DR3 were published down to G = 17.65; brighter than about 8 there are few."""
DISTANCE_SCALE_KPC = 0.5
"""Distances follow r^2 exp(-r / scale): a smooth disc that is seen to a few kpc."""
E_PER_KPC = 0.15
"""Typical extinction near the plane [mag/kpc]."""
MIN_EXTINCTION = 0.003
"""Least extinction scalar [mag]: ln E is a parameter, so no star is without any dust."""


@dataclass(frozen=True)
class Placement:
    """Positions of stars and what lies before them.

    Attributes:
        ra, dec: (star,) [deg], ICRS.
        extinction: (star,) extinction scalar E, positive [mag].
        parallax: (star,) true parallax, positive [mas].
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    extinction: NDArray[np.float64]
    parallax: NDArray[np.float64]


Magnitude = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(star,) E [mag] and (star,) parallax [mas] -> (star,) G magnitude that these very stars would then have."""

Sky = Callable[[int, Magnitude, np.random.Generator], Placement]
"""Places n stars whose types are already drawn. Stars outside `BRIGHT_G` ... `FAINT_G` would not be in the survey: a sky
asks `Magnitude` and puts them elsewhere."""


def smooth_disc(n: int, magnitude: Magnitude, rng: np.random.Generator) -> Placement:
    """Place stars anywhere on the sky behind dust that grows with distance; the default `Sky`.

    A star outside the survey's range of brightness keeps its dust and is put nearer or farther.

    Args:
        n: how many stars.
        magnitude: how bright they would be.
        rng: random numbers.
    """
    distance = rng.gamma(3.0, DISTANCE_SCALE_KPC, n)
    extinction = np.maximum(rng.exponential(E_PER_KPC * distance), MIN_EXTINCTION)
    g = magnitude(extinction, 1.0 / distance)
    wanted = np.clip(g, BRIGHT_G + rng.uniform(0, 1, n), FAINT_G - rng.uniform(0, 1.5, n))
    return Placement(
        ra=rng.uniform(0.0, 360.0, n),
        dec=np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, n))),
        extinction=extinction,
        parallax=10.0 ** (-0.2 * (wanted - g)) / distance,  # flux goes with the parallax squared
    )
