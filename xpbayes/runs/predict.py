"""Predict the flux of one star."""

import jax.numpy as jnp
import numpy as np

from xpbayes.analysis.figures.prediction import Prediction
from xpbayes.errors import InputError, nearest
from xpbayes.models.forward import ln_absolute_flux
from xpbayes.models.model_error import relative_sigma
from xpbayes.models.prior import ln_prior
from xpbayes.production.model_file import TrainedModel
from xpbayes.runs.inputs import (
    PathLike,
    load_if_path,
)


def predict_flux(
    model: TrainedModel | PathLike, *, extinction: float = 0.0, parallax: float = 1.0, **labels: float
) -> Prediction:
    """Predict the flux of one star.

    Args:
        model: a trained model or its folder.
        extinction: E [mag], not negative.
        parallax: [mas], positive.
        labels: the model's stellar labels by name; teff in K, the others in dex.

    Raises:
        InputError: a label is missing, unknown or out of any sensible range.

    Example:
        >>> xpbayes.predict_flux("model", teff=5800, feh=0, logg=4.4, extinction=0.1)  # doctest: +SKIP
    """
    trained = load_if_path(model)
    for name in labels:
        if name not in trained.labels:
            raise InputError(f"the model has no label '{name}'{nearest(name, trained.labels)}")
    missing = [name for name in trained.labels if name not in labels]
    if missing:
        raise InputError(f"the label '{missing[0]}' is missing; the model needs {', '.join(trained.labels)}")
    if not np.isfinite([extinction, parallax, *labels.values()]).all():
        raise InputError("labels, extinction and parallax must be finite numbers")
    if "teff" in labels and not 1000 <= labels["teff"] <= 100_000:
        raise InputError(f"teff = {labels['teff']:g} is outside 1000 to 100000; it is in kelvin")
    if extinction < 0 or parallax <= 0:
        raise InputError("the extinction must not be negative and the parallax must be positive (mas)")
    value = np.array([labels[n] / 1e3 if n == "teff" else labels[n] for n in trained.labels], np.float32)
    intrinsic = np.asarray(ln_absolute_flux(trained.forward, jnp.asarray(value)), np.float64)
    curve = np.exp(np.asarray(trained.forward.ln_curve, np.float64))
    ln_p = float(ln_prior(trained.prior, jnp.asarray(value)))
    n = len(trained.channels)
    return Prediction(
        channels=trained.channels.names,
        wavelength_nm=trained.channels.wavelengths,
        flux=np.exp(intrinsic - extinction * curve) * parallax**2,
        model_error=relative_sigma(trained.model_error) if trained.model_error is not None else np.zeros(n),
        ln_prior=ln_p,
        unlikely=ln_p < float(trained.prior.ln_threshold),
    )
