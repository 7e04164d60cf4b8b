"""Median correlations between the errors of a star's parameters, from flux alone and with parallaxes (ZGR23 Fig. 6).

The Fisher matrix of the catalogue holds 1/sigma_plx^2 in its last element where a parallax took part (Eq. 22); taking it
away leaves what the fluxes alone say. Correlations are counted in fine bins, so memory does not grow with the catalogue.
"""

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import histogram_percentiles
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, Product, Rows, Task, table_of
from xpbayes.analysis.validation import GIANT_LOGG

BINS = 20_000
"""Of the correlation, from -1 to 1: medians are good to 1e-4."""
SMALLEST_PIVOT = 1e-12
"""Of a Fisher matrix scaled to a unit diagonal: below, double precision says nothing about its inverse."""
IN_CACHE = 4_096
"""Stars whose matrices stay in a core's cache."""
PAPER = {
    ("logg", "parallax"): (0.987, 0.861),
    ("feh", "parallax"): (-0.497, -0.098),
    ("teff", "feh"): (0.748, 0.448),
    ("feh", "extinction"): (0.515, 0.352),
}
"""ZGR23 Fig. 6: flux only, with parallax."""


def unpacked(triangle: NDArray[np.floating], n: int) -> NDArray[np.float64]:
    """(n, n, star) symmetric matrices from (star, n (n + 1) / 2) upper triangles, row by row."""
    row, column = np.triu_indices(n)
    out = np.empty((n, n, len(triangle)))
    out[row, column] = triangle.T
    out[column, row] = triangle.T
    return out


