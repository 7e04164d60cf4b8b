"""Predicted minus observed flux over the error of the observation, by parameters and over the sky (ZGR23 Figs. 9, 22).

In: a model, a star table's fluxes, and what the catalogue says of the same stars. The error is the observation's own,
as in the paper: the model's own error, which inference counts too, is not part of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import DENSITY_COLUMNS, ColumnDensity, column_density, suitable_edges
from xpbayes.analysis.figures.residual_columns import MIN_STARS
from xpbayes.analysis.figures.spectra import theta_log
from xpbayes.analysis.run_inputs import STARS_AT_ONCE, Run, StarFiles, apply_cuts, in_words
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, Product, Rows, Task, require_variation, table_of
from xpbayes.analysis.validation import BASIC
from xpbayes.channels import Channels
from xpbayes.data.join import Lookup
from xpbayes.data.spectra import Spectra
from xpbayes.identity import Side, Split
from xpbayes.models.forward import predict_flux
from xpbayes.production.model_file import TrainedModel

COLUMN_CHANNELS = ("xp392", "xp592", "xp792", "xp992", "H", "W1")
"""Of Fig. 9."""
SKY_CHANNELS = ("xp402", "xp652", "J", "W1")
"""Of Fig. 22."""
CURVE_CHANNELS = ("J", "Ks", "W1")
"""In which Fig. 22 shows dust whose curve is not the mean one."""
MAX_STARS = 200_000
"""Stars whose fluxes are looked at; of a larger table, whole row groups evenly spaced through it."""
MAX_PARALLAX_ERROR = 0.2
MAX_REDUCED_CHI2 = 5.0
MAX_CHI = 10.0
NSIDES = (64, 32, 16, 8, 4, 2)
MIN_IN_PIXEL = 5
"""Stars of a pixel that is drawn."""
MIN_EXTINCTION = 0.3
"""Of stars that compare curves [mag]."""
MIN_SHARE = 0.7
"""The finest nside at which this share of the stars sits in pixels that are drawn."""


class SampledRows(Gatherer):
    """Keeps columns of the solved stars whose fluxes are looked at: of at most `MAX_STARS` of the star table."""

    def __init__(self, run: Run, reads: Sequence[str], joins: Sequence[str] = ()) -> None:
        assert run.stars is not None
        self.run, self.reads, self.joins = run, reads, joins
        self.wanted = Lookup.of(run.stars.sampled_ids(MAX_STARS))
        self.parts: list[dict[str, NDArray[Any]]] = []

    def chosen(self, rows: Rows) -> NDArray[np.bool_]:
        """(row,) which are kept."""
        return rows.solved & (self.wanted.rows(rows["source_id"]) >= 0)

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        use = self.chosen(rows)
        joined = {name: rows.joined[name][use] for name in self.joins}
        self.parts.append({name: rows[name][use] for name in self.reads} | joined)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of all that were kept."""
        kept = {name: [part[name] for part in self.parts] for name in (*self.reads, *self.joins)}
        return {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in kept.items()}


def fluxes_of(stars: StarFiles, source_id: NDArray[np.int64]) -> Iterator[tuple[Spectra, NDArray[np.int64]]]:
    """Stars with fluxes, of those that are looked at, and the place of each in `source_id`; some at a time."""
    lookup = Lookup.of(source_id.astype(np.int64))
    for table in stars.batches(MAX_STARS):
        row = lookup.rows(table.source_id)
        here = np.flatnonzero(row >= 0)
        if len(here):
            yield table.take(here), row[here]


@dataclass(frozen=True)
class FluxSample:
    """Stars with flux residuals."""

    channels: tuple[str, ...]
    chi: NDArray[np.float32]  # (star, channel) (f_pred - f_obs) / sigma; NaN where not observed
    columns: Mapping[str, NDArray[Any]]  # (star, ...) what `FluxGatherer` reads of the catalogue and the star table
    chi_of_mean_curve: NDArray[np.float32] | None = None  # chi with xi = 0; None where the curve does not vary

    def __len__(self) -> int:
        return len(self.chi)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]


