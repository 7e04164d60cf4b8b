"""A batch of stars ready for jit and vmap: float32 arrays and nothing else.

A missing value is the same everywhere: infinite variance, that is weight zero. A missing channel has a zero row and
column in the whitening factor; a missing parallax, label or reddening has inverse error 0 and any finite value.
Gaia's 64-bit source_id stays outside (`data.spectra.Spectra`): 32-bit JAX silently changes it.

Stars that are larger than memory are a `Stars` whose large arrays are files, working copies of one machine and one run:
`stars.take(rows)` reads those rows and is an ordinary batch; whatever works on all stars does so by pieces.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.device import aligned_zeros, is_traced
from xpbayes.errors import InputError
from xpbayes.files import reason_of

T = TypeVar("T")

STAR_BLOCK = 64
"""Stars that are worked on together on CPUs: one program per step, whatever the batch; few stars fill little in vain."""


class ParallaxDoubt(eqx.Module):
    """How likely measured parallaxes are spurious, that is with errors far larger than stated."""

    prior: Float[Array, "*star"]  # (star,) probability, before the fluxes are looked at
    narrowing: Float[Array, "*star"]  # (star,) stated error over the one that a spurious parallax has, at most 1


class Stars(eqx.Module):
    """One star, or a batch of stars along a leading axis; inverse errors are 0 where a value is missing."""

    # (star, channel) observed flux density, in units of the star's own scale; any finite value where missing
    flux: Float[Array, "*star channel"]
    # (star, channel, channel) W with W^T W the inverse covariance of `flux`; zero rows and columns where missing
    whitening: Float[Array, "*star channel channel"]
    # (star,) ln of the star's scale [1e-18 W m^-2 nm^-1]: with fluxes near one, float32 keeps its digits
    ln_scale: Float[Array, "*star"]
    # (star,) [mas, 1/mas]
    parallax: Float[Array, "*star"]
    parallax_inv_error: Float[Array, "*star"]
    # (star, label) stellar labels, Teff first [kK, dex, dex, ...], and 1/sigma
    labels: Float[Array, "*star label"]
    label_inv_error: Float[Array, "*star label"]
    # (star,) estimate of E [mag], and 1/sigma
    reddening: Float[Array, "*star"]
    reddening_inv_error: Float[Array, "*star"]
    # (star,) 1 / degrees of freedom of the Student t that the fluxes follow; 0 is a Gaussian
    inv_dof: Float[Array, "*star"]
    doubt: ParallaxDoubt | None = None  # of the measured parallaxes; None takes them at their word

    def __len__(self) -> int:
        return self.flux.shape[0]

    def take(self, index: Array | NDArray[Any] | slice) -> "Stars":
        """Select stars by index, mask or slice: outside of a program by NumPy, which compiles nothing for that."""
        if is_traced((self, index)) or jax.default_backend() != "cpu":
            return jax.tree.map(lambda leaf: leaf[index], self)
        rows = index if isinstance(index, slice) else np.asarray(index)
        return jax.tree.map(lambda leaf: _rows(leaf, rows), self)

    def blind(self, *, parallax: bool = True) -> "Stars":
        """Return the stars as inference may see them: no labels, no reddening, and no parallax unless it is kept."""
        return replace(
            self,
            label_inv_error=_none_of(self.label_inv_error),
            reddening_inv_error=_none_of(self.reddening_inv_error),
            parallax_inv_error=self.parallax_inv_error if parallax else _none_of(self.parallax_inv_error),
            doubt=self.doubt if parallax else None,
        )


def _rows(leaf: Array | NDArray[Any], rows: NDArray[Any] | slice) -> Array | NDArray[Any]:
    """Rows of an array, which stays where it is."""
    return leaf[rows] if isinstance(leaf, np.ndarray) else jax.device_put(np.asarray(leaf)[rows])


def _none_of(values: Array) -> Any:
    """Zeros in the shape of some values."""
    return np.zeros(values.shape, values.dtype)


def chunk_size(n_stars: int, largest: int, multiple: int = 64) -> int:
    """Choose chunks of one size, a multiple of some number and at most about `largest`, that waste little padding."""
    n_chunks = max(1, math.ceil(n_stars / largest))
    return math.ceil(n_stars / n_chunks / multiple) * multiple


def by_blocks(function: Callable[..., T], size: int, *trees: Any) -> T:
    """Apply a function of stars to blocks of one size: one program then serves any number of stars.

    Args:
        function: takes one block of every tree and returns arrays whose leading axis is the star; a star's result must
            not depend on the others'.
        size: stars in a block; the last one is filled up by repeating a star. An accelerator takes all at once.
        trees: arrays, or trees of them, with the star as leading axis.

    Returns:
        what `function` returns, for all stars: in NumPy on CPUs, and where there was more than one block. Within a program,
        whatever its device, all are one block.
    """
    if is_traced(trees):
        return function(*trees)
    n = len(jax.tree.leaves(trees)[0])
    if not n:  # of a batch whose stars all failed
        block = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), trees)
        return jax.tree.map(lambda leaf: np.empty((0, *leaf.shape[1:]), leaf.dtype), jax.eval_shape(function, *block))
    on_host = jax.default_backend() == "cpu"
    if on_host:
        trees = jax.tree.map(np.asarray, trees)  # no copy; NumPy takes rows without compiling anything
    else:
        size = chunk_size(n, n)
    parts = []
    for start in range(0, n, size):
        whole = start + size <= n  # a slice is no copy
        rows = slice(start, start + size) if whole else np.minimum(np.arange(start, start + size), n - 1)
        part = function(*jax.tree.map(lambda leaf, at=rows: leaf[at], trees))
        parts.append(jax.tree.map(np.asarray, part) if on_host or n > size else part)
    return jax.tree.map(lambda *leaves: (_joined(leaves) if len(leaves) > 1 else leaves[0])[:n], *parts)


def _joined(leaves: Sequence[NDArray[Any]]) -> NDArray[Any]:
    whole = aligned_zeros((sum(map(len, leaves)), *leaves[0].shape[1:]), leaves[0].dtype)
    return np.concatenate(leaves, out=whole)


def rows_of_each(tree: T, rows: NDArray[Any] | slice) -> T:
    """A tree of arrays with some rows of each, in NumPy, which takes rows without compiling anything."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def evenly(n: int, most: int) -> NDArray[np.intp]:
    """Rows of n, evenly picked: all, or so many at most."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.intp)


def replaced(tree: T, part: T, rows: NDArray[np.integer]) -> T:
    """A tree of arrays with some rows of each replaced, in NumPy."""

    def merged(before: Array, after: Array) -> NDArray[Any]:
        out = _joined([np.asarray(before)])
        out[rows] = after
        return out

    return jax.tree.map(merged, tree, part)


def signal_to_noise(stars: Stars) -> NDArray[np.float64]:
    """(star,) median over the measured channels of flux over error, the model's own error included."""
    whitening = np.asarray(stars.whitening)
    precision = np.einsum("sij,sij->sj", whitening, whitening).astype(np.float64)
    ratio = np.where(precision > 0, np.asarray(stars.flux) * np.sqrt(precision), np.nan)
    return np.nanmedian(ratio, axis=1)


