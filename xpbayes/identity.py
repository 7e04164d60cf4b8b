"""What a star's source_id alone decides: its random numbers, and its side of a model's split.

The same star gets the same ones, whatever else is in a table.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64 - 1


class Stream(IntEnum):
    """What a star's random numbers are for; those of two streams, or of two seeds, have nothing to do with each other.

    Models of 0.1.0 have the first three, whose seed is added. The one pair among them that coincides, DRAWS and HELD_OUT
    with seed 17, does no harm: draws use the number as the key of a generator.
    """

    HELD_OUT = 0
    DRAWS = 17
    KEPT_ASIDE = 1000
    CHOICE = 2001
    SIMULATED_DRAWS = 2002
    REDDENING_PARALLAX = 2003
    REDDENING_MAP = 2004

    def number(self, seed: int) -> int:
        """Which sequence of splitmix64 it is: below 2^63 where the seed is added, above where it is hashed."""
        if self <= Stream.KEPT_ASIDE:
            return int(self) + seed
        return 2**63 | _mix(np.array([self * 2**48 + seed], np.uint64)).item() >> 1


class Side(StrEnum):
    """What a star is to a model: trained on, used to calibrate posteriors, or used for nothing."""

    TRAINING = "training"
    KEPT_ASIDE = "kept-aside"
    HELD_OUT = "held-out"


class Split(NamedTuple):
    """The three sides of a model."""

    held_out: float  # expected share of all stars held out
    kept_aside: float = 0.0  # expected share kept aside of those not held out
    seed: int = 0  # another seed is another split

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> "Split":
        """The split of a model, from its card; cards older than calibration keep nothing aside."""
        split = card["split"]
        return cls(split["fraction"], card["settings"].get("calibration_fraction", 0.0), split["seed"])

    def on(self, side: Side | str, source_id: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(star,) which stars are on that `Side`, whether or not they pass the training cuts."""
        held_out = uniform_from_id(source_id, Stream.HELD_OUT, self.seed) < self.held_out
        if side == Side.HELD_OUT:
            return held_out
        kept_aside = uniform_from_id(source_id, Stream.KEPT_ASIDE, self.seed) < self.kept_aside
        return ~held_out & (kept_aside if Side(side) is Side.KEPT_ASIDE else ~kept_aside)


def uniform_from_id(source_id: NDArray[np.int64], stream: Stream, seed: int = 0) -> NDArray[np.float64]:
    """Hash (star,) identifiers to uniform numbers in (0, 1): a source_id's low bits are not random.

    By splitmix64 (Steele, Lea & Flood 2014); the stream says what they are for, the seed is not negative.
    """
    start = np.uint64((stream.number(seed) + 1) * GOLDEN & WORD)
    with np.errstate(over="ignore"):
        mixed = _mix(source_id.astype(np.uint64) + start)
    return ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def seeds_from_id(source_id: NDArray[np.int64], stream: Stream, seed: int = 0) -> NDArray[np.uint32]:
    """(star,) a seed for each star: its draws do not depend on who shares a batch. Arguments as for `uniform_from_id`."""
    return (uniform_from_id(source_id, stream, seed) * 2.0**32).astype(np.uint32)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's finaliser, one to one."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
