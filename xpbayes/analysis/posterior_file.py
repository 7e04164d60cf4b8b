"""Draws as ArviZ knows them: named, with units and source_id, on disk as netCDF.

The one place that knows ArviZ before 1.0 (InferenceData) from ArviZ since (xarray's DataTree).
"""

import time
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xpbayes.channels import FLUX_UNIT
from xpbayes.checks.prior_predictive import predict_draws, whitened_flux
from xpbayes.data.stars import Stars
from xpbayes.errors import InputError
from xpbayes.files import reason_of, whole_file
from xpbayes.inference.sampling.convergence import Diagnostics
from xpbayes.inference.sampling.nuts import Draws
from xpbayes.production.model_file import TrainedModel
from xpbayes.schema import LABEL_UNITS

ENGINE: Literal["h5netcdf"] = "h5netcdf"
IMPORT_PAUSE = 0.1
"""[s] Before ArviZ is imported again; its file is written in microseconds."""


def import_arviz(attempts: int = 10) -> Any:
    """Import ArviZ, whatever other processes import it at the same moment; OSError if no attempt succeeds.

    On a day's first import ArviZ 0.23 writes a file with the date under one temporary name: where two processes do, the
    slower one finds its file gone. At its next attempt the date is there. What ArviZ then says of its coming versions
    is for us, not for users.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return import_module("arviz")
    except OSError:
        if attempts <= 1:
            raise
    time.sleep(IMPORT_PAUSE)
    return import_arviz(attempts - 1)


def parameter_names(labels: tuple[str, ...], n_parameters: int | None = None) -> tuple[str, ...]:
    """Names of the posterior's variables, in the model's order: with xi where there is one parameter more than without."""
    xi = ("xi",) if n_parameters == len(labels) + 3 else ()
    return (*labels, *xi, "extinction", "parallax")


def parameter_unit(name: str) -> str:
    """Unit of a variable."""
    return {"extinction": "mag", "parallax": "mas"}.get(name, LABEL_UNITS.get(name, ""))


_Variable = tuple[tuple[str, ...], NDArray[Any], dict[str, str]]
"""Dimensions, values, attributes."""


def posterior_groups(
    model: TrainedModel,
    source_id: NDArray[np.int64],
    stars: Stars,
    draws: Draws,
    diagnostics: Diagnostics,
    seeds: NDArray[np.uint32],
    about: Mapping[str, str],
    channels: bool,
) -> dict[str, xr.Dataset]:
    """Lay out (star,) draws in ArviZ's groups; `stars` with the model error folded in, `seeds` each star's own.

    Draws and diagnostics are from `nuts.sample_stars`; `about` are attributes of every group. With `channels` also the
    groups that have values for every channel of every draw.
    """
    n_stars, n_chains, n_draws, _ = draws.theta.shape
    names = parameter_names(model.labels, draws.theta.shape[-1])
    coords: dict[str, Any] = {
        "chain": np.arange(n_chains),
        "draw": np.arange(n_draws),
        "source_id": source_id,
        "channel": list(model.channels.names),
        "parameter": list(names),
    }

    def by_draw(values: NDArray[Any], unit: str = "", text: str = "") -> _Variable:
        """A (star, chain, draw, ...) array in ArviZ's order."""
        dims = ("chain", "draw", "source_id", *(("channel",) if values.ndim == 4 else ()))
        return dims, np.moveaxis(values, 0, 2), {k: v for k, v in (("units", unit), ("description", text)) if v}

    def by_star(values: NDArray[Any], *dims: str, **attrs: str) -> _Variable:
        return ("source_id", *dims), np.asarray(values), attrs

    scale = np.exp(np.asarray(stars.ln_scale, np.float64))
    present = np.diagonal(np.asarray(stars.whitening), axis1=1, axis2=2) > 0
    observed = np.where(present, np.asarray(stars.flux) * scale[:, None], np.nan).astype(np.float32)
    parallax = _known(stars.parallax, stars.parallax_inv_error)
    parallax_error = 1.0 / _known(stars.parallax_inv_error, stars.parallax_inv_error)
    groups: dict[str, dict[str, _Variable]] = {
        "posterior": {n: by_draw(draws.theta[..., i], parameter_unit(n)) for i, n in enumerate(names)},
        "sample_stats": {
            "diverging": by_draw(draws.diverging),
            "lp": by_draw(draws.ln_posterior, text="ln posterior density, up to a constant of the star's"),
            "acceptance_rate": by_draw(draws.accept_prob),
            "n_steps": by_draw(draws.n_steps),
            "jumped": by_draw(draws.jumped, text="the chain chose an independent point of the mixture"),
        },
        "observed_data": {
            "flux": by_star(observed, "channel", units=FLUX_UNIT),
            "whitened_flux": by_star(whitened_flux(stars), "channel"),
        },
        "constant_data": {
            "wavelength": (("channel",), model.channels.wavelengths, {"units": "nm"}),
            "measured_parallax": by_star(parallax, units="mas"),
            "measured_parallax_error": by_star(parallax_error, units="mas"),
        },
        "diagnostics": {
            "r_hat": by_star(diagnostics.r_hat, "parameter"),
            "ess_bulk": by_star(diagnostics.ess_bulk, "parameter"),
            "ess_tail": by_star(diagnostics.ess_tail, "parameter"),
            "n_divergent": by_star(diagnostics.n_divergent),
            "settled": by_star(diagnostics.settled, description="R-hat and both ESS are good enough"),
            "n_transitions": by_star(draws.n_transitions, description="of each chain; draws are thinned from them"),
            "mixture_k_hat": by_star(draws.k_hat, description="Pareto shape of the mixture's importance weights"),
        },
    }
    if channels:
        flat = draws.theta.reshape(n_stars, n_chains * n_draws, -1)
        each = [
            predict_draws(model.forward, stars.take(jnp.asarray(i)), jnp.asarray(flat[i]), jnp.asarray(seeds[i]))
            for i in range(n_stars)
        ]
        ln_likelihood, again, white = (
            np.stack([np.asarray(e[k]) for e in each]).reshape(n_stars, n_chains, n_draws, -1) for k in range(3)
        )
        flux = np.where(present[:, None, None], again * scale[:, None, None, None], np.nan).astype(np.float32)
        groups["log_likelihood"] = {"whitened_flux": by_draw(ln_likelihood)}
        # ArviZ takes every variable of posterior_predictive for one with a likelihood; the flux itself has its own group.
        groups["posterior_predictive"] = {"whitened_flux": by_draw(white)}
        groups["predictions"] = {"flux": by_draw(flux, FLUX_UNIT)}
    return {
        name: xr.Dataset(of, {d: coords[d] for dims, *_ in of.values() for d in dims}, about)
        for name, of in groups.items()
    }