class FluxGatherer(SampledRows):
    """Keeps what the catalogue says of stars, then reads their fluxes in some channels."""

    def __init__(self, run: Run, names: Sequence[str]) -> None:
        assert run.model is not None and run.catalogue is not None
        reads = (
            "source_id", "ra", "dec", "stellar_params_est", "stellar_params_err", "chi2_opt", "dof", "quality_flags",
            *(c.name for c in run.catalogue.columns if c.name == "xi"),
        )  # fmt: skip
        super().__init__(run, reads, (*run.labels, "reddening"))
        self.names = tuple(n for n in dict.fromkeys(names) if n in run.model.channels.names)

    def result(self) -> FluxSample:
        """Read the fluxes and compare them with the model."""
        model, stars = self.run.model, self.run.stars
        assert model is not None and stars is not None
        columns = self.columns()
        if not len(columns["source_id"]):
            raise NotDrawnError("the catalogue has no solved star")
        mean = own = columns["stellar_params_est"]
        varies = "xi" in columns
        if varies:
            own = np.insert(mean, mean.shape[1] - 2, columns["xi"], axis=1)
        found, chi, straight = list[NDArray[Any]](), list[NDArray[np.float32]](), list[NDArray[np.float32]]()
        for some, row in fluxes_of(stars, columns["source_id"]):
            found.append(row)
            chi.append(flux_residuals(model, some, own[row], self.names))
            if varies:
                straight.append(flux_residuals(model, some, mean[row], self.names))
        if not found:
            raise NotDrawnError("no solved star of the catalogue is in the star table")
        row = np.concatenate(found)
        of_mean = np.concatenate(straight) if varies else None
        return FluxSample(self.names, np.concatenate(chi), {n: v[row] for n, v in columns.items()}, of_mean)


def flux_residuals(
    model: TrainedModel, stars: Spectra, estimate: NDArray[np.floating], names: Sequence[str]
) -> NDArray[np.float32]:
    """(star, channel) (f_pred - f_obs) / sigma in the named channels; NaN where not observed.

    At most `STARS_AT_ONCE` stars; estimate is (star, parameter), xi of a curve other than the mean one before E [mag]
    and parallax [mas]. A model of levels is brought to the level of the star's fluxes, the median of their ratio.
    """
    at = [model.channels.names.index(n) for n in names]
    parameters = np.ones((STARS_AT_ONCE, estimate.shape[1]), np.float32)
    parameters[: len(stars)] = theta_log(estimate)
    parameters[len(stars) :] = parameters[0]  # one shape, one compilation
    flux = np.asarray(_predict(model.forward, jnp.asarray(parameters)), np.float64)[: len(stars)]
    if model.has_levels:
        ratio = np.where(stars.channel_present(), stars.flux / flux, np.nan)
        flux = flux * np.nanmedian(ratio, axis=1, keepdims=True)
    return ((flux[:, at] - stars.flux[:, at]) / stars.flux_error(at)).astype(np.float32)


_predict = jax.jit(jax.vmap(predict_flux, (None, 0)))


def _start(product: Callable[[Run, FluxSample], Product], run: Run) -> Task:
    """The stars of all three figures and their fluxes are read once."""
    channels = (*COLUMN_CHANNELS, *SKY_CHANNELS, *CURVE_CHANNELS)
    gatherer = run.once("fluxes", lambda: FluxGatherer(run, channels))
    return Task((gatherer,), lambda: product(run, run.once("flux_sample", gatherer.result)))


@dataclass(frozen=True)
class FluxColumns:
    """Flux residuals at every measured value of a parameter."""

    channels: tuple[str, ...]  # one row of panels each
    parameters: tuple[str, ...]  # one column of panels each
    densities: dict[tuple[str, str], ColumnDensity]  # per (channel, parameter)
    scatter: NDArray[np.float64]  # (channel,) half of the 16 to 84 % range of the residual


