"""A trained model on disk: a folder with `model.safetensors` (arrays) and `card.json` (everything else).

The card says what the model was trained on, how, and where it can be trusted; it repeats the checksum of the arrays,
so that a half-copied model is noticed. Loading needs no NumPyro. A model with confidence classifiers has a third file,
`confidence.safetensors`: they are trained later, and the model's own arrays and their checksum stay as they were.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.channels import Channels
from xpbayes.data.json_file import checked, read_json, write_json
from xpbayes.device import prepare_device
from xpbayes.errors import InputError
from xpbayes.files import file_checksum, save_arrays
from xpbayes.inference.fit_quality import FitQuality
from xpbayes.inference.recalibration import CASES, Calibration, KindCalibration, of_labels_only
from xpbayes.inference.support import LabelSupport
from xpbayes.inference.trust import Trust
from xpbayes.inference.trust import feature_names as trust_feature_names
from xpbayes.instrument.instrument import DEFAULT_ID, InstrumentId
from xpbayes.instrument.transfer import Transfer
from xpbayes.models.extinction import ReddeningLaw
from xpbayes.models.forward import ForwardModel
from xpbayes.models.model_error import ModelError
from xpbayes.models.prior import LabelPrior
from xpbayes.models.reliability import ConfidenceNets, feature_names
from xpbayes.models.star_model import StarModel
from xpbayes.production.array_checks import check_fields, check_layers, load_checked, require_described
from xpbayes.production.bundled import model_folder
from xpbayes.production.second_stage_file import (
    SECOND_STAGE,
    SecondStageEntry,
    load_second_stage,
    save_second_stage,
)
from xpbayes.production.transfer_file import TRANSFER, TransferEntry, load_transfer, save_transfer
from xpbayes.refinement.refined import SecondStage

CARD_VERSION = 1
ARRAYS, CARD = "model.safetensors", "card.json"
CONFIDENCE = "confidence.safetensors"
WEIGHT_FACTOR = "weight_factor.safetensors"
CONFIDENCE_ARRAYS = ("center", "inverse_scale", "indicator")
SCATTER = "calibration.scatter"
FIT_QUALITY = "calibration.fit_quality"
CURVE_VARIATION = "curve_variation"
TRUST = "trust"
OLD_CALIBRATION, OLD_CALIBRATION_ARRAYS = "calibration.kinds", ("scale", "kinds", "width", "offset", "stretch")
"""In files of version 0.1.0, which calibrated labels alone."""
AGAIN = "train or copy the model again"


@dataclass(frozen=True)
class _Confidence:
    """What the card says of the classifiers."""

    arrays_checksum: str
    targets: tuple[str, ...]
    features: tuple[str, ...]
    features_present: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Split:
    """What the card says of the stars held out."""

    fraction: float
    seed: int


@dataclass(frozen=True)
class _Header:
    """What a card must say, and the types of what else is read of it: a record of the training."""

    version: int
    channels: Channels
    labels: tuple[str, ...]
    arrays_checksum: str
    instrument: InstrumentId = DEFAULT_ID
    confidence: _Confidence | None = None
    transfer: TransferEntry | None = None
    second_stage: SecondStageEntry | None = None
    split: _Split | None = None
    settings: dict[str, Any] | None = None
    n_training: int | None = None
    n_held_out: int | None = None
    training_seconds: float | None = None
    created: str | None = None
    parallax_used: str | None = None
    input: dict[str, Any] | None = None
    held_out: dict[str, Any] | None = None
    label_range: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    phases: tuple[dict[str, Any], ...] | None = None
    checks: tuple[dict[str, Any], ...] | None = None
    cuts: tuple[dict[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be at least one name, and each once")


@dataclass(frozen=True)
class TrainedModel:
    """A model that can predict and infer.

    Attributes:
        star_model: forward model, label prior and model error.
        channels: the channel set that it predicts.
        labels: names of the stellar labels, in order.
        card: the model card; see `runs.train` for its keys.
        confidence: classifiers of the estimates' reliability; None until `runs.confidence` has trained them.
        support: where in label space the model was trained; None in models of version 0.1.
        calibration: of posteriors, on stars kept aside; None if none were.
        transfer: to the model's instrument from another release's; None until `runs.transfer` has learned one.
        second_stage: what refines labels; None if it was switched off or there were too few stars.
        trust: how far rows can be trusted; None if too few stars were kept aside, and in models trained before.
    """

    star_model: StarModel
    channels: Channels
    labels: tuple[str, ...]
    card: dict[str, Any]
    confidence: ConfidenceNets | None = None
    support: LabelSupport | None = None
    calibration: Calibration | None = None
    transfer: Transfer | None = None
    second_stage: SecondStage | None = None
    trust: Trust | None = None

    @property
    def instrument(self) -> InstrumentId:
        """What the stars that it was trained on were calibrated with; version 0.1.0 knew one only and does not say."""
        about = self.card.get("instrument")
        return DEFAULT_ID if about is None else InstrumentId.from_json(about)

    @property
    def forward(self) -> ForwardModel:
        """Network, extinction curve and normalisation."""
        return self.star_model.forward

    @property
    def prior(self) -> LabelPrior:
        """Gaussian mixture over the labels."""
        return self.star_model.label_prior

    @property
    def model_error(self) -> ModelError | None:
        """Covariance of the model's relative error and tail, by kind of star; None if it was switched off."""
        return self.star_model.error

    @property
    def reddening_law(self) -> ReddeningLaw | None:
        """R(V) as a function of xi; None where the curve does not vary, or its wavelengths do not tell."""
        return ReddeningLaw.of_card(self.card)

    @property
    def has_levels(self) -> bool:
        """Stars of the same labels may differ in luminosity: catalogue values give fluxes up to a grey factor."""
        return self.calibration is not None and self.calibration.scatter is not None


