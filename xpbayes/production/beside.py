"""Files beside a model's own arrays, each made later than these or apart from them: their checksum stays as it was.

Confidence classifiers, a second stage and a transfer to another data release's stars have an entry of the model's card,
which repeats their file's checksum; the posterior of the model itself names the model that it is of.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from xpbayes.channels import XP_GRID_NM, Channels
from xpbayes.errors import InputError
from xpbayes.files import file_checksum, load_arrays, save_arrays
from xpbayes.instrument.instrument import InstrumentId
from xpbayes.instrument.transfer import TERMS, Transfer
from xpbayes.models.reliability import ConfidenceNets
from xpbayes.models.reliability import feature_names as confidence_features
from xpbayes.production.arrays import Arrays, check_fields, check_layers, load_described, pack, shapes_of, unpack
from xpbayes.production.bundled import model_folder
from xpbayes.refinement.adjusting import Adjustments
from xpbayes.refinement.features import feature_names
from xpbayes.refinement.networks import RefinementNets, n_outputs
from xpbayes.refinement.refined import SecondStage
from xpbayes.refinement.support import FeatureSupport
from xpbayes.training.network_uncertainty import NetworkCovariance

CONFIDENCE, TRANSFER = "confidence.safetensors", "transfer.safetensors"
SECOND_STAGE, WEIGHT_FACTOR = "second_stage.safetensors", "weight_factor.safetensors"
AGAIN = "train or copy the model again"


@dataclass(frozen=True)
class Entry:
    """What the card must say of a file."""

    arrays_checksum: str


def _save(arrays: Arrays, path: Path) -> dict[str, Any]:
    return asdict(Entry(file_checksum(save_arrays(path, arrays))))


# --------------------------------------------------------------------------------------------- confidence classifiers


@dataclass(frozen=True)
class ConfidenceEntry(Entry):
    """What the card says of the classifiers."""

    targets: tuple[str, ...]
    features: tuple[str, ...]
    features_present: dict[str, Any] | None = None


def save_confidence(nets: ConfidenceNets, folder: Path) -> dict[str, Any]:
    """Write the arrays and return what the card says of them."""
    return _save(pack(nets), folder / CONFIDENCE)


def load_confidence(
    folder: Path, about: ConfidenceEntry, labels: tuple[str, ...], channels: Channels
) -> ConfidenceNets:
    """Read the classifiers that the card describes; InputError where they take other features than xpbayes computes."""
    path, features = folder / CONFIDENCE, confidence_features(labels, channels.names)
    again = "run 'xpbayes confidence' or copy the model again"
    if about.features != features:
        raise InputError(
            f"{path}: was trained on {len(about.features)} features, this xpbayes computes {len(features)} others; "
            f"{again}"
        )

    def check(raw: Arrays) -> None:
        n, n_features = len(about.targets), len(features)
        check_layers(raw, (n, 2 * n_features), (n, 1))
        check_fields(raw, shapes_of(ConfidenceNets), {"feature": n_features})

    arrays = load_described(path, about.arrays_checksum, check, again)
    return unpack(ConfidenceNets, arrays, targets=about.targets, features=features)


# ------------------------------------------------------------------------------------------------------- second stage


CASES = ("flux_only", "with_parallax")


def save_second_stage(second: SecondStage, folder: Path) -> dict[str, Any]:
    """Write the arrays and return what the card says of them."""
    arrays = pack(second.nets) | pack(second.support, "support.")
    for case in CASES:
        if (adjustments := getattr(second, case)) is not None:
            arrays |= pack(adjustments, f"{case}.")
    return _save(arrays, folder / SECOND_STAGE)


def load_second_stage(folder: Path, about: Entry, labels: tuple[str, ...], channels: Channels) -> SecondStage:
    """Read the second stage that the card describes."""

    def check(raw: Arrays) -> None:
        n_labels, n_features = len(labels), len(feature_names(labels, channels.names, channels.n_xp))
        sizes = {"label": n_labels, "channel": len(channels), "feature": n_features, "place": n_labels + 2}
        first = raw.get("weights.0")
        members = len(first) if first is not None and first.ndim else 0
        check_layers(raw, (members, n_features), (members, n_outputs(n_labels)))
        check_fields(raw, shapes_of(RefinementNets), sizes)
        check_fields(raw, shapes_of(FeatureSupport, "support."), sizes)
        for case in _cases_in(raw):
            check_fields(raw, shapes_of(Adjustments, f"{case}."), sizes)

    arrays = load_described(folder / SECOND_STAGE, about.arrays_checksum, check, AGAIN)
    return SecondStage(
        unpack(RefinementNets, arrays),
        unpack(FeatureSupport, arrays, "support."),
        channels.n_xp,
        **{case: unpack(Adjustments, arrays, f"{case}.") for case in _cases_in(arrays)},
    )


def _cases_in(arrays: Arrays) -> list[str]:
    return [case for case in CASES if f"{case}.weight" in arrays]


# ----------------------------------------------------------------------------------------------------------- transfer


N = len(TERMS) * XP_GRID_NM.size
SHAPES = {"center": (2,), "scale": (2,), "reach": (2, 2), "ratio": (len(TERMS), XP_GRID_NM.size), "covariance": (N, N)}


@dataclass(frozen=True)
class TransferEntry(Entry):
    """What the card says of a transfer: between which instruments it leads, and what it was learned from."""

    source: InstrumentId
    target: InstrumentId
    noise: float
    n_pairs: int
    n_outliers: int


def save_transfer(transfer: Transfer, folder: Path) -> dict[str, Any]:
    """Write the arrays and return the card's entry."""
    arrays = {name: np.ascontiguousarray(getattr(transfer, name)) for name in SHAPES}
    rest = {f.name: getattr(transfer, f.name) for f in fields(Transfer) if f.name not in SHAPES}
    return asdict(TransferEntry(**_save(arrays, folder / TRANSFER), **rest))


