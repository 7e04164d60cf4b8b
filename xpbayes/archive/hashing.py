"""Numbers that look random and depend on source_id only: the same star gets the same ones, whatever else is in a table."""

import numpy as np
from numpy.typing import NDArray


def uniform_from_id(source_id: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """Hash identifiers to uniform numbers (splitmix64; Steele, Lea & Flood 2014): a source_id's low bits are not random.

    Args:
        source_id: (star,) int64.
        stream: another stream is another set of numbers; not negative.

    Returns:
        (star,) numbers in (0, 1).
    """
    with np.errstate(over="ignore"):
        z = source_id.astype(np.uint64) + np.uint64(stream + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
