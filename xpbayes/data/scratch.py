"""Stars that are larger than memory: a `Stars` whose large arrays are files.

`stars.take(rows)` of such stars reads those rows and is an ordinary batch; whatever works on all stars does so by pieces.
The files are working copies, of one machine and one run.
"""

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from xpbayes.data.stars import Stars
from xpbayes.errors import InputError
from xpbayes.files import reason_of

PIECE = 8192
"""Stars in memory together where all are in files: 140 MB of whitening factors of 66 channels."""
STRETCH = 1536
"""Stars of consecutive steps of a gradient phase, read together: 27 MB, which NumPy and JAX take from memory they have.
Larger arrays get fresh pages every time, and reading 16,384 stars cost twice as much a star."""
FLUX, WHITENING, FOLDED = "flux.f32", "whitening.f32", "folded_whitening.f32"


def are_in_files(stars: Stars) -> bool:
    """Whether the stars are larger than memory."""
    return isinstance(stars.whitening, np.memmap)


def make_star_files(folder: Path, n_stars: int, n_channels: int, n_labels: int) -> Stars:
    """Make room for stars on disk, once for their measurements and once for `scratch_copy`.

    Their arrays are to be filled by `write_rows`. InputError if there is not so much room.
    """
    square = (n_stars, n_channels, n_channels)
    _reserve(folder / FOLDED, square)
    large = {"flux": _reserve(folder / FLUX, square[:2]), "whitening": _reserve(folder / WHITENING, square)}
    shapes = {"labels": (n_stars, n_labels), "label_inv_error": (n_stars, n_labels)}
    small = {f.name: np.zeros(shapes.get(f.name, n_stars), np.float32) for f in fields(Stars) if f.name != "doubt"}
    return Stars(**small | large)


def _reserve(path: Path, shape: tuple[int, ...]) -> Any:
    size = 4 * int(np.prod(shape))
    try:
        # A page of a mapped file that finds the disk full ends the process without a word; so all room is taken now.
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(path, np.float32, "r+", shape=shape)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(
            f"{path.parent}: has no room for {size / 1e9:.1f} GB of {shape[0]} training stars ({reason_of(error)}); make "
            f"room, or train on fewer stars"
        ) from error


def scratch_copy(stars: Stars) -> Stars:
    """The same stars with a whitening of their own, in the file that `make_star_files` reserved for it."""
    whitening: Any = stars.whitening
    assert isinstance(whitening, np.memmap) and whitening.filename is not None
    other = Path(whitening.filename).with_name(FOLDED)
    folded: Any = np.memmap(other, np.float32, "r+", shape=whitening.shape)
    inv_dof: Any = np.array(stars.inv_dof)
    return replace(stars, whitening=folded, inv_dof=inv_dof)


def write_rows(stars: Stars, rows: slice, part: Stars) -> None:
    """Write a batch, whose parallaxes are not doubted, into some rows."""
    assert part.doubt is None
    for field in fields(Stars):
        mine = getattr(stars, field.name)
        if field.name != "doubt":
            assert isinstance(mine, np.ndarray)
            mine[rows] = np.asarray(getattr(part, field.name))


def pieces(n_stars: int) -> Iterator[slice]:
    """Rows that may be in memory together."""
    for begin in range(0, n_stars, PIECE):
        yield slice(begin, min(begin + PIECE, n_stars))


def in_memory(stars: Stars, rows: NDArray[np.integer] | slice) -> Stars:
    """Some of the stars as an ordinary batch."""
    return jax.device_put(stars.take(rows))
