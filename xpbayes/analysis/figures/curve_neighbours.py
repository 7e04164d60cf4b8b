"""Is xi the dust's? Stars that are close on the sky are behind the same dust: xi of neighbours against their separation.

The control is the same pairs with xi shuffled among the stars. And is there more than one direction? What is left of the
residuals over E beyond xi, in its principal components, each with the same test: only what neighbours share is dust.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.extinction_curve import channel_weights
from xpbayes.analysis.figures.flux_residuals import SampledRows, flux_residuals, fluxes_of
from xpbayes.analysis.run_inputs import Rows, Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, Task, require_variation, table_of
from xpbayes.data.directions import unit_vectors

MIN_EXTINCTION = 0.6
"""Of the stars compared [mag]."""
SEPARATIONS = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Edges of the bins; the first holds all that are closer, too [deg]."""
NEAR = 0.3
"""Components are compared within this [deg]."""
MIN_PAIRS, MAX_PAIRS = 20, 2_000_000
N_SHUFFLES = 20
N_COMPONENTS = 5
MIN_STARS = 100
KEPT = 0.95
"""Share of stars that principal components are of: those with the smallest residuals."""


@dataclass(frozen=True)
class Neighbours:
    """Correlation of a quantity between stars in bins of separation [deg]."""

    low: NDArray[np.float64]  # (bin,), as all
    high: NDArray[np.float64]
    n: NDArray[np.int64]  # pairs
    correlation: NDArray[np.float64]  # Pearson's; NaN with too few pairs
    shuffled: NDArray[np.float64]  # mean of the same for shuffled values
    shuffled_std: NDArray[np.float64]  # standard deviation of these


def neighbours(
    ra: NDArray[np.floating],
    dec: NDArray[np.floating],
    value: NDArray[np.floating],
    edges: Sequence[float] = SEPARATIONS,
) -> Neighbours:
    """Correlate a (star,) quantity of neighbours in bins of separation [deg], and the same shuffled."""
    rng = np.random.default_rng(0)
    at, bounds = unit_vectors(ra, dec), np.append(0.0, edges)
    found: list[tuple[Any, ...]] = []
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        pairs = _pairs(at, float(low), float(high), rng)
        if len(pairs) < MIN_PAIRS:
            found.append((low, high, len(pairs), np.nan, np.nan, np.nan))
            continue
        controls = [_pearson(rng.permutation(value), pairs) for _ in range(N_SHUFFLES)]
        found.append((low, high, len(pairs), _pearson(value, pairs), np.mean(controls), np.std(controls)))
    low, high, n, correlation, shuffled, std = (np.array(c, np.float64) for c in zip(*found, strict=True))
    return Neighbours(low, high, n.astype(np.int64), correlation, shuffled, std)