def flux_columns(sample: FluxSample, member: NDArray[np.bool_], labels: tuple[str, ...]) -> FluxColumns:
    """Bin flux residuals of some stars against measured labels and reddening."""
    channels = tuple(c for c in COLUMN_CHANNELS if c in sample.channels)
    values = {n: drawing.display_scale(n) * sample[n][member] for n in labels}
    values["extinction"] = sample["reddening"][member]
    values = {n: v for n, v in values.items() if np.isfinite(v).sum() >= MIN_STARS}
    densities, scatter = {}, dict[str, float]()
    for channel in channels:
        chi = sample.chi[member, sample.channels.index(channel)].astype(np.float64)
        known = chi[np.isfinite(chi)]
        if len(known) >= MIN_STARS:
            scatter[channel] = 0.5 * float(np.subtract(*np.percentile(known, [84, 16])))
            for name, value in values.items():
                densities[channel, name] = column_density(value, chi, *suitable_edges(value, chi))
    return FluxColumns(tuple(scatter), tuple(values), densities, np.array(list(scatter.values())))


def channel_text(name: str, channels: Channels) -> str:
    """A channel in words: '592 nm', or the name of a band."""
    return f"{channels.wavelengths[channels.names.index(name)]:.0f} nm" if name.startswith("xp") else name


def draw_flux_columns(numbers: FluxColumns, channels: Channels) -> "drawing.Figure":
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


def _columns(run: Run, sample: FluxSample) -> Product:
    assert run.model is not None
    labelled = np.isfinite(np.stack([sample[n] for n in run.labels])).all(axis=0)
    held = Split.of(run.model.card).on(Side.HELD_OUT, sample["source_id"])
    member = labelled & held & (sample["quality_flags"] < BASIC)
    numbers = flux_columns(sample, member, run.labels)
    if not numbers.densities:
        raise NotDrawnError(
            f"only {int(member.sum())} of {len(sample)} stars are labelled, held out and pass quality_flags < {BASIC}; "
            f"{MIN_STARS} are needed"
        )
    cells = [(*panel, *cell) for panel, density in numbers.densities.items() for cell in density.rows()]
    absent = [c for c in COLUMN_CHANNELS if c not in numbers.channels]
    gone = f" The model or the stars have no {', '.join(absent)}." if absent else ""
    return Product(
        draw_flux_columns(numbers, run.model.channels),
        f"Normalised flux residuals of {len(numbers.channels)} channels against {len(numbers.parameters)} parameters",
        f"(f_pred − f_obs) / σ_obs against measured labels and reddening (Teff in K): density over the greatest of its "
        f"column, lines at 15, 50 and 84 %. {int(member.sum()):,} of {len(sample):,} solved stars whose fluxes were read: "
        f"labelled, held out from training, quality_flags < {BASIC}. σ_obs is the observation's own error; the model's own "
        f"error, which inference adds, is left out, so a width above one is expected where that one dominates.{gone}",
        {
            "": table_of(cells, {name: name for name in ("channel", "parameter", *DENSITY_COLUMNS)}),
            "width": table_of(
                list(zip(numbers.channels, numbers.scatter, strict=True)),
                {"channel": "", "half_width": "half of the 16 to 84 % range"},
            ),
        },
    )


NEEDS = ("model", "catalogue", "stars")
FLUX_RESIDUALS = Analysis(
    "flux_residuals", "Fig. 9", "Flux residuals against parameters", partial(_start, _columns), NEEDS
)


@dataclass(frozen=True)
class SkyResiduals:
    """Mean residuals in pixels."""

    channels: tuple[str, ...]
    nside: int  # HEALPix resolution, nested, Galactic
    pixel: NDArray[np.int64]  # (row,) those with at least `MIN_IN_PIXEL` stars in any channel
    mean: NDArray[np.float64]  # (row, channel) (f_pred - f_obs) / sigma; NaN where there are too few stars
    n: NDArray[np.int64]  # (row, channel) stars
    n_stars: int  # that pass the cuts
    cuts: dict[str, int]  # how many stars each took

    def rows(self) -> list[tuple[Any, ...]]:
        """(pixel, channel, mean, n) wherever there are enough stars."""
        known = np.argwhere(np.isfinite(self.mean))
        return [(self.pixel[i], self.channels[k], self.mean[i, k], self.n[i, k]) for i, k in known]


