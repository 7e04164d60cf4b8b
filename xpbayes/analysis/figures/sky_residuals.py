"""Mean normalised flux residuals over the sky (ZGR23 Fig. 22)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.cuts import apply_cuts, in_words
from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.flux_residuals import (
    CURVE_CHANNELS,
    SKY_CHANNELS,
    FluxSample,
    channel_text,
    flux_sample,
    gathered,
)
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, Task, require_variation
from xpbayes.channels import Channels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PARALLAX_ERROR = 0.2
MAX_REDUCED_CHI2 = 5.0
MAX_CHI = 10.0
NSIDES = (64, 32, 16, 8, 4, 2)
MIN_STARS = 5
"""Of a pixel that is drawn."""
MIN_EXTINCTION = 0.3
"""Of stars that compare curves [mag]."""
MIN_SHARE = 0.7
"""The finest nside at which this share of the stars sits in pixels that are drawn."""


@dataclass(frozen=True)
class SkyResiduals:
    """Mean residuals in pixels.

    Attributes:
        channels: names.
        nside: HEALPix resolution, nested, Galactic.
        pixel: (row,) pixels with at least `MIN_STARS` stars in any channel.
        mean: (row, channel) mean (f_pred - f_obs) / sigma; NaN where there are too few stars.
        n: (row, channel) stars.
        n_stars: stars that pass the cuts.
        cuts: how many stars each cut took.
    """

    channels: tuple[str, ...]
    nside: int
    pixel: NDArray[np.int64]
    mean: NDArray[np.float64]
    n: NDArray[np.int64]
    n_stars: int
    cuts: dict[str, int]


def sky_residuals(
    sample: FluxSample, wanted: Sequence[str] = SKY_CHANNELS, min_extinction: float = 0.0
) -> SkyResiduals:
    """Average the residuals of stars with good distances and fits in pixels as small as their number allows.

    Args:
        sample: the stars.
        wanted: channels.
        min_extinction: least E of a star [mag].
    """
    from xpbayes.analysis.dust_map.selection import galactic_pixel

    channels = tuple(c for c in wanted if c in sample.channels)
    with np.errstate(divide="ignore", invalid="ignore"):
        tests = {
            f"σ_ϖ/ϖ >= {MAX_PARALLAX_ERROR:g}": sample.error[:, -1] / sample.estimate[:, -1] < MAX_PARALLAX_ERROR,
            f"χ²/dof >= {MAX_REDUCED_CHI2:g}": sample.reduced_chi2 < MAX_REDUCED_CHI2,
            "no position": np.isfinite(sample.ra) & np.isfinite(sample.dec),
            f"E < {min_extinction:g}": sample.estimate[:, -2] >= min_extinction,
        }
    cuts: dict[str, int] = {}
    keep = apply_cuts(np.ones(len(sample), bool), tests, cuts)
    ra, dec = sample.ra[keep], sample.dec[keep]
    chi = sample.chi[keep][:, [sample.channels.index(c) for c in channels]].astype(np.float64)
    chi[~(np.abs(chi) <= MAX_CHI)] = np.nan
    for nside in NSIDES:
        every = galactic_pixel(ra, dec, nside)
        pixel, row, count = np.unique(every, return_inverse=True, return_counts=True)
        if count[count >= MIN_STARS].sum() >= MIN_SHARE * len(every):
            break
    mean, n = np.full((len(pixel), len(channels)), np.nan), np.zeros((len(pixel), len(channels)), np.int64)
    for k in range(len(channels)):
        known = np.isfinite(chi[:, k])
        n[:, k] = np.bincount(row[known], minlength=len(pixel))
        enough = n[:, k] >= MIN_STARS
        total = np.bincount(row[known], chi[known, k], len(pixel))
        mean[enough, k] = total[enough] / n[enough, k]
    some = np.isfinite(mean).any(axis=1)
    return SkyResiduals(channels, nside, pixel[some], mean[some], n[some], int(keep.sum()), cuts)


def draw_sky_residuals(channels: Channels, **every: SkyResiduals) -> "Figure":
    """One Mollweide map per channel, Galactic, the centre of the Galaxy in the middle; all that are given side by side."""
    import astropy.units as u
    from astropy_healpix import lonlat_to_healpix

    first = next(iter(every.values()))
    n = len(first.channels)
    figure, axes = drawing.sky_grid(len(every) * n, len(every) if len(every) > 1 else None)
    longitude, latitude = drawing.sky_positions()
    reach = max(float(np.nanpercentile(np.abs(first.mean), 95)), 0.1)
    for i, (words, numbers) in enumerate(every.items()):
        pixel = np.asarray(lonlat_to_healpix(longitude * u.deg, latitude * u.deg, numbers.nside, order="nested"))
        row = np.searchsorted(numbers.pixel, pixel).clip(0, len(numbers.pixel) - 1)
        on = numbers.pixel[row] == pixel
        for k in range(n):
            of = f", {words.replace('_', ' ')}" if len(every) > 1 else ""
            title = f"{channel_text(numbers.channels[k], channels)}{of} ({numbers.n[:, k].sum():,} stars)"
            image = np.where(on, numbers.mean[row, k], np.nan)
            axis = axes[k * len(every) + i]
            mesh = drawing.sky_panel(axis, image, title, cmap=drawing.SIGNED_COLOURS, vmin=-reach, vmax=reach)
    figure.colorbar(mesh, ax=axes, label="mean Δf / σ", pad=0.01, extend="both")
    return figure


def _start(run: Run) -> Task:
    return Task((flux_sample(run),), lambda: _product(run, gathered(run)))


def _product(run: Run, sample: FluxSample) -> Product:
    assert run.model is not None
    numbers = sky_residuals(sample)
    cuts = in_words(numbers.cuts)
    if not len(numbers.pixel):
        raise NotDrawnError(
            f"{numbers.n_stars} of {len(sample)} stars pass the cuts ({cuts}): no pixel has {MIN_STARS} of them"
        )
    row, channel = np.nonzero(np.isfinite(numbers.mean))
    absent = [c for c in SKY_CHANNELS if c not in numbers.channels]
    gone = f" The model has no {', '.join(absent)}." if absent else ""
    return Product(
        draw_sky_residuals(run.model.channels, all=numbers),
        f"Mean normalised flux residuals over the sky in {len(numbers.channels)} channels",
        f"Mean (f_pred − f_obs) / σ_obs in pixels of nside {numbers.nside} with at least {MIN_STARS} stars, Galactic. "
        f"{numbers.n_stars:,} of {len(sample):,} solved stars whose fluxes were read; removed: {cuts}; in each "
        f"panel also |Δf/σ| > {MAX_CHI:g}. σ_obs is the observation's own error.{gone}",
        {
            "": {
                "pixel": Series(numbers.pixel[row], "", f"HEALPix, nested, Galactic, nside {numbers.nside}"),
                "channel": Series([numbers.channels[k] for k in channel], "", ""),
                "mean": Series(numbers.mean[row, channel], "", "(f_pred - f_obs) / sigma"),
                "n": Series(numbers.n[row, channel], "", "stars"),
            }
        },
    )


SKY_RESIDUALS = Analysis(
    "sky_residuals", "Fig. 22", "Flux residuals over the sky", _start, ("model", "catalogue", "stars")
)


def _start_curve(run: Run) -> Task:
    require_variation(run)
    return Task((flux_sample(run),), lambda: _curve_product(run, gathered(run)))


def _curve_product(run: Run, sample: FluxSample) -> Product:
    assert run.model is not None and sample.chi_of_mean_curve is not None
    after = sky_residuals(sample, CURVE_CHANNELS, MIN_EXTINCTION)
    before = sky_residuals(replace(sample, chi=sample.chi_of_mean_curve), CURVE_CHANNELS, MIN_EXTINCTION)
    if not len(after.pixel) or not after.channels:
        raise NotDrawnError(
            f"{after.n_stars} of {len(sample)} stars pass the cuts ({in_words(after.cuts)}): no pixel has {MIN_STARS} of "
            f"them in {', '.join(CURVE_CHANNELS)}"
        )
    each = {"mean curve": before, "own curve": after}
    cells = [(name, of, np.argwhere(np.isfinite(of.mean)).T) for name, of in each.items()]
    spread = {name: np.nanstd(of.mean, axis=0) for name, of in each.items()}
    words = ", ".join(
        f"{channel} {spread['mean curve'][k]:.2f} → {spread['own curve'][k]:.2f}"
        for k, channel in enumerate(after.channels)
    )
    return Product(
        draw_sky_residuals(run.model.channels, mean_curve=before, own_curve=after),
        f"Mean flux residuals over the sky in {len(after.channels)} bands, behind dust of the mean and of its own curve",
        f"Mean (f_pred − f_obs) / σ_obs as in Fig. 22, for {after.n_stars:,} stars with E ≥ {MIN_EXTINCTION:g} in pixels of "
        f"nside {after.nside}: left with the mean extinction curve (ξ = 0) and all else as inferred, right with each star's "
        f"own. Standard deviation over the pixels, left → right: {words}. Removed: {in_words(after.cuts)}.",
        {
            "": {
                "curve": Series([name for name, _, at in cells for _ in at[0]], "", "of the prediction"),
                "pixel": Series(
                    np.concatenate([of.pixel[at[0]] for _, of, at in cells]), "", "HEALPix, nested, Galactic"
                ),
                "nside": Series([of.nside for _, of, at in cells for _ in at[0]], "", "its resolution"),
                "channel": Series([of.channels[k] for _, of, at in cells for k in at[1]], "", ""),
                "mean": Series(
                    np.concatenate([of.mean[at[0], at[1]] for _, of, at in cells]), "", "(f_pred - f_obs) / sigma"
                ),
            }
        },
    )


SKY_RESIDUALS_CURVE = Analysis(
    "sky_residuals_curve", "", "Flux residuals over the sky, with the mean and with their own extinction curve",
    _start_curve, ("model", "catalogue", "stars"),
)  # fmt: skip
