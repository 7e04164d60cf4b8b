"""From one data release's spectra to another's: a smooth flux ratio per sample, and a noise factor.

A model that was trained on one release serves the next one's stars until it is trained anew: f = r(x) f', sample by
sample, where f' is the star in the source release, f in the target's, and r a smooth function of wavelength whose terms
depend on the star's colour and magnitude x in the source release. In: stars in both releases. NumPy, float64.
Not here: which stars are pairs (`runs/transfer.py`), the file (`production/beside.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import BP_RP_BOUNDARY_NM, XP_GRID_NM
from xpbayes.errors import InputError
from xpbayes.instrument.instrument import InstrumentId
from xpbayes.instrument.whitening import unpack, whiten_packed

Matrix = NDArray[np.float64]
TERMS = ("1", "colour", "colour^2", "magnitude", "magnitude^2")
"""What the ratio is a sum of; colour and magnitude standardised over the pairs."""
RIDGE = 1e-3
"""How much a colour or magnitude term is held at zero, beside its curvature: it must not be there without need."""
SMALLEST_SPREAD = 1e-14
"""Of a term's squared curvature: below it is a straight line."""
ITERATIONS = 20
SETTLED = 0.01
"""Changes of the ratio [sigma] and of the squared noise factor at which the fit ends."""
OUTLIER = 3.0
"""A pair whose mean squared residual exceeds 1, and the median, so many times is a variable star, or not the same one."""
FEWEST, MOST = 100, 4000
"""Pairs: fewer say nothing of 5 x 61 numbers, more add little and cost time."""
BLOCK = 512


@dataclass(frozen=True)
class Transfer:
    """What brings stars of one instrument, the source, to another, the target."""

    source: InstrumentId
    target: InstrumentId
    center: Matrix  # (2,) median of the pairs' colours and magnitudes
    scale: Matrix  # (2,) their spread
    reach: Matrix  # (2, 2) their least and largest, standardised: the ratio stays as it is beyond
    ratio: Matrix  # (term, sample) coefficients of the flux ratio, target over source
    covariance: Matrix  # (term x sample, same) of these
    noise: float  # factor on the source's published errors
    n_pairs: int  # stars that it was learned from
    n_outliers: int = 0  # pairs that were left out

    def terms(self, flux: Matrix, present: NDArray[np.bool_]) -> tuple[Matrix, NDArray[np.bool_], NDArray[np.bool_]]:
        """(star, term), which stars have a colour, and which are bluer, redder, brighter or fainter than all pairs."""
        colour, magnitude, known = colour_and_magnitude(flux, present, float(self.center[0]))
        x = (np.stack([colour, magnitude], axis=1) - self.center) / self.scale
        inside = np.clip(x, self.reach[0], self.reach[1])
        return _terms(inside), known, np.asarray((x != inside).any(axis=1))

    def apply(
        self, flux: Matrix, covariance: Matrix, present: NDArray[np.bool_]
    ) -> tuple[Matrix, Matrix, NDArray[np.bool_]]:
        """Bring stars to the target instrument, with the transfer's own error.

        Takes (star, sample) flux, 0 where missing, its (star, sample, sample) covariance, and which samples were
        measured. Returns flux and covariance as the target has them, and (star,) which stars lie outside of the colours
        and magnitudes that the transfer was learned from.
        """
        terms, known, outside = self.terms(flux, present)
        ratio = terms @ self.ratio
        n, m = flux.shape
        k = len(TERMS)
        pairs = (terms[:, :, None] * terms[:, None, :]).reshape(n, k * k)
        own = pairs @ self.covariance.reshape(k, m, k, m).transpose(0, 2, 1, 3).reshape(k * k, m * m)
        # A star without BP or RP has the pairs' median colour, and the ratio's change over the pairs as an error.
        unknown = np.outer(self.ratio[1], self.ratio[1]) + 2.0 * np.outer(self.ratio[2], self.ratio[2])
        own = own.reshape(n, m, m) + (~known)[:, None, None] * unknown
        factor = self.noise * ratio
        spread = covariance * factor[:, :, None] * factor[:, None, :] + own * flux[:, :, None] * flux[:, None, :]
        return ratio * flux, spread, outside


