"""A model's second stage, in a file beside the model's own arrays; the card's entry `second_stage` repeats its checksum."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import Channels
from xpbayes.files import file_checksum, save_arrays
from xpbayes.production.array_checks import check_fields, check_layers, load_checked, require_described
from xpbayes.refinement.adjusting import Adjustments
from xpbayes.refinement.features import feature_names
from xpbayes.refinement.networks import RefinementNets, n_outputs
from xpbayes.refinement.refined import SecondStage
from xpbayes.refinement.support import FeatureSupport

SECOND_STAGE = "second_stage.safetensors"
AGAIN = "train or copy the model again"
CASES = ("flux_only", "with_parallax")
NETS = ("center", "inverse_scale", "residual_scale", "unit")


@dataclass(frozen=True)
class SecondStageEntry:
    """What the card must say of a second stage."""

    arrays_checksum: str


def save_second_stage(second: SecondStage, folder: Path) -> dict[str, Any]:
    """Write the arrays and return what the card says of them."""
    nets = second.nets
    arrays: dict[str, Any] = {f"weights.{i}": w for i, w in enumerate(nets.weights)}
    arrays |= {f"biases.{i}": b for i, b in enumerate(nets.biases)}
    arrays |= {name: getattr(nets, name) for name in NETS}
    arrays |= {f"support.{name}": value for name, value in second.support._asdict().items()}
    for case in CASES:
        if (adjustments := getattr(second, case)) is not None:
            arrays |= {f"{case}.{name}": value for name, value in adjustments._asdict().items()}
    plain = {name: np.array(value, np.float32, order="C") for name, value in arrays.items()}
    return asdict(SecondStageEntry(file_checksum(save_arrays(folder / SECOND_STAGE, plain))))


def load_second_stage(
    folder: Path, about: SecondStageEntry, labels: tuple[str, ...], channels: Channels
) -> SecondStage:
    """Read the second stage that the card describes.

    Args:
        folder: the model's folder.
        about: the card's entry.
        labels, channels: the model's.

    Raises:
        InputError: the file is missing, another one, or damaged.
    """
    path = folder / SECOND_STAGE
    require_described(path, about.arrays_checksum, AGAIN)
    arrays = load_checked(path, lambda arrays: _check(arrays, labels, channels), AGAIN)
    n_layers = sum(name.startswith("weights.") for name in arrays)
    weights, biases = (
        tuple(jax.device_put(arrays[f"{kind}.{i}"]) for i in range(n_layers)) for kind in ("weights", "biases")
    )
    nets = RefinementNets(weights, biases, *(jax.device_put(arrays[name]) for name in NETS))
    support = FeatureSupport(*(arrays[f"support.{name}"] for name in FeatureSupport._fields))
    adjustments = {
        case: Adjustments(*(arrays[f"{case}.{name}"] for name in Adjustments._fields))
        for case in CASES
        if f"{case}.weight" in arrays
    }
    return SecondStage(nets, support, channels.n_xp, **adjustments)


def _check(arrays: dict[str, NDArray[Any]], labels: tuple[str, ...], channels: Channels) -> None:
    """Refuse arrays that are no second stage of such a model; what shape each must have, the classes say that hold them."""
    n_labels, n_features = len(labels), len(feature_names(labels, channels.names, channels.n_xp))
    sizes = {"label": n_labels, "channel": len(channels), "feature": n_features, "place": n_labels + 2}
    first = arrays.get("weights.0")
    members = len(first) if first is not None and first.ndim else 0
    check_layers(arrays, (members, n_features), (members, n_outputs(n_labels)))
    check_fields(arrays, {name: RefinementNets.__annotations__[name] for name in NETS}, sizes)
    of_support = {f"support.{name}": kind for name, kind in FeatureSupport.__annotations__.items()}
    check_fields(arrays, of_support, sizes)
    for case in CASES:
        if f"{case}.weight" in arrays:
            check_fields(arrays, {f"{case}.{name}": kind for name, kind in Adjustments.__annotations__.items()}, sizes)
