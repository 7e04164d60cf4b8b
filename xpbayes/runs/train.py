"""Train a model on stars with labels."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.pages.model_card import held_out_entry
from xpbayes.analysis.validation import held_out_stars
from xpbayes.checks.held_out_checks import check_held_out, check_second_stage, extinction_unit, measure
from xpbayes.checks.training_checks import check_training
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.parquet import column_names
from xpbayes.data.spectra import Spectra
from xpbayes.data.spectra_file import star_table_files
from xpbayes.files import locked, write_text
from xpbayes.identity import Split
from xpbayes.inference.fit import Inferred
from xpbayes.inference.recalibration import CASES
from xpbayes.inference.support import make_support
from xpbayes.models.extinction import FallOff, NearInfraredLaw
from xpbayes.production.model_file import CARD, TrainedModel
from xpbayes.refinement.stage import calibrate_second_stage, learn_second_stage
from xpbayes.runs.infer import infer
from xpbayes.runs.inputs import (
    PathLike,
    check_writable,
    read_stars,
    require_labels,
    require_stars,
    saved,
    source_of,
    trained_on,
)
from xpbayes.training.calibrating import Calibrated, calibrate
from xpbayes.training.curve_variation import fit_law
from xpbayes.training.learn import FEW_ADVICE, FEW_STARS
from xpbayes.training.learn import train as learn
from xpbayes.training.self_cleaning import with_absolute_magnitudes
from xpbayes.training.training_set import TrainingSet, n_rows, training_set, training_set_in_files
from xpbayes.training.unshared_xi import with_unshared_xi

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
"""Beside the model while it is trained: what a stopped run goes on from."""
DROPPED = "self_cleaning.csv"
"""Beside the model: who the last self-cleaning dropped, and why."""
LOCK = ".lock"
W2_OVER_J, FALL_OFF_BANDS, FALL_OFF = 0.116, ("W1", "W2", "J", "Ks"), (0.11, 0.47)
"""R(W2) / R(J) of published laws, and how it goes with (R(W1) - R(W2)) / (R(J) - R(Ks)), by least squares: Gordon et al.
(2023) at R(V) of 2.5 to 5, Gordon et al. (2021), Wang & Chen (2019), Rieke, Rieke & Paul (1989). It is known to 0.02 so."""
SCRATCH = "training-stars"
"""Beside the model while it is trained on more stars than memory holds."""


def train(
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    config: TrainingConfig | None = None,
    *,
    resume: bool = False,
) -> TrainedModel:
    """Train a model on stars with labels; arguments and errors as of `api.model.train`.

    Its `card` says what it was trained on and how, how good it is, and which checks it passed.
    """
    config = config or TrainingConfig()
    begun = time.perf_counter()
    check_writable(out, stars, files=(CARD, DROPPED, "*.safetensors"))
    with _alone(out), _training_set(stars, config, out) as (chosen, source):
        training = chosen.table
        config = config.model_copy(update={"hidden": config.hidden_for(len(training))})
        for cut in training.cuts:
            log.info(f"cut: {cut.what}: {cut.removed} removed, {cut.left} left")
        if len(training) < FEW_STARS:
            log.warning(f"training on {len(training)} stars may diverge{FEW_ADVICE}")
        checkpoint = None if out is None else Path(out) / CHECKPOINT
        near_infrared = _near_infrared_law(training, config)
        learned = learn(
            chosen.stars, training.channels.wavelengths, config, checkpoint, resume=resume, near_infrared=near_infrared
        )
        unshared: list[float] = []
        if learned.model.error is not None and learned.model.forward.curve_variation is not None:
            ra, dec = training.column("ra"), training.column("dec")
            error, excess = with_unshared_xi(learned.model, chosen.stars, learned.theta_log, ra, dec)
            learned, unshared = replace(learned, model=replace(learned.model, error=error)), excess.round(3).tolist()
            log.info(
                f"xi of {np.sum(excess > 0)} kinds of star differ from their neighbours' more than those of most kinds"
            )
        labels = training.labels(config.labels)[0]
        split = Split(config.validation_fraction, seed=config.split_seed)
        dropped = _take_dropped(learned.phases, training.source_id)
        for phase in learned.phases:
            if "diagnostic" in phase:
                phase["diagnostic"] = with_absolute_magnitudes(phase["diagnostic"], training.column("phot_g_mean_mag"))
        model = TrainedModel(
            star_model=learned.model,
            channels=training.channels,
            labels=config.labels,
            card={
                **trained_on(training, chosen.n_held_out, config.labels, source, split),
                "settings": config.model_dump(mode="json"),
                "seed": config.seed,
                "instrument": training.instrument.to_json(),
                "parallax_used": _parallax_used(training),
                "grey_extinction": "free" if near_infrared is None else near_infrared.in_words(training.channels.names),
                "phases": learned.phases,
                "unshared_xi_variance": unshared,
                "training_seconds": round(time.perf_counter() - begun, 2),
            },
            support=make_support(
                learned.model.label_prior, labels, np.asarray(learned.model.forward.label_scale), config.seed
            ),
        )
        law = fit_law(model.forward, training.channels.wavelengths, model.model_error)
        if law is not None:
            model.card["reddening_law"] = {"family": "Gordon et al. 2023", "xi": law.xi, "r_v": law.at}
        calibrated = calibrate(model.star_model, model.support, chosen, config)
        model = replace(model, calibration=calibrated.calibration, trust=calibrated.trust)
        if config.second_stage:
            model = _with_second_stage(model, chosen, [case.inferred for case in calibrated.aside], config)
        model.card["calibration"] = _calibration_entry(calibrated, chosen, config.labels)
        model.card["held_out"] = _assess(model, chosen.held_out, config) if len(chosen.held_out) else {}
        checks = check_training(
            model.forward, model.channels, model.labels, labels, model.card["held_out"], learned.phases
        )
        checks += [
            extinction_unit(model.channels.wavelengths, np.exp(np.asarray(model.forward.ln_curve))),
            *check_held_out(model.card["held_out"].get("checked", {})),
            *check_second_stage(model.card["held_out"].get("accuracy", []), model.card["held_out"].get("refined", [])),
        ]
        model.card["checks"] = [vars(check) for check in checks]
        for check in checks:
            log.info(check.line)
        model = saved(model, out)
        if out is not None:
            Path(out, CHECKPOINT).unlink(missing_ok=True)
            Path(out, DROPPED).unlink(missing_ok=True)
            if dropped:
                write_text(Path(out, DROPPED), "\n".join(["source_id,reason", *dropped, ""]))
        return model


def _alone(out: PathLike | None) -> AbstractContextManager[None]:
    """Keep other runs out of the model's folder, whose checkpoints they would replace."""
    if out is None:
        return nullcontext()
    return locked(
        Path(out) / LOCK, f"{out}: another run is at work there; wait until it ends, or choose another folder"
    )