def colour_and_magnitude(
    flux: Matrix, present: NDArray[np.bool_], usual_colour: float
) -> tuple[Matrix, Matrix, NDArray[np.bool_]]:
    """Instrumental colour and magnitude of (star, sample) spectra; `usual_colour` is that of stars without BP or RP.

    Returns:
        (star,) 2.5 log10 RP/BP of the sides' mean fluxes and -2.5 log10 of their mean [mag], and whether the colour is
        known.
    """
    sides = []
    for own in (XP_GRID_NM < BP_RP_BOUNDARY_NM, XP_GRID_NM >= BP_RP_BOUNDARY_NM):
        there = present & own
        mean = (flux * there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        sides.append(np.where(mean > 0, mean, np.nan))
    bp, rp = sides
    known = np.isfinite(bp) & np.isfinite(rp)
    colour = np.where(known, 2.5 * np.log10(np.where(known, rp, 1.0) / np.where(known, bp, 1.0)), usual_colour)
    usual = 10.0 ** (0.4 * usual_colour)
    bp, rp = np.where(np.isfinite(bp), bp, rp / usual), np.where(np.isfinite(rp), rp, bp * usual)
    mean = 0.5 * (bp + rp)
    return colour, -2.5 * np.log10(np.where(np.isfinite(mean), mean, 1.0)), known


def _terms(x: Matrix) -> Matrix:
    colour, magnitude = x.T
    return np.stack([np.ones(len(x)), colour, colour**2, magnitude, magnitude**2], axis=1)


def _penalties() -> list[Matrix]:
    """(term) of (sample, sample): squared second differences along each side, and for all terms but the first a ridge."""
    n_bp = int((XP_GRID_NM < BP_RP_BOUNDARY_NM).sum())
    smooth = np.zeros((XP_GRID_NM.size, XP_GRID_NM.size))
    for side in (slice(0, n_bp), slice(n_bp, None)):
        curvature = np.diff(np.eye(XP_GRID_NM[side].size), 2, axis=0)
        smooth[side, side] = curvature.T @ curvature
    return [smooth, *[smooth + RIDGE * np.eye(len(smooth))] * (len(TERMS) - 1)]


@dataclass(frozen=True)
class _Pairs:
    """Pairs with all samples in both releases: (star, term), and per release (star, sample) and its covariance."""

    terms: Matrix
    target: Matrix
    target_covariance: Matrix
    source: Matrix
    source_covariance: Matrix

    def __len__(self) -> int:
        return len(self.terms)

    def take(self, index: NDArray[np.bool_]) -> "_Pairs":
        return _Pairs(*(values[index] for values in vars(self).values()))


def learn_transfer(
    source: InstrumentId,
    target: InstrumentId,
    source_stars: tuple[Matrix, Matrix],
    target_stars: tuple[Matrix, Matrix],
) -> Transfer:
    """Learn the transfer from stars in both releases.

    By maximum likelihood with both releases' errors, the stars' true fluxes eliminated, and smoothness by the ratio's own
    evidence. The noise factor makes the residuals as large as their errors say; it is at least 1: two releases share
    observations, which makes them agree better than their errors.

    Of the same stars in both releases it takes (star, sample) flux and (star, sample, sample) covariance, all samples
    measured; InputError for too few pairs.
    """
    flux = source_stars[0]
    everywhere = np.ones(flux.shape, bool)
    colour, magnitude, known = colour_and_magnitude(flux, everywhere, 0.0)
    good = known & (colour_and_magnitude(target_stars[0], everywhere, 0.0)[2])
    if good.sum() < FEWEST:
        raise InputError(f"{int(good.sum())} pairs of stars can be used, at least {FEWEST} are needed; bring more")
    chosen = np.flatnonzero(good)[:: max(1, -(-int(good.sum()) // MOST))]
    x = np.stack([colour, magnitude], axis=1)[chosen]
    center = np.median(x, axis=0)
    scale = np.maximum(0.5 * np.diff(np.percentile(x, [16, 84], axis=0), axis=0)[0], 1e-3)
    x = (x - center) / scale
    pairs = _Pairs(_terms(x), target_stars[0][chosen], target_stars[1][chosen], flux[chosen], source_stars[1][chosen])
    ratio, noise2, _ = _fit(pairs, ITERATIONS // 2)
    chi2 = _residuals(pairs, ratio, noise2)[2]
    kept = chi2 < OUTLIER * max(float(np.median(chi2)), float(flux.shape[1]))
    ratio, noise2, covariance = _fit(pairs.take(kept), ITERATIONS, ratio, noise2)
    reach = np.stack([x[kept].min(axis=0), x[kept].max(axis=0)])
    n_kept = int(kept.sum())
    return Transfer(
        source, target, center, scale, reach, ratio, covariance, float(np.sqrt(noise2)), n_kept, len(kept) - n_kept
    )


def _residuals(pairs: _Pairs, ratio: Matrix, noise2: float) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """(star, sample) whitened twice V^-1 e, (star, sample, sample) V^-1, (star,) e V^-1 e and its derivative in noise^2."""
    r = pairs.terms @ ratio
    scaled = pairs.source_covariance * r[:, :, None] * r[:, None, :]
    inverse = np.asarray(np.linalg.inv(pairs.target_covariance + noise2 * scaled), np.float64)
    residual = pairs.target - r * pairs.source
    pull = (inverse @ residual[:, :, None])[:, :, 0]
    slope = -np.einsum("nc,ncd,nd->n", pull, scaled, pull)
    return pull, inverse, (residual * pull).sum(axis=1), slope


def _fit(
    pairs: _Pairs, iterations: int, ratio: Matrix | None = None, noise2: float = 1.0
) -> tuple[Matrix, float, Matrix]:
    """Ratio's coefficients, squared noise factor, and covariance of the coefficients."""
    n, m, k = len(pairs), pairs.source.shape[1], len(TERMS)
    if ratio is None:
        ratio = np.zeros((k, m))
        ratio[0] = np.median(pairs.target / np.where(pairs.source != 0, pairs.source, np.nan), axis=0)
    penalties = _penalties()
    spread = np.full(k, 1e-4)
    covariance = np.zeros((k * m, k * m))
    for _ in range(iterations):
        pull, inverse, chi2, slope = _residuals(pairs, ratio, noise2)
        r = pairs.terms @ ratio
        # The star's true flux by both releases: as regressor it is independent of the residual, so that noise in the
        # source's flux does not lower the ratio (errors in variables).
        truth = pairs.source + noise2 * (pairs.source_covariance @ (r * pull)[:, :, None])[:, :, 0]
        prior = np.zeros((k * m, k * m))
        for i, penalty in enumerate(penalties):
            prior[i * m : (i + 1) * m, i * m : (i + 1) * m] = penalty / spread[i]
        known = (inverse @ pairs.target[:, :, None])[:, :, 0] * truth
        left, right = _normal(pairs.terms, truth, inverse, pairs.source) + prior, (pairs.terms.T @ known).ravel()
        before, ratio = ratio, np.asarray(np.linalg.solve(left, right).reshape(k, m), np.float64)
        information = _normal(pairs.terms, truth, inverse, truth)
        covariance = np.linalg.inv(information + prior)
        covariance = 0.5 * (covariance + covariance.T)
        for i, penalty in enumerate(penalties):
            own = covariance[i * m : (i + 1) * m, i * m : (i + 1) * m]
            rank = m - 4 if i == 0 else m
            evidence = (ratio[i] @ penalty @ ratio[i] + (penalty * own).sum()) / rank
            spread[i] = max(float(evidence), SMALLEST_SPREAD)
        expected = n * m - float((information * covariance).sum())
        step = (float(chi2.sum()) - expected) / min(float(slope.sum()), -1e-12)
        moved = np.abs(ratio - before).ravel() / np.sqrt(np.diagonal(covariance))
        step = noise2 - max(1.0, noise2 - step)
        noise2 -= step
        if moved.max() < SETTLED and abs(step) < SETTLED:
            break
    return ratio, noise2, covariance


def _normal(terms: Matrix, left: Matrix, inverse: Matrix, right: Matrix) -> Matrix:
    """(term x sample, same): sum over stars of terms, times terms, times left V^-1 right."""
    (n, k), m = terms.shape, left.shape[1]
    weights = (terms[:, :, None] * terms[:, None, :]).reshape(n, k * k)
    each = (left[:, :, None] * inverse * right[:, None, :]).reshape(n, m * m)
    return np.asarray((weights.T @ each).reshape(k, k, m, m).transpose(0, 2, 1, 3).reshape(k * m, k * m))


def transferred(
    transfer: Transfer, flux: NDArray[np.float32], whitening: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Bring a star table's (star, sample) flux and (star, packed) whitening factors to the target instrument.

    Returns both, and how many stars lie outside of what the transfer was learned from.
    """
    out_flux, out_whitening, n_outside = np.empty_like(flux), np.empty_like(whitening), 0
    for start in range(0, len(flux), BLOCK):
        rows = slice(start, start + BLOCK)
        given, covariance, present = covariances(flux[rows], whitening[rows])
        moved, spread, outside = transfer.apply(given, covariance, present)
        out_flux[rows] = np.where(present, moved, flux[rows])
        out_whitening[rows] = whiten_packed(spread, present)[0]
        n_outside += int(outside.sum())
    return out_flux, out_whitening, n_outside


def covariances(flux: NDArray[np.float32], whitening: NDArray[np.float32]) -> tuple[Matrix, Matrix, NDArray[np.bool_]]:
    """(star, sample) flux, 0 where missing, (star, sample, sample) covariance, and which samples are there."""
    n, m = flux.shape
    factor = unpack(whitening, np.zeros((n, 0)), m).astype(np.float64)
    present = np.diagonal(factor, axis1=1, axis2=2) > 0
    inverse = np.linalg.inv(factor + (~present)[:, :, None] * np.eye(m))
    return np.where(present, flux, 0.0).astype(np.float64), inverse @ inverse.transpose(0, 2, 1), present
