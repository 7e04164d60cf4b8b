"""The posterior of the model beside the model: weight_factor.safetensors in its folder."""

import os
from pathlib import Path

import numpy as np

from xpbayes.errors import InputError
from xpbayes.files import load_arrays, save_arrays
from xpbayes.production.bundled import model_folder
from xpbayes.production.model_file import WEIGHT_FACTOR
from xpbayes.training.network_uncertainty import NetworkCovariance


def save_weight_factor(factor: NetworkCovariance, folder: str | os.PathLike[str], model_checksum: str) -> Path:
    """Write a factor into the folder of the model that it belongs to, under a temporary name first.

    Args:
        factor: from `factor_weights`.
        folder: the model's.
        model_checksum: `arrays_checksum` of the model's card.
    """
    path = Path(folder) / WEIGHT_FACTOR
    about = {"model": model_checksum, "captured": repr(factor.captured), "n_stars": str(factor.n_stars)}
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written (there is no model's folder); choose another folder")
    columns = np.ascontiguousarray(factor.columns, np.float32)
    return save_arrays(path, {"columns": columns}, about, "choose another folder")


def load_weight_factor(folder: str | os.PathLike[str], model_checksum: str) -> NetworkCovariance:
    """Read the factor of a model.

    Args:
        folder: the model's.
        model_checksum: `arrays_checksum` of the model's card.

    Raises:
        InputError: there is none, it is damaged, or it belongs to another model.
    """
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
