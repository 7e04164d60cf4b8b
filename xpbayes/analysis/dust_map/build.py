"""From a catalogue to the dust map's products: read it from top to bottom.

In: a catalogue on disk and settings. Out: a folder with sky.fits (four wide bins), profile.fits (forty fine ones),
birds_eye.fits, figures and dust_map.json.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.bins import profile_edges, voxel_means
from xpbayes.analysis.dust_map.birds_eye import BirdsEye, birds_eye
from xpbayes.analysis.dust_map.healpix_map import DustMap, join, map_of_piece
from xpbayes.analysis.dust_map.joint import voxel_means_joint
from xpbayes.analysis.dust_map.selection import SkyPieces, Tally, open_for_map, select
from xpbayes.config import DustMapConfig
from xpbayes.data.json_file import write_json
from xpbayes.errors import InputError

log = logging.getLogger(__name__)

SKY, PROFILE, BIRDS_EYE, ABOUT = "sky.fits", "profile.fits", "birds_eye.fits", "dust_map.json"
VERSION = 1
"""Of dust_map.json."""
MEANS = {"bins": voxel_means, "joint": voxel_means_joint}


@dataclass(frozen=True)
class DustMaps:
    """The products.

    Attributes:
        sky: wide bins, the best distances (Fig. 20).
        profile: fine bins, for queries and the view from above.
        above: the bird's-eye view (Fig. 21).
        tally: stars read, cut, kept.
    """

    sky: DustMap
    profile: DustMap
    above: BirdsEye
    tally: Tally


def build_dust_map(catalogue: Path, config: DustMapConfig | None = None, scratch: Path | None = None) -> DustMaps:
    """Make the maps of a catalogue.

    Args:
        catalogue: a catalogue file or a folder of parts.
        config: cuts, resolutions, bins, kind of mean; the defaults if None.
        scratch: folder for temporary files of a catalogue that does not fit into memory.

    Raises:
        InputError: an unfinished or unreadable catalogue, a missing column, no star left by the cuts, or nowhere enough.
    """
    config = config or DustMapConfig()
    source = open_for_map(Path(catalogue))
    tally = Tally()
    finest = config.nsides[0]
    fine = profile_edges(config.profile_bins, config.profile_reach)
    edges = {"sky": np.asarray(config.sky_edges), "profile": fine}
    limits = {"sky": config.sky_max_parallax_error, "profile": config.profile_max_parallax_error}
    pieces: dict[str, list[DustMap]] = {"sky": [], "profile": []}
    with SkyPieces(finest, config.nsides[-1], scratch) as sorted_sky:
        for stars in select(source, config, tally):
            sorted_sky.add(stars)
        for line in tally.sentences():
            log.info(line)
        if not tally.kept:
            raise InputError(
                f"{catalogue}: none of {tally.rows} stars passes the cuts ({_largest_cut(tally)}); relax them"
            )
        for first_pixel, stars in sorted_sky:
            for name, done in pieces.items():
                some = stars.take(stars.relative_error < limits[name])
                pixels = range(first_pixel, first_pixel + sorted_sky.pixels_per_piece)
                done.append(
                    map_of_piece(some, pixels, edges[name], config.nsides, config.min_stars, MEANS[config.method])
                )
    about = {"method": config.method, **config.model_dump(mode="json"), **asdict(tally)}
    sky, profile = (join(pieces[name], edges[name], finest, {"map": name, **about}) for name in ("sky", "profile"))
    if not len(sky.pixel) and not len(profile.pixel):
        raise InputError(
            f"{catalogue}: no pixel has {config.min_stars} of the {tally.kept} stars in one distance bin, not even at nside "
            f"{config.nsides[-1]}; ask for fewer (--min-stars) or wider bins (--edges), or name a catalogue of more stars"
        )
    log.info(f"{len(sky.pixel)} pixels of the sky map, {len(profile.pixel)} of the profile (nside {finest})")
    return DustMaps(sky, profile, birds_eye(profile, config.max_height), tally)


def _largest_cut(tally: Tally) -> str:
    cuts = {k: v for k, v in asdict(tally).items() if k not in ("rows", "kept")}
    name = max(cuts, key=lambda k: cuts[k])
    return f"largest cut: {name.replace('_', ' ')}, {cuts[name]} stars"


def write_dust_map(maps: DustMaps, out: Path) -> list[Path]:
    """Write FITS files, figures (PNG and PDF) and dust_map.json; all is drawn before any file is made.

    Returns:
        the files written.
    """
    from xpbayes.analysis.dust_map.draw import draw_birds_eye, draw_sky
    from xpbayes.analysis.figures.drawing import save_figure

    figures = {"sky": draw_sky(maps.sky), "birds_eye": draw_birds_eye(maps.above)}
    about = {"kind": "dust map", "version": VERSION, **maps.sky.about, "coverage": coverage(maps)}
    files = [maps.sky.write(out / SKY), maps.profile.write(out / PROFILE), maps.above.write(out / BIRDS_EYE)]
    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            files.append(save_figure(figure, out / f"{name}.{suffix}", dpi=160))
    files.append(out / ABOUT)
    write_json(about, files[-1])
    return files


def coverage(maps: DustMaps) -> dict[str, list[dict[str, float]]]:
    """Sky fraction, resolutions and typical errors of every bin of both maps, for people and for tests."""
    both = (("sky", maps.sky), ("profile", maps.profile))
    return {name: [_bin_summary(m, k) for k in range(len(m.edges) - 1)] for name, m in both}


def _bin_summary(m: DustMap, k: int) -> dict[str, float]:
    used: NDArray[np.bool_] = m.nside[:, k] > 0
    out = {
        "near_kpc": round(float(m.edges[k]), 4),
        "far_kpc": round(float(m.edges[k + 1]), 4),
        "sky_fraction": round(float(used.sum() / (12 * m.finest**2)), 6),
    }
    for nside in np.unique(m.nside[used, k]):
        out[f"share_nside_{nside}"] = round(float(np.mean(m.nside[used, k] == nside)), 4)
    if used.any():
        out["median_extinction"] = round(float(np.median(m.mean[used, k])), 4)
        out["median_sigma"] = round(float(np.median(m.sigma[used, k])), 4)
    return out