# ------------------------------------------------------------------------------------------------- doubted parallaxes

INFLATION = 8.0
"""Error of a spurious parallax in units of the stated one: false parallaxes are several, up to some tens, of these off."""
LEAST, MOST = 0.003, 0.98
"""Of the probability: Gaia's columns miss some, and what they call hopeless may be right."""
HIGH_RUWE, BY_RUWE, STEEPNESS = 1.4, 0.6, 14.0
"""Half as likely as by the largest RUWE at the published limit; a hundredth of it at 1."""


def parallax_doubt(fidelity: NDArray[np.floating], ruwe: NDArray[np.floating]) -> ParallaxDoubt | None:
    """Prior probability that each parallax is spurious, by what Gaia says of its solution, before any flux is looked at.

    A spurious parallax is one whose error is far larger than stated: two sources were taken for one, or a companion's orbit
    for the parallax's ellipse. Two columns tell, (star,) each and NaN where missing: fidelity_v2, the probability of a sound
    solution (Rybizki et al. 2022), and RUWE, beyond 1.4 for solutions that do not follow a single star's motion (Lindegren
    et al. 2021). A companion makes RUWE large long before it spoils the parallax, so RUWE alone never makes a parallax as
    good as certainly spurious.

    A star that has neither column is taken at its word, and None comes back if no star has any.
    """
    known = np.isfinite(fidelity) | np.isfinite(ruwe)
    if not known.any():
        return None
    by_fidelity = np.where(np.isfinite(fidelity), 1.0 - np.clip(fidelity, 0.0, 1.0), 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        by_ruwe = np.where(ruwe > 0, BY_RUWE / (1.0 + (HIGH_RUWE / np.where(ruwe > 0, ruwe, 1.0)) ** STEEPNESS), 0.0)
    either = np.clip(1.0 - (1.0 - by_fidelity) * (1.0 - by_ruwe), LEAST, MOST)
    arrays: dict[str, Any] = {"prior": np.where(known, either, 0.0).astype(np.float32)}
    return ParallaxDoubt(**arrays, narrowing=np.full_like(arrays["prior"], 1.0 / INFLATION))


# ------------------------------------------------------------------------------------------------------- stars in files

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
