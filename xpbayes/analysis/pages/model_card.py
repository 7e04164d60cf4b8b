"""The model card as a page: what a model was trained on, where it can be trusted, how good it is, what it cannot do.

In: a trained model, whose `card` is plain data. Out: sections of sentences and tables, for a terminal and for the report.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from xpbayes.analysis.figures.extinction_curve import compare_with_published
from xpbayes.analysis.pages.numbers import heading, number, share
from xpbayes.analysis.pages.page import Section, Table
from xpbayes.analysis.validation import Accuracy, accuracy, compare, robust_scatter
from xpbayes.checks.training_checks import Check
from xpbayes.data.spectra import Spectra
from xpbayes.models.forward import predict_flux
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.table import list_column

if TYPE_CHECKING:
    from rich.console import Console

PERCENTILES = ("least", "1 %", "16 %", "50 %", "84 %", "99 %", "most")
"""What `label_range` of the card holds."""
NETWORK = {"none": "the network as it was", "last": "its last layer moved", "all": "all its layers moved"}
"""What an adaptation did to the network, by its setting `layers`."""


def held_out_entry(
    model: TrainedModel, catalogue: pa.Table, stars: Spectra, floor: Sequence[float], *, use_parallax: bool
) -> dict[str, Any]:
    """Measure a model on held-out stars, for its card: what it inferred for them, and the same with labels, row by row.

    The floor is of the (label,) errors, as in training; `use_parallax`: the inference was given measured parallaxes.

    Returns:
        'accuracy' of posterior medians (one entry per label and group), 'of' (says so), 'skill' (label -> 1 - scatter^2 /
        spread^2), 'channel_residual' (median of observed over predicted flux minus one; at each star's own level, if the
        model has such), 'extrapolated' (share beyond the training sample), and 'refined', the accuracy of refined labels,
        if the model has a second stage.
    """
    compared = compare(catalogue, stars, model.labels, floor, "posterior")
    estimate = list_column(catalogue, "stellar_params_est")
    solved = np.flatnonzero(np.isfinite(estimate).all(axis=1))
    sampled = np.concatenate([estimate[solved, :-2], np.log(estimate[solved, -2:])], axis=1)
    predicted = np.asarray(jax.vmap(predict_flux, (None, 0))(model.forward, jnp.asarray(sampled, jnp.float32)))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(stars.channel_present()[solved], stars.flux[solved] / predicted, np.nan)
    if model.has_levels:
        ratio /= np.nanmedian(ratio, axis=1, keepdims=True)
    skill = {
        name: 1.0 - (robust_scatter(compared.difference[:, i]) / max(robust_scatter(compared.label[:, i]), 1e-9)) ** 2
        for i, name in enumerate(model.labels)
    }
    score = catalogue["extrapolation"].to_numpy(zero_copy_only=False) if model.support is not None else np.zeros(1)
    refined = {}
    if "refined_median" in catalogue.column_names:
        rows = accuracy(compare(catalogue, stars, model.labels, floor, "refined"))
        refined = {"refined": [vars(row) for row in rows]}
    return {
        "n": len(compared.source_id),
        "with_parallax": int(stars.is_measured("parallax").sum()) if use_parallax else 0,
        "of": "posterior medians",
        "accuracy": [vars(row) for row in accuracy(compared)],
        "skill": {name: round(value, 4) for name, value in skill.items()},
        "channel_residual": (np.nanmedian(ratio, axis=0) - 1.0).round(5).tolist(),
        "extrapolated": float(np.nanmean(score > 1.0)),
        **refined,
    }


def accuracy_table(rows: Sequence[Accuracy], caption: str = "") -> Table:
    """Scatter, bias and coverage in displayed units; the caption says which answers with which errors these are."""
    cells = [
        (
            heading(row.label), row.group, f"{row.n:,}", number(row.label, row.scatter),
            number(row.label, row.bias, sign=True), share(row.coverage68), share(row.coverage95),
        )
        for row in rows
    ]  # fmt: skip
    headings = ("label", "stars", "number", "scatter", "bias", "68 % coverage", "95 % coverage")
    return Table(headings, cells, 2, caption)


def _origin(model: TrainedModel) -> Section:
    card = model.card
    channels, split = model.channels, card.get("split", {})
    preset = card.get("settings", {}).get("preset", "default")
    bands = f", bands {', '.join(channels.band_names)}" if channels.n_bands else ""
    when, where = card.get("created", "at an unknown time"), card.get("input", {}).get("path")
    stars = f"{card.get('n_training', 0):,} stars of {where or 'an unknown table'}"
    if (adapted := card.get("adapted")) is not None:
        former, moved = adapted["from"], adapted["labels_moved"]
        moves = zip(model.labels, moved["offset"], moved["stretch"], strict=True)
        scales = ", ".join(f"{heading(name)} {number(name, at, sign=True)} (x {by:.3f})" for name, at, by in moves)
        made = [
            f"Adapted {when} to {stars}, {NETWORK[adapted['settings']['layers']]}, from a model trained "
            f"{former['created']} on {former['n_training']:,}; labels moved, and stretched about their median: {scales}."
        ]
    else:
        seconds = card.get("training_seconds", float("nan"))
        made = [f"Trained {when} on {stars} (preset {preset}, seed {card.get('seed')}, {seconds:.0f} s)."]
    sentences = [
        *made,
        f"Labels: {', '.join(model.labels)}. Channels: {len(channels)}, of these {channels.n_xp} XP samples{bands}.",
        f"Spectra of {model.instrument.title}, calibrated with GaiaXPy's {' and '.join(model.instrument.models)}.",
        f"Parallaxes in training: {card.get('parallax_used', 'unknown')}.",
        f"Held out by {split.get('by', 'source_id')}: {card.get('n_held_out', 0):,} stars.",
    ]
    if model.transfer is not None:
        sentences.append(
            f"Takes stars of {model.transfer.source.title} by a transfer from {model.transfer.n_pairs:,} pairs, their "
            f"errors multiplied by {model.transfer.noise:.3f}."
        )
    sentences += [f"{k}: {v}." for k, v in card.get("provenance", {}).items()]
    rows = [(c["what"], f"{c['removed']:,}", f"{c['left']:,}") for c in card.get("cuts", [])]
    return Section("What it was trained on", [*sentences, *_table(("cut", "removed", "left"), rows)])


def _trust(model: TrainedModel) -> Section:
    ranges = model.card.get("label_range", {})
    rows = [(heading(name), *(number(name, v) for v in values)) for name, values in ranges.items()]
    sentences = [
        "Inside of the training sample, whose labels are spread as below. ln_prior below "
        f"{float(model.prior.ln_threshold):.2f} (one draw of the label mixture in a thousand) sets a flag."
    ]
    if model.support is not None:
        sentences.append(
            "The extrapolation score says how far outside a star is: 0 is the middle of the training sample, 1 its "
            "outermost thousandth, by density, by distance to the nearest training stars, or because only the prior holds a "
            "star inside; above 1, do not trust."
        )
        share = model.card.get("held_out", {}).get("extrapolated")
        if share is not None:
            sentences.append(f"Of the held-out stars {share:.1%} score above 1.")
    return Section("Where it can be trusted", [*sentences, *_table(("label", *PERCENTILES), rows)])


def _accuracy(model: TrainedModel) -> Section:
    held = model.card.get("held_out", {})
    if not held:
        return Section("How good it is", ["Not measured: no held-out stars were inferred after training."])
    how = (
        f"with measured parallaxes for {held['with_parallax']:,} of them"
        if held["with_parallax"]
        else "from flux alone, without parallaxes"
    )
    sentence = (
        f"{held['n']:,} held-out stars, inferred {how}: {held.get('of', 'modes')} against their labels; robust scatter, "
        f"median difference, and how many labels the 68 % and 95 % intervals cover, label errors included."
    )
    tables = [accuracy_table([Accuracy(**row) for row in held["accuracy"]])]
    if before := model.card.get("adapted", {}).get("accuracy_before"):
        tables.append(accuracy_table([Accuracy(**row) for row in before], "The same stars before the adaptation."))
    return Section("How good it is", [sentence, *tables])


def _second_stage(model: TrainedModel) -> list[Section]:
    second = model.second_stage
    if second is None:
        return []
    entry, held = model.card.get("second_stage") or {}, model.card.get("held_out", {})
    nets = second.nets
    sentences = [
        f"{nets.n_members} networks of {' x '.join(str(b.shape[1]) for b in nets.biases[:-1])} neurons refine the labels by "
        f"what the residual spectrum tells, calibrated on {entry.get('n_kept_aside', 0):,} stars kept aside "
        f"({entry.get('seconds', float('nan')):.0f} s). Columns refined_*; the forward posterior stays as it is."
    ]
    for case, of in (("from fluxes alone", second.flux_only), ("with parallaxes", second.with_parallax)):
        if of is not None:
            ranges = zip(model.labels, of.weight.min(axis=0), of.weight.max(axis=0), strict=True)
            names = ", ".join(f"{heading(name)} {low:.2f} to {high:.2f}" for name, low, high in ranges)
            sentences.append(
                f"How far stars kept aside let refined labels go from the forward posterior (0) to the networks (1), "
                f"{case}, by kind of star: {names}."
            )
    rows = [Accuracy(**row) for row in held.get("refined", [])]
    return [Section("Its second stage", [*sentences, *([accuracy_table(rows)] if rows else [])])]


def _curve(model: TrainedModel) -> Section:
    from xpbayes.models.model_error import relative_sigma

    wavelength, curve = model.channels.wavelengths, np.exp(np.asarray(model.forward.ln_curve, np.float64))
    names = model.channels.names
    sigma = np.zeros(len(names)) if model.model_error is None else relative_sigma(model.model_error)
    spectrum = np.linspace(0, max(model.channels.n_xp - 1, 0), 9).astype(int)[: model.channels.n_xp]
    picked = [*dict.fromkeys(spectrum.tolist()), *range(model.channels.n_xp, len(names))]
    rows = [
        (names[i], f"{wavelength[i]:.0f}", f"{curve[i]:.3f}", f"{sigma[i]:.2%}" if sigma[i] else "none") for i in picked
    ]
    closest = min(compare_with_published(wavelength, curve), key=lambda c: c.rms)
    sentence = (
        f"Optical depth per unit E. Closest published shape: {closest.name}, {closest.rms:.1%} rms after scaling."
    )
    table = Table(("channel", "nm", "R", "model error"), rows)
    return Section("Its extinction curve R and its own error", [sentence, table])


def _limits(model: TrainedModel) -> Section:
    card = model.card
    sentences = [
        "Systematic errors of the label survey are inherited; a label's scatter includes them.",
        *(["One extinction curve for all directions."] if model.forward.curve_variation is None else []),
        "Single stars only, unless an unresolved pair is asked for (--binaries).",
        "The mode in ln E sits one sigma high for a dust-free star.",
    ]
    if "spectroscopic" in card.get("parallax_used", ""):
        sentences.append(
            "Luminosities rest on parallaxes derived from the labels with a guess of the mass, not measured."
        )
    if model.model_error is None:
        sentences.append("The model's own error was switched off: errors of bright stars are far too small.")
    cleaned = [p for p in card.get("phases", []) if p.get("update") == "self_cleaning"]
    if cleaned:
        by = cleaned[-1]["dropped_by"]
        sentences.append(
            f"Self-cleaning dropped {by['both']:.1%} of the training stars ({by['parameters']:.1%} by labels or "
            f"parallax, {by['fluxes']:.1%} by fluxes)."
        )
    else:
        sentences.append("No self-cleaning: unresolved binaries among the training stars were kept.")
    if model.channels.n_xp == 0:
        sentences.append("Broad bands only: it knows nothing about spectra.")
    return Section("Its limits", sentences)


def _checks(model: TrainedModel) -> Section:
    rows = [(check.name, check.verdict, check.measured) for check in (Check(**c) for c in model.card.get("checks", []))]
    return Section("Checks", _table(("check", "verdict", "found"), rows, 3) or ["None were made."])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], n_text: int = 1) -> list[Table]:
    return [Table(headings, rows, n_text)] if rows else []


def model_card(model: TrainedModel) -> list[Section]:
    """Build the page."""
    how_good = [_accuracy(model), *_second_stage(model)]
    return [_origin(model), _trust(model), *how_good, _curve(model), _limits(model), _checks(model)]


def print_card(model: TrainedModel, console: "Console | None" = None) -> None:
    """Print the page, on standard output if no console is given."""
    from rich.console import Console

    console = console or Console()
    console.print("Model card", style="bold")
    for section in model_card(model):
        section.print(console)