def save_model(model: TrainedModel, folder: str | os.PathLike[str]) -> Path:
    """Write a model; arrays first, the card last, each under a temporary name."""
    folder = Path(folder)
    arrays: dict[str, Any] = {f"weights.{i}": w for i, w in enumerate(model.forward.weights)}
    arrays |= {f"biases.{i}": b for i, b in enumerate(model.forward.biases)}
    arrays |= {
        "ln_curve": model.forward.ln_curve,
        "label_center": model.forward.label_center,
        "label_scale": model.forward.label_scale,
        "prior.ln_weight": model.prior.ln_weight,
        "prior.mean": model.prior.mean,
        "prior.whitening": model.prior.whitening,
        "prior.ln_threshold": model.prior.ln_threshold,
    }
    if model.forward.curve_variation is not None:
        arrays |= {CURVE_VARIATION: model.forward.curve_variation}
    if model.model_error is not None:
        arrays |= {_model_error_key(f.name): getattr(model.model_error, f.name) for f in fields(model.model_error)}
    if model.support is not None:
        arrays |= {f"support.{f.name}": getattr(model.support, f.name) for f in fields(model.support)}
    if model.calibration is not None:
        for case in CASES:
            arrays |= {f"calibration.{case}.{f}": v for f, v in vars(getattr(model.calibration, case)).items()}
        if model.calibration.scatter is not None:
            arrays |= {SCATTER: model.calibration.scatter}
        if model.calibration.fit_quality is not None:
            arrays |= {f"{FIT_QUALITY}.{f}": v for f, v in vars(model.calibration.fit_quality).items()}
    if model.trust is not None:
        arrays |= {f"{TRUST}.{name}": value for name, value in model.trust._asdict().items()}
    save_arrays(folder / ARRAYS, _plain(arrays))
    card = {
        **model.card,  # first: what a loaded card says of its own arrays is not true of these
        "version": CARD_VERSION,
        "channels": json.loads(model.channels.to_json()),
        "labels": list(model.labels),
        "arrays_checksum": file_checksum(folder / ARRAYS),
    }
    beside: dict[str, tuple[str, Any, Callable[[Any, Path], dict[str, Any]]]] = {
        "confidence": (CONFIDENCE, model.confidence, _save_confidence),
        "transfer": (TRANSFER, model.transfer, save_transfer),
        "second_stage": (SECOND_STAGE, model.second_stage, save_second_stage),
    }
    for name, (_, part, save) in beside.items():
        entry = card.pop(name, None) or {}
        if part is not None:
            card[name] = {**entry, **save(part, folder)}
    write_json(card, folder / CARD)
    for file, part, _ in beside.values():
        if part is None:
            (folder / file).unlink(missing_ok=True)  # of a model that this one replaces
    return folder


