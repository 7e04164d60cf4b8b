"""Kinds of star by their labels: what training's checks and records tell apart."""

import numpy as np
from numpy.typing import NDArray

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
