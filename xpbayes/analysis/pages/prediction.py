"""What `xpbayes predict` shows: a table on the terminal, a figure in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.pages.page import Table
from xpbayes.channels import FLUX_UNIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Prediction:
    """A model spectrum.

    Attributes:
        parameters: labels, extinction and parallax, in the units that are shown [K, dex, ..., mag, mas].
        channels, wavelength_nm: (channel,) names, and where they are [nm].
        flux: (channel,) [1e-18 W m^-2 nm^-1].
        model_error: (channel,) 1-sigma relative error of the model; 0 where it was not learned.
        ln_prior: how common such stars are in the training sample.
        unlikely: ln_prior is below the model's threshold: the prediction is an extrapolation.
    """

    parameters: Mapping[str, float]
    channels: tuple[str, ...]
    wavelength_nm: NDArray[np.float64]
    flux: NDArray[np.float64]
    model_error: NDArray[np.float64]
    ln_prior: float
    unlikely: bool


def print_prediction(prediction: Prediction) -> None:
    """Print one row per channel; a warning goes to standard error when the star is of an unlikely type."""
    from rich.console import Console

    columns = (prediction.channels, prediction.wavelength_nm, prediction.flux, prediction.model_error)
    rows = [(name, f"{nm:.1f}", f"{flux:.6g}", f"{error:.2%}") for name, nm, flux, error in zip(*columns, strict=True)]
    caption = f"flux in {FLUX_UNIT}; model error is the 1-sigma relative error of the model itself"
    Table(("channel", "wavelength [nm]", "flux", "model error"), rows, 1, caption).print(Console())
    if prediction.unlikely:
        Console(stderr=True).print(
            f"note: ln prior = {prediction.ln_prior:.1f} is below the model's threshold: no such stars were in the "
            f"training sample, the prediction is an extrapolation"
        )


def prediction_figure(prediction: Prediction) -> "Figure":
    """The predicted spectrum with the model's own 1-sigma error, under the star's parameters."""
    from xpbayes.analysis.figures import drawing  # takes longer to import than to predict

    figure, ((axis,),) = drawing.panels(1, 1, 7.0, 3.8)
    wavelength, flux, error = prediction.wavelength_nm, prediction.flux, prediction.model_error
    axis.plot(wavelength, flux, "o-", ms=3, lw=1.0, color=drawing.BLUE, label="prediction")
    if np.any(error > 0):
        band = (flux * np.exp(-error), flux * np.exp(error))  # in ln flux: positive whatever the error
        axis.fill_between(wavelength, *band, color=drawing.BLUE, alpha=0.25, lw=0, label="model error (1σ)")
        drawing.legend(axis)
    star = ", ".join(
        f"{drawing.text(name)} = {value:g} {drawing.LABEL_UNIT.get(name, '')}".rstrip()
        for name, value in prediction.parameters.items()
    )
    drawing.spectrum_axis(axis)
    axis.set_title(star + ("\nan extrapolation" if prediction.unlikely else ""), fontsize=8.5)
    return figure


def draw_prediction(prediction: Prediction, path: Path) -> None:
    """Write the figure.

    Raises:
        InputError: the file cannot be written, or its ending names no figure format.
    """
    from xpbayes.analysis.figures import drawing

    drawing.save_figure(prediction_figure(prediction), path, dpi=150)