def _pairs(at: NDArray[np.float64], low: float, high: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """(pair, 2) stars so far apart; of a random part of the stars where there are too many."""
    reach = 2.0 * np.sin(np.radians(high) / 2.0)
    tree = cKDTree(at)
    n = (int(tree.count_neighbors(tree, reach)) - len(at)) // 2
    some = np.arange(len(at))
    if n > MAX_PAIRS:
        some = rng.permutation(len(at))[: int(len(at) * np.sqrt(MAX_PAIRS / n))]
        tree = cKDTree(at[some])
    pairs = some[tree.query_pairs(reach, output_type="ndarray")].reshape(-1, 2)
    apart = np.linalg.norm(at[pairs[:, 0]] - at[pairs[:, 1]], axis=1)
    chosen: NDArray[np.int64] = pairs[apart > 2.0 * np.sin(np.radians(low) / 2.0)] if low else pairs
    return chosen


def _pearson(value: NDArray[np.floating], pairs: NDArray[np.int64]) -> float:
    both = np.concatenate([pairs, pairs[:, ::-1]])  # neither star of a pair is the first
    return float(np.corrcoef(value[both].T)[0, 1])


@dataclass(frozen=True)
class Components:
    """Principal components of residuals over E in the metric of the model's error, grey and R taken out."""

    share: NDArray[np.float64]  # (component,) of the variance
    cosine: NDArray[np.float64]  # (component,) of each with R1; NaN where that is taken out
    correlation: NDArray[np.float64]  # (component,) of their amounts in stars within `NEAR`; NaN with too few pairs
    shuffled: NDArray[np.float64]  # (component,) as in `Neighbours`
    shuffled_std: NDArray[np.float64]


def components(
    residual: NDArray[np.floating],
    taken_out: NDArray[np.floating],
    variation: NDArray[np.floating],
    weight: NDArray[np.floating],
    ra: NDArray[np.floating],
    dec: NDArray[np.floating],
) -> Components:
    """Find principal components of residuals, and whether neighbours share them.

    Residuals are (star, channel) -ln(observed / predicted) / E; NaN where not observed, which counts as no residual.
    `taken_out` (channel, direction) is what they may not contain: grey, R. R1 and weight, 1 / variance, are (channel,).
    """
    root = np.sqrt(weight)
    z = np.nan_to_num(np.asarray(residual, np.float64)) * root
    basis, _ = np.linalg.qr(taken_out * root[:, None])
    z -= (z @ basis) @ basis.T
    size = np.linalg.norm(z, axis=1)
    kept = size <= np.quantile(size, KEPT)
    z = z[kept] - z[kept].mean(axis=0)
    _, singular, directions = np.linalg.svd(z, full_matrices=False)
    r1 = variation * root
    left = r1 - basis @ (basis.T @ r1)
    length = np.linalg.norm(left) if np.linalg.norm(left) > 1e-6 * np.linalg.norm(r1) else np.nan
    found = [neighbours(ra[kept], dec[kept], z @ d, (NEAR,)) for d in directions[:N_COMPONENTS]]
    return Components(
        (singular**2 / np.sum(singular**2))[:N_COMPONENTS],
        np.abs(directions[:N_COMPONENTS] @ left) / length,
        np.array([f.correlation[0] for f in found]),
        np.array([f.shuffled[0] for f in found]),
        np.array([f.shuffled_std[0] for f in found]),
    )


class DustyStars(SampledRows):
    """Keeps what the catalogue says of stars behind much dust, of those whose fluxes are looked at."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, ("source_id", "ra", "dec", "stellar_params_est", "xi", "xi_err", "converged"))

    def chosen(self, rows: Rows) -> NDArray[np.bool_]:
        """(row,) which are kept."""
        dusty = rows["converged"].astype(bool) & (rows["stellar_params_est"][:, -2] > MIN_EXTINCTION)
        known = np.isfinite(rows["xi"]) & np.isfinite(rows["ra"]) & np.isfinite(rows["dec"])
        return super().chosen(rows) & dusty & known

    def result(self) -> dict[str, NDArray[Any]]:
        """The stars' columns; NotDrawnError if there are too few."""
        columns = self.columns()
        n = len(columns["xi"])
        if n < MIN_STARS:
            raise NotDrawnError(f"{n} stars of the catalogue have E > {MIN_EXTINCTION:g}; {MIN_STARS} are needed")
        return columns


def residuals_over_extinction(run: Run, found: dict[str, NDArray[Any]], *, own_curve: bool) -> NDArray[np.float64]:
    """(star, channel) -(f_obs / f_pred - 1) / E of what `DustyStars` found, with the mean curve or each star's xi."""
    model, stars = run.model, run.stars
    assert model is not None and stars is not None
    estimate = found["stellar_params_est"].astype(np.float64)
    at = np.insert(estimate, estimate.shape[1] - 2, found["xi"] if own_curve else 0.0, axis=1)
    out = np.full((len(estimate), len(model.channels)), np.nan)
    for some, row in fluxes_of(stars, found["source_id"]):
        difference = flux_residuals(model, some, at[row], model.channels.names) * some.flux_error()
        out[row] = difference / (some.flux + difference) / estimate[row, -2:-1]
    return out


def draw_neighbours(found: Neighbours, parts: dict[str, Components]) -> "drawing.Figure":
    """Correlation against separation; shares of the variance and correlations of components."""
    figure, ((left, middle, right),) = drawing.panels(3, 1, 11.0, 3.4, width_ratios=(1.5, 1.0, 1.0))
    at = np.sqrt(np.maximum(found.low, 0.5 * found.high) * found.high)
    left.axhline(0.0, color=drawing.GREY, lw=0.6)
    left.errorbar(at, found.shuffled, found.shuffled_std, fmt="s", ms=3, color=drawing.GREY, label="shuffled")
    left.plot(at, found.correlation, "o-", ms=4, color=drawing.BLUE, label="neighbours")
    left.set(
        xscale="log", xlabel="separation [°]", ylabel="correlation of ξ", ylim=(-0.3, 1.0), title="ξ of neighbours"
    )
    drawing.legend(left)
    for i, (words, of) in enumerate(parts.items()):
        number = np.arange(1, len(of.share) + 1)
        colour = (drawing.BLUE, drawing.ORANGE)[i]
        middle.plot(number, of.share, "o-", ms=4, color=colour, label=words)
        right.errorbar(number, of.shuffled, of.shuffled_std, fmt="s", ms=3, color=drawing.GREY)
        right.plot(number, of.correlation, "o-", ms=4, color=colour, label=words)
    right.axhline(0.0, color=drawing.GREY, lw=0.6)
    middle.set(xlabel="component", ylabel="share of the variance", ylim=(0.0, None), title="residuals / E")
    right.set(xlabel="component", ylabel=f"correlation within {NEAR:g}°", ylim=(-0.3, 1.0), title="their neighbours")
    drawing.legend(middle)
    return figure


def _start(run: Run) -> Task:
    require_variation(run)
    gatherer = DustyStars(run)
    return Task((gatherer,), lambda: _product(run, gatherer.result()))


def _product(run: Run, stars: dict[str, NDArray[Any]]) -> Product:
    assert run.model is not None and run.model.forward.curve_variation is not None
    forward = run.model.forward
    ra, dec = stars["ra"], stars["dec"]
    found = neighbours(ra, dec, stars["xi"].astype(np.float64))
    if not np.isfinite(found.correlation).any():
        raise NotDrawnError(f"of {len(ra)} stars with E > {MIN_EXTINCTION:g} too few are neighbours on the sky")
    curve, variation = np.exp(np.asarray(forward.ln_curve, np.float64)), np.asarray(forward.curve_variation, np.float64)
    weight = channel_weights(run.model.model_error, len(curve))
    mimics = np.stack([np.ones_like(curve), curve], axis=1)
    parts = {
        words: components(
            residuals_over_extinction(run, stars, own_curve=own),
            np.column_stack([mimics, variation]) if own else mimics, variation, weight, ra, dec,
        )
        for words, own in (("mean curve", False), ("beyond ξ", True))
    }  # fmt: skip
    first, beyond = parts.values()
    of_components = [
        (words, k + 1, *cell)
        for words, of in parts.items()
        for k, cell in enumerate(zip(of.share, of.cosine, of.correlation, of.shuffled, of.shuffled_std, strict=True))
    ]
    about = {
        "prediction": "of the fluxes", "component": "number", "share": "of the variance", "cosine": "with R1",
        "correlation": f"within {NEAR:g} deg", "shuffled": "mean of the same shuffled",
        "shuffled_std": "standard deviation of these",
    }  # fmt: skip
    return Product(
        draw_neighbours(found, parts),
        "Correlation of xi of neighbouring stars against their separation, and components of the residuals beyond xi",
        f"{len(ra):,} converged stars with E > {MIN_EXTINCTION:g}, error of ξ {np.median(stars['xi_err']):.2f}. Left: "
        f"Pearson's correlation of ξ between stars so far apart; grey, the same pairs with ξ shuffled ({N_SHUFFLES} times; "
        f"bars: standard deviation). Middle: principal components of (f_pred − f_obs) / f_pred / E in the metric of the "
        f"model's error, grey and R taken out, predicted with the mean curve (cosine of the first with R₁ "
        f"{first.cosine[0]:.2f}) and with each star's ξ, R₁ taken out, too. Right: correlation of their amounts in stars "
        f"within {NEAR:g}°. A second direction of dust would be shared by neighbours as ξ is: the first component beyond ξ "
        f"has {beyond.share[0]:.0%} of what is left and a correlation of {beyond.correlation[0]:.2f} "
        f"(shuffled {beyond.shuffled[0]:.2f} ± {beyond.shuffled_std[0]:.2f}).",
        {
            "": {
                "low": Series(found.low, "deg", "separation from"),
                "high": Series(found.high, "deg", "to"),
                "n": Series(found.n, "", "pairs"),
                "correlation": Series(found.correlation, "", "Pearson's, of xi"),
                "shuffled": Series(found.shuffled, "", "mean of the same with xi shuffled"),
                "shuffled_std": Series(found.shuffled_std, "", "standard deviation of these"),
            },
            "components": table_of(of_components, about),
        },
    )  # fmt: skip


CURVE_NEIGHBOURS = Analysis(
    "curve_neighbours", "", "The extinction curve of neighbouring stars", _start, ("model", "catalogue", "stars")
)
