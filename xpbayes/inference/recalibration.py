"""Calibrate posteriors of all parameters, and the covariances at modes, on stars that training never saw.

The model error is learned from residuals of stars at their own labels. How well parameters come out when they are sought
it cannot show: a kind's mean covariance is not each star's, and flat priors in E and parallax push the labels of most stars
the same way. So stars kept aside are inferred as any star is, and for every kind of star two numbers per parameter are
read off: the median of (posterior median - reference), and the factor by which posteriors must be stretched about their
median for 68 % of references to lie within 68 % intervals, the references' own errors taken off (`inference.references`);
cross-validation widens all of them by what such a fit promises too much.
A star's posterior is then, in labels, E and ln parallax,

    value = median - offset + stretch * t * (draw - median),

with t the amplitude of a Student t of `DOF` degrees of freedom, but for its standard deviation: `tail` times half its 68 %
interval, such that 95 % of references lie within 1.96 of it. Pulls of real labels have far tails, those of others less.
Kinds are regions in (labels, ln S/N), as inferred. After Kuleshov, Fenner & Ermon (2018), who recalibrate regressions on
held-out data. Fisher's and Laplace's covariances C become diag(s) C diag(s) with factors s found around the mode in the same
way; the modes themselves stay.

References err as much as posteriors, or more, so that few stars kept aside tell widths badly. Where there are no more,
training stars are inferred blind beside them; these come out a little nearer to references whose noise the model has
followed, and their distances count by one factor more: what all parameters of those kept aside are farther off
(`farther_off`).

Stars whose parallax was used and stars whose was not are calibrated apart. A measured parallax cannot judge the posterior
that it went into; but where fluxes alone have a share w of what is known of ln parallax, and their errors are to be
stretched by s, the error of both together is sqrt(w s^2 + 1 - w) times what it was.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.device import program
from xpbayes.inference.fit_quality import FitQuality
from xpbayes.inference.references import WITHIN_ONE_SIGMA, References, in_sampled, weighted_quantiles
from xpbayes.inference.scatter import VARIANCE_ERROR, scatter_of, trusted_inverse_error
from xpbayes.models.model_error import ModelError, mean_ln_snr

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

DOF = 4.0
INNER = float(stdtrit(DOF, ndtr(1.0)))
"""Half the 68 % interval of a Student t in units of its scale."""
TAIL = float(np.sqrt(DOF / (DOF - 2.0))) / INNER
"""Its standard deviation over that: where stars are too few to tell, and in models that do not say."""
TAIL_STARS, LONGEST_TAIL = 300.0, 2.0
"""A tail is drawn towards it with the weight of so many stars."""
LN_SNR_UNIT = 0.3
"""Kinds are told apart by this much in ln S/N as by half the 16-84 % range of a training label."""
MAX_KINDS, MIN_STARS_PER_KIND = 16, 100
WIDTH = 0.7
"""Kinds pass into each other over this part of the median distance to the second nearest."""
PRIOR_STARS = 30.0
"""A kind's numbers are drawn towards those of all stars with the weight of so many."""
LIKELY_STRETCH = 0.12
"""Widths of stars with parallaxes, which the scatter of luminosity sets, are likely right to within this, in ln: labels with
errors as large as theirs could narrow them by chance."""
Z_95 = 1.96
N_ROUNDS, DAMPING = 25, 0.7
SETTLED = 0.005
"""Rounds end once no stretch changes by more."""
LIKELY_FARTHER, FARTHER_ERROR = (0.03, 0.02), 0.7
"""By how much stars kept aside are likely farther from references than training stars, in ln, and the error of what n of
them say of that, times the square root of n."""
N_FOLDS = 5
"""Stars that a calibration was fitted to lie within its intervals by construction, others 1 to 2 % less often; what it
says of stars left out shows by how much."""
LEAST_SEEN = 0.05
"""Of a posterior's variance, what its difference from a reference shows at least."""
MIN_RATIO = 0.2
"""A parameter within its reference's error needs no width at all; one round narrows a kind by this factor at most."""


