"""A model's objects as named arrays in a file, by the names, types and shapes that their classes' annotations say.

Of arrays that are not so, ValueError names the first that is missing or of another type or shape.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from numpy.typing import NDArray

from xpbayes.errors import InputError
from xpbayes.files import file_checksum, load_arrays

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]
LAYERS = ("weights", "biases")


def shapes_of(kind: type, prefix: str = "") -> dict[str, Any]:
    """Names in a file and annotations of a class's arrays, but for layers and what may be None."""
    return {f"{prefix}{name}": of for name, of in kind.__annotations__.items() if hasattr(of, "dim_str")}


def pack(part: Any, prefix: str = "") -> dict[str, NDArray[np.float32]]:
    """An object's arrays by their names in a file, layers ``weights.0`` and so on."""
    arrays = {f"{prefix}{name}": getattr(part, name) for name in shapes_of(type(part))}
    for kind in LAYERS:
        arrays |= {f"{prefix}{kind}.{i}": layer for i, layer in enumerate(getattr(part, kind, ()))}
    return {name: np.array(values, np.float32, order="C") for name, values in arrays.items()}


def unpack(kind: type[T], arrays: Arrays, prefix: str = "", **others: Any) -> T:
    """The object that was packed, on the device if it is for that; `others` are its attributes that are no arrays."""
    put = jax.device_put if issubclass(kind, eqx.Module) else np.asarray
    own: dict[str, Any] = {name: put(arrays[f"{prefix}{name}"]) for name in shapes_of(kind)}
    for layer in LAYERS:
        if layer in kind.__annotations__:
            n = sum(name.startswith(f"{prefix}{layer}.") for name in arrays)
            own[layer] = tuple(put(arrays[f"{prefix}{layer}.{i}"]) for i in range(n))
    return kind(**own, **others)


def load_described(path: Path, checksum: str, check: Callable[[Arrays], None], again: str) -> Arrays:
    """Read arrays that a card describes by their file's SHA-256; `again` says what to do otherwise.

    Raises:
        InputError: the file is missing, another one, or damaged: `check` raises ValueError for that.
    """
    if not path.is_file():
        raise InputError(f"{path}: is missing, though the card describes it; {again}")
    if file_checksum(path) != checksum:
        raise InputError(f"{path}: is not the file that the card describes; {again}")
    try:
        arrays = load_arrays(path)[0]
        check(arrays)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); {again}") from error
    return arrays


def check_layers(arrays: Arrays, first: tuple[int, ...], last: tuple[int, ...]) -> None:
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


def check_fields(arrays: Arrays, types: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
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


def _finite(arrays: Arrays, name: str) -> NDArray[Any]:
    if name not in arrays:
        raise ValueError(f"{name} is missing")
    if arrays[name].dtype != np.float32:
        raise ValueError(f"{name} holds {arrays[name].dtype}, not float32")
    if not np.isfinite(arrays[name]).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return arrays[name]
