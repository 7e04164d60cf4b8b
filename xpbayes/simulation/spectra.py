"""Observed XP coefficients of simulated stars, with errors and correlations like Gaia's.

The noise is the one that inference assumes: coefficient covariance, the calibration errors of ZGR23 Eq. 2 and the
model's own error if it has one, all times the star's amplitude (`noise`). Out: blocks of `ObservedXp`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.channels import BP_RP_BOUNDARY_NM, XP_GRID_NM
from xpbayes.errors import InputError
from xpbayes.instrument.bases import design_matrices, instrument_of
from xpbayes.instrument.error_model import inflate
from xpbayes.instrument.xp_covariance import FLUX_UNIT_SI, XpSide, calibrate, coefficient_covariance
from xpbayes.simulation.noise import BandErrors, Noise, NoiseSource
from xpbayes.simulation.stars import N_XP, SimulatedStars

SIDES = ("bp", "rp")
LN_ERROR_LEVEL = {"bp": (0.0664, 0.0491, -1.1673), "rp": (0.0549, 0.1206, -1.1685)}
"""Mean ln error of a side's coefficients as a quadratic in ln of its mean flux [1e-18 W m^-2 nm^-1]: a least-squares
fit to 2,000 DR3 sources, scatter 0.2."""
LN_ERROR_SCATTER = 0.2
OUTLIER_SAMPLES, OUTLIER_FRACTION = 10, 0.3
"""An outlier has so many neighbouring samples that are wrong by this fraction."""
BLOCK = 256
"""Stars drawn at once."""


@dataclass(frozen=True)
class ErrorProfiles:
    """Errors of one side of real or typical sources, to draw from."""

    level: tuple[float, float, float]  # mean ln error, a quadratic in ln of the side's mean flux [1e-18 W m^-2 nm^-1]
    profile: NDArray[np.float64]  # (template, k) ln error minus its mean
    correlation: NDArray[np.float64] | None  # (template, k(k-1)/2) packed; None: made up


@dataclass(frozen=True)
class ObservedXp:
    """Observed coefficients of some stars: source_id (star,) and both sides."""

    source_id: NDArray[np.int64]
    bp: XpSide
    rp: XpSide


def typical_errors() -> list[ErrorProfiles]:
    """Return the profiles of the median DR3 source, BP and RP; correlations will be made up."""
    return [_profiles(side, ln[None], None) for side, ln in zip(SIDES, instrument_of().ln_errors(), strict=True)]


def errors_like(path: Path) -> list[ErrorProfiles]:
    """Take both sides' profiles and correlations from a file of real continuous spectra; InputError if it has none."""
    found: dict[str, list[XpSide]] = {side: [] for side in SIDES}
    for batch in read_xp_continuous(path):
        keep = batch.bp.present & batch.rp.present
        if batch.bp.correlation is not None and batch.rp.correlation is not None and keep.any():
            for side in SIDES:
                found[side].append(getattr(batch, side).take(keep))
    if not found["bp"]:
        raise InputError(f"{path}: no source has BP and RP with correlations; name a file of real continuous spectra")
    profiles = []
    for side, some in found.items():
        ln_error = np.log(np.concatenate([one.error for one in some]))
        correlation = np.concatenate([one.correlation for one in some if one.correlation is not None])
        profiles.append(_profiles(side, ln_error, correlation))
    return profiles


def _profiles(side: str, ln_error: NDArray[np.float64], correlation: NDArray[np.float64] | None) -> ErrorProfiles:
    return ErrorProfiles(LN_ERROR_LEVEL[side], ln_error - ln_error.mean(axis=1, keepdims=True), correlation)


def draw_errors(mean_flux: NDArray[np.float64], errors: ErrorProfiles, rng: np.random.Generator) -> XpSide:
    """Draw errors, correlations and standard deviations for one side of some stars, given its mean flux (star,).

    Coefficients are zero, all numbers rounded to what the file will hold (float32).
    """
    n = len(mean_flux)
    level = np.polyval(errors.level, np.log(np.maximum(mean_flux, 0.1)))
    level = level + LN_ERROR_SCATTER * rng.standard_normal(n)
    template = rng.integers(len(errors.profile), size=n)
    error = np.exp(level[:, None] + errors.profile[template])
    k = error.shape[1]
    if errors.correlation is not None:
        correlation = errors.correlation[template]
    else:
        loading = 0.4 * rng.standard_normal((n, k, 3))
        matrix = loading @ loading.transpose(0, 2, 1) + np.eye(k)
        sigma = np.sqrt(np.diagonal(matrix, axis1=1, axis2=2))
        row, column = np.tril_indices(k, -1)
        correlation = (matrix / sigma[:, :, None] / sigma[:, None, :])[:, row, column]
    return XpSide(
        coefficient=np.zeros((n, k)),
        error=_as_single(error),
        correlation=_as_single(correlation),
        standard_deviation=_as_single(rng.uniform(1.0, 1.3, n)),
        present=np.ones(n, bool),
    )