def sky_residuals(
    sample: FluxSample, wanted: Sequence[str] = SKY_CHANNELS, min_extinction: float = 0.0
) -> SkyResiduals:
    """Average residuals of stars with good distances, fits and enough E [mag], in pixels as small as possible."""
    from xpbayes.analysis.dust_map.selection import galactic_pixel

    channels = tuple(c for c in wanted if c in sample.channels)
    ra, dec, estimate, error = (sample[n] for n in ("ra", "dec", "stellar_params_est", "stellar_params_err"))
    with np.errstate(divide="ignore", invalid="ignore"):
        tests = {
            f"σ_ϖ/ϖ >= {MAX_PARALLAX_ERROR:g}": error[:, -1] / estimate[:, -1] < MAX_PARALLAX_ERROR,
            f"χ²/dof >= {MAX_REDUCED_CHI2:g}": (sample["dof"] > 0)
            & (sample["chi2_opt"] / sample["dof"] < MAX_REDUCED_CHI2),
            "no position": np.isfinite(ra) & np.isfinite(dec),
            f"E < {min_extinction:g}": estimate[:, -2] >= min_extinction,
        }
    cuts: dict[str, int] = {}
    keep = apply_cuts(np.ones(len(sample), bool), tests, cuts)
    chi = sample.chi[keep][:, [sample.channels.index(c) for c in channels]].astype(np.float64)
    chi[~(np.abs(chi) <= MAX_CHI)] = np.nan
    for nside in NSIDES:
        every = galactic_pixel(ra[keep], dec[keep], nside)
        pixel, row, count = np.unique(every, return_inverse=True, return_counts=True)
        if count[count >= MIN_IN_PIXEL].sum() >= MIN_SHARE * len(every):
            break
    mean, n = np.full((len(pixel), len(channels)), np.nan), np.zeros((len(pixel), len(channels)), np.int64)
    for k in range(len(channels)):
        known = np.isfinite(chi[:, k])
        n[:, k] = np.bincount(row[known], minlength=len(pixel))
        enough = n[:, k] >= MIN_IN_PIXEL
        total = np.bincount(row[known], chi[known, k], len(pixel))
        mean[enough, k] = total[enough] / n[enough, k]
    some = np.isfinite(mean).any(axis=1)
    return SkyResiduals(channels, nside, pixel[some], mean[some], n[some], int(keep.sum()), cuts)


def draw_sky_residuals(channels: Channels, every: Mapping[str, SkyResiduals]) -> "drawing.Figure":
    """One Mollweide map per channel, Galactic, the centre of the Galaxy in the middle; all given side by side."""
    import astropy.units as u
    from astropy_healpix import lonlat_to_healpix

    first = next(iter(every.values()))
    n = len(first.channels)
    figure, axes = drawing.sky_grid(len(every) * n, len(every) if len(every) > 1 else None)
    longitude, latitude = drawing.sky_positions()
    reach = max(float(np.nanpercentile(np.abs(first.mean), 95)), 0.1)
    for i, (words, numbers) in enumerate(every.items()):
        pixel = np.asarray(lonlat_to_healpix(longitude * u.deg, latitude * u.deg, numbers.nside, order="nested"))
        row = np.searchsorted(numbers.pixel, pixel).clip(0, len(numbers.pixel) - 1)
        on = numbers.pixel[row] == pixel
        for k in range(n):
            of = f", {words}" if len(every) > 1 else ""
            title = f"{channel_text(numbers.channels[k], channels)}{of} ({numbers.n[:, k].sum():,} stars)"
            image = np.where(on, numbers.mean[row, k], np.nan)
            axis = axes[k * len(every) + i]
            mesh = drawing.sky_panel(axis, image, title, cmap=drawing.SIGNED_COLOURS, vmin=-reach, vmax=reach)
    figure.colorbar(mesh, ax=axes, label="mean Δf / σ", pad=0.01, extend="both")
    return figure