@contextmanager
def _training_set(
    stars: Spectra | PathLike, config: TrainingConfig, out: PathLike | None
) -> Iterator[tuple[TrainingSet, dict[str, Any]]]:
    """The stars of a training run and where they come from; in files beside the model while it is trained, if many."""
    paths = [] if isinstance(stars, Spectra) else star_table_files(require_stars(stars))
    n_stars = n_rows(paths)
    if isinstance(stars, Spectra) or n_stars <= config.stars_in_memory:
        table, source = read_stars(stars)
        require_labels(table.columns, config.labels, str(source["path"]))
        yield training_set(table, config, str(source["path"])), source
        return
    for path in paths:
        require_labels(column_names(path), config.labels, str(path))
    source = source_of(stars, n_stars)
    with tempfile.TemporaryDirectory(prefix="xpbayes-") as elsewhere:
        scratch = Path(elsewhere) if out is None else Path(out) / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        scratch.mkdir(parents=True)
        try:
            log.info(f"{n_stars} stars, more than {config.stars_in_memory}: worked on in files, in {scratch}")
            yield training_set_in_files(paths, config, scratch), source
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _take_dropped(phases: list[dict[str, Any]], source_id: NDArray[np.int64]) -> list[str]:
    """Lines of source_id and reason of whom the last self-cleaning dropped; their rows are taken out of the record."""
    last: dict[str, list[int]] = {}
    for phase in phases:
        last = phase.pop("dropped", last)
    reasons: dict[int, list[str]] = {}
    for name, rows in last.items():
        for row in rows:
            reasons.setdefault(row, []).append(name)
    return [f"{source_id[row]},{' and '.join(names)}" for row, names in sorted(reasons.items())]


