"""Which stars train a model, and which are held out: every cut counted, every split reproducible."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.star_table import OK, Cut, StarTable


def training_cuts(table: StarTable, labels: Sequence[str], teff_max: float) -> StarTable:
    """Apply the training cuts; each is counted in the result's `cuts`.

    Args:
        table: all stars.
        labels: the labels that a training star must have, with errors.
        teff_max: training stars are cooler [kK].
    """
    table = replace(table, cuts=(*table.cuts, Cut("stars in the table", 0, len(table))))
    for reason, count in sorted(Counter(table.problems().tolist()).items()):
        if reason != OK and count:
            table = table.take(table.problems() != reason, f"unusable: {reason}")
    label, error = table.labels(labels)
    complete = np.isfinite(label).all(axis=1) & np.isfinite(error).all(axis=1)
    table = table.take(complete, f"a label or its error is missing ({', '.join(labels)})")
    if "teff" in labels:
        table = table.take(table.column("teff") < teff_max, f"Teff not below {1e3 * teff_max:.0f} K")
    distance = table.is_measured("parallax") | np.isfinite(table.column("spectroscopic_parallax"))
    table = table.take(distance, "neither a parallax nor a spectroscopic parallax")
    return table.take(table.channel_present().all(axis=1), "a channel is missing (training needs all)")


def held_out_by_source_id(source_id: NDArray[np.int64], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Choose a reproducible held-out subset: the same star is always on the same side, whatever else is in the table.

    Args:
        source_id: (star,) int64.
        fraction: expected share held out.
        seed: another seed is another split.

    Returns:
        (star,) True where held out.
    """
    # splitmix64 (Steele, Lea & Flood 2014): source_id's low bits are not random, its hash's are.
    with np.errstate(over="ignore"):
        z = source_id.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform = (z >> np.uint64(11)).astype(np.float64) / 2.0**53
    return uniform < fraction
