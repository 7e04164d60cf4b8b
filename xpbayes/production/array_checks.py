"""Files of arrays beside a card that describes them, and checks of what they are said to hold.

Of arrays, ValueError names the first that is missing or of another type or shape.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.errors import InputError
from xpbayes.files import file_checksum, load_arrays


def require_described(path: Path, checksum: str, again: str) -> None:
    """Raise InputError if a file is missing or not the one that a card describes.

    Args:
        path: the file.
        checksum: SHA-256 in the card.
        again: what to do.
    """
    if not path.is_file():
        raise InputError(f"{path}: is missing, though the card describes it; {again}")
    if file_checksum(path) != checksum:
        raise InputError(f"{path}: is not the file that the card describes; {again}")


def load_checked(path: Path, check: Callable[[dict[str, NDArray[Any]]], None], again: str) -> dict[str, NDArray[Any]]:
    """Read arrays; InputError if the file is damaged or `check` raises ValueError. `again` says what to do."""
    try:
        arrays = load_arrays(path)[0]
        check(arrays)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); {again}") from error
    return arrays


def check_layers(arrays: Mapping[str, NDArray[Any]], first: tuple[int, ...], last: tuple[int, ...]) -> None:
    """Check a network's layers; `first` and `last` are what its first layer takes and its last one gives, targets before."""
    n_layers = sum(k.startswith("weights.") for k in arrays)
    before: tuple[int, ...] = first
    for i in range(max(1, n_layers)):
        weight = _finite(arrays, f"weights.{i}")
        if weight.ndim != len(first) + 1 or weight.shape[:-1] != before or not weight.size:
            raise ValueError(f"weights.{i} has the shape {weight.shape}, not {(*before, 'any')}")
        before = (*first[:-1], weight.shape[-1])
        if (bias := _finite(arrays, f"biases.{i}")).shape != before:
            raise ValueError(f"biases.{i} has the shape {bias.shape}, not {before}")
    if before != last:
        raise ValueError(f"the network ends with {before[-1]} numbers, not {last[-1]}")


def check_fields(arrays: Mapping[str, NDArray[Any]], types: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Check arrays against their annotations; a size that is not given is that of its first array, and at least 1."""
    known = dict(sizes)
    for name, kind in types.items():
        values = _finite(arrays, name)
        words = kind.dim_str.split()
        if values.ndim != len(words) or not values.size:
            raise ValueError(f"{name} has the shape {values.shape}, not ({', '.join(words)})")
        for word, size in zip(words, values.shape, strict=True):
            dimension, _, more = word.partition("+")
            expected = known.setdefault(dimension, size - int(more or 0)) + int(more or 0)
            if size != expected:
                raise ValueError(f"{name} has the shape {values.shape}, where {word} is {expected}")


def _finite(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in arrays:
        raise ValueError(f"{name} is missing")
    if arrays[name].dtype != np.float32:
        raise ValueError(f"{name} holds {arrays[name].dtype}, not float32")
    if not np.isfinite(arrays[name]).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return arrays[name]