@dataclass(frozen=True)
class KindCalibration:
    """What is wrong with posteriors, by kind of star; parameters are labels, E [mag] and ln parallax."""

    scale: Float[np.ndarray, " label+1"]  # units of the features, (labels, ln S/N)
    kinds: Float[np.ndarray, "kind label+1"]  # centres, in those units
    width: Float[np.ndarray, ""]  # over which kinds pass into each other
    offset: Float[np.ndarray, "kind label+2"]  # (kind, parameter) of posterior medians [kK, dex, dex, ..., mag, -]
    # (kind, parameter) of posteriors about their medians; 0 where no reference judged it, and it stays
    stretch: Float[np.ndarray, "kind label+2"]
    # (parameter,) standard deviations over halves of 68 % intervals; a Gaussian's is 1
    tail: Float[np.ndarray, " label+2"]
    fisher: Float[np.ndarray, "kind label+2"]  # (kind, parameter) factor of the Fisher matrix's standard errors
    laplace: Float[np.ndarray, "kind label+2"]  # and of the Laplace approximation's, about the mode


@dataclass(frozen=True)
class Calibration:
    """Calibration of stars inferred from their fluxes and parallax, and of stars inferred from their fluxes alone.

    What `with_parallax` holds of ln parallax itself is not used: `flux_only` says it, see the module.
    """

    with_parallax: KindCalibration
    flux_only: KindCalibration
    # (error kind, 2) of E [mag] and ln parallax at given labels, see `inference.scatter`; None if not known
    scatter: Float[np.ndarray, "error_kind two"] | None = None
    fit_quality: FitQuality | None = None  # how well fluxes of ordinary stars are described; None if not known

    def scatter_of(self, error: ModelError | None, stars: Stars) -> NDArray[np.float64] | None:
        """(star, 2) by how much E [mag] and ln parallax of stars scatter at given labels; None if that is not known."""
        return None if self.scatter is None or error is None else scatter_of(self.scatter, error, stars)


def tail_of_old(n_parameters: int) -> NDArray[np.float32]:
    """(parameter,) `TAIL`, which all posteriors had before it was sought."""
    return np.full(n_parameters, TAIL, np.float32)


def of_labels_only(scale: NDArray, kinds: NDArray, width: NDArray, offset: NDArray, stretch: NDArray) -> Calibration:
    """A calibration of labels, E and parallax left as they are; arrays as in `KindCalibration`, without those two."""
    nothing = np.zeros((len(kinds), 2), np.float32)
    ones = np.ones((len(kinds), offset.shape[1] + 2), np.float32)
    offset, stretch = (np.concatenate([values, nothing], axis=1) for values in (offset, stretch))
    of = KindCalibration(scale, kinds, width, offset, stretch, tail_of_old(offset.shape[1]), ones, ones)
    return Calibration(of, of)


CASES = ("with_parallax", "flux_only")
_mean_ln_snr = program(jax.vmap(mean_ln_snr))


def ln_snr_of(stars: Stars) -> NDArray[np.float64]:
    """(star,) mean ln S/N of the channels, as measured."""
    return np.asarray(by_blocks(_mean_ln_snr, STAR_BLOCK, stars), np.float64)


def n_channels_of(stars: Stars) -> NDArray[np.int64]:
    """(star,) channels that were measured."""
    return np.sum(np.diagonal(np.asarray(stars.whitening), axis1=1, axis2=2) > 0, axis=1)


def kind_weights(features: NDArray, kinds: NDArray, width: float) -> NDArray[np.float64]:
    """(star, kind) how much a star belongs to every kind; NaN of one whose place is not finite."""
    distance2 = np.sum((features[:, None] - kinds) ** 2, axis=2)
    with np.errstate(invalid="ignore"):
        weight = np.exp(-0.5 * (distance2 - distance2.min(axis=1, keepdims=True)) / width**2)
    return weight / weight.sum(axis=1, keepdims=True)