def _known(values: Any, inverse_error: Any) -> NDArray[np.float32]:
    return np.where(np.asarray(inverse_error) > 0, np.asarray(values), np.float32(np.nan))


def to_arviz(groups: Mapping[str, xr.Dataset]) -> Any:
    """ArviZ's own object: InferenceData before ArviZ 1.0, xarray's DataTree since."""
    az = import_arviz()
    if int(az.__version__.split(".")[0]) < 1:
        return az.InferenceData(**dict(groups))
    return xr.DataTree.from_dict(dict(groups))


def write_posterior(groups: Mapping[str, xr.Dataset], path: Path) -> Path:
    """Write the groups to one netCDF file, under a temporary name until it is whole; InputError if it cannot be."""
    with whole_file(path) as temporary:
        temporary.unlink(missing_ok=True)  # what a killed run has left would be appended to
        for i, (name, group) in enumerate(groups.items()):
            packed = {v: {"zlib": True, "complevel": 1} for v in group.data_vars}
            mode: Literal["w", "a"] = "a" if i else "w"
            group.to_netcdf(temporary, mode, group=name, engine=ENGINE, encoding=packed)
    return path


def read_posterior(path: str | Path) -> Any:
    """Read such a file as ArviZ's own object; InputError if there is none, or not one of draws."""
    az = import_arviz()

    if not Path(path).is_file():
        raise InputError(f"{path}: is not there; draw from posteriors with 'xpbayes sample'")
    try:
        return az.from_netcdf(str(path), engine=ENGINE)
    except Exception as error:  # HDF5's and xarray's own, of many kinds
        raise InputError(f"{path}: holds no draws that can be read ({reason_of(error)}); sample again") from error
