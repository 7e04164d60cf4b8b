"""How realistic a simulated survey is: the shares of everything that can be odd about a star."""

from dataclasses import dataclass
from pathlib import Path

from xpbayes.errors import InputError

MAX_AMPLITUDE = 10.0
"""Largest factor by which a star's errors exceed the stated ones."""
SHARES = ("missing_band", "missing_side", "crowded", "binaries", "outliers", "labelled")


@dataclass(frozen=True)
class Recipe:
    """How realistic the survey is.

    Beyond these shares every star has the noise that the model's likelihood assumes: a Student t, that is stated errors
    and model error times one amplitude a star, recorded in the truth. Below two degrees of freedom the amplitude has no
    variance, and a few stars of a large survey would have errors of any size, fluxes below zero, and magnitudes of none
    of it. `MAX_AMPLITUDE` ends the distribution where a star is nothing but noise already; the amplitudes below it are
    drawn as they are, so the bulk of a heavy-tailed kind keeps its distribution.

    Attributes:
        seed: of all random numbers.
        like: a file of real continuous spectra with correlations: their error profiles and correlations are used,
            scaled to each star's brightness. None: profiles of the median DR3 source, made-up correlations.
        missing_band: share of 2MASS and unWISE measurements that are absent or of poor quality.
        missing_side: share of stars without BP (half of them) or RP.
        crowded: share of stars with a neighbour: norm_dg above both limits, and bands that hold its light too.
        binaries: share of stars with an unresolved companion from the same prior.
        outliers: share of stars with a stretch of ten samples that is wrong by 30 %.
        labelled: share of stars with labels.
        stars_per_file: rows per bulk file.
    """

    seed: int = 0
    like: Path | None = None
    missing_band: float = 0.0
    missing_side: float = 0.0
    crowded: float = 0.0
    binaries: float = 0.0
    outliers: float = 0.0
    labelled: float = 1.0
    stars_per_file: int = 5000

    def check(self) -> None:
        """Raise InputError for a share outside 0 ... 1."""
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is a share, between 0 and 1")
        if self.stars_per_file < 1 or self.seed < 0:
            raise InputError("stars_per_file must be at least 1 and seed at least 0")