class Known(NamedTuple):
    """Stars as inference has them, and what is known of them."""

    residual: NDArray[np.float64]  # (star, parameter) of what is to be calibrated minus the reference
    half: NDArray[np.float64]  # (star, parameter) half the width of its interval, without what the reference shares
    variance: NDArray[np.float64]  # (star, parameter) of residuals, not their own; infinite where nothing is known
    counts: NDArray[np.float64]  # (star, parameter) how much each star counts

    @property
    def enough(self) -> NDArray[np.bool_]:
        """(parameter,) whether enough stars have a reference."""
        return np.isfinite(self.variance).sum(axis=0) >= MIN_STARS_PER_KIND

    def needed(self, offset: NDArray[np.float64]) -> NDArray[np.float64]:
        """(star, parameter) by how much an interval must be stretched to end at the reference."""
        return np.sqrt(np.maximum((self.residual - offset) ** 2 - self.variance, 0.0)) / self.half

    def told(self, stretch: NDArray[np.float64]) -> NDArray[np.float64]:
        """(star, parameter) how much a star tells of a stretch: all, or little where the reference's error hides it."""
        own = (stretch * self.half) ** 2
        return self.counts * own / (own + np.maximum(self.variance, 0.0))


class _Factors(NamedTuple):
    """What some stars need, by kind: see `KindCalibration`."""

    offset: NDArray[np.float64]
    stretch: NDArray[np.float64]


