"""Files that appear whole or not at all, and how they are told apart."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpbayes.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def whole_file(path: Path, advice: str = "choose another output") -> Iterator[Path]:
    """Give a temporary name to write under; the file gets its own name if all goes well, else nothing is left.

    Args:
        path: the file; parent folders are made.
        advice: what to do if it cannot be written.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_arrays(
    path: Path,
    arrays: "Mapping[str, NDArray[Any]]",
    about: dict[str, str] | None = None,
    advice: str = "choose another output",
) -> Path:
    """Write named arrays as safetensors.

    Args:
        path: the file.
        arrays: C-contiguous ones.
        about: words for the file's header.
        advice: what to do if it cannot be written.

    Raises:
        InputError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with whole_file(path, advice) as temporary:
        try:
            save_file(dict(arrays), temporary, metadata=about)
        except SafetensorError as error:  # wraps what the system says
            raise OSError(str(error)) from error
    return path


def load_arrays(path: Path) -> "tuple[dict[str, NDArray[Any]], dict[str, str]]":
    """Read what `save_arrays` wrote: arrays and header; OSError or ValueError for a file that is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def first_difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Name and both values of the first thing that differs between two nests of dicts and lists; None if nothing does."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{name}.{k}" if name else k, old.get(k), new.get(k)) for k in dict.fromkeys([*old, *new])]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else (name, old, new)
    return next((found for n, a, b in pairs if (found := first_difference(a, b, n)) is not None), None)


def file_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as ``sha256:...``."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def reason_of(error: BaseException | None) -> str:
    """Say in the system's own words why it refused: Arrow wraps them into many of its own."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error).splitlines()[0]


def has_gone(path: Path) -> InputError:
    """What to say of an input that was there when a run began."""
    return InputError(f"{path}: has gone since the run began; put it back and go on with --resume")