def correlation_of_inverse(fisher: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Correlations of the covariances that are the inverses of matrices: (n, n, star), as those.

    Stars come last: every step is one operation on a row of numbers in memory, ten times as fast as LAPACK called star
    by star. Second, (star,) whether the matrices are positive definite to double precision.
    """
    n, _, n_stars = fisher.shape
    correlation, good = np.empty_like(fisher), np.empty(n_stars, bool)
    for start in range(0, n_stars, IN_CACHE):
        block = slice(start, start + IN_CACHE)
        correlation[:, :, block], good[block] = _correlation_of_block(np.ascontiguousarray(fisher[:, :, block]))
    return correlation, good


def _correlation_of_block(fisher: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The same for few stars: Cholesky factor of the scaled matrix, its inverse M, and the covariance M^T M."""
    n = len(fisher)
    diagonal = fisher[np.arange(n), np.arange(n)]
    good = np.asarray((diagonal > 0).all(axis=0) & np.isfinite(fisher).all(axis=(0, 1)))
    scale = 1.0 / np.sqrt(np.where(good, diagonal, 1.0))
    identity = np.eye(n)[:, :, None]
    scaled = np.where(good, fisher * scale[:, None] * scale[None, :], identity)
    lower, inverse = np.zeros_like(scaled), np.zeros_like(scaled)
    for j in range(n):
        pivot = scaled[j, j] - np.sum(lower[j, :j] ** 2, axis=0)
        good &= pivot > SMALLEST_PIVOT
        lower[j, j] = np.sqrt(np.where(good, pivot, 1.0))
        for i in range(j + 1, n):
            lower[i, j] = (scaled[i, j] - np.sum(lower[i, :j] * lower[j, :j], axis=0)) / lower[j, j]
    for j in range(n):
        inverse[j, j] = 1.0 / lower[j, j]
        for i in range(j + 1, n):
            inverse[i, j] = -np.sum(lower[i, j:i] * inverse[j:i, j], axis=0) / lower[i, i]
    inverse /= np.sqrt(np.sum(inverse**2, axis=0))
    correlation = np.empty_like(scaled)
    for i in range(n):
        for j in range(i + 1):
            correlation[i, j] = correlation[j, i] = np.sum(inverse[i:, i] * inverse[i:, j], axis=0)
    return correlation, good


class Correlations(Gatherer):
    """Median correlations over all solved stars of a catalogue, as in the paper.

    `n_stars` are in the medians from the fluxes alone, and where a parallax took part; of the solved stars, `n_failed`
    have a Fisher matrix that is not positive definite, or a parallax error that is not known.
    """

    reads = ("stellar_params_icov_triu", "stellar_params_est", "n_obs", "dof")

    def __init__(self, names: tuple[str, ...], uses_parallax: bool) -> None:
        self.names, self.n = names, len(names)
        self.joins = ("parallax_error",) if uses_parallax else ()
        self.pairs = list(zip(*np.triu_indices(self.n, 1), strict=True))
        self.count = np.zeros((2, len(self.pairs), BINS + 2), np.int64)
        self.n_stars, self.n_failed = [0, 0], 0
        self.n_solved = self.n_giants = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        use = rows.solved
        self.n_solved += int(use.sum())
        if "logg" in self.names:
            self.n_giants += int((rows["stellar_params_est"][use, self.names.index("logg")] < GIANT_LOGG).sum())
        fisher = unpacked(rows["stellar_params_icov_triu"][use], self.n)
        # dof = n_obs + 1 - n where a parallax took part, n_obs - n where none did.
        measured = (rows["dof"][use] - rows["n_obs"][use] + self.n) == 1
        if measured.any():
            self._count(1, fisher[:, :, measured])
            error = rows.joined["parallax_error"][use]
            known = np.isfinite(error) & (error > 0)
            self.n_failed += int((measured & ~known).sum())
            fisher[-1, -1] -= np.where(measured & known, 1.0 / np.where(known, error, 1.0) ** 2, 0.0)
            fisher = fisher[:, :, ~measured | known]
        self._count(0, fisher)

    def _count(self, which: int, fisher: NDArray[np.float64]) -> None:
        if not fisher.shape[-1]:
            return
        correlation, good = correlation_of_inverse(fisher)
        self.n_stars[which] += int(good.sum())
        self.n_failed += int((~good).sum())
        for k, (i, j) in enumerate(self.pairs):
            cell = np.clip(((correlation[i, j, good] + 1.0) * (BINS / 2)).astype(np.int64), 0, BINS - 1) + 1
            self.count[which, k] += np.bincount(cell, minlength=BINS + 2)

    def medians(self, with_parallax: bool) -> NDArray[np.float64]:
        """(parameter, parameter) from the fluxes alone, or where a parallax took part; NaN without any star."""
        edges, matrix = np.linspace(-1.0, 1.0, BINS + 1), np.eye(self.n)
        for count, (i, j) in zip(self.count[int(with_parallax)], self.pairs, strict=True):
            matrix[i, j] = matrix[j, i] = histogram_percentiles(count, edges, (50.0,))[0]
        return matrix


def draw_correlations(numbers: Correlations) -> "drawing.Figure":
    """One triangle of medians per case, the paper's values in brackets."""
    cases = ["flux only", "with parallax"][: 2 if numbers.n_stars[1] else 1]
    n = numbers.n
    figure, axes = drawing.panels(len(cases), 1, 4.6 * len(cases) + 0.8, 4.2)
    text = [drawing.text(s) for s in numbers.names]
    for which, (axis, title) in enumerate(zip(axes[0], cases, strict=True)):
        matrix = numbers.medians(bool(which))
        shown = np.where(np.tril(np.ones((n, n)), -1) > 0, matrix, np.nan)
        mesh = axis.imshow(shown[1:, :-1], cmap=drawing.SIGNED_COLOURS, vmin=-1, vmax=1)
        for j, i in numbers.pairs:
            paper = PAPER.get((numbers.names[j], numbers.names[i]))
            colour, place = "white" if abs(matrix[i, j]) > 0.6 else drawing.INK, "bottom" if paper else "center"
            axis.text(j, i - 1, f"{matrix[i, j]:+.3f}", ha="center", va=place, color=colour, fontsize=9)
            if paper:
                axis.text(j, i - 1, f"({paper[which]:+.3f})", ha="center", va="top", color=colour, fontsize=7.5)
        axis.set_title(f"{title} ({numbers.n_stars[which]:,} stars)")
        axis.set_xticks(range(n - 1), text[:-1])
        axis.set_yticks(range(n - 1), text[1:])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    figure.colorbar(mesh, ax=axes[0].tolist(), label="median correlation", pad=0.01, shrink=0.85)
    return figure


def _start(run: Run) -> Task:
    if run.uses_parallax and not run.star_column("parallax_error"):
        raise NotDrawnError(
            "parallaxes took part and no star table with parallax_error says how large their errors were"
        )
    numbers = Correlations((*run.labels, "extinction", "parallax"), run.uses_parallax)
    return Task((numbers,), lambda: _product(numbers))


def _product(numbers: Correlations) -> Product:
    if not numbers.n_stars[0]:
        raise NotDrawnError("no solved star has a positive definite Fisher matrix")
    names, pairs = numbers.names, numbers.pairs
    parallaxes = (
        f"; right, with Gaia's parallax, {numbers.n_stars[1]:,} stars"
        if numbers.n_stars[1]
        else "; no parallax took part in this catalogue, so there is no second panel"
    )
    flux_only, with_parallax = (numbers.medians(used) for used in (False, True))
    rows = [
        (names[i], names[j], flux_only[i, j], with_parallax[i, j], *PAPER.get((names[i], names[j]), (np.nan, np.nan)))
        for i, j in pairs
    ]
    about = {
        "first": "parameter", "second": "parameter", "flux_only": "median correlation",
        "with_parallax": "median correlation", "paper_flux_only": "ZGR23 Fig. 6", "paper_with_parallax": "ZGR23 Fig. 6",
    }  # fmt: skip
    return Product(
        draw_correlations(numbers),
        f"Median correlations of {', '.join(drawing.text(s) for s in names)}",
        f"Median Pearson correlation of the errors of every pair of parameters, from the Fisher matrix: fluxes alone, "
        f"{numbers.n_stars[0]:,} stars{parallaxes}. In brackets what ZGR23 print. Solved stars without a cut; "
        f"{numbers.n_failed:,} matrices could not be used.{_sign(numbers)}",
        {"": table_of(rows, about)},
    )


def _sign(numbers: Correlations) -> str:
    """Why one correlation may differ from the paper's."""
    if not {"feh", "logg"} <= set(numbers.names):
        return ""
    return (
        " Parallax follows log g, so that the sign of its correlation with [Fe/H] is that of log g with [Fe/H]: ZGR23's "
        f"(−0.497 from fluxes alone) for dwarfs, the opposite for giants. {numbers.n_giants / numbers.n_solved:.0%} of "
        f"these stars have log g < {GIANT_LOGG:g}."
    )


CORRELATIONS = Analysis("correlations", "Fig. 6", "Correlations between parameters", _start, ("catalogue",))