def find_kinds(
    features: NDArray[np.float64], most: int = MAX_KINDS, width: float = WIDTH
) -> tuple[NDArray[np.float64], float]:
    """Centres of kinds, and the width (as of `WIDTH`) over which they pass into each other, of scaled features."""
    from sklearn.cluster import KMeans

    n_kinds = int(np.clip(len(features) // MIN_STARS_PER_KIND, 1, most))
    kinds = KMeans(n_kinds, n_init=4, random_state=0).fit(features).cluster_centers_
    distance = np.sort(np.linalg.norm(features[:, None] - kinds, axis=2), axis=1)
    return kinds, max(width * float(np.median(distance[:, min(1, n_kinds - 1)])), 1e-6)


def _fit(known: Known, weight: NDArray[np.float64], *, shifted: bool) -> _Factors:
    """Offsets, if they are sought (`shifted`), and stretches by kind; `weight`: how much each star belongs to each."""
    pooled = weight + PRIOR_STARS / len(weight)
    n_kinds, n_parameters = weight.shape[1], known.residual.shape[1]
    offset, stretch = np.zeros((n_kinds, n_parameters)), np.ones((n_kinds, n_parameters))
    enough = known.enough
    for _ in range(N_ROUNDS):
        changed, told = 0.0, known.told(weight @ stretch)
        if shifted:
            left = known.residual - weight @ offset
            for i in np.flatnonzero(enough):
                offset[:, i] += DAMPING * weighted_quantiles(left[:, i], pooled * told[:, i : i + 1], 0.5)
        needed = known.needed(weight @ offset) / (weight @ stretch)
        for i in np.flatnonzero(enough):
            ratio = weighted_quantiles(needed[:, i], pooled * told[:, i : i + 1], WITHIN_ONE_SIGMA)
            stretch[:, i] *= np.maximum(ratio, MIN_RATIO) ** DAMPING
            changed = max(changed, float(np.abs(ratio - 1.0).max()))
        if changed < SETTLED:
            break
    return _Factors(offset, stretch)


def _as_told(found: _Factors, known: Known, weight: NDArray[np.float64], neutral: float) -> _Factors:
    """The same, but narrowed no further than references tell whose own errors hide the posterior's."""
    told, pooled = known.told(np.full_like(known.half, neutral)), weight + PRIOR_STARS / len(weight)
    own = (neutral * known.half) ** 2
    other = np.where(np.isfinite(known.variance), np.maximum(known.variance, 0.0), 0.0)
    total = np.maximum(pooled.T @ told, 1e-9)
    noise = (pooled.T @ (told * (1.0 + other / np.maximum(own, 1e-30)))) / total  # variance of residuals over own
    error = 0.5 * VARIANCE_ERROR * noise * np.sqrt((pooled**2).T @ told**2) / total  # of ln stretch
    ratio = np.maximum(found.stretch / neutral, MIN_RATIO)
    kept = 1.0 / (1.0 + (error / LIKELY_STRETCH) ** 2)
    return found._replace(stretch=neutral * np.where(ratio < 1.0, ratio**kept, ratio))


def fit_and_widen(
    known: Known, weight: NDArray[np.float64], *, shifted: bool, neutral: float | None = None
) -> _Factors:
    """The same, widened by what such a fit is seen to promise too much of stars that were left out of it.

    `neutral` is the stretch that leaves a posterior as it is, if its width is to be believed unless references tell.
    """

    def fit(some: Known, own: NDArray[np.float64]) -> _Factors:
        factors = _fit(some, own, shifted=shifted)
        return factors if neutral is None else _as_told(factors, some, own, neutral)

    found = fit(known, weight)
    fold = np.arange(len(weight)) % N_FOLDS
    if np.sum(fold != 0) < MIN_STARS_PER_KIND:
        return found
    needed, told = np.empty_like(known.residual), np.empty_like(known.residual)
    for left_out in range(N_FOLDS):
        seen = fold == left_out
        others = fit(Known(*(v[~seen] for v in known)), weight[~seen])
        stretch, some = weight[seen] @ others.stretch, Known(*(v[seen] for v in known))
        needed[seen], told[seen] = some.needed(weight[seen] @ others.offset) / stretch, some.told(stretch)
    wider = [
        weighted_quantiles(n, t[:, None], WITHIN_ONE_SIGMA)[0] if enough else 1.0
        for n, t, enough in zip(needed.T, told.T, known.enough, strict=True)
    ]
    return found._replace(stretch=found.stretch * (wider if neutral is None else np.maximum(wider, 1.0)))


def _tail(known: Known, weight: NDArray[np.float64], of: _Factors) -> NDArray[np.float64]:
    """(parameter,) factor of standard deviations, `half` of `known` as stretched: 95 % of references lie within 1.96."""
    own2 = np.maximum((known.half * (weight @ of.stretch)) ** 2, 1e-30)
    told, residual = known.told(weight @ of.stretch), known.residual - weight @ of.offset
    tail = np.full(residual.shape[1], np.log(TAIL))
    for i in np.flatnonzero(known.enough):
        needed = ((residual[:, i] / Z_95) ** 2 - known.variance[:, i]) / own2[:, i]  # infinitely little if not known
        square = weighted_quantiles(needed, told[:, i : i + 1], 0.95)[0]
        n = told[:, i].sum()
        tail[i] += n / (n + TAIL_STARS) * (0.5 * np.log(np.clip(square, 1.0, LONGEST_TAIL**2)) - tail[i])
    return np.asarray(np.exp(tail))


def farther_off(
    found: "Posteriors", known: References, aside: NDArray[np.bool_], counts: Float[NDArray, "star parameter"]
) -> float:
    """By which factor stars kept aside are farther from references than the others, in errors of both; at least 1.

    The geometric mean over parameters of 68 % quantiles' ratios, for what training follows of its stars' noise is as much
    for all, drawn to `LIKELY_FARTHER`: a thousand stars tell it to 2 %, as parameters err together.
    """
    median, low, high = _summary_in_sampled(found)
    own = (0.5 * (high - low)) ** 2
    ratios = []
    for i in range(median.shape[1]):
        square = own[:, i] + known.variance[:, i] - known.shared[:, i]
        good = np.asarray(found.converged, bool) & np.isfinite(square) & (square > 0)
        if min(np.sum(good & aside), np.sum(good & ~aside)) < MIN_STARS_PER_KIND:
            continue
        residual = median[:, i] - known.value[:, i]
        pull = np.abs(residual - np.median(residual[good])) / np.sqrt(np.where(good, square, 1.0))
        of_aside, of_others = (
            weighted_quantiles(pull[some], counts[some, i : i + 1], WITHIN_ONE_SIGMA)[0]
            for some in (good & aside, good & ~aside)
        )
        ratios.append(np.log(of_aside / of_others))
    (likely, within), error = LIKELY_FARTHER, FARTHER_ERROR / np.sqrt(max(float(np.sum(aside)), 1.0))
    share = within**2 / (within**2 + error**2) if ratios else 0.0
    seen = float(np.mean(ratios)) if ratios else likely
    return float(np.exp(max(likely + share * (seen - likely), 0.0)))


def fit_calibration(
    found: "Posteriors",
    known: References,
    ln_snr: Float[NDArray, " star"],
    label_scale: Float[NDArray, " label"],
    *,
    own_parallax: bool = False,
    counts: Float[NDArray, "star parameter"] | None = None,
    farther: Float[NDArray, " star"] | None = None,
) -> KindCalibration | None:
    """Measure offsets, stretches and factors; None if fewer than `MIN_STARS_PER_KIND` stars can be used.

    A parameter that fewer stars have a reference of is left as it is. Kinds are told apart by labels in units of
    `label_scale`, and mean ln S/N of the channels. If the stars' parallaxes were used (`own_parallax`), ln parallax is
    not judged, and widths are narrowed with care. `counts` say how much each star counts for each parameter, `farther` by
    how much its distances from references do.
    """
    n = len(label_scale)
    median, low, high = _summary_in_sampled(found)
    half, std = 0.5 * (high - low), np.array(found.std, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        std[:, -1] /= np.exp(median[:, -1])  # of ln parallax
    sound = np.isfinite(half).all(axis=1) & (half > 0).all(axis=1)  # one draw may have all the weight
    sound &= np.isfinite(known.variance[:, :n]).all(axis=1) & np.asarray(found.converged, bool)
    if sound.sum() < MIN_STARS_PER_KIND:
        return None
    scale = np.append(label_scale, LN_SNR_UNIT)
    features = (np.column_stack([median[:, :n], ln_snr]) / scale)[sound]
    kinds, width = find_kinds(features)
    weight = kind_weights(features, kinds, width)
    value, variance, shared = known.value[sound], known.variance[sound].copy(), known.shared[sound]
    if own_parallax:
        variance[:, -1] = np.inf
    told = np.isfinite(variance)
    larger = np.ones((len(value), 1)) if farther is None else farther[sound, None]

    def known_of(center: NDArray[np.float64], sigma: NDArray[np.float64], unit: float = 1.0) -> Known:
        usable = told & np.isfinite(sigma[sound]) & (sigma[sound] > 0)
        residual = np.where(usable, larger * (center[sound] - value), 0.0)
        count = np.ones_like(residual) if counts is None else counts[sound]
        # What the reference errs by as well is stretched as all of the posterior is, and not seen.
        half = np.where(usable, sigma[sound], 1.0)
        seen = np.sqrt(np.maximum(1.0 - shared * (unit / half) ** 2, LEAST_SEEN))
        return Known(residual, seen * half, np.where(usable, variance, np.inf), count)

    def neutral(stretch: float) -> float | None:
        return stretch if own_parallax else None

    of_draws = fit_and_widen(known_of(median, INNER * half, INNER), weight, shifted=True, neutral=neutral(1.0 / INNER))
    tail = _tail(known_of(median, INNER * std, INNER), weight, of_draws)
    judged = told.sum(axis=0) >= MIN_STARS_PER_KIND
    of_draws = of_draws._replace(stretch=np.where(judged, of_draws.stretch, 0.0))
    mode, *covariances = in_sampled(found)
    of_modes = (
        fit_and_widen(known_of(mode, _sigma(of)), weight, shifted=False, neutral=neutral(1.0)).stretch
        for of in covariances
    )
    return KindCalibration(*(np.asarray(v, np.float32) for v in (scale, kinds, width, *of_draws, tail, *of_modes)))


def _sigma(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(star, parameter) standard errors."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


def _summary_in_sampled(found: "Posteriors") -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Median and 68 % interval of draws, (star, parameter) each, in labels, E and ln parallax."""
    median, low, high = (np.array(values, np.float64) for values in (found.median, found.low, found.high))
    for values in (median, low, high):
        with np.errstate(divide="ignore", invalid="ignore"):
            values[:, -1] = np.log(values[:, -1])
    return median, low, high


class _AtStars(NamedTuple):
    """What a calibration says of single stars, (star, parameter) each."""

    offset: NDArray[np.float64]  # of medians
    inner: NDArray[np.float64]  # factor of the distances of 16 and 84 % quantiles from the median
    mean: NDArray[np.float64]  # factor of the distance of the mean from it
    spread: NDArray[np.float64]  # factor of standard deviations
    fisher: NDArray[np.float64]  # factor of standard errors, as the next
    laplace: NDArray[np.float64]


def _at(calibration: KindCalibration, labels: NDArray[np.float64], ln_snr: NDArray[np.float64]) -> _AtStars:
    weight = kind_weights(
        np.column_stack([labels, ln_snr]) / calibration.scale, calibration.kinds, float(calibration.width)
    )
    offset, stretch, fisher, laplace = (
        weight @ getattr(calibration, name) for name in ("offset", "stretch", "fisher", "laplace")
    )
    known = stretch > 0
    inner, mean, spread = (np.where(known, factor * stretch, 1.0) for factor in (INNER, 1.0, INNER * calibration.tail))
    return _AtStars(offset, inner, mean, spread, fisher, laplace)


def _with_own_parallax(
    found: "Posteriors", flux_only: _AtStars, inverse_error: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Of ln parallax, (star,) each, what `flux_only` says of fluxes where the measured parallax was used as well."""

    def share(sigma: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of the fluxes in what is known of the parallax, from the error of both [mas]."""
        with np.errstate(invalid="ignore"):
            return np.clip(1.0 - (sigma * inverse_error) ** 2, 0.0, 1.0)

    of_draws = share(0.5 * (found.high[:, -1] - found.low[:, -1]).astype(np.float64))
    of_fisher, of_laplace = (share(_sigma(c)[:, -1]) for c in (found.covariance, found.laplace))
    offset, *factors = (values[:, -1] for values in flux_only)
    shares = (of_draws, of_draws, of_draws, of_fisher, of_laplace)
    return [of_draws * offset, *(np.sqrt(1.0 + w * (f**2 - 1.0)) for w, f in zip(shares, factors, strict=True))]


def recalibrated(found: "Posteriors", calibration: Calibration, stars: Stars, *, use_parallax: bool) -> "Posteriors":
    """Posteriors of stars, as measured, as the calibration has them; modes stay."""
    n = calibration.flux_only.offset.shape[1] - 2
    ln_snr = ln_snr_of(stars)
    labels = np.where(np.isfinite(found.median[:, :n]), found.median[:, :n], found.estimate[:, :n]).astype(np.float64)
    labels = np.where(np.isfinite(labels), labels, 0.0)
    at = _at(calibration.flux_only, labels, ln_snr)
    inverse_error = trusted_inverse_error(stars, found.spurious) * use_parallax
    used = (inverse_error > 0).astype(np.float64)
    if used.any():
        if found.spurious is not None:  # a star whose parallax tells nothing is one without
            used = used * (1.0 - np.where(np.isfinite(found.spurious), found.spurious, 0.0))
        measured = _at(calibration.with_parallax, labels, ln_snr)
        parallax = _with_own_parallax(found, at, inverse_error)
        both = (np.concatenate([m[:, :-1], p[:, None]], axis=1) for m, p in zip(measured, parallax, strict=True))
        share = used[:, None]  # the bits of a parallax that is not doubted stay
        at = _AtStars(*(np.where(share < 1, a + share * (b - a), b) for b, a in zip(both, at, strict=True)))
    return _applied(found, at)


def _applied(found: "Posteriors", at: _AtStars) -> "Posteriors":
    """Posteriors shifted and stretched: labels and E as they are, the parallax in its logarithm, E never below 0."""
    median, low, high = _summary_in_sampled(found)
    middle = median - at.offset
    low, high = (middle + at.inner * (end - median) for end in (low, high))
    unit = np.ones_like(median)
    unit[:, -1] = np.exp(-at.offset[:, -1])  # of the parallax itself
    plain = np.array(found.median, np.float64)
    mean = plain * unit + at.mean * unit * (found.mean - plain)
    mean[:, :-1] -= at.offset[:, :-1]
    for values in (middle, low, high):
        values[:, -1] = np.exp(values[:, -1])
    for values in (middle, low, high, mean):
        values[:, -2] = np.maximum(values[:, -2], 0.0)

    def scaled(matrix: NDArray, factor: NDArray[np.float64]) -> NDArray:
        return (matrix * factor[:, :, None] * factor[:, None, :]).astype(matrix.dtype)

    unbounded = found.unbounded * np.column_stack([np.ones(len(middle)), at.laplace[:, -2]])
    new = {"median": middle, "mean": mean, "std": at.spread * unit * found.std, "low": low, "high": high}
    single: Any = {name: values.astype(np.float32) for name, values in (new | {"unbounded": unbounded}).items()}
    return replace(
        found,
        **single,
        fisher=scaled(found.fisher, 1.0 / at.fisher),
        covariance=scaled(found.covariance, at.fisher),
        laplace=scaled(found.laplace, at.laplace),
    )
