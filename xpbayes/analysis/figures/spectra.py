"""Observed and predicted flux of single stars, with residuals in units of their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.data.spectra import Spectra
from xpbayes.data.stars import Stars
from xpbayes.device import program
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import at_own_level, deviance, n_observed, whitened_residual
from xpbayes.models.model_error import ModelError, with_model_error
from xpbayes.models.theta import to_log
from xpbayes.production.model_file import TrainedModel

EXAMPLE_KINDS = (
    ("hot star", (7.2, 0.0, 4.2)),
    ("Sun-like star", (5.77, 0.0, 4.44)),
    ("K dwarf", (4.5, -0.1, 4.6)),
    ("M dwarf", (3.7, -0.1, 4.7)),
    ("red clump giant", (4.8, -0.1, 2.5)),
    ("metal-poor giant", (4.7, -1.3, 1.8)),
)
"""Kinds of star and the labels (kK, dex, dex) that an example of each should have."""

TINY = 1e-9
"""Floor for E [mag] and parallax [mas] before taking logarithms."""


@dataclass(frozen=True)
class SpectrumFit:
    """One star's fit; flux in 1e-18 W m^-2 nm^-1, NaN where not observed.

    A star that fits worse than its kind has wider errors, as it has less weight in the posterior: the Student t's slope
    at its chi^2.
    """

    observed: NDArray[np.float64]  # (channel,)
    predicted: NDArray[np.float64]  # (channel,)
    error: NDArray[np.float64]  # (channel,) 1-sigma marginal, measurement and model together

    @property
    def residual(self) -> NDArray[np.float64]:
        """(channel,) (observed - predicted) / error."""
        return (self.observed - self.predicted) / self.error


def theta_log(estimate: NDArray[np.floating]) -> NDArray[np.floating]:
    """(..., parameter) labels, ln E, ln parallax from labels, E [mag], parallax [mas] that may be 0 or below."""
    return to_log(np.concatenate([estimate[..., :-2], np.maximum(estimate[..., -2:], TINY)], axis=-1))


def spectrum_fit(model: TrainedModel, stars: Spectra, row: int, estimate: NDArray[np.floating]) -> SpectrumFit:
    """Compare the flux of one row of a star table with the model at (parameter,) labels, E [mag], parallax [mas].

    A model of levels is brought to the star's own level, as best fits.
    """
    present = stars.channel_present()[row]
    parameters = jnp.asarray(theta_log(estimate), jnp.float32)
    star = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stars.take(np.array([row])).stars(model.labels))
    predicted, whitening, slope = _compare(model.forward, model.model_error, star, parameters, model.has_levels)
    inverse = np.linalg.inv(np.asarray(whitening, np.float64)[np.ix_(present, present)])
    scale = np.exp(float(star.ln_scale))
    error = np.full(len(present), np.nan)
    error[present] = scale * np.sqrt(np.sum(inverse**2, axis=1) / float(slope))  # diagonal of W^-1 W^-T
    observed = np.where(present, stars.flux[row].astype(np.float64), np.nan)
    return SpectrumFit(observed, np.where(present, scale * np.asarray(predicted, np.float64), np.nan), error)


@partial(program, static_argnames="own_level")
def _compare(
    forward: ForwardModel, error: ModelError | None, star: Stars, parameters: Array, own_level: bool
) -> tuple[Array, Array, Array]:
    """(channel,) prediction on the star's scale, (channel, channel) whitening, model error included, () slope."""
    with jax.default_matmul_precision("highest"):
        predicted = predict_flux(forward, parameters, star.ln_scale)
        if own_level:
            predicted = at_own_level(predicted, star.flux, star.whitening)
        star = star if error is None else with_model_error(error, star, predicted)
        chi2 = jnp.sum(whitened_residual(predicted, star.flux, star.whitening) ** 2)
        return predicted, star.whitening, deviance(chi2, n_observed(star.whitening), star.inv_dof).slope


def choose_examples(estimate: NDArray[np.floating], label_scale: NDArray[np.floating]) -> list[tuple[str, int]]:
    """For each kind of star find the row of (star, label) whose labels are nearest, each row once.

    `label_scale` (label,) is what counts as one unit of distance.
    """
    left = np.ones(len(estimate), bool)
    chosen = []
    n = min(estimate.shape[1], 3)
    for name, wanted in EXAMPLE_KINDS[: len(estimate)]:
        offset = (estimate[:, :n] - np.asarray(wanted)[:n]) / np.asarray(label_scale)[:n]
        distance = np.where(left, np.sum(offset**2, axis=1), np.inf)
        row = int(np.argmin(distance))
        left[row] = False
        chosen.append((name, row))
    return chosen


def draw_spectra(wavelength_nm: NDArray[np.floating], examples: Sequence[tuple[str, SpectrumFit]]) -> "drawing.Figure":
    """Observed and predicted flux of stars by their titles, at (channel,) wavelengths, and residuals in sigma below."""
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    figure, places = drawing.grid(len(examples), 2, 4.7, 2.9)
    for place, (title, fit) in zip(places, examples, strict=True):
        spec = place.get_subplotspec()
        assert spec is not None  # it is one of a grid
        rows = GridSpecFromSubplotSpec(2, 1, spec, height_ratios=(2.4, 1), hspace=0.06)
        place.remove()
        top, bottom = figure.add_subplot(rows[0]), figure.add_subplot(rows[1])
        bottom.sharex(top)
        top.plot(wavelength_nm, fit.predicted, color=drawing.ORANGE, lw=1.4, label="model")
        top.errorbar(
            wavelength_nm, fit.observed, fit.error, fmt="o", ms=2.2, lw=0.6, color=drawing.INK, label="data"
        )  # fmt: skip
        top.set_title(title, fontsize=9)
        top.tick_params(labelbottom=False)
        top.set_ylabel(drawing.FLUX_LABEL, fontsize=8)
        bottom.axhline(0, color=drawing.GREY, lw=0.6)
        bottom.axhspan(-1, 1, color=drawing.LIGHT, lw=0)
        bottom.plot(wavelength_nm, fit.residual, "o", ms=2.2, color=drawing.INK)
        limit = max(3.0, 1.1 * np.nanmax(np.abs(fit.residual)))
        bottom.set(ylim=(-limit, limit), ylabel="residual [σ]", xlabel="wavelength [nm]", xscale="log")
        for axis in (top, bottom):
            axis.spines[["top", "right"]].set_visible(False)
        drawing.plain_log_ticks(bottom)
        top.minorticks_off()
        if place is places[0]:
            drawing.legend(top)
    return figure
