"""Feed changed files to every door, guided by the code that they reach, and keep whatever ends in a traceback.

    python benchmarks/fuzz.py [TARGET ...] [--seconds 60] [--out DIR] [--list]

Inputs come from libFuzzer through Atheris (`pip install atheris`; CPython 3.11 to 3.13), which changes whole files of
`tests/hostile/make.py` and prefers what runs new lines of xpbayes. A loader may read a file or refuse it with an InputError
of one line; anything else is a fault. Each target runs in a process of its own for so many seconds of CPU time. Prints a
line per target: inputs tried, faults, CPU seconds; one file a fault, with the traceback beside it, is left in DIR, and
what a process was reading that died. To keep
a fault from coming back, put its file into tests/hostile/found.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
LARGEST = 1 << 14
"""Bytes of an input."""
MEMORY = Path("/dev/shm")
"""A folder in memory, where there is one: a file is written for every input."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time per target")
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scratch is not None:
        fuzz(arguments.targets[0], arguments.seconds, arguments.out, arguments.scratch)
    from tests.hostile.doors import TARGETS

    if arguments.list:
        print("\n".join(TARGETS))
        return
    tried = faults = 0
    spent = 0.0
    for target in arguments.targets or TARGETS:
        folder = arguments.out / target
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix="xpbayes-fuzz-", dir=MEMORY if MEMORY.is_dir() else None) as scratch,
            open(folder / "log.txt", "w") as log,
        ):
            command = [sys.executable, __file__, target, "--seconds", str(arguments.seconds)]
            command += ["--out", str(folder.absolute()), "--scratch", scratch]
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
            about = json.loads((folder / "about.json").read_text())
            if not about["ended"]:
                shutil.copytree(scratch, folder / "died", ignore=shutil.ignore_patterns("corpus"), dirs_exist_ok=True)
        if not about["ended"]:
            print(
                f"{target}: the process died with code {code} after {about['tried']} inputs; see {folder}", flush=True
            )
        print(f"{target}: {about['tried']} inputs, {about['faults']} faults, {about['seconds']:.0f} s", flush=True)
        tried, faults, spent = tried + about["tried"], faults + about["faults"], spent + about["seconds"]
    print(f"all: {tried} inputs, {faults} faults, {spent:.0f} s of CPU time")


def fuzz(name: str, seconds: float, out: Path, folder: Path) -> None:
    """Run one target in this process until its CPU time is spent; never returns."""
    import atheris

    with atheris.instrument_imports(include=["xpbayes"]):
        from tests.hostile.doors import TARGETS, seeds
    from xpbayes.errors import InputError

    warnings.simplefilter("ignore")
    corpus = folder / "corpus"
    corpus.mkdir()
    read: Callable[[bytes], object] = TARGETS[name](folder)
    for i, raw in enumerate(seeds(name, folder)):
        (corpus / f"seed{i}").write_bytes(raw)
    known: set[str] = set()
    tried = 0

    def report(ended: bool) -> None:
        about = {"tried": tried, "faults": len(known), "seconds": _cpu_seconds(), "ended": ended}
        (out / "about.json").write_text(json.dumps(about) + "\n")

    report(False)
    said = time.monotonic()

    def one(raw: bytes) -> None:
        nonlocal tried, said
        tried += 1
        try:
            read(raw)
        except InputError as error:
            if "\n" in str(error):
                note(raw, f"several lines: {str(error)[:300]!r}", "several lines" + str(error)[:20])
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if "/xpbayes/" in f.filename] or frames
            note(raw, traceback.format_exc(), f"{type(error).__name__}{own[-1].filename}{own[-1].lineno}")
        if time.monotonic() - said > 2:
            said = time.monotonic()
            ended = _cpu_seconds() > seconds
            report(ended)
            if ended:
                os._exit(0)

    def note(raw: bytes, text: str, what: str) -> None:
        if what not in known:
            known.add(what)
            file = out / f"fault-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
            file.write_bytes(raw)
            file.with_suffix(".txt").write_text(text)

    words = folder / "words"
    words.write_text("".join(f'"{w}"\n' for w in WORDS))
    limits = [f"-max_len={LARGEST}", f"-dict={words}", "-rss_limit_mb=6000", "-timeout=120", "-verbosity=0"]
    # Python says where it was when a signal came; libFuzzer would only say that one came.
    limits += [f"-handle_{signal}=0" for signal in ("segv", "bus", "abrt", "ill", "fpe")]
    faulthandler.enable()
    atheris.Setup([sys.argv[0], str(corpus), *limits, f"-artifact_prefix={out}/"], one)
    atheris.Fuzz()
    sys.exit(0)


def _cpu_seconds() -> float:
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return mine.ru_utime + mine.ru_stime


WORDS = (
    "source_id", "SOURCE_ID", "nan", "NaN", "null", "None", "inf", "1e400", "-1", "0", "9223372036854775808", "1e18",
    "Gaia DR3 ", "[[", "]]", "()", "\\\"", "\\\"\\\"", "b'", "=\\\"", "array(", "np.float64(", "...", "--", "true",
    "bp_coefficients", "rp_coefficient_errors", "teff", "j_m", "%ECSV", "datatype", "delimiter", "<TABLE>", "<FIELD ",
    "arraysize=", "BINARY2", "PARAM", "GROUP", "version", "arrays_checksum", "labels", "channels", "n_xp", "F32", "F64",
    "dtype", "shape", "data_offsets", "[xp]", "files", "[[labels]]", "columns", "inputs", "parts", "complete",
)  # fmt: skip
"""Pieces of files that random changes would take long to find."""


if __name__ == "__main__":
    main()
