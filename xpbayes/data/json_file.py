"""JSON that somebody else may have written: every file is validated against its type, and one sentence says what is wrong.

Also the writer of small JSON files: under a temporary name, forced to disk, renamed.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, StrictInt, TypeAdapter, ValidationError

from xpbayes.errors import InputError
from xpbayes.files import reason_of, write_text

T = TypeVar("T")
MOST_BYTES = 1 << 30
"""Of a JSON file: a manifest of Gaia's 220 million spectra has some 10 MB."""


class _Versioned(BaseModel):
    """What every JSON file of ours has: a newer one is told from a damaged one."""

    version: StrictInt = 1


def read_json(path: str | os.PathLike[str], kind: type[T], advice: str, newest: int | None = None) -> T:
    """Read a JSON file that holds a dataclass, a pydantic model, or a container type.

    Args:
        path: the file.
        kind: what it must hold.
        advice: what to do if it is damaged.
        newest: the newest version of such a file that this xpbayes knows; None where it has none of its own.

    Raises:
        InputError: it cannot be read, is no JSON, holds something else, or was written by a newer xpbayes.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than any such file ({path.stat().st_size / 1e9:.1f} GB); {advice}")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); {advice}") from error
    if newest is not None and (version := from_json(raw, _Versioned, str(path), advice).version) > newest:
        raise InputError(f"{path}: version {version} is newer than this xpbayes reads ({newest}); upgrade xpbayes")
    return from_json(raw, kind, str(path), advice)


def from_json(raw: bytes | str, kind: type[T], where: str, advice: str) -> T:
    """Validate JSON text; `where` is what the sentence calls it, other arguments as for `read_json`."""
    try:
        validated: T = _adapter(kind).validate_json(raw)  # type: ignore[arg-type]
        return validated
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())
        raise InputError(f"{where}: is damaged ({reason}); {advice}") from error


def checked(value: Any, kind: type[T], where: str, advice: str) -> T:
    """Validate what was parsed already, as `from_json` does."""
    return from_json(json.dumps(value), kind, where, advice)


def write_json(value: Any, path: Path, advice: str = "choose another output") -> None:
    """Write JSON whole or not at all; InputError if it cannot be written."""
    write_text(path, json.dumps(value, indent=1) + "\n", advice)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
