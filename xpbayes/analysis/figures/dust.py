"""E against the total dust of Schlegel, Finkbeiner & Davis (1998; ZGR23 Fig. 19); a finished dust map (Figs. 20, 21).

The map, on the sky and from above, is drawn by `dust_map.draw`; here it is read and told.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from xpbayes.analysis.dust_map.birds_eye import BirdsEye
from xpbayes.analysis.dust_map.build import ABOUT, BIRDS_EYE, SKY, VERSION
from xpbayes.analysis.dust_map.draw import draw_birds_eye, draw_sky
from xpbayes.analysis.dust_map.healpix_map import DustMap
from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import MIN_SHOWN, ColumnDensity, ColumnStream
from xpbayes.analysis.run_inputs import Run, apply_cuts, in_words
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, Product, Rows, Series, Task, drawn_now
from xpbayes.archive.reddening import sfd
from xpbayes.data.directions import unit_vectors
from xpbayes.data.fits_header import check_headers
from xpbayes.data.json_file import read_json
from xpbayes.errors import InputError
from xpbayes.files import reason_of

MIN_HEIGHT_KPC = 0.4
MIN_LATITUDE_DEG = 10.0
CLOUDS = (("LMC", 80.894, -69.756, 8.0), ("SMC", 13.187, -72.829, 6.0))
"""Name, centre (SIMBAD, ICRS [deg]), and radius that is left out [deg]."""
POLE = unit_vectors(*np.array([192.85948, 27.12825]))
"""Of the ICRS definition of Galactic coordinates (Hipparcos Vol. 1, Section 1.5.3)."""
SFD_EDGES = np.linspace(0.0, 1.5, 61)
DIFFERENCE_EDGES = np.linspace(-1.0, 1.0, 801)
SHOWN_COARSER = 4
MIN_STARS = 20
SFD_ABOUT = {
    "low": "E(B-V) from", "high": "to", "n": "stars", "p15": "15 % of the difference", "p50": "median", "p84": "84 %",
}  # fmt: skip
Lookup = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(ra, dec) [deg] -> E(B-V) [mag]."""


class AgainstSfd(Gatherer):
    """Counts E - E(B-V) of stars outside of the dust layer and away from the Magellanic Clouds."""

    reads = ("ra", "dec", "stellar_params_est", "quality_flags")

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self.stream = ColumnStream(SFD_EDGES, DIFFERENCE_EDGES)
        self.n, self.cuts = 0, dict[str, int]()  # stars that were counted, and that each cut took

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
    return np.degrees(np.arcsin(np.clip(unit_vectors(ra, dec) @ POLE, -1.0, 1.0)))


