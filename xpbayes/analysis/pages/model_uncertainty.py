"""What `xpbayes uncertainty` shows: the error that the model's own uncertainty adds, beside each star's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.pages.numbers import MISSING
from xpbayes.analysis.pages.page import Table, wide_console
from xpbayes.training.network_uncertainty import NetworkCovariance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOT = 6.5
"""[kK] Stars above are a kind of their own."""
GIANT = 3.9
"""[dex] log g of the largest dwarfs."""
METAL_POOR = -1.0


@dataclass(frozen=True)
class ModelUncertainty:
    """How well training has determined a model, and what that adds to the errors of stars like its own.

    Attributes:
        labels: names of the model's labels.
        factor: of the covariance of everything that was trained.
        estimate: (star, parameter) optima of stars, without their labels [kK, dex, ..., mag, mas].
        covariance: (star, parameter, parameter) of these, by Laplace.
        added: (star, parameter, parameter) what the model's uncertainty adds.
        n_training: stars that the model was trained on.
    """

    labels: tuple[str, ...]
    factor: NetworkCovariance
    estimate: NDArray[np.float64]
    covariance: NDArray[np.float64]
    added: NDArray[np.float64]
    n_training: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return (*self.labels, "extinction", "parallax")

    def ratio(self) -> NDArray[np.float64]:
        """(star, parameter) added error over the star's own, NaN where that is not known."""
        own = np.diagonal(self.covariance, axis1=1, axis2=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(np.diagonal(self.added, axis1=1, axis2=2) / np.where(own > 0, own, np.nan))


def kinds(estimate: NDArray[np.float64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Regions of label space, name and (star,) members, of (star, parameter) Teff [kK], [Fe/H], log g [dex] first."""
    teff, feh, logg = estimate[:, 0], estimate[:, 1], estimate[:, 2]
    cool, giant = teff < HOT, logg < GIANT
    return [
        ("all", np.ones(len(estimate), bool)),
        ("giants", cool & giant & (teff >= 4.0)),
        ("giants below 4000 K", giant & (teff < 4.0)),
        ("dwarfs", cool & ~giant & (teff >= 4.5)),
        ("dwarfs below 4500 K", ~giant & (teff < 4.5)),
        ("above 6500 K", ~cool),
        ("[Fe/H] below -1", feh < METAL_POOR),
    ]


def uncertainty_table(found: ModelUncertainty) -> Table:
    """One row per kind of star: how many, and per parameter the median and the 95 % quantile of added over own error."""
    ratio, rows = found.ratio(), []
    for name, member in kinds(found.estimate):
        cells = [
            " / ".join(f"{v:.3f}" for v in np.nanpercentile(ratio[member, i], [50, 95])) if member.any() else MISSING
            for i in range(ratio.shape[1])
        ]
        rows.append([name, str(int(member.sum())), *cells])
    caption = (
        "error that the model's uncertainty adds over the star's own (Laplace): median / 95 %; it is common to stars of a "
        "kind and does not average down"
    )
    return Table(("kind of star", "stars", *(drawing.text(n) for n in found.names)), rows, 1, caption)


def print_uncertainty(found: ModelUncertainty) -> None:
    """Print the table, and how much of the covariance was kept."""
    console = wide_console()
    uncertainty_table(found).print(console)
    factor = found.factor
    console.print(
        f"from {factor.n_stars} of {found.n_training} training stars; {factor.columns.shape[1]} directions carry "
        f"{factor.captured:.1%} of it"
    )


def uncertainty_figure(found: ModelUncertainty) -> "Figure":
    """Kiel diagrams, one per parameter, coloured by the ratio of added to own error."""
    names, ratio = found.names, found.ratio()
    figure, axes = drawing.panels(len(names), 1, 3.2 * len(names), 3.6)
    teff, logg = 1e3 * found.estimate[:, 0], found.estimate[:, 2]
    low, high = np.nanpercentile(np.log10(np.maximum(ratio, 1e-6)), [2, 98])
    for i, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        value = np.log10(np.maximum(ratio[:, i], 1e-6))
        order = np.argsort(value)  # the largest on top
        axis.scatter(teff[order], logg[order], c=value[order], s=8, vmin=low, vmax=high, cmap="viridis")
        median = np.nanmedian(ratio[:, i])
        axis.set(title=f"{drawing.text(name)}: median {median:.3f}", xlabel="Teff [K]")
        axis.invert_xaxis()
        axis.invert_yaxis()
    axes[0, 0].set_ylabel("log g [dex]")
    figure.colorbar(axes[0, -1].collections[0], ax=list(axes[0]), label="log10 of σ(model) / σ(star)", fraction=0.02)
    return figure


def write_figure(found: ModelUncertainty, path: Path) -> Path:
    """Write the figure; the folder is made if need be."""
    return drawing.save_figure(uncertainty_figure(found), path, dpi=120)
