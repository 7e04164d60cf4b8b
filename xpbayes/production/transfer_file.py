"""A model's transfer to the stars of another data release, in a file beside the model's own arrays.

The card's entry `transfer` says between which instruments it leads and repeats the file's checksum.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import XP_GRID_NM
from xpbayes.files import file_checksum, save_arrays
from xpbayes.instrument.instrument import InstrumentId
from xpbayes.instrument.transfer import TERMS, Transfer
from xpbayes.production.array_checks import load_checked, require_described

TRANSFER = "transfer.safetensors"
AGAIN = "run 'xpbayes transfer' or copy the model again"
N = len(TERMS) * XP_GRID_NM.size
SHAPES = {
    "center": (2,),
    "scale": (2,),
    "reach": (2, 2),
    "ratio": (len(TERMS), XP_GRID_NM.size),
    "covariance": (N, N),
}


@dataclass(frozen=True)
class TransferEntry:
    """What the card says of a transfer."""

    source: InstrumentId
    target: InstrumentId
    noise: float
    n_pairs: int
    n_outliers: int
    arrays_checksum: str


def save_transfer(transfer: Transfer, folder: Path) -> dict[str, Any]:
    """Write the arrays and return the card's entry."""
    arrays: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(getattr(transfer, name)) for name in SHAPES}
    checksum = file_checksum(save_arrays(folder / TRANSFER, arrays))
    rest = {f.name: getattr(transfer, f.name) for f in fields(Transfer) if f.name not in SHAPES}
    return asdict(TransferEntry(**rest, arrays_checksum=checksum))


def load_transfer(folder: Path, about: TransferEntry) -> Transfer:
    """Read the transfer that the card describes.

    Raises:
        InputError: the file is missing, another one, or damaged.
    """
    path = folder / TRANSFER
    require_described(path, about.arrays_checksum, AGAIN)
    arrays = load_checked(path, _check, AGAIN)
    own = {name: np.asarray(arrays[name], np.float64) for name in SHAPES}
    return Transfer(
        about.source, about.target, **own, noise=about.noise, n_pairs=about.n_pairs, n_outliers=about.n_outliers
    )


def _check(arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, shape in SHAPES.items():
        if name not in arrays or arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is missing, not of the shape {shape}, or not finite")
