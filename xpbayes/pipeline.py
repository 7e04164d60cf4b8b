"""The runs, each readable from top to bottom: train, infer, predict, report, fetch, demo.

These are also the Python API (`xpbayes.train`, `xpbayes.infer`, ...). Paths or objects go in; objects come out, and
files too where an output is named.
"""

import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.archive.selection import held_out_by_source_id, training_cuts
from xpbayes.archive.star_table import OK, StarTable, read_star_tables, write_star_table
from xpbayes.catalogue.table import catalogue_rows, describe, to_arrow, write_catalogue
from xpbayes.checksum import file_checksum
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.errors import InputError, nearest
from xpbayes.modelfile import CARD, TrainedModel, load_model, save_model

Say = Callable[[str], None]
PathLike = str | Path
MIN_TRAINING_STARS = 200
"""Fewer stars cannot pin down a network and a 16-component prior."""


def quiet(line: str) -> None:
    """Say nothing."""


# ---------------------------------------------------------------------------------------------------------- training


def train(
    stars: StarTable | PathLike, out: PathLike | None = None, config: TrainingConfig | None = None, say: Say = quiet
) -> TrainedModel:
    """Train a model on stars with labels.

    Args:
        stars: a star table, its path, or a folder of star tables.
        out: folder for the model; nothing is written if None.
        config: settings; the defaults if None.
        say: receives progress, one line at a time.

    Returns:
        the model; its `card` says what it was trained on and how.

    Raises:
        InputError: the table cannot be used, or too few stars remain.

    Example:
        >>> model = xpbayes.train("stars.parquet", out="model")  # doctest: +SKIP
    """
    from xpbayes.inference.training import train as learn

    config = config or TrainingConfig()
    begun = time.perf_counter()
    table, source = _table(stars)
    _check_writable(out)
    _require_labels(table, config.labels, str(source["path"]))
    kept = training_cuts(table, config.labels, config.teff_max)
    held = held_out_by_source_id(kept.source_id, config.validation_fraction, config.split_seed)
    training = kept.take(~held, "held out for validation, by source_id")
    if len(training) < MIN_TRAINING_STARS:
        raise InputError(
            f"{source['path']}: {len(training)} training stars are left after the cuts, at least {MIN_TRAINING_STARS} are "
            f"needed (largest cut: {max(training.cuts, key=lambda c: c.removed).what}); bring more stars or relax it"
        )
    for cut in training.cuts:
        say(f"cut: {cut.what}: {cut.removed} removed, {cut.left} left")
    batch = training.stars(
        config.labels, spectroscopic_parallax=True, label_error_floor=config.floor_for(len(config.labels))
    )
    learned = learn(batch, training.channels.wavelengths, config, say)
    model = TrainedModel(
        forward=learned.model,
        prior=learned.prior,
        model_error=learned.model_error,
        channels=training.channels,
        labels=config.labels,
        card={
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": source,
            "settings": config.model_dump(mode="json"),
            "seed": config.seed,
            "n_training": len(training),
            "n_held_out": int(held.sum()),
            "split": {"by": "source_id hash", "fraction": config.validation_fraction, "seed": config.split_seed},
            "cuts": [vars(c) for c in training.cuts],
            "provenance": training.provenance,
            "parallax_used": _parallax_used(training),
            "label_range": {
                name: np.percentile(training.column(name), [0, 1, 16, 50, 84, 99, 100]).round(4).tolist()
                for name in config.labels
            },
            "phases": learned.record.phases,
            "training_seconds": round(time.perf_counter() - begun, 2),
            "versions": versions(),
        },
    )
    if out is not None:
        say(f"wrote {save_model(model, out)}")
        model = load_model(out)  # what the next user gets, checksum included
    return model


def _parallax_used(table: StarTable) -> str:
    measured = table.is_measured("parallax")
    if measured.all():
        return "measured"
    return "spectroscopic, derived from the labels" if not measured.any() else "measured, spectroscopic where missing"


def _require_labels(table: StarTable, labels: tuple[str, ...], where: str) -> None:
    for name in labels:
        for column in (name, f"{name}_error"):
            if column not in table.columns:
                raise InputError(
                    f"{where}: has no column '{column}'{nearest(column, table.columns)}; training needs every label in "
                    f"'labels' with its error"
                )


# --------------------------------------------------------------------------------------------------------- inference


