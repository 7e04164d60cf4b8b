"""Train classifiers of how reliable the estimates are (ZGR23 Section 4.4, Appendix B)."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from xpbayes.analysis.figures.confidence import ConfidenceCheck, judge
from xpbayes.analysis.pages.confidence import NUMBERS, held_out_fits, write_check
from xpbayes.config import ConfidenceConfig
from xpbayes.data.spectra import Spectra
from xpbayes.identity import Side, Split
from xpbayes.models.reliability import feature_names
from xpbayes.production.meeting import require_same_stars, stars_for
from xpbayes.production.model_file import CARD, TrainedModel
from xpbayes.production.table import catalogue_about, read_catalogue
from xpbayes.runs.inputs import PathLike, check_writable, created, load_if_path, read_stars, saved, versions
from xpbayes.training.reliability import confidences, train_confidence

log = logging.getLogger(__name__)


def confidence(
    model: TrainedModel | PathLike,
    catalogue: PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    config: ConfidenceConfig | None = None,
    figures: PathLike | None = None,
) -> tuple[TrainedModel, ConfidenceCheck]:
    """Train classifiers of how reliable the estimates are (ZGR23 Section 4.4, Appendix B).

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        catalogue: what it inferred for stars that it never saw (``only="held-out"``).
        stars: the star table that the catalogue was inferred from, with labels.
        out: folder for the model with its classifiers, its own folder perhaps; nothing is written if None.
        config: settings; Appendix B's if None.
        figures: folder for figures and numbers of how well the confidences work; none if None.

    Returns:
        the model with classifiers, and how they do on the stars held out from training them.

    Raises:
        InputError: the catalogue is another model's or holds stars of the training side; too few stars remain.

    Example:
        >>> model, check = xpbayes.confidence("model", "catalogue.parquet", "stars.parquet")  # doctest: +SKIP
    """
    config = config or ConfidenceConfig()
    begun = time.perf_counter()
    check_writable(out, catalogue, stars, files=(CARD, "*.safetensors"))
    check_writable(figures, model, catalogue, stars, files=(NUMBERS, "*.png"))
    trained = load_if_path(model)
    rows = read_catalogue(catalogue)
    about = catalogue_about(rows)
    table, source = read_stars(stars)
    require_same_stars(about, table.instrument, str(catalogue), str(source["path"]))
    instrument = table.instrument
    table = stars_for(trained, table, str(source["path"]))
    fits = held_out_fits(trained, rows, about, table, str(catalogue))
    split = {"by": "source_id hash", "fraction": config.validation_fraction, "seed": trained.card["split"]["seed"] + 1}
    validation = Split(split["fraction"], seed=split["seed"]).on(Side.HELD_OUT, fits.comparison.source_id)
    log.info(f"{len(validation)} held-out stars with labels pass the basic cut, {fits.n_failed_basic_cut} do not")
    names = feature_names(trained.labels, trained.channels.names)
    learned = train_confidence(fits.features, fits.chi2_eps, validation, fits.targets, names, config)
    confidence_of = confidences(learned.nets, fits.features)[validation]
    check = judge(fits.comparison.take(validation), learned.nets.targets, confidence_of)
    entry = {
        "created": created(),
        "catalogue": {k: about.get(k) for k in ("created", "input", "selection", "settings", "n_with_parallax")},
        "stars": source,
        "instrument": instrument.to_json(),
        "features": list(names),
        "split": split,
        "n_failed_basic_cut": fits.n_failed_basic_cut,
        **learned.record,
        **check.numbers(),
        "seconds": round(time.perf_counter() - begun, 2),
        "versions": versions(),
    }
    trained = replace(trained, confidence=learned.nets, card={**trained.card, "confidence": entry})
    if figures is not None:
        for path in write_check(check, Path(figures)):
            log.info(f"wrote {path}")
    return saved(trained, out), check
