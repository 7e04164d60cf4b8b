"""A trained model on disk: a folder with `model.safetensors` (arrays) and `card.json` (everything else).

The card says what the model was trained on, how, and where it can be trusted; it repeats the checksum of the arrays,
so that a half-copied model is noticed. Loading needs no NumPyro. What is trained later has its own files (`beside.py`).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from xpbayes.channels import Channels
from xpbayes.data.json_file import checked, read_json, write_json
from xpbayes.device import prepare_device
from xpbayes.errors import InputError
from xpbayes.files import file_checksum, save_arrays
from xpbayes.inference.fit_quality import FitQuality
from xpbayes.inference.recalibration import CASES, Calibration, KindCalibration, of_labels_only, tail_of_old
from xpbayes.inference.support import LabelSupport
from xpbayes.inference.trust import Trust
from xpbayes.inference.trust import feature_names as trust_feature_names
from xpbayes.instrument.instrument import DEFAULT_ID, InstrumentId
from xpbayes.instrument.transfer import Transfer
from xpbayes.models.extinction import ReddeningLaw
from xpbayes.models.forward import ForwardModel
from xpbayes.models.model_error import ModelError
from xpbayes.models.prior import LabelPrior
from xpbayes.models.reliability import ConfidenceNets
from xpbayes.models.star_model import StarModel
from xpbayes.production import beside
from xpbayes.production.arrays import Arrays, check_fields, check_layers, load_described, pack, shapes_of, unpack
from xpbayes.production.bundled import model_folder
from xpbayes.refinement.refined import SecondStage

CARD_VERSION = 1
ARRAYS, CARD = "model.safetensors", "card.json"
PARTS: dict[str, type] = {
    "prior": LabelPrior,
    "model_error": ModelError,
    "support": LabelSupport,
    "trust": Trust,
    **{f"calibration.{case}": KindCalibration for case in CASES},
    "calibration.fit_quality": FitQuality,
}
"""Prefixes of arrays in the file, but for the forward model's, which have none."""
SCATTER, CURVE_VARIATION = "calibration.scatter", "curve_variation"
TAIL, INV_DOF = "model_error.tail", "model_error.inv_dof"
"""What the file calls it, after version 0.1.0, and what `ModelError` does."""
OLD_CALIBRATION = tuple(f"calibration.{name}" for name in ("scale", "kinds", "width", "offset", "stretch"))
"""In files of version 0.1.0, which calibrated labels alone."""


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
    confidence: beside.ConfidenceEntry | None = None
    transfer: beside.TransferEntry | None = None
    second_stage: beside.Entry | None = None
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


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model that can predict and infer.

    Attributes:
        star_model: forward model, label prior and model error.
        channels: that it predicts.
        labels: names of the stellar labels, in order.
        card: what it was trained on and how well it does; see `runs.train` for its keys.
        confidence: networks of the estimates' reliability; None until `runs.confidence` has trained them.
        support: where in label space the model was trained; None in models of version 0.1.
        calibration: of posteriors, on stars kept aside; None if none were.
        transfer: to its instrument from another release's; None until `runs.transfer` learned one.
        second_stage: refines labels; None if switched off, or there were too few stars.
        trust: how far rows can be trusted; None if too few were kept aside, or trained before.
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
    calibration = model.calibration
    parts = {"prior": model.prior, "model_error": model.model_error, "support": model.support, "trust": model.trust}
    arrays = pack(model.forward)
    if model.forward.curve_variation is not None:
        arrays[CURVE_VARIATION] = np.array(model.forward.curve_variation, np.float32)
    if calibration is not None:
        parts |= {f"calibration.{case}": getattr(calibration, case) for case in (*CASES, "fit_quality")}
        if calibration.scatter is not None:
            arrays[SCATTER] = np.array(calibration.scatter, np.float32, order="C")
    for name, part in parts.items():
        arrays |= {} if part is None else pack(part, f"{name}.")
    if INV_DOF in arrays:
        arrays[TAIL] = arrays.pop(INV_DOF)
    save_arrays(folder / ARRAYS, arrays)
    card = {
        **model.card,  # first: what a loaded card says of its own arrays is not true of these
        "version": CARD_VERSION,
        "channels": json.loads(model.channels.to_json()),
        "labels": list(model.labels),
        "arrays_checksum": file_checksum(folder / ARRAYS),
    }
    for name, (_, save, _) in beside.DESCRIBED.items():
        entry = card.pop(name, None) or {}
        if (part := getattr(model, name)) is not None:
            card[name] = {**entry, **save(part, folder)}
    write_json(card, folder / CARD)
    for name, (file, _, _) in beside.DESCRIBED.items():
        if getattr(model, name) is None:
            (folder / file).unlink(missing_ok=True)  # of a model that this one replaces
    return folder