def _with_second_stage(
    model: TrainedModel, chosen: TrainingSet, aside: list[Inferred], config: TrainingConfig
) -> TrainedModel:
    """The model with a second stage, learned from its training stars and calibrated on those kept aside."""
    begun, n_xp = time.perf_counter(), model.channels.n_xp
    second = learn_second_stage(model.star_model, chosen.stars, n_xp, config.refinement)
    if second is None:
        return model
    second = calibrate_second_stage(second, model.star_model, aside)
    entry: dict[str, Any] = {"n_kept_aside": len(chosen.aside), "seconds": round(time.perf_counter() - begun, 2)}
    for case, of in (("flux_only", second.flux_only), ("with_parallax", second.with_parallax)):
        if of is not None:
            entry[case] = _by_kind(of, "weight", "stretch")
    return replace(model, second_stage=second, card=model.card | {"second_stage": entry})


def _calibration_entry(calibrated: Calibrated, chosen: TrainingSet, labels: tuple[str, ...]) -> dict[str, Any]:
    """What the card says of the calibration."""
    calibration = calibrated.calibration
    if calibration is None:
        return {}
    parameters = (*labels, "E", "ln_parallax")
    judged = np.max(calibration.flux_only.stretch, axis=0) > 0
    entry: dict[str, Any] = {
        "n_stars": len(chosen.aside),
        "n_training_stars_beside": len(chosen.beside),
        "training_stars_farther": round(calibrated.farther, 4),
        "parameters": list(parameters),
        "not_calibrated": [name for name, known in zip(parameters, judged, strict=True) if not known],
    }
    if calibration.scatter is not None:
        entry["scatter"] = calibration.scatter.round(4).tolist()
    for case in CASES:
        of = getattr(calibration, case)
        entry[case] = _by_kind(of, "offset", "stretch", "fisher", "laplace") | {"tail": of.tail.round(4).tolist()}
    return entry


def _by_kind(of: Any, *names: str) -> dict[str, list[Any]]:
    """Arrays of a calibration of either stage, and its kinds of star, for the card."""
    return {"kinds": (of.kinds * of.scale).round(3).tolist()} | {n: getattr(of, n).round(4).tolist() for n in names}


def _assess(model: TrainedModel, held_out: Spectra, config: TrainingConfig) -> dict[str, Any]:
    """Accuracy on held-out stars as inference by default would see them."""
    how, floor = InferenceConfig(), config.floor_for(len(config.labels))
    found = infer(model, held_out, config=how)
    entry = held_out_entry(model, found, held_out, floor, use_parallax=how.use_parallax)
    if held_out.is_measured("parallax").any():
        alone = infer(model, held_out, config=how.model_copy(update={"use_parallax": False}))
        stars = held_out_stars(alone, found, held_out, config.labels, floor)
    else:
        stars = held_out_stars(found, None, held_out, config.labels, floor)
    return entry | {"checked": measure(stars)}


def _parallax_used(table: Spectra) -> str:
    measured = table.is_measured("parallax")
    if measured.all():
        return "measured"
    return "spectroscopic, derived from the labels" if not measured.any() else "measured, spectroscopic where missing"


def _near_infrared_law(table: Spectra, config: TrainingConfig) -> NearInfraredLaw | None:
    """What fixes the grey part of R, by whether parallaxes were measured; None if it is left free."""
    names = table.channels.names
    measured = table.is_measured("parallax").any()
    if not measured:
        band, ratio = "Ks", config.ks_over_j
    else:
        band, ratio = "W2", W2_OVER_J if config.w2_over_j is None else config.w2_over_j
    if not ratio or not {"J", band} <= set(names):
        return None
    fall_off = None
    if measured and config.w2_over_j is None and set(FALL_OFF_BANDS) <= set(names):
        a, b, c, d = map(names.index, FALL_OFF_BANDS)
        fall_off = FallOff((a, b, c, d), *FALL_OFF)
    # Measured parallaxes and reddenings do tell how grey R1 is.
    return NearInfraredLaw(names.index(band), names.index("J"), ratio, of_variation=not measured, fall_off=fall_off)
