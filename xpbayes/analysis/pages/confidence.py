"""What `xpbayes confidence` needs and shows: held-out stars to learn from, then how well the confidences work.

Refuses any star that the model was trained on.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.analysis.figures.confidence import ConfidenceCheck, eps, reliability_figure, residual_figure
from xpbayes.analysis.pages.numbers import heading, number, share, text
from xpbayes.analysis.pages.page import Table, save_figures, wide_console
from xpbayes.analysis.validation import BASIC, Comparison, compare
from xpbayes.config import TrainingConfig
from xpbayes.data.spectra import Spectra
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split
from xpbayes.models.reliability import TARGETS
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.reliability import table_features
from xpbayes.production.table import list_column
from xpbayes.training.reliability import Estimates

NUMBERS = "confidence.json"


@dataclass(frozen=True)
class HeldOutFits:
    """Fits that confidences may be learnt from, of (star,) held-out stars."""

    comparison: Comparison  # held out by the model's own split and passing the basic cut
    features: NDArray[np.float32]  # (star, feature)
    targets: tuple[str, ...]  # labels that get a classifier
    chi2_eps: NDArray[np.float64]  # (star, target) of Eq. 27
    n_failed_basic_cut: int  # held-out stars with labels that do not pass it


def held_out_fits(
    model: TrainedModel, catalogue: pa.Table, about: dict[str, Any], stars: Spectra, where: str
) -> HeldOutFits:
    """Collect what confidences are learnt from: a catalogue of that name, and the star table with labels behind it.

    Raises:
        InputError: the catalogue is another model's, a star is on the training side of the model's split, or none is
            left.
    """
    targets = tuple(name for name in TARGETS if name in model.labels)
    if not targets:
        raise InputError(f"the model has none of the labels {', '.join(TARGETS)}; confidences exist for these only")
    mine, theirs = model.card.get("arrays_checksum"), about["model"].get("arrays_checksum")
    if mine != theirs:
        raise InputError(f"{where}: was inferred with another model ({theirs}, this one is {mine}); infer it again")
    floor = TrainingConfig.model_validate(model.card["settings"]).floor_for(len(model.labels))
    comparison = compare(catalogue, stars, model.labels, floor, "mode")
    seen = ~Split.of(model.card).on(Side.HELD_OUT, comparison.source_id)
    if seen.any():
        raise InputError(
            f"{where}: {seen.sum()} of {len(seen)} stars with labels were not held out from training the model "
            f"(first: source_id {comparison.source_id[seen][0]}); infer held-out stars alone, with --only held-out"
        )
    row = np.flatnonzero(np.isin(catalogue["source_id"].to_numpy(), comparison.source_id))
    basic = catalogue["quality_flags"].to_numpy()[row] < BASIC
    basic &= catalogue["converged"].to_numpy(zero_copy_only=False)[row]
    if not basic.any():
        raise InputError(
            f"{where}: none of its {len(basic)} stars with labels passes the basic cut (quality_flags < {BASIC})"
        )
    comparison, row = comparison.take(basic), row[basic]
    fit = Estimates(
        list_column(catalogue, "stellar_params_est")[row],
        own_errors(catalogue)[row],
        catalogue["chi2_opt"].to_numpy()[row],
        catalogue["ln_prior"].to_numpy()[row],
        catalogue["xi"].to_numpy()[row] if "xi" in catalogue.column_names else None,
    )
    features = table_features(model, stars.take(comparison.row), fit)
    return HeldOutFits(comparison, features, targets, eps(comparison, targets), int((~basic).sum()))


def own_errors(catalogue: pa.Table) -> NDArray[np.float64]:
    """(star, parameter) Fisher errors without what a catalogue may have added for the uncertainty of the model.

    Confidences are learnt and applied with these, whether errors were widened or not.
    """
    error = list_column(catalogue, "stellar_params_err")
    if "stellar_params_model_err" not in catalogue.column_names:
        return error
    added = np.nan_to_num(list_column(catalogue, "stellar_params_model_err"))
    return np.sqrt(np.maximum(error**2 - added**2, 0.0))


def print_check(check: ConfidenceCheck) -> None:
    """Print good and bad residuals, and the calibration error, of every label."""
    rows = [
        (
            heading(side.label), side.side, f"{side.n:,}", number(side.label, side.scatter),
            number(side.label, side.bias), number(side.label, side.rms), share(side.share_bad),
        )
        for side in check.sides
    ]  # fmt: skip
    headings = ("label", "stars", "n", "scatter", "median", "rms", "chi2_eps > 9")
    caption = "held-out stars; good: confidence at least 0.5; bad: below; scatter is robust"
    console = wide_console()
    Table(headings, rows, 2, caption).print(console)
    for curve in check.reliability:
        console.print(
            f"{text(curve.label)}: expected calibration error {curve.calibration_error:.4f} "
            f"(a perfect classifier: {curve.by_chance:.4f}, 95 % below {curve.by_chance_95:.4f})"
        )


def write_check(check: ConfidenceCheck, folder: Path) -> list[Path]:
    """Write confidence.json and the figures: residuals in K and dex, residuals in sigma, reliability.

    Raises:
        InputError: the folder cannot be written.
    """
    drawn = (
        ("confidence_residuals.png", residual_figure(check)),
        ("confidence_residuals_normalised.png", residual_figure(check, normalised=True)),
        ("confidence_reliability.png", reliability_figure(check)),
    )
    return save_figures(folder, {NUMBERS: json.dumps(check.numbers(), indent=1) + "\n"}, drawn)
