"""A training run on disk between two phases: one safetensors file, written under a temporary name, then renamed.

In and out: a tree of arrays (None, arrays, tuples, dicts, and named tuples or dataclasses of this package) and a
JSON-ready record. The file also carries checksums of the stars and the settings that it belongs to; another run's is
refused. Rebuilding a tree makes named tuples and dataclasses of modules that are imported already, and calls nothing
else: a checkpoint cannot run code.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, StrictInt

from xpbayes.data.json_file import from_json
from xpbayes.errors import InputError
from xpbayes.files import first_difference, load_arrays, save_arrays

PACKAGE = "xpbayes."
VERSION = 3


class _Header(BaseModel):
    """What a checkpoint says of itself."""

    version: StrictInt
    checksum: str = ""
    tree: dict[str, Any]
    about: dict[str, Any]


def tree_checksum(tree: Any) -> str:
    """SHA-256 of all arrays of a tree, shapes and types included, as ``sha256:...``."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return f"sha256:{digest.hexdigest()}"


def _fields(node: Any) -> dict[str, Any] | None:
    """Fields of a named tuple or dataclass of this package; None for anything else."""
    if not type(node).__module__.startswith(PACKAGE):
        return None
    if isinstance(node, tuple) and hasattr(node, "_asdict"):
        return dict(node._asdict())
    if dataclasses.is_dataclass(node):
        return {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    return None


def pack(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Describe a tree in JSON, for `unpack`, and collect its arrays under numbered names."""
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    if isinstance(tree, Mapping):
        return {"dict": {str(k): pack(v, arrays) for k, v in tree.items()}}
    fields = _fields(tree)
    if fields is not None:
        kind = f"{type(tree).__module__}:{type(tree).__qualname__}"
        return {"class": kind, "fields": {k: pack(v, arrays) for k, v in fields.items()}}
    if isinstance(tree, (tuple, list)):
        return {type(tree).__name__: [pack(v, arrays) for v in tree]}
    if isinstance(tree, (jax.Array, np.ndarray)):
        name = f"array.{len(arrays)}"
        arrays[name] = np.array(tree, order="C")
        return {"array": name}
    raise TypeError(f"a checkpoint cannot hold a {type(tree).__name__}")


def unpack(description: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Rebuild what `pack` described."""
    ((kind, content), *rest) = description.items()
    if kind == "value":
        return content
    if kind == "array":
        return jnp.asarray(arrays[content])
    if kind == "dict":
        return {k: unpack(v, arrays) for k, v in content.items()}
    if kind in ("tuple", "list"):
        items = [unpack(v, arrays) for v in content]
        return tuple(items) if kind == "tuple" else items
    fields = {k: unpack(v, arrays) for k, v in dict(rest)["fields"].items()}
    return _own_class(content)(**fields)


def _own_class(name: str) -> type:
    """The named tuple or dataclass of that name; ValueError for anything else, a function above all."""
    module, _, short = name.partition(":")
    found = getattr(sys.modules.get(module), short, None) if module.startswith(PACKAGE) else None
    if not isinstance(found, type) or found.__module__ != module:
        raise ValueError(f"{name} is not a class of this package")
    if not dataclasses.is_dataclass(found) and not hasattr(found, "_asdict"):
        raise ValueError(f"{name} is not a class of this package that holds data")
    return found


def write_checkpoint(path: str | os.PathLike[str], tree: Any, about: Mapping[str, Any]) -> None:
    """Write a checkpoint; an older one under the same name is replaced in one step; InputError if it cannot be written.

    `about` is JSON-ready: what the state belongs to, and the record so far.
    """
    arrays: dict[str, np.ndarray] = {}
    described = pack(tree, arrays)
    header = {
        "kind": "training checkpoint",
        "version": VERSION,
        "checksum": tree_checksum(arrays),
        "tree": described,
        "about": dict(about),
    }
    save_arrays(Path(path), arrays, {"xpbayes": json.dumps(header)})


def read_checkpoint(path: str | os.PathLike[str], belongs_to: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint: the state, and what was written `about` it.

    `belongs_to` holds 'stars' (a checksum) and 'settings' (JSON-ready) of the run that wants to go on.

    Raises:
        InputError: damaged, of another version, or of other stars or settings.
    """
    path = Path(path)
    again = "train again without resuming"
    try:
        arrays, words = load_arrays(path)
        header = from_json(words["xpbayes"], _Header, str(path), f"delete it and {again}")
        if header.version != VERSION:
            raise InputError(f"{path}: is a checkpoint of version {header.version}, not {VERSION}; {again}")
        if header.checksum != tree_checksum(arrays):
            raise ValueError("its arrays are not those that were written")
        about = header.about
        if about["stars"] != belongs_to["stars"]:
            raise InputError(f"{path}: belongs to other training stars than are given now; give those, or {again}")
        changed = first_difference(about["settings"], json.loads(json.dumps(belongs_to["settings"])))
        if changed is not None:
            name, old, new = changed
            raise InputError(f"{path}: was written with {name} = {old}, now it is {new}; set it back, or {again}")
        state = unpack(header.tree, arrays)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not a usable checkpoint ({error}); delete it and {again}") from error
    return state, about
