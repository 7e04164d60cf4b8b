"""Make a three-dimensional dust map from a catalogue (ZGR23 Section 5.4)."""

import logging
from pathlib import Path

from xpbayes.analysis.dust_map.build import (
    ABOUT,
    BIRDS_EYE,
    CURVE,
    PROFILE,
    SKY,
    DustMaps,
    build_dust_map,
    write_dust_map,
)
from xpbayes.config import DustMapConfig
from xpbayes.runs.inputs import PathLike, check_writable

log = logging.getLogger(__name__)


def dust_map(catalogue: PathLike, out: PathLike | None = None, config: DustMapConfig | None = None) -> DustMaps:
    """Make a three-dimensional dust map from a catalogue's extinctions and parallaxes (ZGR23 Section 5.4).

    Args:
        catalogue: a catalogue file, or the folder of a catalogue in parts; it is streamed.
        out: folder for sky.fits, profile.fits, birds_eye.fits, those of the curve, figures and dust_map.json; nothing is
            written if None.
        config: cuts, resolutions, distance bins, kind of mean; the paper's if None.

    Returns:
        the maps; `profile.extinction(coords, distance)` answers queries, and `curve.profile.curve(coords, distance)`.

    Raises:
        InputError: no finished catalogue, a missing column, or too few stars pass the cuts; nothing is left in `out`.
    """
    if out is None:
        return build_dust_map(Path(catalogue), config)
    check_writable(out, catalogue, files=(SKY, PROFILE, BIRDS_EYE, f"{CURVE}*.fits", ABOUT, "*.png"))
    maps = build_dust_map(Path(catalogue), config, scratch=Path(out))
    for path in write_dust_map(maps, Path(out)):
        log.info(f"wrote {path}")
    return maps