def infer(
    model: TrainedModel | PathLike,
    stars: StarTable | PathLike,
    out: PathLike | None = None,
    config: InferenceConfig | None = None,
    only: str = "all",
    say: Say = quiet,
) -> pa.Table:
    """Infer stellar parameters without labels.

    Args:
        model: a trained model or its folder.
        stars: a star table, its path, a folder of star tables, or a survey.toml, whose files are then read, calibrated
            and solved part by part.
        out: Parquet file for the catalogue; nothing is written if None.
        config: settings; the defaults if None.
        only: 'all', or 'held-out' / 'training' for that side of the model's own split.
        say: receives progress, one line at a time.

    Returns:
        the catalogue: one row per star, columns as in `xpbayes.schema.catalogue_columns`.

    Raises:
        InputError: model and stars do not fit together, or a file cannot be used.

    Example:
        >>> catalogue = xpbayes.infer("model", "stars.parquet", out="catalogue.parquet")  # doctest: +SKIP
    """
    config = config or InferenceConfig()
    begun = time.perf_counter()
    trained = load_model(model) if not isinstance(model, TrainedModel) else model
    _check_writable(out)
    stream, source = _stream(stars, out, say)
    parts: list[pa.Table] = []
    n_seen = n_with_parallax = n_unusable = 0
    for table in stream:
        n_seen += len(table)
        chosen = choose_stars(trained, table, only)
        if not len(chosen):
            continue
        trained.channels.require_same(chosen.channels, "the model", str(source["path"]))
        part, unusable = _infer_part(trained, chosen, config, say)
        n_unusable += unusable
        n_with_parallax += int(chosen.is_measured("parallax").sum()) if config.use_parallax else 0
        parts.append(part)
    n_rows = sum(len(part) for part in parts)
    if not n_rows:
        raise InputError(f"{source['path']}: none of its {n_seen} stars is on the {only} side of the model's split")
    if n_unusable == n_rows:
        raise InputError(f"{source['path']}: none of its {n_rows} stars can be used")
    about = {
        "labels": trained.labels,
        "channels": json.loads(trained.channels.to_json()),
        "model": {k: trained.card.get(k) for k in ("created", "arrays_checksum", "n_training", "split")},
        "input": {**source, "n_stars": n_seen},
        "settings": config.model_dump(mode="json"),
        "selection": only,
        "n_with_parallax": n_with_parallax,
        "seconds": round(time.perf_counter() - begun, 2),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    catalogue = describe(pa.concat_tables(parts).unify_dictionaries(), about)
    if out is not None:
        write_catalogue(catalogue, out)
        say(f"wrote {out}")
    return catalogue


def _infer_part(trained: TrainedModel, table: StarTable, config: InferenceConfig, say: Say) -> tuple[pa.Table, int]:
    """Catalogue rows of one star table, and how many of its stars could not be used."""
    from xpbayes.inference.infer import infer as solve

    status = table.problems()
    usable = table.take(np.flatnonzero(status == OK))
    for reason, count in sorted(Counter(status.tolist()).items()):
        if reason != OK:
            first = table.source_id[status == reason][0]
            say(f"not solved: {count} stars, {reason} (first: source_id {first}); they get a row that says so")

    def progress(done: int, total: int, rate: float) -> None:
        say(f"inferred {done} of {total} stars ({rate:.0f} stars/s)")

    inferred = solve(
        trained.forward, trained.prior, trained.model_error, usable.stars(trained.labels), config, progress
    )
    rows = catalogue_rows(table, status, inferred, float(trained.prior.ln_threshold), use_parallax=config.use_parallax)
    return to_arrow(rows, len(trained.labels)), len(table) - len(usable)


def _stream(stars: StarTable | PathLike, out: PathLike | None, say: Say) -> tuple[Iterator[StarTable], dict[str, Any]]:
    """Star tables one after the other, and what they are: a table, a file, a folder of files, or a survey.toml."""
    if isinstance(stars, StarTable) or Path(stars).suffix != ".toml":
        table, source = _table(stars)
        return iter([table]), source
    from xpbayes.archive.prepare import QUARANTINE, read_companions, stream_stars
    from xpbayes.archive.quarantine import write_quarantine
    from xpbayes.archive.survey_config import read_survey

    path = Path(stars)
    # Inference wants every star with a spectrum, whatever the survey selects for training.
    survey = read_survey(path).model_copy(update={"select": "all"})

    def parts() -> Iterator[StarTable]:
        companions = read_companions(survey, path.parent, say)
        rejected = list(companions.rejected)
        for part in stream_stars(survey, path.parent, companions):
            rejected += part.rejected
            yield part.table
        if rejected:
            say(f"{len(rejected)} rows could not be used (first: {rejected[0].file}, row {rejected[0].row})")
            if out is not None:
                say(f"wrote {write_quarantine(rejected, Path(out).with_suffix('.' + QUARANTINE))}")

    return parts(), {"path": path.name, "checksum": file_checksum(path)}


SELECTIONS = ("all", "held-out", "training")


def choose_stars(model: TrainedModel, table: StarTable, only: str) -> StarTable:
    """Select one side of the split that the model was trained with.

    'training' is that side of the source_id split, whether or not a star passed the training cuts.
    """
    if only not in SELECTIONS:
        raise InputError(f"'{only}' is no selection of stars{nearest(only, SELECTIONS)}; use {', '.join(SELECTIONS)}")
    if only == "all":
        return table
    split = model.card["split"]
    held_out = held_out_by_source_id(table.source_id, split["fraction"], split["seed"])
    return table.take(held_out if only == "held-out" else ~held_out)


# -------------------------------------------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class Prediction:
    """A model spectrum.

    Attributes:
        channels: names of the channels.
        wavelength_nm: (channel,) [nm].
        flux: (channel,) [1e-18 W m^-2 nm^-1].
        model_error: (channel,) 1-sigma relative error of the model itself; 0 where it was not learned.
        ln_prior: how common such stars are in the training sample.
        unlikely: ln_prior lies below the model's threshold: the prediction is an extrapolation.
    """

    channels: tuple[str, ...]
    wavelength_nm: NDArray[np.float64]
    flux: NDArray[np.float64]
    model_error: NDArray[np.float64]
    ln_prior: float
    unlikely: bool


def predict_flux(
    model: TrainedModel | PathLike, *, extinction: float = 0.0, parallax: float = 1.0, **labels: float
) -> Prediction:
    """Predict the flux of one star.

    Args:
        model: a trained model or its folder.
        extinction: E [mag], not negative.
        parallax: [mas], positive.
        labels: the model's stellar labels by name; teff in K, the others in dex.

    Raises:
        InputError: a label is missing, unknown or out of any sensible range.

    Example:
        >>> xpbayes.predict_flux("model", teff=5800, feh=0, logg=4.4, extinction=0.1)  # doctest: +SKIP
    """
    from xpbayes.inference.model_error import relative_sigma
    from xpbayes.models.forward import ln_absolute_flux
    from xpbayes.models.prior import ln_prior

    trained = load_model(model) if not isinstance(model, TrainedModel) else model
    for name in labels:
        if name not in trained.labels:
            raise InputError(f"the model has no label '{name}'{nearest(name, trained.labels)}")
    missing = [name for name in trained.labels if name not in labels]
    if missing:
        raise InputError(f"the label '{missing[0]}' is missing; the model needs {', '.join(trained.labels)}")
    if not np.isfinite([extinction, parallax, *labels.values()]).all():
        raise InputError("labels, extinction and parallax must be finite numbers")
    if "teff" in labels and not 1000 <= labels["teff"] <= 100_000:
        raise InputError(f"teff = {labels['teff']:g} is outside 1000 to 100000; it is in kelvin")
    if extinction < 0 or parallax <= 0:
        raise InputError("the extinction must not be negative and the parallax must be positive (mas)")
    value = np.array([labels[n] / 1e3 if n == "teff" else labels[n] for n in trained.labels], np.float32)
    intrinsic = np.asarray(ln_absolute_flux(trained.forward, jnp.asarray(value)), np.float64)
    curve = np.exp(np.asarray(trained.forward.ln_curve, np.float64))
    ln_p = float(ln_prior(trained.prior, jnp.asarray(value)))
    n = len(trained.channels)
    return Prediction(
        channels=trained.channels.names,
        wavelength_nm=trained.channels.wavelengths,
        flux=np.exp(intrinsic - extinction * curve) * parallax**2,
        model_error=relative_sigma(trained.model_error) if trained.model_error is not None else np.zeros(n),
        ln_prior=ln_p,
        unlikely=ln_p < float(trained.prior.ln_threshold),
    )


# ------------------------------------------------------------------------------------------------- data, report, demo


def fetch_apogee(out: PathLike, say: Say = quiet) -> StarTable:
    """Download the full APOGEE x XP library with pip and write it as a star table.

    Args:
        out: Parquet file.
        say: receives progress.
    """
    from xpbayes.archive.apogee import PACKAGE, fetch_library, read_library, star_table_from_library

    _check_writable(out)
    with tempfile.TemporaryDirectory() as scratch:
        library = read_library(fetch_library(say, Path(scratch)))
    say(f"calibrating {len(library.source_id)} spectra")
    table = star_table_from_library(library, f"full table of {PACKAGE}")
    for cut in table.cuts:
        say(f"cut: {cut.what}: {cut.removed} removed, {cut.left} left")
    write_star_table(table, out)
    say(f"wrote {out}")
    return table


def bundled_stars(out: PathLike | None = None, say: Say = quiet) -> StarTable:
    """Return the bundled sample of 10,000 real stars as a star table.

    Args:
        out: Parquet file to write; none if None.
        say: receives progress.
    """
    from xpbayes.archive.apogee import bundled_stars as read

    _check_writable(out)
    table = read()
    if out is not None:
        write_star_table(table, out)
        say(f"wrote {out}: {len(table)} stars")
    return table


def report(
    model: TrainedModel | PathLike,
    catalogue: PathLike,
    stars: StarTable | PathLike,
    out: PathLike,
    timings: dict[str, float] | None = None,
    say: Say = quiet,
) -> Path:
    """Write the report of a run: one self-contained HTML file.

    Args:
        model: a trained model or its folder.
        catalogue: the catalogue file.
        stars: the star table that was inferred, with labels where known.
        out: HTML file.
        timings: further stages and their seconds, for the page.
        say: receives progress.
    """
    from xpbayes.analysis.report import write_report

    trained = load_model(model) if not isinstance(model, TrainedModel) else model
    table, _ = _table(stars)
    _check_writable(out)
    path = write_report(trained, catalogue, table, Path(out), timings or {})
    say(f"wrote {path}")
    return path


def demo(out: PathLike, say: Say = quiet) -> Path:
    """Do everything once on the bundled sample: train, infer held-out stars, write catalogue and report.

    Args:
        out: folder for all products.
        say: receives progress.

    Returns:
        path of the report.
    """
    folder = Path(out)
    seconds: dict[str, float] = {}

    def timed(stage: str, run: Callable[[], Any]) -> Any:
        say(f"--- {stage}")
        begun = time.perf_counter()
        result = run()
        seconds[stage] = time.perf_counter() - begun
        return result

    _check_writable(folder / CARD)
    stars = timed("calibrating the bundled sample", lambda: bundled_stars(folder / "stars.parquet", say))
    model = timed("training on 80 % of the stars", lambda: train(folder / "stars.parquet", folder / "model", say=say))
    timed(
        "inferring the other 20 % from flux alone",
        lambda: infer(model, folder / "stars.parquet", folder / "catalogue.parquet", only="held-out", say=say),
    )
    path = timed(
        "writing the report",
        lambda: report(model, folder / "catalogue.parquet", stars, folder / "report.html", dict(seconds), say),
    )
    for stage, value in seconds.items():
        say(f"{value:7.1f} s  {stage}")
    return path


# ------------------------------------------------------------------------------------------------------------ helpers


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("xpbayes", "jax", "numpyro", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def _table(stars: StarTable | PathLike) -> tuple[StarTable, dict[str, Any]]:
    if isinstance(stars, StarTable):
        return stars, {"path": "a table in memory", "checksum": "", "n_stars": len(stars)}
    table = read_star_tables(stars)
    path = Path(stars)
    checksum = "" if path.is_dir() else file_checksum(path)
    return table, {"path": path.name, "checksum": checksum, "n_stars": len(table)}


def _check_writable(out: PathLike | None) -> None:
    """Refuse an unwritable output before hours of work, not after."""
    if out is None:
        return
    target = Path(out)
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    try:
        if not parent.is_dir():
            raise NotADirectoryError(20, f"{parent} is not a folder")
        with tempfile.TemporaryFile(dir=parent):
            pass
        if target.is_dir() and target.suffix:
            raise IsADirectoryError(21, "it is a folder")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another output") from error


def to_stderr(line: str) -> None:
    """Say a line where it does not mix with results."""
    print(line, file=sys.stderr, flush=True)
