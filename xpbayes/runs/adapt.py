"""Bring a trained model to a few stars that have labels of their own, and say whether that helped."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from xpbayes.analysis.pages.model_card import held_out_entry
from xpbayes.analysis.validation import Accuracy, compare
from xpbayes.checks.training_checks import Check, check_training
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.spectra import Spectra
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split
from xpbayes.production.meeting import stars_for
from xpbayes.production.model_file import CARD, TrainedModel
from xpbayes.runs.infer import infer
from xpbayes.runs.inputs import (
    PathLike,
    check_writable,
    load_if_path,
    read_stars,
    require_labels,
    saved,
    trained_on,
)
from xpbayes.training.adapt import (
    LARGEST_OFFSET,
    AdaptationConfig,
    at_limit,
    find_scale,
    move_network,
    moved_labels,
    on_scale,
)
from xpbayes.training.training_set import has_distance, implausible, most_removed, training_cuts

log = logging.getLogger(__name__)

ERROR_OF_ROBUST = 1.2
"""Standard error of a robust scatter, and of a median, in units of the scatter over the root of the number of stars."""
LEAST = 40
"""Fewer stars say nothing that their own errors do not."""
CHANCE = 2.0
"""An error may come out larger by so many of its standard errors."""


def adapt(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    config: AdaptationConfig | None = None,
) -> TrainedModel:
    """Bring a trained model to a few stars that have labels of their own: a survey's scale, or a kind of star.

    The labels' scale moves, an offset and a stretch of each, and the label prior with it; then, if asked for, the network's
    last layer or all of it. Extinction curve, model error, the calibration of posteriors and what counts as extrapolation
    stay. A second stage and classifiers are left out: they know the former labels.

    Its `card` has its accuracy on stars held out, before and after, and checks with results. Arguments and errors are
    those of `api.model.adapt`.
    """
    config = config or AdaptationConfig()
    check_writable(out, model, stars, files=(CARD, "*.safetensors"))
    trained = load_if_path(model)
    table, source = read_stars(stars)
    require_labels(table.columns, trained.labels, str(source["path"]))
    table = stars_for(trained, table, str(source["path"]))
    for name in trained.labels:
        bad, what = implausible(table, name)
        if bad.any():
            first = table.source_id[bad][0]
            log.info(f"{source['path']}: {bad.sum()} labels taken for missing: {what} (first: source_id {first})")
    how = TrainingConfig.model_validate(trained.card["settings"])
    kept = training_cuts(table, trained.labels, how.teff_max, how.min_channels, distances=False)
    split = Split(config.validation_fraction, seed=config.split_seed)
    held = split.on(Side.HELD_OUT, kept.source_id)
    training, held_out = kept.take(~held, "held out for validation, by source_id"), kept.take(held)
    if len(training) < LEAST or len(held_out) < LEAST // 4:
        raise InputError(
            f"{source['path']}: {len(training)} stars are left to adapt to and {len(held_out)} to judge by (of {len(table)} "
            f"{len(kept)} pass the cuts{most_removed(kept.cuts)}; validation_fraction = "
            f"{config.validation_fraction:g}), at least {LEAST} and {LEAST // 4} are needed; bring more stars"
        )
    lost = len(table) - len(kept)
    log.info(f"adapting to {len(training)} stars; {len(held_out)} are held out, {lost} do not pass the cuts")
    floor = how.floor_for(len(trained.labels))
    batch = _with_distances(training, config, str(source["path"])).stars(
        trained.labels, spectroscopic_parallax=True, label_error_floor=floor
    )
    blind = InferenceConfig(use_parallax=False, second_stage=False)
    former = replace(trained, second_stage=None, confidence=None)
    compared = compare(infer(former, training, config=blind), training, trained.labels, floor, "posterior")
    center, spread = (np.asarray(of, np.float64) for of in (trained.forward.label_center, trained.forward.label_scale))
    scale = find_scale(compared.estimate, compared.label, center, spread)
    star_model = move_network(on_scale(trained.star_model, jnp.asarray(scale, jnp.float32)), batch, config)
    moved = moved_labels(trained.forward, star_model.forward)
    log.info(f"labels moved by {moved['offset']}, stretched by {moved['stretch']}")
    adapted = replace(former, star_model=star_model)
    entries = [
        held_out_entry(one, infer(one, held_out, config=blind), held_out, floor, use_parallax=False)
        for one in (former, adapted)
    ]
    before, after = ([Accuracy(**row) for row in entry["accuracy"]] for entry in entries)
    checks = check_training(
        star_model.forward, trained.channels, trained.labels, training.labels(trained.labels)[0], entries[1], []
    )
    far = [name for name, limited in zip(trained.labels, at_limit(scale), strict=True) if limited]
    checks.append(check_adaptation(before, after, far))
    own = {name: value for name, value in trained.card.items() if name not in ("second_stage", "confidence")}
    card = {
        **own,
        **trained_on(training, len(held_out), trained.labels, source, split),
        "settings": {
            **trained.card["settings"],
            "validation_fraction": config.validation_fraction,
            "calibration_fraction": 0.0,
        },
        "held_out": entries[1],
        "checks": [vars(check) for check in checks],
        "adapted": {
            "from": {k: trained.card.get(k) for k in ("created", "arrays_checksum", "n_training")},
            "settings": config.model_dump(mode="json"),
            "labels_moved": moved,
            "accuracy_before": entries[0]["accuracy"],
        },
    }
    for check in checks:
        log.info(check.line)
    return saved(replace(adapted, card=card), out)


def _with_distances(training: Spectra, config: AdaptationConfig, where: str) -> Spectra:
    """Stars that the network can be moved to; the labels' scale is found from fluxes and needs no parallax."""
    if config.layers == "none":
        return training
    known = has_distance(training)
    if known.sum() < LEAST:
        raise InputError(
            f"{where}: {int(known.sum())} of the {len(training)} stars to adapt to have a parallax, and to move the "
            f"network's layers takes {LEAST}; join Gaia's source table to them, or leave the layers alone (--layers none)"
        )
    if not known.all():
        log.info(
            f"{int((~known).sum())} of them have no parallax: they count for the labels' scale, not for the network"
        )
    return training.take(known)


