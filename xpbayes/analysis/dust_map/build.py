"""From a catalogue to the dust map's products: read it from top to bottom.

In: a catalogue on disk and settings. Out: a folder with sky.fits (four wide bins), profile.fits (forty fine ones),
birds_eye.fits, the same of the extinction curve if asked for, figures and dust_map.json.
"""

import logging
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.birds_eye import BirdsEye, birds_eye
from xpbayes.analysis.dust_map.curve_map import (
    COARSEST,
    CurveFromAbove,
    CurveMap,
    curve_from_above,
    curve_map_of_piece,
)
from xpbayes.analysis.dust_map.healpix_map import DustMap, PixelMap, map_of_piece
from xpbayes.analysis.dust_map.means import profile_edges, voxel_means, voxel_means_joint
from xpbayes.analysis.dust_map.selection import Measured, MeasuredCurve, SkyPieces, Tally, open_for_map, select
from xpbayes.config import DustMapConfig
from xpbayes.data.json_file import write_json
from xpbayes.errors import InputError
from xpbayes.models.extinction import ReddeningLaw

log = logging.getLogger(__name__)

SKY, PROFILE, BIRDS_EYE, ABOUT = "sky.fits", "profile.fits", "birds_eye.fits", "dust_map.json"
CURVE = "curve_"
"""What the files of the extinction curve are called beside these."""
VERSION = 1
"""Of dust_map.json."""
MEANS = {"bins": voxel_means, "joint": voxel_means_joint}


@dataclass(frozen=True)
class CurveMaps:
    """The same three of the extinction curve."""

    sky: CurveMap
    profile: CurveMap
    above: CurveFromAbove


@dataclass(frozen=True)
class DustMaps:
    """The products.

    Attributes:
        sky: wide bins, the best distances (Fig. 20).
        profile: fine bins, for queries and the view from above.
        above: the bird's-eye view (Fig. 21).
        tally: stars read, cut, kept.
        curve: xi and R(V) of the dust; None if not asked for.
    """

    sky: DustMap
    profile: DustMap
    above: BirdsEye
    tally: Tally
    curve: CurveMaps | None = None


def build_dust_map(catalogue: Path, config: DustMapConfig | None = None, scratch: Path | None = None) -> DustMaps:
    """Make the maps of a catalogue; one that does not fit into memory is sorted in a scratch folder.

    Raises:
        InputError: an unfinished or unreadable catalogue, a missing column, no star left by the cuts, or nowhere enough.
    """
    config = config or DustMapConfig()
    source = open_for_map(Path(catalogue), curve=config.curve)
    law = ReddeningLaw.of_card(source.about.get("model", {})) if config.curve else None
    if config.curve and law is None:
        raise InputError(
            f"{catalogue}: does not say which R(V) its xi stand for (no reddening_law of its model); infer it again"
        )
    tally = Tally()
    finest = config.nsides[0]
    edges = {"sky": np.asarray(config.sky_edges), "profile": profile_edges(config.profile_bins, config.profile_reach)}
    limits = {"sky": config.sky_max_parallax_error, "profile": config.profile_max_parallax_error}
    pieces: dict[str, list[DustMap]] = {name: [] for name in edges}
    curves: dict[str, list[CurveMap]] = {name: [] for name in edges}
    coarser = takewhile(lambda nside: nside >= COARSEST, (config.nsides[-1] >> k for k in count(1)))
    nsides = (*config.nsides, *coarser) if config.curve else config.nsides
    kind = MeasuredCurve if config.curve else Measured
    with SkyPieces(finest, nsides[-1], scratch, kind=kind) as sorted_sky:
        for stars in select(source, config, tally):
            sorted_sky.add(stars)
        for line in tally.sentences():
            log.info(line)
        if not tally.kept:
            raise InputError(f"{catalogue}: none of {tally.rows} stars passes the cuts ({tally.largest}); relax them")
        for first_pixel, stars in sorted_sky:
            pixels = range(first_pixel, first_pixel + sorted_sky.pixels_per_piece)
            precise = stars.take(stars.var_e < config.max_extinction_error**2)
            for name, bins in edges.items():
                some = precise.take(precise.relative_error < limits[name])
                means = (bins, config.nsides, config.min_stars, MEANS[config.method])
                pieces[name].append(map_of_piece(some, pixels, *means))
                if isinstance(stars, MeasuredCurve) and law is not None:
                    telling = stars.take(stars.relative_error < limits[name])
                    settings = (bins, nsides, config.min_stars, config.max_curve_error, law)
                    curves[name].append(curve_map_of_piece(telling, pixels, *settings))
    about = {"method": config.method, **config.model_dump(mode="json"), **asdict(tally)}
    sky, profile = (
        DustMap.join(pieces[name], {"map": name, **about}, edges=edges[name], finest=finest) for name in pieces
    )
    if not len(sky.pixel) and not len(profile.pixel):
        raise InputError(
            f"{catalogue}: no pixel has {config.min_stars} of the {tally.kept} stars in one distance bin, not even at nside "
            f"{config.nsides[-1]}; ask for fewer (--min-stars) or wider bins (--edges), or name a catalogue of more stars"
        )
    log.info(f"{len(sky.pixel)} pixels of the sky map, {len(profile.pixel)} of the profile (nside {finest})")
    above = birds_eye(profile, config.max_height)
    if law is None:
        return DustMaps(sky, profile, above, tally)
    of_sky, of_profile = (
        CurveMap.join(curves[name], {"map": name, **about}, edges=edges[name], finest=finest, law=law)
        for name in curves
    )
    log.info(f"xi and R(V): {len(of_sky.pixel)} pixels of the sky map, {len(of_profile.pixel)} of the profile")
    curve = CurveMaps(of_sky, of_profile, curve_from_above(of_profile, config.max_height))
    return DustMaps(sky, profile, above, tally, curve)


