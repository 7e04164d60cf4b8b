"""Files that appear whole or not at all, and how they are told apart."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xpbayes.errors import InputError


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
