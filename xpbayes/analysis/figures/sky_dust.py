"""A finished dust map on the sky and from above (ZGR23 Figs. 20, 21): `dust_map.draw` draws, here it is read and told."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

from xpbayes.analysis.dust_map.birds_eye import BirdsEye
from xpbayes.analysis.dust_map.build import ABOUT, BIRDS_EYE, SKY, VERSION
from xpbayes.analysis.dust_map.draw import draw_birds_eye, draw_sky
from xpbayes.analysis.dust_map.healpix_map import DustMap
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, drawn_now
from xpbayes.data.fits_header import check_headers
from xpbayes.data.json_file import read_json
from xpbayes.errors import InputError
from xpbayes.files import reason_of


def read_birds_eye(path: Path) -> BirdsEye:
    """Read what `BirdsEye.write` wrote.

    Raises:
        InputError: missing, damaged, or another kind of file.
    """
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
