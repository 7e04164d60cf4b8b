"""A trained model on disk: a folder with `model.safetensors` (arrays) and `card.json` (everything else).

The card says what the model was trained on, how, and where it can be trusted; it repeats the checksum of the arrays,
so that a half-copied model is noticed. Loading needs no NumPyro.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.channels import Channels
from xpbayes.checksum import file_checksum
from xpbayes.errors import InputError
from xpbayes.models.forward import ForwardModel
from xpbayes.models.prior import LabelPrior

CARD_VERSION = 1
ARRAYS, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class TrainedModel:
    """A model that can predict and infer.

    Attributes:
        forward: network, extinction curve and normalisation.
        prior: Gaussian mixture over the labels.
        model_error: (channel, rank) F with S = F F^T the covariance of the model's relative error; None if it was
            switched off.
        channels: the channel set that it predicts.
        labels: names of the stellar labels, in order.
        card: the model card; see `pipeline.train` for its keys.
    """

    forward: ForwardModel
    prior: LabelPrior
    model_error: Float[Array, "channel rank"] | None
    channels: Channels
    labels: tuple[str, ...]
    card: dict[str, Any]


def save_model(model: TrainedModel, folder: str | os.PathLike[str]) -> Path:
    """Write a model; arrays first, the card last, each under a temporary name."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    arrays = {f"weights.{i}": w for i, w in enumerate(model.forward.weights)}
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
    if model.model_error is not None:
        arrays["model_error"] = model.model_error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{ARRAYS}.tmp"
        save_file({k: np.array(v, dtype=np.float32, order="C") for k, v in arrays.items()}, temporary)
        os.replace(temporary, folder / ARRAYS)
        card = {
            "version": CARD_VERSION,
            "channels": json.loads(model.channels.to_json()),
            "labels": list(model.labels),
            "arrays_checksum": file_checksum(folder / ARRAYS),
            **model.card,
        }
        temporary = folder / f"{CARD}.tmp"
        temporary.write_text(json.dumps(card, indent=1) + "\n")
        os.replace(temporary, folder / CARD)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another output") from error
    return folder


def load_model(folder: str | os.PathLike[str]) -> TrainedModel:
    """Read a model.

    Raises:
        InputError: not a model, damaged, or from a newer xpbayes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not (folder / CARD).is_file() or not (folder / ARRAYS).is_file():
        raise InputError(f"{folder}: is not a model (it needs {ARRAYS} and {CARD}); train one with 'xpbayes train'")
    try:
        card = json.loads((folder / CARD).read_text())
        version, labels = card["version"], tuple(card["labels"])
        channels = Channels.from_json(json.dumps(card["channels"]))
        checksum = card["arrays_checksum"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{folder / CARD}: is damaged ({error!r}); train or copy the model again") from error
    if version > CARD_VERSION:
        raise InputError(f"{folder}: model version {version} is newer than this xpbayes reads; upgrade xpbayes")
    if file_checksum(folder / ARRAYS) != checksum:
        raise InputError(f"{folder / ARRAYS}: is not the file that the card describes; train or copy the model again")
    try:
        arrays = {k: jnp.asarray(v) for k, v in load_file(folder / ARRAYS).items()}
    except SafetensorError as error:
        raise InputError(f"{folder / ARRAYS}: is damaged ({error}); train or copy the model again") from error
    n_layers = sum(k.startswith("weights.") for k in arrays)
    return TrainedModel(
        forward=ForwardModel(
            weights=tuple(arrays[f"weights.{i}"] for i in range(n_layers)),
            biases=tuple(arrays[f"biases.{i}"] for i in range(n_layers)),
            ln_curve=arrays["ln_curve"],
            label_center=arrays["label_center"],
            label_scale=arrays["label_scale"],
        ),
        prior=LabelPrior(
            arrays["prior.ln_weight"], arrays["prior.mean"], arrays["prior.whitening"], arrays["prior.ln_threshold"]
        ),
        model_error=arrays.get("model_error"),
        channels=channels,
        labels=labels,
        card=card,
    )