def _sky(run: Run, sample: FluxSample) -> Product:
    assert run.model is not None
    numbers = sky_residuals(sample)
    cuts = in_words(numbers.cuts)
    if not len(numbers.pixel):
        raise NotDrawnError(
            f"{numbers.n_stars} of {len(sample)} stars pass the cuts ({cuts}): no pixel has {MIN_IN_PIXEL} of them"
        )
    about = {
        "pixel": f"HEALPix, nested, Galactic, nside {numbers.nside}", "channel": "", "mean": "(f_pred - f_obs) / sigma",
        "n": "stars",
    }  # fmt: skip
    absent = [c for c in SKY_CHANNELS if c not in numbers.channels]
    gone = f" The model has no {', '.join(absent)}." if absent else ""
    return Product(
        draw_sky_residuals(run.model.channels, {"all": numbers}),
        f"Mean normalised flux residuals over the sky in {len(numbers.channels)} channels",
        f"Mean (f_pred − f_obs) / σ_obs in pixels of nside {numbers.nside} with at least {MIN_IN_PIXEL} stars, Galactic. "
        f"{numbers.n_stars:,} of {len(sample):,} solved stars whose fluxes were read; removed: {cuts}; in each "
        f"panel also |Δf/σ| > {MAX_CHI:g}. σ_obs is the observation's own error.{gone}",
        {"": table_of(numbers.rows(), about)},
    )


SKY_RESIDUALS = Analysis("sky_residuals", "Fig. 22", "Flux residuals over the sky", partial(_start, _sky), NEEDS)


def _start_curve(run: Run) -> Task:
    require_variation(run)
    return _start(_sky_of_curves, run)


def _sky_of_curves(run: Run, sample: FluxSample) -> Product:
    assert run.model is not None and sample.chi_of_mean_curve is not None
    after = sky_residuals(sample, CURVE_CHANNELS, MIN_EXTINCTION)
    before = sky_residuals(replace(sample, chi=sample.chi_of_mean_curve), CURVE_CHANNELS, MIN_EXTINCTION)
    if not len(after.pixel) or not after.channels:
        raise NotDrawnError(
            f"{after.n_stars} of {len(sample)} stars pass the cuts ({in_words(after.cuts)}): no pixel has {MIN_IN_PIXEL} of "
            f"them in {', '.join(CURVE_CHANNELS)}"
        )
    each = {"mean curve": before, "own curve": after}
    rows = [(name, pixel, of.nside, *cell) for name, of in each.items() for pixel, *cell, _ in of.rows()]
    about = {
        "curve": "of the prediction", "pixel": "HEALPix, nested, Galactic", "nside": "its resolution", "channel": "",
        "mean": "(f_pred - f_obs) / sigma",
    }  # fmt: skip
    spread = {name: np.nanstd(of.mean, axis=0) for name, of in each.items()}
    words = ", ".join(
        f"{channel} {spread['mean curve'][k]:.2f} → {spread['own curve'][k]:.2f}"
        for k, channel in enumerate(after.channels)
    )
    return Product(
        draw_sky_residuals(run.model.channels, each),
        f"Mean flux residuals over the sky in {len(after.channels)} bands, behind dust of the mean and of its own curve",
        f"Mean (f_pred − f_obs) / σ_obs as in Fig. 22, for {after.n_stars:,} stars with E ≥ {MIN_EXTINCTION:g} in pixels of "
        f"nside {after.nside}: left with the mean extinction curve (ξ = 0) and all else as inferred, right with each star's "
        f"own. Standard deviation over the pixels, left → right: {words}. Removed: {in_words(after.cuts)}.",
        {"": table_of(rows, about)},
    )


SKY_RESIDUALS_CURVE = Analysis(
    "sky_residuals_curve", "", "Flux residuals over the sky, with the mean and with their own extinction curve",
    _start_curve, NEEDS,
)  # fmt: skip
