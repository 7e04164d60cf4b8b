"""The instruments that GaiaXPy brings: it owns the bases, and what is taken from it here is private there.

`contract` says whether that is as it was. GaiaXPy takes seconds to import, so it is imported inside.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.errors import InputError
from xpbayes.instrument.instrument import Instrument, Matrices, default_id
from xpbayes.release import DR3, Release

LN_ERROR_SHAPE = ((-1.01793, -0.57880, 0.17097), (-0.83328, -0.83403, 0.31980))
"""Shapes of BP and RP (`Instrument.ln_error_shape`): a least-squares fit to the median profile of 2,000 DR3 sources
(published coefficient errors). The sampled correlation that it implies differs from that of three real sources with full
covariances by 0.07-0.09 rms (equal errors: 0.14-0.19; a diagonal: 0.17-0.19)."""
MODELS_VARIABLE = "XPBAYES_{}_MODELS"
"""Environment variable with GaiaXPy's names of BP's and RP's model, for a release whose profile does not know them."""
BUILDER = "__generate_xp_matrices_and_merge"
"""GaiaXPy's private function that makes the matrices; there is no public door to them."""


@contextlib.contextmanager
def figures_left_alone() -> Iterator[None]:
    """Import GaiaXPy inside this: on import it turns on LaTeX for every matplotlib figure of the process."""
    import matplotlib

    with matplotlib.rc_context():
        yield


def gaiaxpy_version() -> str:
    """Version of the installed GaiaXPy; 'none' without one."""
    try:
        return version("gaiaxpy")
    except PackageNotFoundError:
        return "none"


def _gaiaxpy_matrices(models: tuple[str, str], grid_nm: NDArray[np.float64]) -> Matrices:
    """Basis functions and merge weights as GaiaXPy has them; InputError if it cannot make them."""
    try:
        with figures_left_alone():
            from gaiaxpy.calibrator import calibrator
        build = getattr(calibrator, BUILDER)
        with contextlib.redirect_stdout(io.StringIO()):
            bases, merge = build("calibrator", np.asarray(grid_nm), *models)
        bp, rp = ((bases[side].design_matrix.T, np.asarray(merge[side], np.float64)) for side in ("bp", "rp"))
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"GaiaXPy {gaiaxpy_version()} does not give the instrument models {' and '.join(models)} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'nothing more'}); run 'xpbayes doctor'"
        ) from error
    return bp, rp


def of_gaiaxpy(release: Release) -> Instrument | None:
    """The release's instrument by GaiaXPy's models, as its profile or the environment names them; None if neither does."""
    return _of_gaiaxpy(release, os.environ.get(MODELS_VARIABLE.format(release.name.upper()), ""))


@lru_cache(maxsize=8)
def _of_gaiaxpy(release: Release, named: str) -> Instrument | None:
    models = tuple(part.strip() for part in named.split(",")) if named else (release.bp.model, release.rp.model)
    if len(models) != 2 or not all(models):
        if named:
            raise InputError(
                f"{MODELS_VARIABLE.format(release.name.upper())} is '{named}', not two names with a comma between; give "
                f"GaiaXPy's names of the BP and the RP model"
            )
        return None
    about = replace(default_id(release), models=(str(models[0]), str(models[1])))
    # Errors of no other release are known; the shape only matters to spectra without correlations and to simulations.
    return Instrument(about, LN_ERROR_SHAPE, partial(_gaiaxpy_matrices, about.models))


def gaiaxpy_models() -> dict[str, dict[str, int]]:
    """Models that the installed GaiaXPy brings, and how many bases they have: {'bp': {name: count}, 'rp': ...}."""
    found: dict[str, dict[str, int]] = {"bp": {}, "rp": {}}
    for path in sorted(_config_folder().glob("*_bases.csv")):
        if name := re.fullmatch(r"(bp|rp)[^_]*_(.+)_bases\.csv", path.name):
            with open(path, encoding="utf-8") as stream:
                header, first = next(stream), next(stream)
            at = header.strip().split(",").index("nBases")
            found[name[1]][name[2]] = int(first.split(",")[at])
    return found


def _config_folder() -> Path:
    with figures_left_alone():
        import gaiaxpy

    return Path(str(gaiaxpy.__file__)).parent / "config"


def gaiaxpy_basis_ids() -> tuple[int, int]:
    """Numbers of the sets of basis functions of DR3 in GaiaXPy's own configuration."""
    (path,) = _config_folder().glob("OptimisedCalibratedBases_*.xml")
    bp, rp = re.findall(r"<uniqueId>(\d+)</uniqueId>", path.read_text(encoding="utf-8"))[:2]
    return int(bp), int(rp)


def contract() -> list[str]:
    """What of GaiaXPy's private parts is not as it was, one line each; empty if all of it is."""
    complaints: list[str] = []

    def check(what: str, look: Any, expected: Any) -> None:
        try:
            found = look()
        except Exception as error:  # whatever a changed library does
            found = f"{type(error).__name__}: {error}"
        if found != expected:
            complaints.append(f"GaiaXPy {gaiaxpy_version()}: {what}: {expected} expected, {found} found")

    def arguments() -> list[str]:
        from inspect import signature

        with figures_left_alone():
            from gaiaxpy.calibrator import calibrator
        return list(signature(getattr(calibrator, BUILDER)).parameters)

    def shapes() -> list[tuple[int, ...]]:
        made = _gaiaxpy_matrices((str(DR3.bp.model), str(DR3.rp.model)), np.array([500.0, 640.0, 800.0]))
        return [array.shape for side in made for array in side]

    check(f"arguments of calibrator.{BUILDER}", arguments, ["label", "sampling", "bp_model", "rp_model"])
    check("shapes of its bases and weights on 3 samples", shapes, [(3, DR3.bp.count), (3,), (3, DR3.rp.count), (3,)])
    check("basis function ids in its configuration", gaiaxpy_basis_ids, (DR3.bp.basis_id, DR3.rp.basis_id))
    return complaints
