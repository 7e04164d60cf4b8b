"""Confidences of catalogue rows: features from star tables and fits, the three columns, flag bits 0 to 2.

The same function makes the features when classifiers are trained and when they are applied.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.models.reliability import feature_names
from xpbayes.production.model_file import TrainedModel
from xpbayes.schema import QualityFlag
from xpbayes.training.reliability import SURVEY_COLUMNS, Estimates, confidences, star_features

MIN_CONFIDENCE = 0.5
"""A lower confidence sets the label's flag bit (ZGR23 Table 2)."""
LARGEST_SHIFT = 0.5
"""A feature whose share of stars differs by more from that of the training sample is worth a word."""
TABLE_CHUNK = 8192
"""Stars whose whitening factors are unpacked together: 130 MB."""
CONFIDENCE_FLAGS = {
    "teff": QualityFlag.UNCERTAIN_TEFF,
    "feh": QualityFlag.UNCERTAIN_FEH,
    "logg": QualityFlag.UNCERTAIN_LOGG,
}


def table_features(model: TrainedModel, stars: Spectra, fit: Estimates) -> NDArray[np.float32]:
    """(star, feature) features of stars and their fits, row for row; see `training.reliability.star_features`."""
    n_features = len(feature_names(model.labels, model.channels.names))
    parts = [np.zeros((0, n_features), np.float32)]
    for start in range(0, len(stars), TABLE_CHUNK):
        rows = slice(start, start + TABLE_CHUNK)
        part = stars.take(rows)
        survey = {name: part.column(name) for name in SURVEY_COLUMNS}
        xi = None if fit.xi is None else fit.xi[rows]
        some = Estimates(fit.estimate[rows], fit.error[rows], fit.chi2[rows], fit.ln_prior[rows], xi)
        at = part.stars(model.labels)
        parts.append(star_features(model.star_model, at, some, survey, own_level=model.has_levels))
    return np.concatenate(parts)


def confidence_columns(model: TrainedModel, stars: Spectra, rows: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Compute the confidences of the rows that `table.catalogue_rows` made of these stars, and flag bits 0 to 2.

    Returns:
        the columns to replace, NaN where a star has no fit; and in words, which features are there for another share of
        stars than in training.
    """
    nets = model.confidence
    if nets is None:
        raise InputError("the model has no confidence classifiers; train them with 'xpbayes confidence'")
    solved = np.flatnonzero(rows["status"] == OK)
    names = ("stellar_params_est", "stellar_params_err", "chi2_opt", "ln_prior", *(("xi",) if "xi" in rows else ()))
    fit = Estimates(*(rows[name][solved] for name in names))
    features = table_features(model, stars.take(solved), fit)
    value = confidences(nets, features)
    uncertain = np.zeros(len(stars), np.uint8)
    columns: dict[str, Any] = {}
    for i, name in enumerate(nets.targets):
        column = np.full(len(stars), np.nan, np.float32)
        column[solved] = value[:, i]
        columns[f"{name}_confidence"] = column
        with np.errstate(invalid="ignore"):
            uncertain[column < MIN_CONFIDENCE] |= np.uint8(CONFIDENCE_FLAGS[name])
    notes = shifted_features(model.card["confidence"]["features_present"], nets.features, features)
    return columns | {name: rows[name] | uncertain for name in ("quality_flags", "zgr23_flags")}, notes


def shifted_features(
    in_training: dict[str, float], names: tuple[str, ...], features: NDArray[np.floating]
) -> list[str]:
    """Say which features are far more often, or more rarely, there than among the stars that trained the classifiers."""
    if not len(features):
        return []
    here = np.isfinite(features).mean(axis=0)
    shifted = [
        f"{name} ({in_training[name]:.0%} of the stars then, {share:.0%} now)"
        for name, share in zip(names, here, strict=True)
        if abs(share - in_training[name]) > LARGEST_SHIFT
    ]
    if not shifted:
        return []
    return [
        f"confidences are less certain: {len(shifted)} features are not there as they were in training "
        f"(first: {shifted[0]})"
    ]
