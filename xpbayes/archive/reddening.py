"""Reddening estimates for training: from a 3D dust map at the star's parallax, or columns that the user brings.

Out: a Gaussian estimate E +- sigma_E [mag] (METHOD 2). Bayestar19 and SFD are read through dustmaps (extra ``maps``);
the maps' data are large and are fetched by the user.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.tables import SOURCE_ID, Field, Table, read_tables
from xpbayes.errors import InputError

MapQuery = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(star,) ra [deg], dec [deg], distance [pc] -> (star,) one random draw of E from the map's posterior, NaN outside."""

N_DRAWS = 32
"""Draws of parallax and map together: the mean is then good to sigma_E / 6."""
FAR_PC = 1e5
"""Distance of a parallax draw that is not positive: beyond all the dust."""

FIELDS = (
    SOURCE_ID,
    Field("reddening", aliases=("e", "ebv", "e_bv", "e(b-v)"), required=True),
    Field("reddening_error", aliases=("e_reddening", "ebv_error", "e_err", "sigma_e", "ebv_err"), required=True),
)


def read_reddening(paths: list[Path]) -> Table:
    """Read the user's own estimates: source_id, reddening, reddening_error [mag]."""
    return read_tables(paths, FIELDS)


def monte_carlo_reddening(
    query: MapQuery,
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    parallax: NDArray[np.float64],
    parallax_error: NDArray[np.float64],
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate reddening with the uncertainties of both the map and the parallax.

    Args:
        query: one random draw of the map per position and distance.
        ra: (star,) right ascension [deg].
        dec: (star,) declination [deg].
        parallax: (star,) [mas].
        parallax_error: (star,) 1-sigma error [mas].
        n_draws: draws per star.
        seed: of the parallax draws.

    Returns:
        (star,) mean and standard deviation of E [mag]; NaN where the position, the parallax or the map has no value.
    """
    rng = np.random.default_rng(seed)
    usable = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(parallax) & np.isfinite(parallax_error)
    mean, error = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    if not usable.any():
        return mean, error
    total, square = np.zeros(int(usable.sum())), np.zeros(int(usable.sum()))
    for _ in range(n_draws):
        draw = parallax[usable] + parallax_error[usable] * rng.standard_normal(total.size)
        distance = np.where(draw > 1e3 / FAR_PC, 1e3 / np.where(draw > 0, draw, 1.0), FAR_PC)
        value = np.asarray(query(ra[usable], dec[usable], distance), np.float64)
        total += value  # one draw outside the map leaves the star without an estimate
        square += value**2
    mean[usable] = total / n_draws
    variance = (square - total**2 / n_draws) / max(n_draws - 1, 1)
    error[usable] = np.sqrt(np.maximum(variance, 0.0))
    return mean, error


def bayestar19(map_file: Path | None = None, max_samples: int | None = 5, seed: int = 0) -> MapQuery:
    """Open the Bayestar19 map (Green et al. 2019).

    Args:
        map_file: ``bayestar2019.h5``; dustmaps' own place if None.
        max_samples: samples of the map's posterior to hold in memory; all if None.
        seed: of the draws from the map.

    Raises:
        InputError: dustmaps or the map's data are not there.
    """
    dustmaps = _dustmaps("bayestar")
    place = map_file or _data_dir() / "bayestar" / "bayestar2019.h5"
    if not place.is_file():
        raise InputError(
            f"{place}: the Bayestar19 map is not there; fetch it (a few GB) with: "
            f"python -c \"from dustmaps.bayestar import fetch; fetch(version='bayestar2019')\""
        )
    with contextlib.redirect_stdout(io.StringIO()):
        dust = dustmaps.BayestarQuery(map_fname=str(place), max_samples=max_samples, version="bayestar2019")
    rng = np.random.default_rng(seed)

    def query(
        ra: NDArray[np.float64], dec: NDArray[np.float64], distance_pc: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        import astropy.units as u
        from astropy.coordinates import SkyCoord

        coordinates = SkyCoord(ra * u.deg, dec * u.deg, distance=distance_pc * u.pc)
        # dustmaps draws from NumPy's global generator: lend it a seeded state, and give the user's back.
        state = np.random.get_state()
        np.random.seed(int(rng.integers(2**32)))
        try:
            return np.asarray(dust.query(coordinates, mode="random_sample"), np.float64)
        finally:
            np.random.set_state(state)

    return query


def sfd(ra: NDArray[np.float64], dec: NDArray[np.float64], map_dir: Path | None = None) -> NDArray[np.float64]:
    """Look up E(B-V) of Schlegel, Finkbeiner & Davis (1998): total dust along the line of sight, for validation.

    Args:
        ra: (star,) right ascension [deg].
        dec: (star,) declination [deg].
        map_dir: folder of the two FITS maps; dustmaps' own place if None.

    Raises:
        InputError: dustmaps or the map's data are not there.
    """
    dustmaps = _dustmaps("sfd")
    place = map_dir or _data_dir() / "sfd"
    if not (place / "SFD_dust_4096_ngp.fits").is_file():
        raise InputError(
            f"{place}: the SFD map is not there; fetch it (130 MB) with: "
            f'python -c "from dustmaps.sfd import fetch; fetch()"'
        )
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    query = dustmaps.SFDQuery(map_dir=str(place))
    return np.asarray(query(SkyCoord(ra * u.deg, dec * u.deg)), np.float64)


def _dustmaps(name: str) -> Any:
    import importlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing configuration file is its normal state
            return importlib.import_module(f"dustmaps.{name}")
    except ImportError as error:
        raise InputError("dust maps need dustmaps; pip install 'xpbayes[maps]'") from error


def _data_dir() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dustmaps.std_paths import data_dir
    return Path(data_dir())
