"""E against the total dust of Schlegel, Finkbeiner & Davis (1998) for stars behind all of it (ZGR23 Fig. 19)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.cuts import apply_cuts, in_words
from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import MIN_SHOWN, ColumnDensity, ColumnStream
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Rows, Series, Task
from xpbayes.archive.reddening import sfd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_HEIGHT_KPC = 0.4
MIN_LATITUDE_DEG = 10.0
CLOUDS = (("LMC", 80.894, -69.756, 8.0), ("SMC", 13.187, -72.829, 6.0))
"""Name, centre (SIMBAD, ICRS [deg]), and radius that is left out [deg]."""
SFD_EDGES = np.linspace(0.0, 1.5, 61)
DIFFERENCE_EDGES = np.linspace(-1.0, 1.0, 801)
SHOWN_COARSER = 4
MIN_STARS = 20
ABOUT = {
    "low": "E(B-V) from", "high": "to", "n": "stars", "p15": "15 % of the difference", "p50": "median", "p84": "84 %",
}  # fmt: skip

Lookup = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(ra, dec) [deg] -> E(B-V) [mag]."""


class AgainstSfd:
    """Counts E - E(B-V) of stars outside of the dust layer and away from the Magellanic Clouds.

    Args:
        lookup: gives E(B-V) of SFD.

    Attributes:
        n: stars.
        cuts: how many solved stars each cut took.
    """

    reads: Sequence[str] = ("ra", "dec", "stellar_params_est", "quality_flags")
    joins: Sequence[str] = ()

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self.stream = ColumnStream(SFD_EDGES, DIFFERENCE_EDGES)
        self.n, self.cuts = 0, dict[str, int]()

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        ra, dec = (rows[n].astype(np.float64) for n in ("ra", "dec"))
        estimate = rows["stellar_params_est"].astype(np.float64)
        latitude = galactic_latitude(ra, dec)
        with np.errstate(divide="ignore", invalid="ignore"):
            height = np.abs(np.sin(np.radians(latitude))) / estimate[:, -1]
            passed = {
                "quality_flags >= 8": rows["quality_flags"] < 8,
                "no position": np.isfinite(latitude),
                f"|b| <= {MIN_LATITUDE_DEG:g}°": np.abs(latitude) > MIN_LATITUDE_DEG,
                "near the Magellanic Clouds": ~near_clouds(ra, dec),
                f"|z| <= {1e3 * MIN_HEIGHT_KPC:g} pc": height > MIN_HEIGHT_KPC,
            }
        keep = apply_cuts(rows.solved, passed, self.cuts)
        if keep.any():
            expected = self.lookup(ra[keep], dec[keep])
            self.stream.add(expected, estimate[keep, -2] - expected)
        self.n += int(keep.sum())

    @property
    def density(self) -> ColumnDensity:
        """What was counted at every E(B-V) [mag]."""
        return self.stream.density(SHOWN_COARSER)


def galactic_latitude(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """(star,) Galactic latitude of ICRS positions [deg]; NaN stays NaN."""
    # The pole of the ICRS definition of Galactic coordinates (Hipparcos Vol. 1, Section 1.5.3).
    pole_ra, pole_dec = np.radians(192.85948), np.radians(27.12825)
    a, d = np.radians(ra), np.radians(dec)
    sine = np.sin(d) * np.sin(pole_dec) + np.cos(d) * np.cos(pole_dec) * np.cos(a - pole_ra)
    return np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0)))


def near_clouds(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(star,) within 8 degrees of the Large or 6 degrees of the Small Magellanic Cloud."""
    inside = np.zeros(len(ra), bool)
    for _, ra0, dec0, radius in CLOUDS:
        a, d, d0 = np.radians(ra - ra0), np.radians(dec), np.radians(dec0)
        cosine = np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(a)
        inside |= cosine > np.cos(np.radians(radius))
    return inside


def draw_sfd(numbers: AgainstSfd) -> "Figure":
    """Density per column, as far as there are stars."""
    figure, ((axis,),) = drawing.panels(1, 1, 6.6, 4.2)
    density = numbers.density
    mesh = drawing.density_panel(axis, density)
    some = np.flatnonzero(density.n >= MIN_SHOWN)
    reach = np.nanmax(np.abs(density.percentiles), initial=0.05) * 2.5
    axis.set(xlim=(0, density.x_edges[some.max() + 1] if len(some) else 1), ylim=(-reach, reach),
             xlabel="E(B−V) of SFD [mag]", ylabel="E − E(B−V) of SFD [mag]", title=f"{numbers.n:,} stars")  # fmt: skip
    figure.colorbar(mesh, ax=axis, label=drawing.DENSITY_LABEL, pad=0.01)
    return figure


def _start(run: Run) -> Task:
    lookup: Any = partial(sfd, map_dir=run.sfd)
    lookup(np.array([0.0]), np.array([60.0]))  # are package and maps there? Better asked before the catalogue is read
    numbers = AgainstSfd(lookup)
    return Task((numbers,), lambda: _product(numbers))


def _product(numbers: AgainstSfd) -> Product:
    cuts = in_words(numbers.cuts)
    if numbers.n < MIN_STARS:
        raise NotDrawnError(f"only {numbers.n} stars pass the cuts ({cuts}); {MIN_STARS} are needed")
    return Product(
        draw_sfd(numbers),
        f"E minus E(B-V) of SFD against E(B-V) of SFD, {numbers.n} stars",
        f"E minus E(B−V) of Schlegel, Finkbeiner & Davis (1998) for {numbers.n:,} stars behind the dust layer: density over "
        f"the greatest of its column, lines at 15, 50 and 84 %. Removed: {cuts}. Across is SFD itself, where the "
        "paper has Planck's optical depth: errors of SFD tilt the cloud downwards.",
        {"": {k: Series(v, "" if k == "n" else "mag", ABOUT[k]) for k, v in numbers.density.columns().items()}},
    )


SFD = Analysis("sfd", "Fig. 19", "Extinction against SFD", _start, ("catalogue",))
