"""Predicted minus observed flux over the error of the observation, channel by channel (ZGR23 Figs. 9 and 22 draw it).

In: a model, a star table's fluxes, and what the catalogue says of the same stars. The error is the observation's own, as
in the paper: the model's own error, which inference counts too, is not part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import DENSITY_COLUMNS, ColumnDensity, column_density, suitable_edges
from xpbayes.analysis.figures.residual_columns import MIN_STARS
from xpbayes.analysis.run_inputs import STARS_AT_ONCE, Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Rows, Series, Task
from xpbayes.analysis.validation import BASIC
from xpbayes.channels import Channels
from xpbayes.data.join import Lookup
from xpbayes.data.spectra import Spectra
from xpbayes.identity import Side, Split
from xpbayes.models.forward import predict_flux
from xpbayes.production.model_file import TrainedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN_CHANNELS = ("xp392", "xp592", "xp792", "xp992", "H", "W1")
"""Of Fig. 9."""
SKY_CHANNELS = ("xp402", "xp652", "J", "W1")
"""Of Fig. 22."""
CURVE_CHANNELS = ("J", "Ks", "W1")
"""In which Fig. 22 shows dust whose curve is not the mean one."""
MAX_STARS = 200_000
"""Stars whose fluxes are looked at; of a larger table, whole row groups evenly spaced through it."""
TINY = 1e-9
"""Floor for E [mag] and parallax [mas] before taking logarithms."""


@dataclass(frozen=True)
class FluxSample:
    """Stars with flux residuals.

    Attributes:
        channels: names of the channels.
        source_id: (star,).
        chi: (star, channel) (f_pred - f_obs) / sigma; NaN where not observed.
        estimate, error: (star, parameter) inferred.
        ra, dec: (star,) [deg].
        reduced_chi2: (star,) chi2_opt / dof.
        flags: (star,) quality_flags.
        joined: (star,) star-table columns.
        chi_of_mean_curve: (star, channel) chi at the same parameters but xi = 0; None where the curve does not vary.
    """

    channels: tuple[str, ...]
    source_id: NDArray[np.int64]
    chi: NDArray[np.float32]
    estimate: NDArray[np.float32]
    error: NDArray[np.float32]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    reduced_chi2: NDArray[np.float32]
    flags: NDArray[np.uint8]
    joined: dict[str, NDArray[np.float64]]
    chi_of_mean_curve: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.source_id)


class FluxGatherer:
    """Keeps what the catalogue says of at most `MAX_STARS` stars, then reads their fluxes.

    Args:
        run: with model, catalogue and stars.
        names: of the channels wanted.
    """

    def __init__(self, run: Run, names: Sequence[str]) -> None:
        assert run.model is not None and run.stars is not None and run.catalogue is not None
        self.run = run
        self.names = tuple(n for n in dict.fromkeys(names) if n in run.model.channels.names)
        self.curve = ("xi",) if "xi" in (c.name for c in run.catalogue.columns) else ()
        self.reads: Sequence[str] = (
            "source_id", "ra", "dec", "stellar_params_est", "stellar_params_err", "chi2_opt", "dof", "quality_flags",
            *self.curve,
        )  # fmt: skip
        self.joins: Sequence[str] = (*run.labels, "reddening")
        self.wanted = Lookup.of(run.stars.sampled_ids(MAX_STARS))
        self.parts: list[tuple[NDArray[Any], ...]] = []

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        use = rows.solved & (self.wanted.rows(rows["source_id"]) >= 0)
        self.parts.append((*(rows[name][use] for name in self.reads), *(rows.joined[name][use] for name in self.joins)))

    def result(self) -> FluxSample:
        """Read the fluxes and compare them with the model."""
        model, stars = self.run.model, self.run.stars
        assert model is not None and stars is not None
        columns = [np.concatenate(c) for c in zip(*self.parts, strict=True)] if self.parts else []
        if not columns or not len(columns[0]):
            raise NotDrawnError("the catalogue has no solved star")
        lookup, estimate = Lookup.of(columns[0].astype(np.int64)), columns[3]
        if self.curve:
            estimate = np.insert(estimate, estimate.shape[1] - 2, columns[8], axis=1)
        found: list[NDArray[Any]] = []
        chi: list[NDArray[np.float32]] = []
        straight: list[NDArray[np.float32]] = []
        for table in stars.batches(MAX_STARS):
            row = lookup.rows(table.source_id)
            here = np.flatnonzero(row >= 0)
            if len(here):
                found.append(row[here])
                some = table.take(here)
                for at, parts in ((estimate, chi), (columns[3], straight if self.curve else None)):
                    if parts is not None:
                        parts.append(flux_residuals(model, some, at[row[here]], self.names, own_level=model.has_levels))
        if not found:
            raise NotDrawnError("no solved star of the catalogue is in the star table")
        row = np.concatenate(found)
        source_id, ra, dec, est, error, chi2, dof, flags = (c[row] for c in columns[:8])
        joined = dict(zip(self.joins, (c[row] for c in columns[8 + len(self.curve) :]), strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            reduced = np.where(dof > 0, chi2 / dof, np.inf).astype(np.float32)
        of_mean = np.concatenate(straight) if self.curve else None
        return FluxSample(
            self.names, source_id, np.concatenate(chi), est, error, ra, dec, reduced, flags, joined, of_mean
        )  # fmt: skip


def flux_residuals(
    model: TrainedModel,
    stars: Spectra,
    estimate: NDArray[np.floating],
    names: Sequence[str],
    *,
    own_level: bool = False,
) -> NDArray[np.float32]:
    """(f_pred - f_obs) / sigma of some channels.

    Args:
        model: the model.
        stars: at most `STARS_AT_ONCE` of them.
        estimate: (star, parameter) labels, xi of a curve other than the mean one, E [mag], parallax [mas].
        names: of the channels.
        own_level: bring the model's fluxes to the level of the star's, the median of their ratio.

    Returns:
        (star, channel); NaN where not observed.
    """
    at = [model.channels.names.index(n) for n in names]
    parameters = np.ones((STARS_AT_ONCE, estimate.shape[1]), np.float32)
    parameters[: len(stars), :-2] = estimate[:, :-2]
    parameters[: len(stars), -2:] = np.log(np.maximum(estimate[:, -2:], TINY))
    parameters[len(stars) :] = parameters[0]  # one shape, one compilation
    predicted = _predict(model.forward, jnp.asarray(parameters))
    flux = np.asarray(predicted, np.float64)[: len(stars)]
    if own_level:
        ratio = np.where(stars.channel_present(), stars.flux / flux, np.nan)
        flux = flux * np.nanmedian(ratio, axis=1, keepdims=True)
    flux = flux[:, at]
    sigma = stars.flux_error(at)
    return ((flux - stars.flux[:, at]) / sigma).astype(np.float32)


_predict = jax.jit(jax.vmap(predict_flux, (None, 0)))


def flux_sample(run: Run) -> FluxGatherer:
    """The stars of both figures, read once."""
    return run.once("fluxes", lambda: FluxGatherer(run, (*COLUMN_CHANNELS, *SKY_CHANNELS, *CURVE_CHANNELS)))


def gathered(run: Run) -> FluxSample:
    """Their fluxes, read once."""
    return run.once("flux_sample", flux_sample(run).result)


@dataclass(frozen=True)
class FluxColumns:
    """Flux residuals at every measured value of a parameter.

    Attributes:
        channels: names, one row of panels each.
        parameters: names, one column of panels each.
        densities: per (channel, parameter).
        n: stars.
        scatter: (channel,) half of the 16 to 84 % range of the residual.
    """

    channels: tuple[str, ...]
    parameters: tuple[str, ...]
    densities: dict[tuple[str, str], ColumnDensity]
    n: int
    scatter: NDArray[np.float64]


def flux_columns(sample: FluxSample, member: NDArray[np.bool_], labels: tuple[str, ...]) -> FluxColumns:
    """Bin flux residuals against measured labels and reddening.

    Args:
        sample: the stars.
        member: (star,) which of them.
        labels: names of the labels.
    """
    channels = tuple(c for c in COLUMN_CHANNELS if c in sample.channels)
    values = {n: drawing.display_scale(n) * sample.joined[n][member] for n in labels}
    values["extinction"] = sample.joined["reddening"][member]
    values = {n: v for n, v in values.items() if np.isfinite(v).sum() >= MIN_STARS}
    densities, scatter = {}, []
    for channel in channels:
        chi = sample.chi[member, sample.channels.index(channel)].astype(np.float64)
        known = chi[np.isfinite(chi)]
        scatter.append(0.5 * float(np.subtract(*np.percentile(known, [84, 16]))) if len(known) else np.nan)
        for name, value in values.items():
            if len(known) >= MIN_STARS:
                densities[channel, name] = column_density(value, chi, *suitable_edges(value, chi))
    shown = np.array([any(k[0] == c for k in densities) for c in channels], bool)
    names = tuple(np.array(channels)[shown].tolist())
    return FluxColumns(names, tuple(values), densities, int(member.sum()), np.array(scatter)[shown])


def channel_text(name: str, channels: Channels) -> str:
    """A channel in words: '592 nm', or the name of a band."""
    return f"{channels.wavelengths[channels.names.index(name)]:.0f} nm" if name.startswith("xp") else name


def draw_flux_columns(numbers: FluxColumns, channels: Channels) -> "Figure":
    """One row per channel, one column per parameter."""
    rows, columns = len(numbers.channels), len(numbers.parameters)
    figure, axes = drawing.panels(columns, rows, 2.7 * columns + 0.6, 1.75 * rows + 0.6, sharex="col")
    for row, channel in zip(axes, numbers.channels, strict=True):
        for axis, name in zip(row, numbers.parameters, strict=True):
            mesh = drawing.density_panel(axis, numbers.densities[channel, name])
        row[0].set_ylabel(f"{channel_text(channel, channels)}\nΔf / σ")
    for axis, name in zip(axes[-1], numbers.parameters, strict=True):
        axis.set_xlabel(drawing.heading(name))
    figure.colorbar(mesh, ax=axes.ravel().tolist(), label=drawing.DENSITY_LABEL, pad=0.01, aspect=40)
    return figure


def _start(run: Run) -> Task:
    gatherer = flux_sample(run)
    return Task((gatherer,), lambda: _product(run, gathered(run)))


def _product(run: Run, sample: FluxSample) -> Product:
    assert run.model is not None
    labelled = np.isfinite(np.stack([sample.joined[n] for n in run.labels])).all(axis=0)
    held = Split.of(run.model.card).on(Side.HELD_OUT, sample.source_id)
    member = labelled & held & (sample.flags < BASIC)
    numbers = flux_columns(sample, member, run.labels)
    if not numbers.densities:
        raise NotDrawnError(
            f"only {int(member.sum())} of {len(sample)} stars are labelled, held out and pass quality_flags < {BASIC}; "
            f"{MIN_STARS} are needed"
        )
    panels, densities = np.array(list(numbers.densities)), list(numbers.densities.values())
    panel = np.repeat(np.arange(len(densities)), [len(d.n) for d in densities])
    columns = [d.columns() for d in densities]
    absent = [c for c in COLUMN_CHANNELS if c not in numbers.channels]
    gone = f" The model or the stars have no {', '.join(absent)}." if absent else ""
    return Product(
        draw_flux_columns(numbers, run.model.channels),
        f"Normalised flux residuals of {len(numbers.channels)} channels against {len(numbers.parameters)} parameters",
        f"(f_pred − f_obs) / σ_obs against measured labels and reddening (Teff in K): density over the greatest of its "
        f"column, lines at 15, 50 and 84 %. {numbers.n:,} of {len(sample):,} solved stars whose fluxes were read: labelled, "
        f"held out from training, quality_flags < {BASIC}. σ_obs is the observation's own error; the model's own error, "
        f"which inference adds, is left out, so a width above one is expected where that one dominates.{gone}",
        {
            "": {
                "channel": Series(panels[panel, 0], "", "channel"),
                "parameter": Series(panels[panel, 1], "", "parameter"),
                **{k: Series(np.concatenate([c[k] for c in columns]), "", k) for k in DENSITY_COLUMNS},
            },
            "width": {
                "channel": Series(list(numbers.channels), "", ""),
                "half_width": Series(list(numbers.scatter), "", "half of the 16 to 84 % range"),
            },
        },
    )


FLUX_RESIDUALS = Analysis(
    "flux_residuals", "Fig. 9", "Flux residuals against parameters", _start, ("model", "catalogue", "stars")
)
