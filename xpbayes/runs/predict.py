"""Predict fluxes of stars whose parameters are given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.pages.prediction import Prediction
from xpbayes.archive.units import is_declared, unit_change
from xpbayes.channels import FLUX_UNIT
from xpbayes.errors import InputError, nearest
from xpbayes.models.forward import ln_absolute_fluxes
from xpbayes.models.model_error import relative_sigma
from xpbayes.models.prior import ln_priors
from xpbayes.production.flat import unit_of
from xpbayes.production.model_file import TrainedModel
from xpbayes.runs.inputs import PathLike, load_if_path

if TYPE_CHECKING:
    import xarray as xr

LOGG_UNIT = "dex(cm / s2)"
TEFF_RANGE = (1000.0, 100_000.0)
"""[K] Whatever lies outside was not given in kelvin."""


def predict_fluxes(
    model: TrainedModel | PathLike, *, extinction: Any = 0.0, parallax: Any = 1.0, xi: Any = 0.0, **labels: Any
) -> "xr.Dataset":
    """Predict fluxes (ZGR23 Eq. 8).

    Arguments are numbers, arrays, which are broadcast together along `star`, or xarray's DataArrays, which are broadcast
    by the names of their dimensions. Astropy's quantities, columns, and DataArrays that declare `units`, are converted.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        extinction: E [mag], not negative.
        parallax: [mas], positive.
        xi: of the star's extinction curve R + xi R1; 0 is the mean curve.
        labels: the model's stellar labels by name; teff in K, the others in dex.

    Returns:
        `flux` [1e-18 W m^-2 nm^-1], with a dimension `channel`; `model_error`, the relative 1-sigma error of the model
        itself; `ln_prior`, how common such stars were in training; `unlikely`, where that is below the model's threshold
        and the prediction an extrapolation. Coordinates are the arguments, the channels' names and their `wavelength`.

    Raises:
        InputError: a label is missing or unknown, shapes or units do not fit, a value is masked or not possible.
    """
    import xarray as xr  # takes longer to import than to predict

    trained = load_if_path(model)
    arguments = {name: _named(name, value) for name, value in _given(trained, labels, extinction, parallax, xi).items()}
    try:
        spread = dict(zip(arguments, xr.broadcast(*arguments.values()), strict=True))
    except ValueError as error:
        raise InputError(f"labels, extinction and parallax cannot be broadcast together ({error})") from error
    shape, dims = spread["parallax"].shape, spread["parallax"].dims
    flux, ln_p = _predicted(trained, {name: value.values.ravel() for name, value in spread.items()})
    flux, ln_p = flux.reshape(*shape, len(trained.channels)), ln_p.reshape(shape)
    return xr.Dataset(
        {
            "flux": ((*dims, "channel"), flux, {"units": FLUX_UNIT, "long_name": "predicted flux"}),
            "model_error": ("channel", _own(trained), {"long_name": "relative 1-sigma error of the model itself"}),
            "ln_prior": (dims, ln_p, {"long_name": "ln prior density of the labels"}),
            "unlikely": (dims, ln_p < float(trained.prior.ln_threshold), {"long_name": "an extrapolation"}),
        },
        {
            **{
                name: array.assign_attrs(units="" if name == "xi" else unit_of(name))
                for name, array in arguments.items()
            },
            "channel": list(trained.channels.names),
            "wavelength": ("channel", trained.channels.wavelengths, {"units": "nm"}),
        },
    )


def predict_flux(
    model: TrainedModel | PathLike, *, extinction: float = 0.0, parallax: float = 1.0, xi: float = 0.0, **labels: float
) -> Prediction:
    """Predict the flux of one star; see `predict_fluxes`.

    Example:
        >>> xpbayes.predict_flux("model", teff=5800, feh=0, logg=4.4, extinction=0.1)  # doctest: +SKIP
    """
    trained = load_if_path(model)
    given = _given(trained, labels, extinction, parallax, xi)
    several = [name for name, value in given.items() if np.ndim(value)]
    if several:
        raise InputError(f"{several[0]} is not one number; predict_fluxes takes arrays")
    flux, ln_p = _predicted(trained, {name: np.array([value], np.float64) for name, value in given.items()})
    return Prediction(
        parameters={name: float(value) for name, value in given.items() if name != "xi"},
        channels=tuple(trained.channels.names),
        wavelength_nm=np.asarray(trained.channels.wavelengths),
        flux=flux[0],
        model_error=_own(trained),
        ln_prior=float(ln_p[0]),
        unlikely=bool(ln_p[0] < float(trained.prior.ln_threshold)),
    )


def _given(trained: TrainedModel, labels: dict[str, Any], extinction: Any, parallax: Any, xi: Any) -> dict[str, Any]:
    """The arguments by name, as plain numbers or DataArrays; InputError where the model has not these labels."""
    for name in labels:
        if name not in trained.labels:
            raise InputError(f"the model has no label '{name}'{nearest(name, trained.labels)}")
    missing = [name for name in trained.labels if name not in labels]
    if missing:
        raise InputError(f"the label '{missing[0]}' is missing; the model needs {', '.join(trained.labels)}")
    given = {name: labels[name] for name in trained.labels} | {"extinction": extinction, "parallax": parallax}
    variation = trained.forward.curve_variation
    if variation is not None:
        given["xi"] = xi
    elif np.any(xi):
        raise InputError("the model does not know how the extinction curve varies; leave xi out")
    return {name: _plain(name, value) for name, value in given.items()}


def _plain(name: str, value: Any) -> Any:
    """Numbers in the argument's unit, or a DataArray of them; InputError for another kind of unit and masked values."""
    is_named = hasattr(value, "dims")  # a DataArray; xarray takes longer to import than a flux to predict
    wanted = {"xi": "", "logg": LOGG_UNIT}.get(name, unit_of(name))
    declared = value.attrs.get("units") if is_named else getattr(value, "unit", None)
    factor, shift = 1.0, 0.0
    if is_declared(declared):
        change = unit_change(str(declared), wanted)
        if change is None:
            raise InputError(f"{name} is in {declared}, which is no {wanted or 'number'}; convert it")
        factor, shift = change
    masked = np.asarray(value.mask if hasattr(value, "unmasked") else np.ma.getmask(value))
    if masked.any():
        first = int(np.flatnonzero(masked)[0])
        raise InputError(
            f"{masked.sum()} of {masked.size} values of {name} are masked (first: number {first}); drop them"
        )
    try:
        numbers = value if is_named else getattr(getattr(value, "unmasked", value), "value", value)
        numbers = numbers.astype(np.float64) if is_named else np.asarray(numbers, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers ({error}); give numbers, or one quantity") from error
    return factor * numbers + shift if (factor, shift) != (1.0, 0.0) else numbers


def _predicted(
    trained: TrainedModel, arguments: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star, channel) fluxes, and (star,) ln prior density of the labels, from (star,) values of every argument."""
    _check_values(arguments)
    inner = [arguments[name] / (1e3 if name == "teff" else 1.0) for name in trained.labels]  # kK
    theta = np.stack(inner, axis=-1).astype(np.float32)
    intrinsic = np.asarray(ln_absolute_fluxes(trained.forward, theta), np.float64)
    curve = np.exp(np.asarray(trained.forward.ln_curve, np.float64))
    if "xi" in arguments:
        curve = curve + arguments["xi"][:, None] * np.asarray(trained.forward.curve_variation, np.float64)
    dimming = arguments["extinction"][:, None] * curve
    flux = np.exp(intrinsic - dimming) * arguments["parallax"][:, None] ** 2
    return flux, np.asarray(ln_priors(trained.prior, theta), np.float64)


def _own(trained: TrainedModel) -> NDArray[np.float64]:
    """(channel,) relative 1-sigma error of the model itself."""
    n = len(trained.channels)
    return relative_sigma(trained.model_error) if trained.model_error is not None else np.zeros(n)


def _named(name: str, value: Any) -> "xr.DataArray":
    """An argument as a DataArray: plain arrays run along `star`."""
    import xarray as xr

    if isinstance(value, xr.DataArray):
        return value
    if value.ndim > 1:
        raise InputError(f"{name} has {value.ndim} dimensions; give numbers, one-dimensional arrays, or DataArrays")
    return xr.DataArray(value, dims=("star",) * value.ndim)


def _check_values(arguments: Mapping[str, NDArray[np.float64]]) -> None:
    """InputError for what no star can have."""
    if not all(np.isfinite(value).all() for value in arguments.values()):
        raise InputError("labels, extinction and parallax must be finite numbers")
    teff = arguments.get("teff")
    if teff is not None:
        outside = teff[(teff < TEFF_RANGE[0]) | (teff > TEFF_RANGE[1])]
        if outside.size:
            low, high = TEFF_RANGE
            raise InputError(f"teff = {outside[0]:g} is outside {low:.0f} to {high:.0f}; it is in kelvin")
    if (arguments["extinction"] < 0).any() or (arguments["parallax"] <= 0).any():
        raise InputError("the extinction must not be negative and the parallax must be positive (mas)")