def near_clouds(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(star,) within the radius of one of the Magellanic Clouds."""
    at = unit_vectors(ra, dec)
    near = [at @ unit_vectors(*np.array(centre)) > np.cos(np.radians(radius)) for _, *centre, radius in CLOUDS]
    return np.any(near, axis=0)


def draw_sfd(numbers: AgainstSfd) -> "drawing.Figure":
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


def _start_sfd(run: Run) -> Task:
    lookup: Any = partial(sfd, map_dir=run.sfd)
    lookup(np.array([0.0]), np.array([60.0]))  # are package and maps there? Better asked before the catalogue is read
    numbers = AgainstSfd(lookup)
    return Task((numbers,), lambda: _sfd(numbers))


def _sfd(numbers: AgainstSfd) -> Product:
    cuts = in_words(numbers.cuts)
    if numbers.n < MIN_STARS:
        raise NotDrawnError(f"only {numbers.n} stars pass the cuts ({cuts}); {MIN_STARS} are needed")
    return Product(
        draw_sfd(numbers),
        f"E minus E(B-V) of SFD against E(B-V) of SFD, {numbers.n} stars",
        f"E minus E(B−V) of Schlegel, Finkbeiner & Davis (1998) for {numbers.n:,} stars behind the dust layer: density over "
        f"the greatest of its column, lines at 15, 50 and 84 %. Removed: {cuts}. Across is SFD itself, where the "
        "paper has Planck's optical depth: errors of SFD tilt the cloud downwards.",
        {"": {k: Series(v, "" if k == "n" else "mag", SFD_ABOUT[k]) for k, v in numbers.density.columns().items()}},
    )


SFD = Analysis("sfd", "Fig. 19", "Extinction against SFD", _start_sfd, ("catalogue",))


def read_birds_eye(path: Path) -> BirdsEye:
    """Read what `BirdsEye.write` wrote; InputError if it is missing, damaged, or another kind of file."""
    from astropy.io import fits

    try:
        check_headers(path)
        with fits.open(path, memmap=False) as units:
            density, covered = (np.asarray(units[n].data, np.float64) for n in ("DENSITY", "COVERED"))
            header = units["DENSITY"].header
            axis = header["CRVAL1"] + header["CDELT1"] * np.arange(density.shape[1])
            return BirdsEye(axis=axis, density=density, covered=covered, max_height=float(header["ZMAX"]))
    except Exception as error:  # astropy raises what the bytes happen to break
        raise InputError(
            f"{path}: cannot be read as a view from above ({reason_of(error)}); make the map again"
        ) from error


class _About(BaseModel):
    """What a dust map says of itself, as far as captions need it."""

    kind: Literal["dust map"]
    method: Literal["bins", "joint"]
    remove_prior: bool
    rows: int
    kept: int
    nsides: list[int]
    min_stars: int
    profile_bins: int
    profile_reach: float
    max_reduced_chi2: float
    max_extinction: float
    max_extinction_error: float
    sky_max_parallax_error: float
    profile_max_parallax_error: float


def _about(folder: Path) -> _About:
    path, advice = folder / ABOUT, "make one with 'xpbayes dustmap'"
    if not path.is_file():
        raise NotDrawnError(f"{path}: is not there; {advice}")
    return read_json(path, _About, advice, VERSION)


def _cuts(about: _About, max_parallax_error: float) -> str:
    kind = "inverse-variance means" if about.method == "bins" else "means shared by full (E, parallax) covariances"
    prior = "the prior's pull removed" if about.remove_prior else "posterior modes as they are"
    return (
        f"{about.rows:,} stars read, {about.kept:,} kept: χ²/dof < {about.max_reduced_chi2:g}, "
        f"E < {about.max_extinction:g}, σ_E < {about.max_extinction_error:g}, σ_ϖ/ϖ < {max_parallax_error:g}; {kind}, "
        f"{prior}"
    )


def _sky(run: Run) -> Product:
    assert run.dust_map is not None
    about = _about(run.dust_map)
    dust = DustMap.read(run.dust_map / SKY)
    shown = np.isfinite(dust.differential)
    if not shown.any():
        raise NotDrawnError(f"{run.dust_map}: no pixel of its sky map has enough stars")
    rows, bins = np.nonzero(shown)
    return Product(
        draw_sky(dust),
        f"Differential extinction over the sky in {len(dust.edges) - 1} distance bins",
        f"Mean extinction minus that of the bin before, on the finest of nside {', '.join(map(str, about.nsides))} with "
        f"at least {about.min_stars} stars; grey where there is none. {_cuts(about, about.sky_max_parallax_error)}. "
        f"{shown.any(axis=1).sum():,} pixels of nside {dust.finest} have a value.",
        {
            "": {
                "pixel": Series(dust.pixel[rows], "", f"HEALPix, nested, Galactic, nside {dust.finest}"),
                "near": Series(dust.edges[bins], "kpc", "bin from"),
                "far": Series(dust.edges[bins + 1], "kpc", "to"),
                "differential": Series(dust.differential[rows, bins], "mag", "E minus that of the bin before"),
                "differential_sigma": Series(dust.differential_sigma[rows, bins], "mag", "its standard error"),
                "stars": Series(dust.stars[rows, bins], "", "behind the mean"),
                "nside": Series(dust.nside[rows, bins], "", "resolution of the mean"),
            }
        },
    )


def _above(run: Run) -> Product:
    assert run.dust_map is not None
    about = _about(run.dust_map)
    above = read_birds_eye(run.dust_map / BIRDS_EYE)
    y, x = np.nonzero(np.isfinite(above.density))
    if not len(y):
        raise NotDrawnError(f"{run.dust_map}: its profile covers no column through the plane well enough")
    return Product(
        draw_birds_eye(above),
        "Extinction density of the Galactic plane seen from above",
        f"Mean of dE/dr over |z| < {1e3 * above.max_height:.0f} pc (Eq. 30, per kpc), from {about.profile_bins} "
        f"sinh-spaced bins to {about.profile_reach:g} kpc; the Sun is the cross. Grey where less than half of the "
        f"column is on the map: {len(y):,} of {above.density.size:,} cells have a value. "
        f"{_cuts(about, about.profile_max_parallax_error)}.",
        {
            "": {
                "x": Series(above.axis[x], "kpc", "towards the Galactic centre"),
                "y": Series(above.axis[y], "kpc", "towards rotation"),
                "density": Series(above.density[y, x], "mag/kpc", "mean dE/dr"),
                "covered": Series(above.covered[y, x], "", "share of the column on the map"),
            }
        },
    )


DUST_SKY = Analysis("dust_sky", "Fig. 20", "Differential extinction over the sky", drawn_now(_sky), ("dust_map",))
BIRDS_EYE_VIEW = Analysis("birds_eye", "Fig. 21", "Extinction density from above", drawn_now(_above), ("dust_map",))
