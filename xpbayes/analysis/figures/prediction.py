"""What `xpbayes predict` shows: a table on the terminal, a figure in a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import FLUX_UNIT
from xpbayes.errors import InputError


@dataclass(frozen=True)
class Prediction:
    """A model spectrum.

    Attributes:
        channels: names of the channels.
        wavelength_nm: (channel,) [nm].
        flux: (channel,) [1e-18 W m^-2 nm^-1].
        model_error: (channel,) 1-sigma relative error of the model itself; 0 where it was not learned.
        ln_prior: how common such stars are in the training sample.
        unlikely: ln_prior lies below the model's threshold: the prediction is an extrapolation.
    """

    channels: tuple[str, ...]
    wavelength_nm: NDArray[np.float64]
    flux: NDArray[np.float64]
    model_error: NDArray[np.float64]
    ln_prior: float
    unlikely: bool


def print_prediction(prediction: Prediction) -> None:
    """Print one row per channel; a warning goes to standard error when the star is of an unlikely type."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=f"flux in {FLUX_UNIT}; model error is the 1-sigma relative error of the model itself")
    for heading in ("channel", "wavelength [nm]", "flux", "model error"):
        table.add_column(heading, justify="left" if heading == "channel" else "right")
    for name, wavelength, flux, error in zip(
        prediction.channels, prediction.wavelength_nm, prediction.flux, prediction.model_error, strict=True
    ):
        table.add_row(name, f"{wavelength:.1f}", f"{flux:.6g}", f"{error:.2%}")
    Console().print(table)
    if prediction.unlikely:
        Console(stderr=True).print(
            f"note: ln prior = {prediction.ln_prior:.1f} is below the model's threshold: no such stars were in the "
            f"training sample, the prediction is an extrapolation"
        )


def draw_prediction(prediction: Prediction, path: Path) -> None:
    """Write a figure of the predicted spectrum.

    Raises:
        InputError: the file cannot be written, or its ending names no figure format.
    """
    from xpbayes.analysis.figures.drawing import model_spectrum

    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"{path}: a figure's name ends in .png, .pdf or .svg")
    try:
        model_spectrum(prediction.wavelength_nm, prediction.flux, "predicted flux").savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another output") from error