def check_adaptation(before: list[Accuracy], after: list[Accuracy], far: Sequence[str] = ()) -> Check:
    """Held-out stars must not be told worse than before but for chance, and no label's scale be at its limit (`far`).

    What counts is the error as a whole, scatter and bias together: labels with another zero point are what adapting is for.
    """
    told, worse = [], []
    for old, new in zip(before, after, strict=True):
        if new.group != "all":
            continue
        scale, unit = (1e3, " K") if new.label == "teff" else (1.0, "")
        told.append(
            f"{new.label} scatter {scale * old.scatter:.3g} to {scale * new.scatter:.3g}{unit}, "
            f"bias {scale * old.bias:+.2g} to {scale * new.bias:+.2g}{unit}"
        )
        error = ERROR_OF_ROBUST * old.scatter / np.sqrt(max(new.n, 1))
        if np.hypot(new.scatter, new.bias) > np.hypot(old.scatter, old.bias) + CHANCE * error:
            worse.append(new.label)
    questions = [
        f"{', '.join(worse)} got worse: do these stars' labels and errors hold, and are there enough of every kind?"
    ]
    questions += [f"the scale of {', '.join(far)} is too far off to be adapted to: is it the right column and unit?"]
    return Check(
        "adaptation",
        not (worse or far),
        "; ".join(told),
        f"no label of held-out stars worse than before, scatter and bias together, by more than {CHANCE:g} standard "
        f"errors, nor moved by more than {LARGEST_OFFSET:g} times its spread in training",
        "; ".join(question for question, names in zip(questions, (worse, far), strict=True) if names),
    )
