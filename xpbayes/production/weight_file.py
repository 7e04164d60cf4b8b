"""The posterior of the model beside the model: weight_factor.safetensors in its folder."""

import os
from pathlib import Path

import numpy as np

from xpbayes.errors import InputError
from xpbayes.production.model_file import WEIGHT_FACTOR
from xpbayes.training.network_uncertainty import NetworkCovariance


def save_weight_factor(factor: NetworkCovariance, folder: str | os.PathLike[str], model_checksum: str) -> Path:
    """Write a factor into the folder of the model that it belongs to, under a temporary name first.

    Args:
        factor: from `factor_weights`.
        folder: the model's.
        model_checksum: `arrays_checksum` of the model's card.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(folder) / WEIGHT_FACTOR
    about = {"model": model_checksum, "captured": repr(factor.captured), "n_stars": str(factor.n_stars)}
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        save_file({"columns": np.ascontiguousarray(factor.columns, np.float32)}, temporary, metadata=about)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        raise InputError(f"{path}: cannot be written ({error}); choose another folder") from error
    return path


def load_weight_factor(folder: str | os.PathLike[str], model_checksum: str) -> NetworkCovariance:
    """Read the factor of a model.

    Args:
        folder: the model's.
        model_checksum: `arrays_checksum` of the model's card.

    Raises:
        InputError: there is none, it is damaged, or it belongs to another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHT_FACTOR
    again = f"run 'xpbayes uncertainty {folder} STARS' with the star table that it was trained on"
    if not path.is_file():
        raise InputError(f"{path}: is missing; {again}")
    try:
        with safe_open(path, "numpy") as file:
            about, columns = file.metadata(), file.get_tensor("columns")
        belongs_to, captured, n_stars = about["model"], float(about["captured"]), int(about["n_stars"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); {again}") from error
    if belongs_to != model_checksum:
        raise InputError(f"{path}: belongs to another model; {again}")
    return NetworkCovariance(columns, captured, n_stars)
