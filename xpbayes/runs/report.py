"""Write the report of a run: one self-contained HTML file."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xpbayes.analysis.pages.report import write_report
from xpbayes.analysis.run_inputs import open_stars
from xpbayes.data.spectra import Spectra
from xpbayes.data.spectra_file import write_star_table
from xpbayes.production.model_file import TrainedModel
from xpbayes.runs.inputs import PathLike, check_writable, load_if_path, read_stars

log = logging.getLogger(__name__)


def report(
    model: TrainedModel | PathLike,
    catalogue: PathLike,
    stars: Spectra | PathLike,
    out: PathLike,
    timings: dict[str, float] | None = None,
    *,
    source_ids: Sequence[int] = (),
    draws: PathLike | None = None,
) -> Path:
    """Write the report of a run: one self-contained HTML file.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        catalogue: the catalogue file, or the folder of a catalogue in parts.
        stars: the star table that was inferred, with labels where known.
        out: HTML file.
        timings: further stages and their seconds, for the page.
        source_ids: stars that get a section of their own.
        draws: file of `sample`: the draws of these stars.

    Raises:
        InputError: the inputs do not belong together, or a requested star is not there.
    """
    check_writable(out, model, catalogue, stars, draws)
    trained = load_if_path(model)
    table, _ = read_stars(stars)
    with tempfile.TemporaryDirectory() as scratch:  # the figures stream their stars from disk
        on_disk = write_star_table(stars, Path(scratch) / "stars.parquet") if isinstance(stars, Spectra) else stars
        files = open_stars(on_disk)
        path = write_report(trained, catalogue, table, files, Path(out), timings or {}, source_ids, draws)
    log.info(f"wrote {path}")
    return path