def _as_single(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class _Sampling:
    """The design matrix taken apart at the samples where BP and RP merge.

    A merged sample is a sum of both sides. Each side alone must give the star's flux there too, or a star without BP
    would have a wrong 642 nm sample: such rows are replaced by one row a side.
    """

    design: NDArray[np.float64]  # (sample, coefficient) D [1e-18 W m^-2 nm^-1 per coefficient unit]
    merged: NDArray[np.intp]  # (m,) the samples that both sides reach
    alone: NDArray[np.float64]  # (2, m, coefficient) BP's and RP's own rows for these
    apart: NDArray[np.float64]  # (sample + m, coefficient) all other rows, then both of these


def _sampling() -> _Sampling:
    (_, w_bp), (_, w_rp) = instrument_of().sides()
    bp, rp = (matrix / FLUX_UNIT_SI for matrix in design_matrices())
    design, k = np.hstack([bp, rp]), bp.shape[1]
    merged = np.flatnonzero((w_bp > 0) & (w_rp > 0))
    alone = np.zeros((2, len(merged), design.shape[1]))
    alone[0, :, :k] = bp[merged] / w_bp[merged, None]
    alone[1, :, k:] = rp[merged] / w_rp[merged, None]
    return _Sampling(design, merged, alone, np.vstack([np.delete(design, merged, axis=0), *alone]))


def observe(
    stars: SimulatedStars,
    at: NDArray[np.int64],
    errors: Sequence[ErrorProfiles],
    source: NoiseSource,
    bands: BandErrors,
    rng: np.random.Generator,
) -> Iterator[tuple[NDArray[np.int64], ObservedXp, NDArray[np.float64], Noise]]:
    """Observe the XP spectra of (n,) some stars, block by block; `bands`, of all stars, help to tell a star's kind.

    Yields:
        (block,) which stars, their coefficients, (block, 61) the flux that these give without further noise, and the
        noise drawn, which the bands share.
    """
    sampling = _sampling()
    counts = instrument_of().about.counts
    of_side = (slice(0, counts[0]), slice(counts[0], sum(counts)))
    is_bp = XP_GRID_NM < BP_RP_BOUNDARY_NM
    for start in range(0, len(at), BLOCK):
        block = at[start : start + BLOCK]
        flux = stars.flux[block, :N_XP]
        perfect = _coefficients(flux, sampling, errors)
        sides = [
            replace(
                draw_errors(flux[:, own].mean(axis=1), errors[i], rng),
                coefficient=perfect[:, of_side[i]],
                present=present[block],
            )
            for i, (own, present) in enumerate(((is_bp, stars.has_bp), (~is_bp, stars.has_rp)))
        ]
        drawn = source.draw(calibrate(sides[0], sides[1]), bands, block, rng)
        target = _miscalibrate(flux, drawn, stars.outlier[block], rng)
        coefficient = _coefficients(target, sampling, errors)
        noisy = []
        for i, side in enumerate(sides):
            xi = rng.standard_normal((len(block), counts[i], 1))
            noise = drawn.amplitude[:, None] * (np.linalg.cholesky(coefficient_covariance(side)) @ xi)[:, :, 0]
            noisy.append(replace(side, coefficient=coefficient[:, of_side[i]] + noise))
        both = np.concatenate([side.coefficient for side in noisy], axis=1)
        observed = both @ sampling.design.T
        for alone, other in zip(sampling.alone, reversed(noisy), strict=True):
            observed[np.ix_(~other.present, sampling.merged)] = both[~other.present] @ alone.T
        yield block, ObservedXp(stars.source_id[block], noisy[0], noisy[1]), observed, drawn


def _miscalibrate(
    flux: NDArray[np.float64], drawn: Noise, outlier: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Add the errors of samples, the model's own and the calibration's (Eq. 2), and the wrong stretches of outliers."""
    n = len(flux)
    calibration = inflate(np.zeros((n, N_XP, N_XP)), flux, XP_GRID_NM)
    xi = (np.linalg.cholesky(calibration) @ rng.standard_normal((n, N_XP, 1)))[:, :, 0]
    target: NDArray[np.float64] = flux * (1.0 + drawn.model_error[:, :N_XP]) + drawn.amplitude[:, None] * xi
    for odd in np.flatnonzero(outlier):
        low = int(rng.integers(0, N_XP - OUTLIER_SAMPLES))
        target[odd, low : low + OUTLIER_SAMPLES] *= 1.0 + OUTLIER_FRACTION * rng.choice([-1.0, 1.0])
    return target


def _coefficients(
    target: NDArray[np.float64], sampling: _Sampling, errors: Sequence[ErrorProfiles]
) -> NDArray[np.float64]:
    """(star, coefficient) that give these samples exactly, each order moved in proportion to its typical error."""
    typical = np.exp(np.concatenate([side.profile[0] for side in errors]))
    merged = target[:, sampling.merged]
    wanted = np.hstack([np.delete(target, sampling.merged, axis=1), merged, merged])
    inverse = np.linalg.pinv(sampling.apart * typical, rcond=1e-14).T
    coefficient = typical * (wanted @ inverse)
    # One step of refinement: the bases are nearly degenerate, and the samples should come back to 1e-12.
    return coefficient + typical * ((wanted - coefficient @ sampling.apart.T) @ inverse)
