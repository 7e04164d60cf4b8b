"""Everything once on the bundled sample."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xpbayes.analysis.pages.requested_stars import typical_stars
from xpbayes.production.model_file import CARD
from xpbayes.production.table import read_catalogue
from xpbayes.runs.fetch import bundled_stars
from xpbayes.runs.infer import infer
from xpbayes.runs.inputs import PathLike, check_writable
from xpbayes.runs.report import report
from xpbayes.runs.train import train

log = logging.getLogger(__name__)


def demo(out: PathLike) -> Path:
    """Do everything once on the bundled sample, into a folder: train, infer held-out stars, report. Returns its page."""
    folder = Path(out)
    seconds: dict[str, float] = {}

    def timed(stage: str, run: Callable[[], Any]) -> Any:
        log.info(f"--- {stage}")
        begun = time.perf_counter()
        result = run()
        seconds[stage] = time.perf_counter() - begun
        return result

    check_writable(folder / CARD)
    timed("calibrating the bundled sample", lambda: bundled_stars(folder / "stars.parquet"))
    model = timed("training on 80 % of the stars", lambda: train(folder / "stars.parquet", folder / "model"))
    timed(
        "inferring the other 20 % from flux alone",
        lambda: infer(model, folder / "stars.parquet", folder / "catalogue.parquet", only="held-out"),
    )
    path = timed(
        "writing the report",
        lambda: report(
            model,
            folder / "catalogue.parquet",
            folder / "stars.parquet",
            folder / "report.html",
            dict(seconds),
            source_ids=typical_stars(read_catalogue(folder / "catalogue.parquet"), model),
        ),
    )
    for stage, value in seconds.items():
        log.info(f"{value:7.1f} s  {stage}")
    return path
