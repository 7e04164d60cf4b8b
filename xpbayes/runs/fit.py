"""Fit a handful of stars and find every optimum of their posteriors."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from xpbayes.analysis.pages.star_page import NUMBERS, StarFit, star_fits, write_fits
from xpbayes.archive.survey_config import Survey
from xpbayes.config import InferenceConfig
from xpbayes.data.spectra import OK, Spectra
from xpbayes.device import suited_programs
from xpbayes.inference.fit import spurious_in
from xpbayes.inference.scatter import loosened, settling, trusted_inverse_error
from xpbayes.inference.search.modes import Mode, Modes, find_modes
from xpbayes.production.meeting import stars_for
from xpbayes.production.model_file import TrainedModel
from xpbayes.progress import in_stars
from xpbayes.runs.infer import model_factor, solve_stars, stars_scatter
from xpbayes.runs.inputs import PathLike, check_writable, find_stars, load_if_path

log = logging.getLogger(__name__)


def fit(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike | Survey,
    source_ids: Sequence[int],
    out: PathLike | None = None,
    config: InferenceConfig | None = None,
) -> list[StarFit]:
    """Fit a handful of stars and find every optimum of their posteriors that many starts can reach.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        config: settings; the defaults if None.
        stars: a star table, or whatever else `infer` takes.
        source_ids: which stars; each fit's order is theirs.
        out: folder for ``fit.json`` and one figure a star; nothing is written if None.

    Raises:
        InputError: a source_id is not there, or model and stars do not fit together.

    Example:
        >>> stars = xpbayes.fit("model", "stars.parquet", [4295806720], out="fit")  # doctest: +SKIP
    """
    config = config or InferenceConfig()
    check_writable(out, model, stars, files=(NUMBERS, "*.png"))
    trained = load_if_path(model)
    table, where = find_stars(stars, source_ids, trained.channels)
    given, table = table, stars_for(trained, table, where)
    factor = model_factor(model, trained) if config.model_uncertainty else None
    log.info(f"solving {in_stars(len(given))}; programs are compiled before the first")
    with suited_programs(len(given), slow=config.refine):
        rows, _ = solve_stars(trained, factor, given, config)
        usable = table.take(np.flatnonzero(table.problems() == OK))
        log.info(f"looking for other optima of {in_stars(len(usable))}")
        modes = _modes(trained, usable, config) if len(usable) else []
        found = dict(zip(usable.source_id.tolist(), modes, strict=True))
        fits = star_fits(trained, table, rows, found, parallax_used=config.use_parallax)
    if out is not None:
        for path in write_fits(fits, Path(out)):
            log.info(f"wrote {path}")
    return fits


def _modes(trained: TrainedModel, table: Spectra, config: InferenceConfig) -> list[Modes]:
    """Every star's optima, with E and the parallax as `infer` has them."""
    stars = table.stars(trained.labels, doubt_parallax=config.doubt_parallax)
    scatter = stars_scatter(trained, stars) if config.calibrate else None
    if scatter is None:
        return find_modes(trained.star_model, stars, config)

    looked_at = loosened(stars, scatter)

    def own(mode: Mode, row: slice) -> Mode:
        at, one = mode.estimate[None], stars.take(row)
        inverse = trusted_inverse_error(one, spurious_in(looked_at.take(row), at[:, -1:])) * config.use_parallax
        factor, added, shift = (values[0] for values in settling(at, one, scatter[row], inverse))
        error = np.sqrt((factor * mode.error) ** 2 + added)
        return replace(mode, estimate=factor * mode.estimate + shift, error=error)

    found = find_modes(trained.star_model, looked_at, config)
    return [replace(of, modes=tuple(own(mode, slice(i, i + 1)) for mode in of.modes)) for i, of in enumerate(found)]
