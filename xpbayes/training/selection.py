"""Which stars can train a model: every cut counted."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xpbayes.data.spectra import OK, Cut, Spectra


def has_distance(table: Spectra) -> NDArray[np.bool_]:
    """(star,) which stars have a parallax, measured or spectroscopic."""
    return table.is_measured("parallax") | np.isfinite(table.column("spectroscopic_parallax"))


def training_cuts(
    table: Spectra,
    labels: Sequence[str],
    teff_max: float | None = None,
    min_channels: int | None = None,
    *,
    distances: bool = True,
) -> Spectra:
    """Apply the training cuts; each is counted in the result's `cuts`.

    Args:
        table: all stars.
        labels: the labels that a training star must have, with errors.
        teff_max: training stars are cooler [kK]; any if None.
        min_channels: training stars were measured in at least so many channels; if None, bands may be missing and no
            sample of the spectrum, or nothing where there are bands alone.
        distances: training stars have a parallax, measured or spectroscopic.
    """
    table = table.replace(cuts=(*table.cuts, Cut("stars in the table", 0, len(table))))
    problems = table.problems(labelled=True)
    for reason in sorted(set(problems.tolist()) - {OK}):
        table, problems = table.take(problems != reason, f"unusable: {reason}"), problems[problems != reason]
    label, error = table.labels(labels)
    complete = np.isfinite(label).all(axis=1) & np.isfinite(error).all(axis=1)
    table = table.take(complete, f"a label or its error is missing ({', '.join(labels)})")
    if "teff" in labels and teff_max is not None:
        table = table.take(table.column("teff") < teff_max, f"Teff not below {1e3 * teff_max:.0f} K")
    if distances:
        table = table.take(has_distance(table), "neither a parallax nor a spectroscopic parallax")
    present = table.channel_present()
    if min_channels is None:
        needed = present[:, : table.channels.n_xp or None]
        return table.take(needed.all(axis=1), "a sample of the spectrum is missing")
    return table.take(present.sum(axis=1) >= min_channels, f"fewer than {min_channels} channels")