def load_transfer(folder: Path, about: TransferEntry, *_: Any) -> Transfer:
    """Read the transfer that the card describes."""

    def check(raw: Arrays) -> None:
        for name, shape in SHAPES.items():
            if name not in raw or raw[name].shape != shape or not np.isfinite(raw[name]).all():
                raise ValueError(f"{name} is missing, not of the shape {shape}, or not finite")

    again = "run 'xpbayes transfer' or copy the model again"
    arrays = load_described(folder / TRANSFER, about.arrays_checksum, check, again)
    rest = {f.name: getattr(about, f.name) for f in fields(Transfer) if f.name not in SHAPES}
    own: dict[str, Any] = {name: np.asarray(arrays[name], np.float64) for name in SHAPES}
    return Transfer(**own, **rest)


DESCRIBED: dict[str, tuple[str, Callable[[Any, Path], dict[str, Any]], Callable[..., Any]]] = {
    "confidence": (CONFIDENCE, save_confidence, load_confidence),
    "transfer": (TRANSFER, save_transfer, load_transfer),
    "second_stage": (SECOND_STAGE, save_second_stage, load_second_stage),
}
"""By name in the card and in `TrainedModel`: the file, what writes it and returns the card's entry, and what reads it of a
folder, that entry and the model's labels and channels."""


# -------------------------------------------------------------------------------------------- the model's own posterior


def save_weight_factor(factor: NetworkCovariance, folder: str | os.PathLike[str], model_checksum: str) -> Path:
    """Write a factor into the folder of its model, whose card has `model_checksum` as `arrays_checksum`."""
    path = Path(folder) / WEIGHT_FACTOR
    about = {"model": model_checksum, "captured": repr(factor.captured), "n_stars": str(factor.n_stars)}
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written (there is no model's folder); choose another folder")
    columns = np.ascontiguousarray(factor.columns, np.float32)
    return save_arrays(path, {"columns": columns}, about, "choose another folder")


def load_weight_factor(folder: str | os.PathLike[str], model_checksum: str) -> NetworkCovariance:
    """Read the factor of a model; InputError if there is none, it is damaged, or it belongs to another model."""
    path = model_folder(folder) / WEIGHT_FACTOR
    again = f"run 'xpbayes uncertainty {folder} STARS' with the star table that it was trained on"
    if not path.is_file():
        raise InputError(f"{path}: is missing; {again}")
    try:
        arrays, about = load_arrays(path)
        columns = arrays["columns"]
        belongs_to, captured, n_stars = about["model"], float(about["captured"]), int(about["n_stars"])
        if columns.ndim != 2 or columns.dtype != np.float32 or not np.isfinite(columns).all():
            raise ValueError("its columns are not finite float32 numbers")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); {again}") from error
    if belongs_to != model_checksum:
        raise InputError(f"{path}: belongs to another model; {again}")
    return NetworkCovariance(columns, captured, n_stars)