def _plain(arrays: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    return {k: np.array(v, dtype=np.float32, order="C") for k, v in arrays.items()}


def _model_error_key(name: str) -> str:
    """Name in the file of a field of `ModelError`; version 0.1.0 called `inv_dof` the tail."""
    return f"model_error.{'tail' if name == 'inv_dof' else name}"


def _save_confidence(nets: ConfidenceNets, folder: Path) -> dict[str, Any]:
    """Write the classifiers' arrays and return what the card says of them."""
    arrays = {f"weights.{i}": w for i, w in enumerate(nets.weights)}
    arrays |= {f"biases.{i}": b for i, b in enumerate(nets.biases)}
    arrays |= {"center": nets.center, "inverse_scale": nets.inverse_scale, "indicator": nets.indicator}
    return {"arrays_checksum": file_checksum(save_arrays(folder / CONFIDENCE, _plain(arrays)))}


def _load_confidence(folder: Path, about: "_Confidence", features: tuple[str, ...]) -> ConfidenceNets:
    """Read the classifiers that the card describes.

    Args:
        folder: the model's folder.
        about: the card's entry `confidence`.
        features: what this xpbayes computes for the model.
    """
    path = folder / CONFIDENCE
    again = "run 'xpbayes confidence' or copy the model again"
    require_described(path, about.arrays_checksum, again)
    if about.features != features:
        raise InputError(
            f"{path}: was trained on {len(about.features)} features, this xpbayes computes {len(features)} others; {again}"
        )

    def check(raw: Mapping[str, NDArray[Any]]) -> None:
        sizes = {"feature": len(features), "target": len(about.targets)}
        check_layers(raw, (len(about.targets), 2 * len(features)), (len(about.targets), 1))
        check_fields(raw, {f.name: f.type for f in fields(ConfidenceNets) if f.name in CONFIDENCE_ARRAYS}, sizes)

    arrays = {k: jax.device_put(v) for k, v in load_checked(path, check, again).items()}
    n_layers = sum(k.startswith("weights.") for k in arrays)
    return ConfidenceNets(
        weights=tuple(arrays[f"weights.{i}"] for i in range(n_layers)),
        biases=tuple(arrays[f"biases.{i}"] for i in range(n_layers)),
        center=arrays["center"],
        inverse_scale=arrays["inverse_scale"],
        indicator=arrays["indicator"],
        targets=about.targets,
        features=features,
    )


def _check_arrays(arrays: Mapping[str, NDArray[Any]], n_labels: int, n_channels: int) -> None:
    """Refuse arrays that are no model's: ValueError names the first that is missing, of another type, shape or not finite.

    What shape each must have, the classes say that hold them.
    """
    sizes = {"label": n_labels, "channel": n_channels}
    check_layers(arrays, (n_labels,), (n_channels,))
    forward = [f for f in fields(ForwardModel) if f.name not in ("weights", "biases", CURVE_VARIATION)]
    of_forward: dict[str, Any] = {f.name: f.type for f in forward}
    if CURVE_VARIATION in arrays:
        of_forward[CURVE_VARIATION] = of_forward["ln_curve"]
    check_fields(arrays, of_forward, sizes)
    check_fields(arrays, {f"prior.{f.name}": f.type for f in fields(LabelPrior)}, sizes)
    if "model_error.covariance" in arrays:
        check_fields(arrays, {_model_error_key(f.name): f.type for f in fields(ModelError)}, sizes)
    if "support.labels" in arrays:
        check_fields(arrays, {f"support.{f.name}": f.type for f in fields(LabelSupport)}, sizes)
    if f"{TRUST}.knots" in arrays:
        n_features = len(trust_feature_names(("",) * n_labels))
        n_features -= len(arrays[f"{TRUST}.knots"]) == n_features - 1  # of models that were trained before
        of_trust = {f"{TRUST}.{name}": kind for name, kind in Trust.__annotations__.items()}
        check_fields(arrays, of_trust, {"target": n_labels + 3, "feature": n_features})
    of_kinds, kinds = {f.name: f.type for f in fields(KindCalibration)}, Float[np.ndarray, " kind"]
    if OLD_CALIBRATION in arrays:
        of_labels = of_kinds | dict.fromkeys(("offset", "stretch"), Float[np.ndarray, "kind label"])
        check_fields(arrays, {f"calibration.{name}": of_labels[name] for name in OLD_CALIBRATION_ARRAYS}, sizes)
    elif f"calibration.{CASES[0]}.kinds" in arrays:
        if SCATTER in arrays:
            share = {name: kinds for name in (_model_error_key("share"),) if name in arrays}
            check_fields(arrays, share | {SCATTER: Float[np.ndarray, "kind two"]}, {"two": 2})
        if f"{FIT_QUALITY}.ln_snr" in arrays:
            check_fields(arrays, {f"{FIT_QUALITY}.{f.name}": f.type for f in fields(FitQuality)}, {})
        for case in CASES:
            check_fields(arrays, {f"calibration.{case}.{name}": kind for name, kind in of_kinds.items()}, sizes)


def _load_calibration(arrays: Mapping[str, Any]) -> Calibration | None:
    """The calibration; version 0.1's as it was applied, to labels, whether a parallax was used or not."""
    if OLD_CALIBRATION in arrays:
        return of_labels_only(*(np.asarray(arrays[f"calibration.{name}"]) for name in OLD_CALIBRATION_ARRAYS))
    if f"calibration.{CASES[0]}.kinds" not in arrays:
        return None
    names = [f.name for f in fields(KindCalibration)]
    of = {
        case: KindCalibration(*(np.asarray(arrays[f"calibration.{case}.{name}"]) for name in names)) for case in CASES
    }
    quality = None
    if f"{FIT_QUALITY}.ln_snr" in arrays:
        quality = FitQuality(*(np.asarray(arrays[f"{FIT_QUALITY}.{f.name}"]) for f in fields(FitQuality)))
    return Calibration(**of, scatter=np.asarray(arrays[SCATTER]) if SCATTER in arrays else None, fit_quality=quality)


def load_model(folder: str | os.PathLike[str]) -> TrainedModel:
    """Read a model.

    Args:
        folder: it, or the name of a model that comes with the package.

    Raises:
        InputError: not a model, damaged, or from a newer xpbayes.
    """
    prepare_device()
    folder = model_folder(folder)
    if not (folder / CARD).is_file() or not (folder / ARRAYS).is_file():
        raise InputError(f"{folder}: is not a model (it needs {ARRAYS} and {CARD}); train one with 'xpbayes train'")
    card = read_json(folder / CARD, dict[str, Any], AGAIN)
    version = card.get("version")
    if type(version) is int and version > CARD_VERSION:
        raise InputError(f"{folder}: model version {version} is newer than this xpbayes reads; upgrade xpbayes")
    about = checked(card, _Header, f"{folder / CARD}", AGAIN)
    labels, channels = about.labels, about.channels
    require_described(folder / ARRAYS, about.arrays_checksum, AGAIN)
    raw = load_checked(folder / ARRAYS, lambda raw: _check_arrays(raw, len(labels), len(channels)), AGAIN)
    arrays = {k: jax.device_put(v) for k, v in raw.items()}
    n_layers = sum(k.startswith("weights.") for k in arrays)
    star_model = StarModel(
        forward=ForwardModel(
            weights=tuple(arrays[f"weights.{i}"] for i in range(n_layers)),
            biases=tuple(arrays[f"biases.{i}"] for i in range(n_layers)),
            ln_curve=arrays["ln_curve"],
            label_center=arrays["label_center"],
            label_scale=arrays["label_scale"],
            curve_variation=arrays.get(CURVE_VARIATION),
        ),
        prior=LabelPrior(
            arrays["prior.ln_weight"], arrays["prior.mean"], arrays["prior.whitening"], arrays["prior.ln_threshold"]
        ),
        error=ModelError(**{f.name: arrays[_model_error_key(f.name)] for f in fields(ModelError)})
        if "model_error.covariance" in arrays
        else None,
    )
    return TrainedModel(
        star_model=star_model,
        channels=channels,
        labels=labels,
        card=card,
        support=LabelSupport(**{f.name: arrays[f"support.{f.name}"] for f in fields(LabelSupport)})
        if "support.labels" in arrays
        else None,
        calibration=_load_calibration(arrays),
        trust=Trust(*(np.asarray(arrays[f"{TRUST}.{name}"]) for name in Trust._fields))
        if f"{TRUST}.knots" in arrays
        else None,
        confidence=_load_confidence(folder, about.confidence, feature_names(labels, channels.names))
        if about.confidence is not None
        else None,
        transfer=None if about.transfer is None else load_transfer(folder, about.transfer),
        second_stage=None
        if about.second_stage is None
        else load_second_stage(folder, about.second_stage, labels, channels),
    )
