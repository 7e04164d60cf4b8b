"""Reddening estimates for training: from a 3D dust map at the star's parallax, or columns that the user brings.

Out: a Gaussian estimate E +- sigma_E [mag] (METHOD 2). Bayestar19 and SFD are read through dustmaps (extra ``maps``);
the maps' data are large and are fetched by the user.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from xpbayes.archive.columns import DEFAULT, SOURCE_ID, Column, ReadOptions, error_column
from xpbayes.archive.companion_table import SortedRuns, read_companion
from xpbayes.archive.tables import Table
from xpbayes.errors import InputError
from xpbayes.identity import Stream, uniform_from_id

MapQuery = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(star,) ra [deg], dec [deg], distance [pc] -> (star, sample) samples of E from the map's posterior, NaN outside."""

N_DRAWS = 32
"""Draws of parallax and map together: the mean is then good to sigma_E / 6."""
SAMPLES_IN_MEMORY = 5
"""Samples of Bayestar19's posterior that are held."""
FAR_PC = 1e5
"""Distance of a parallax draw that is not positive: beyond all the dust."""

ERROR_FLOOR = 1e-3
"""Least error of an estimate [mag]: every draw of a map may give the same value, the sky does not."""

FIELDS = (
    SOURCE_ID,
    Column("reddening", "float", ("e", "ebv", "e_bv", "e(b-v)"), True, unit="mag", low=-5.0, high=50.0),
    error_column(
        "reddening_error",
        50.0,
        ("e_reddening", "ebv_error", "e_err", "sigma_e", "ebv_err"),
        required=True,
        unit="mag",
    ),
)


def read_reddening(
    paths: list[Path], scratch: Path | None = None, options: ReadOptions = DEFAULT
) -> Table | SortedRuns:
    """Read the user's own estimates, as `read_companion`: source_id, reddening, reddening_error [mag]."""
    return read_companion(paths, FIELDS, scratch, options=options)


def monte_carlo_reddening(
    query: MapQuery,
    source_id: NDArray[np.int64],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    parallax: NDArray[np.float64],
    parallax_error: NDArray[np.float64],
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate reddening with the uncertainties of both the map and the parallax, by `n_draws` per star.

    Takes (star,) positions [deg], parallaxes and errors [mas]; source_id seeds each star's draws, so that they do not
    depend on the other stars of a batch.

    Returns:
        (star,) mean and standard deviation of E [mag]; NaN where the position, the parallax or the map has no value.
    """
    usable = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(parallax) & np.isfinite(parallax_error)
    mean, error = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    n = int(usable.sum())
    if not n:
        return mean, error
    draws = np.empty((n_draws, n))
    for i in range(n_draws):
        at_random = partial(uniform_from_id, source_id[usable], seed=seed * n_draws + i)
        draw = parallax[usable] + parallax_error[usable] * ndtri(at_random(Stream.REDDENING_PARALLAX))
        distance = np.where(draw > 1e3 / FAR_PC, 1e3 / np.where(draw > 0, draw, 1.0), FAR_PC)
        samples = np.asarray(query(ra[usable], dec[usable], distance), np.float64)
        which = (at_random(Stream.REDDENING_MAP) * samples.shape[1]).astype(np.int64)
        draws[i] = samples[np.arange(n), which]  # one draw outside the map leaves the star without an estimate
    mean[usable], error[usable] = draws.mean(axis=0), draws.std(axis=0, ddof=1)
    return mean, error


def bayestar19(map_file: Path | None = None) -> MapQuery:
    """Open the Bayestar19 map (Green et al. 2019), ``bayestar2019.h5``, which is in dustmaps' own place if None.

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
        dust = dustmaps.BayestarQuery(map_fname=str(place), max_samples=SAMPLES_IN_MEMORY, version="bayestar2019")

    def query(
        ra: NDArray[np.float64], dec: NDArray[np.float64], distance_pc: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        import astropy.units as u
        from astropy.coordinates import SkyCoord

        coordinates = SkyCoord(ra * u.deg, dec * u.deg, distance=distance_pc * u.pc)
        return np.asarray(dust.query(coordinates, mode="samples"), np.float64)

    return query


def sfd(ra: NDArray[np.float64], dec: NDArray[np.float64], map_dir: Path | None = None) -> NDArray[np.float64]:
    """(star,) E(B-V) of Schlegel, Finkbeiner & Davis (1998) at ra, dec [deg]: all dust on the line of sight.

    For validation. Two FITS maps are in `map_dir`, dustmaps' own place if None; InputError where they are not.
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