def write_dust_map(maps: DustMaps, out: Path) -> list[Path]:
    """Write FITS files, figures (PNG and PDF) and dust_map.json; all is drawn before any file is made.

    Returns:
        the files written.
    """
    from xpbayes.analysis.dust_map.draw import draw_birds_eye, draw_curve_from_above, draw_curve_sky, draw_sky
    from xpbayes.analysis.figures.drawing import save_figure

    figures = {"sky": draw_sky(maps.sky), "birds_eye": draw_birds_eye(maps.above)}
    if maps.curve is not None:
        figures[f"{CURVE}sky"] = draw_curve_sky(maps.curve.sky)
        figures[f"{CURVE}birds_eye"] = draw_curve_from_above(maps.curve.above)
    about = {"kind": "dust map", "version": VERSION, **maps.sky.about, "coverage": coverage(maps)}
    files = []
    for prefix, of in _prefixed(maps):
        files += [of.sky.write(out / f"{prefix}{SKY}"), of.profile.write(out / f"{prefix}{PROFILE}")]
        files.append(of.above.write(out / f"{prefix}{BIRDS_EYE}"))
    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            files.append(save_figure(figure, out / f"{name}.{suffix}", dpi=160))
    files.append(out / ABOUT)
    write_json(about, files[-1])
    return files


def _prefixed(maps: DustMaps) -> "list[tuple[str, DustMaps | CurveMaps]]":
    """The maps of E, and those of the curve if there are any, with what their files' names begin with."""
    return [("", maps), *([(CURVE, maps.curve)] if maps.curve is not None else [])]


def coverage(maps: DustMaps) -> dict[str, list[dict[str, float]]]:
    """Sky fraction, resolutions and typical values of every bin of all maps, for people and for tests."""
    both = [(f"{prefix}{name}", getattr(of, name)) for prefix, of in _prefixed(maps) for name in ("sky", "profile")]
    return {name: [_bin_summary(m, k) for k in range(len(m.edges) - 1)] for name, m in both}


def _bin_summary(m: PixelMap, k: int) -> dict[str, float]:
    used: NDArray[np.bool_] = m.nside[:, k] > 0
    out = {
        "near_kpc": round(float(m.edges[k]), 4),
        "far_kpc": round(float(m.edges[k + 1]), 4),
        "sky_fraction": round(float(used.sum() / (12 * m.finest**2)), 6),
    }
    for nside in np.unique(m.nside[used, k]):
        out[f"share_nside_{nside}"] = round(float(np.mean(m.nside[used, k] == nside)), 4)
    for name, of in m.TYPICAL.items():
        values = getattr(m, of)[used, k]
        if np.isfinite(values).any():
            out[name] = round(float(np.nanmedian(values)), 4)
    return out
