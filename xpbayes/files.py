"""Files that appear whole or not at all, and how they are told apart."""

import hashlib
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpbayes.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def whole_file(path: Path, advice: str = "choose another output") -> Iterator[Path]:
    """Give a temporary name to write under; the file gets its own name if all goes well, else nothing is left.

    Parent folders are made. The advice says what to do if it cannot be written.

    Raises:
        InputError: it cannot be written, or is there and no file, such as a device.
    """
    temporary = temporary_name(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: cannot be written (it is there and is no file); choose another output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())  # else a power cut may leave an empty file under the final name
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason_of(error)}); {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path, named: Path | None = None) -> None:
    """Make a folder if it is not there; InputError if it cannot be made, which names the one that was asked for."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{named or path}: cannot be made ({error.strerror}); choose another folder") from error


def write_text(path: Path, text: str, advice: str = "choose another output") -> Path:
    """Write text as UTF-8, whatever the locale; arguments and errors as for `whole_file`."""
    with whole_file(path, advice) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
    return path


def save_arrays(
    path: Path,
    arrays: "Mapping[str, NDArray[Any]]",
    about: dict[str, str] | None = None,
    advice: str = "choose another output",
) -> Path:
    """Write named C-contiguous arrays as safetensors with words in the header; InputError if it cannot be written."""
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
    """Name and both values of the first thing that differs between two nests of dicts and lists; None if nothing does.

    What is in a list goes by its own "name" where it has one, else by its place.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{name}.{k}" if name else k, old.get(k), new.get(k)) for k in dict.fromkeys([*old, *new])]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        names = [a.get("name", i) if isinstance(a, dict) else i for i, a in enumerate(old)]
        pairs = [(f"{name}[{n}]", a, b) for n, a, b in zip(names, old, new, strict=True)]
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


MACHINE = f".{platform.node()}"


def temporary_name(path: Path) -> Path:
    """Name to write under: two processes at one file, or an orphan of a killed one, must not share it."""
    return path.with_name(f"{path.name}{MACHINE}-{os.getpid()}.tmp")


def remove_abandoned(folder: Path, *, everything: bool = False) -> None:
    """Remove temporary files and folders that killed processes of this machine left in a folder.

    With `everything`, where nobody can be writing, all others too.
    """
    for path in folder.glob("*.tmp"):
        machine, _, process = path.name.removesuffix(".tmp").removesuffix(".tmp").rpartition("-")
        abandoned = machine.endswith(MACHINE) and process.isdecimal() and not _is_running(int(process))
        if everything or abandoned:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def refuse_overwriting(out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that is one of the inputs, or a file of a folder among them, by whatever name or link."""
    out = Path(out)
    if not out.exists():
        return
    for given in map(Path, inputs):
        for path in [given, *(filter(Path.is_file, given.iterdir()) if given.is_dir() else ())]:
            if path.exists() and path.samefile(out):
                raise InputError(f"{out}: is an input of this run ({given}); choose another output")


def refuse_repeated(paths: Sequence[Path]) -> None:
    """Refuse files of which one is named twice: through links, or as a copy; InputError, too, if one cannot be read."""
    known: dict[tuple[object, ...], Path] = {}
    alike: dict[tuple[object, ...], list[Path]] = {}
    try:
        for path in paths:
            status = path.stat()
            _require_new(known, (status.st_dev, status.st_ino), path)
            with open(path, "rb") as stream:
                head = stream.read(ENDS)
                stream.seek(max(0, status.st_size - ENDS))
                tail = stream.read(ENDS)
            if status.st_size > ENDS or len([line for line in head.splitlines() if line[:1] not in b"#"]) > 1:
                alike.setdefault((status.st_size, head, tail), []).append(path)  # else a header has no rows to repeat
        for path in (p for group in alike.values() if len(group) > 1 for p in group):
            _require_new(known, (file_checksum(path),), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); check its permissions") from error


def _require_new(known: dict[tuple[object, ...], Path], key: tuple[object, ...], path: Path) -> None:
    first = known.setdefault(key, path)
    if first != path:
        raise InputError(f"{path}: is the same file as {first}, or a copy of it; name every file once")


ENDS = 1 << 10
"""Bytes from both ends of a file that tell it from most others."""


@contextmanager
def locked(path: Path, advice: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock, which the system takes from a process that dies; its file is gone afterwards.

    On Windows, which has no such locks, nothing is held.

    Args:
        path: file that stands for what is locked; its folder is made.
        advice: what to say if another process holds it.
        shared: others may hold it too, if they share it.

    Raises:
        InputError: another process holds it, or the file cannot be made.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({reason_of(error)}); choose another output") from error
        try:
            fcntl.flock(held, kind)
            if path.exists() and os.path.samestat(os.fstat(held), path.stat()):
                break
        except BlockingIOError as error:
            os.close(held)
            raise InputError(advice) from error
        except FileNotFoundError:
            pass  # whoever held it has just removed it
        os.close(held)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of those who share it, the last removes it
            path.unlink(missing_ok=True)
        os.close(held)


def reason_of(error: BaseException | None) -> str:
    """Say in the system's own words why it refused: Arrow wraps them into many of its own."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else (str(error).splitlines() or [type(error).__name__])[0]


def has_gone(path: Path) -> InputError:
    """What to say of an input that was there when a run began."""
    return InputError(f"{path}: has gone since the run began; put it back and go on with --resume")