def _parts_in(arrays: Arrays) -> dict[str, type]:
    """The parts that a file should hold: the label prior, what it has any array of, both cases of a calibration."""
    there = {"prior", *(name.rpartition(".")[0] for name in arrays)}
    cases = {f"calibration.{case}" for case in CASES}
    if there & cases:
        there |= cases
    return {name: kind for name, kind in PARTS.items() if name in there}


def _check_arrays(arrays: Arrays, n_labels: int, n_channels: int) -> None:
    """Refuse arrays that are no model's, by what the classes that hold them say.

    What older files lack or call otherwise is as today afterwards.
    """
    if TAIL in arrays:
        arrays[INV_DOF] = arrays.pop(TAIL)
    for case in CASES:
        if f"calibration.{case}.kinds" in arrays:
            arrays.setdefault(f"calibration.{case}.tail", tail_of_old(n_labels + 2))
    sizes = {"label": n_labels, "channel": n_channels, "target": n_labels + 3, "two": 2}
    check_layers(arrays, (n_labels,), (n_channels,))
    forward = shapes_of(ForwardModel)
    if CURVE_VARIATION in arrays:
        forward[CURVE_VARIATION] = forward["ln_curve"]
    check_fields(arrays, forward, sizes)
    if "trust.knots" in arrays:
        sizes["feature"] = len(trust_feature_names(("",) * n_labels))
        sizes["feature"] -= len(arrays["trust.knots"]) == sizes["feature"] - 1  # of models that were trained before
    for name, kind in _parts_in(arrays).items():
        check_fields(arrays, shapes_of(kind, f"{name}."), sizes)
    if SCATTER in arrays:
        kinds = {"model_error.share": Float[np.ndarray, " kind"]} if "model_error.share" in arrays else {}
        check_fields(arrays, kinds | {SCATTER: Float[np.ndarray, "kind two"]}, sizes)
    if OLD_CALIBRATION[1] in arrays:
        of_kinds = shapes_of(KindCalibration, "calibration.")
        of_kinds |= dict.fromkeys(OLD_CALIBRATION[3:], Float[np.ndarray, "kind label"])
        check_fields(arrays, {name: of_kinds[name] for name in OLD_CALIBRATION}, sizes)


def load_model(folder: str | os.PathLike[str]) -> TrainedModel:
    """Read a model from its folder, or by the name of one that comes with the package.

    Raises:
        InputError: not a model, damaged, or from a newer xpbayes.
    """
    prepare_device()
    folder = model_folder(folder)
    if not (folder / CARD).is_file() or not (folder / ARRAYS).is_file():
        raise InputError(f"{folder}: is not a model (it needs {ARRAYS} and {CARD}); train one with 'xpbayes train'")
    card = read_json(folder / CARD, dict[str, Any], beside.AGAIN)
    version = card.get("version")
    if type(version) is int and version > CARD_VERSION:
        raise InputError(f"{folder}: model version {version} is newer than this xpbayes reads; upgrade xpbayes")
    about = checked(card, _Header, f"{folder / CARD}", beside.AGAIN)
    labels, channels = about.labels, about.channels

    def check(raw: Arrays) -> None:
        _check_arrays(raw, len(labels), len(channels))

    arrays = load_described(folder / ARRAYS, about.arrays_checksum, check, beside.AGAIN)
    parts: dict[str, Any] = {name: unpack(kind, arrays, f"{name}.") for name, kind in _parts_in(arrays).items()}
    calibration = None
    if OLD_CALIBRATION[1] in arrays:  # as it was applied, to labels, whether a parallax was used or not
        calibration = of_labels_only(*(arrays[name] for name in OLD_CALIBRATION))
    elif f"calibration.{CASES[0]}" in parts:
        of: dict[str, Any] = {case: parts.get(f"calibration.{case}") for case in (*CASES, "fit_quality")}
        calibration = Calibration(**of, scatter=arrays.get(SCATTER))
    variation = {} if CURVE_VARIATION not in arrays else {CURVE_VARIATION: jax.device_put(arrays[CURVE_VARIATION])}
    forward = unpack(ForwardModel, arrays, **variation)
    return TrainedModel(
        star_model=StarModel(forward, prior=parts["prior"], error=parts.get("model_error")),
        channels=channels,
        labels=labels,
        card=card,
        support=parts.get("support"),
        calibration=calibration,
        trust=parts.get("trust"),
        **{
            name: load(folder, entry, labels, channels)
            for name, (_, _, load) in beside.DESCRIBED.items()
            if (entry := getattr(about, name)) is not None
        },
    )
