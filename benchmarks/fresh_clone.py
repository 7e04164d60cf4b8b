"""What a stranger waits for: `make demo` and `make test` in a fresh clone, set-up included, timed.

Usage: python benchmarks/fresh_clone.py        (needs git, make, python3 and PyPI; about eight minutes)
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET_MINUTES = {"demo": 6, "test": 10}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for target, limit in TARGET_MINUTES.items():
            begun = time.perf_counter()
            run = subprocess.run(["make", target], cwd=clone, capture_output=True, text=True, check=False)
            minutes = (time.perf_counter() - begun) / 60
            print(f"make {target}: {minutes:.1f} minutes, target < {limit}: {'met' if minutes < limit else 'MISSED'}")
            for line in (run.stdout + run.stderr).splitlines()[-8:]:
                print(f"    {line}")
            if run.returncode:
                sys.exit(f"make {target} failed with status {run.returncode}")


if __name__ == "__main__":
    main()
