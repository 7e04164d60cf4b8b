"""The report: one self-contained HTML page about a run, from finished products only.

In: model, catalogue, star table, and source_ids of stars that get a section of their own. Numbers come from `validation`,
`extinction_curve`, `spectra`, `model_card`, `requested_stars` and, for every figure of the paper that the data allow, from
`gallery`; words and layout are in templates/report.html. Works offline: figures are embedded, nothing is fetched.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.identity import Side, Split
from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.figures.extinction_curve import compare_with_published
from xpbayes.analysis.pages.gallery import ANALYSES, Outcome, make_figures
from xpbayes.analysis.pages.model_card import model_card
from xpbayes.analysis.pages.page import Drawn, Place, Table, embed, parallax_sentence, write_page
from xpbayes.analysis.pages.requested_stars import (
    RequestedStar,
    headline,
    neighbour_figure,
    neighbour_table,
    parameter_table,
    posterior_figure,
    read_draws,
    requested_stars,
)
from xpbayes.analysis.run_inputs import Run, StarFiles
from xpbayes.analysis.figures.spectra import EXAMPLE_KINDS, choose_examples, spectrum_fit
from xpbayes.analysis.pages.star_page import star_figure
from xpbayes.analysis.validation import Accuracy, accuracy, compare, has_posteriors
from xpbayes.training.selection import training_cuts
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import OK, Spectra
from xpbayes.production.reader import open_catalogue
from xpbayes.production.table import list_column, read_catalogue, text_column
from xpbayes.config import TrainingConfig
from xpbayes.errors import InputError
from xpbayes.production.model_file import TrainedModel
from xpbayes.schema import FLAG_SENTENCES, QualityFlag

GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "accuracy": ("Accuracy", ("residuals", "pulls", "external", "clusters", "sfd")),
    "population": ("The stars", ("kiel", "reliability", "prior")),
    "errors": ("Error bars", ("correlations", "confidence", "confidence_pulls")),
    "fits": ("Fits to spectra", ("flux_residuals", "sky_residuals", "self_cleaning")),
    "model": ("The model", ("main_sequence", "metallicity", "giant_branch", "curve")),
    "dust": ("Dust", ("dust_sky", "birds_eye")),
}
"""Sections of the report by their id: title, and the analyses that they show, every one of the gallery's once."""
LABELLED = "accuracy-labels"


@dataclass(frozen=True)
class Shown:
    """A figure with its heading.

    Attributes:
        id, title: of the heading.
        drawn: the picture.
        caption: what is shown, with cuts and counts.
        paper: which figure of the paper it corresponds to, "" if none.
        table: below the figure; None if there is none.
    """

    id: str
    title: str
    drawn: Drawn
    caption: str
    paper: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Group:
    """A section of figures and tables.

    Attributes:
        id, title: of its heading.
        text: paragraphs below it.
        tables: name and table.
        shown: figures.
    """

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


@dataclass(frozen=True)
class StarSection:
    """A requested star, drawn.

    Attributes:
        star: the numbers.
        headline: its labels in one line.
        tables: name and table.
        shown: figures.
    """

    star: RequestedStar
    headline: str
    tables: list[tuple[str, Table]]
    shown: list[Shown]


def training_labels(model: TrainedModel, stars: Spectra) -> NDArray[np.float64]:
    """(star, label) labels of the stars that the model was trained on, as far as the table holds them."""
    kept = training_cuts(stars, model.labels, model.card["settings"]["teff_max"])
    return kept.take(Split.of(model.card).on(Side.TRAINING, kept.source_id)).labels(model.labels)[0]


def accuracy_table(rows: Sequence[Accuracy], caption: str) -> Table:
    """The accuracy table in words and displayed units.

    Args:
        rows: from `accuracy`.
        caption: which answers with which errors these are.
    """
    cells = []
    for row in rows:
        factor = figures.display_scale(row.label)
        digits = 0 if row.label == "teff" else 3
        cells.append(
            (
                f"{figures.LABEL_TEXT.get(row.label, row.label)} [{figures.LABEL_UNIT.get(row.label, '')}]",
                row.group,
                f"{row.n:,}",
                f"{factor * row.scatter:.{digits}f}",
                f"{factor * row.bias:+.{digits}f}",
                f"{row.coverage68:.1%}",
                f"{row.coverage95:.1%}",
            )
        )
    headings = ("label", "stars", "number", "scatter", "bias", "68 % coverage", "95 % coverage")
    return Table(headings, cells, 2, caption)


def flag_table(catalogue: pa.Table) -> Table:
    """How many stars carry each flag, and the sentence that explains it."""
    flags = catalogue["quality_flags"].to_numpy()
    has_confidence = catalogue["teff_confidence"].null_count < len(catalogue)
    rows = [
        (
            flag.name or "",
            str(int(flag).bit_length() - 1),
            f"{int(np.sum((flags & int(flag)) > 0)):,}",
            f"{np.mean((flags & int(flag)) > 0):.1%}",
            text,
        )
        for flag, text in FLAG_SENTENCES.items()
        if has_confidence or flag >= QualityFlag.POOR_FIT  # else the confidence bits cannot be set
    ]
    for name, passing, meaning in (
        ("basic reliability", flags < 8, "quality_flags < 8"),
        ("strict", flags == 0, "quality_flags == 0: none at all"),
    ):
        rows.append((name, "–", f"{int(passing.sum()):,}", f"{passing.mean():.1%}", meaning))
    return Table(("flag", "bit", "stars", "share", "meaning"), rows, 1, "Stars by quality flag.", (4,))


def write_report(
    model: TrainedModel,
    catalogue_path: str | Path,
    stars: Spectra,
    star_files: StarFiles,
    out: Path,
    timings: dict[str, float],
    source_ids: Sequence[int] = (),
    draws: str | Path | None = None,
) -> Path:
    """Write the report.

    Args:
        model: the trained model.
        catalogue_path: the catalogue.
        stars: the star table it was inferred from.
        star_files: the same on disk.
        out: HTML file.
        timings: seconds of further stages, for the timing table.
        source_ids: stars that get a section of their own.
        draws: file of `xpbayes sample`, for these stars' posteriors.

    Raises:
        InputError: model, catalogue, star table and draws do not belong together, a requested star is not there, or the
            page cannot be written.
    """
    catalogue, metadata = read_catalogue(catalogue_path)
    if tuple(metadata["labels"]) != model.labels:
        raise InputError(f"{catalogue_path}: was made with labels {metadata['labels']}, the model has {model.labels}")
    if metadata["model"].get("arrays_checksum") not in (None, model.card.get("arrays_checksum")):
        raise InputError(f"{catalogue_path}: was made with another model; name the model that made it")
    model.channels.require_same(star_files.channels, "the model", "the star table")
    chains = read_draws(draws, model) if draws is not None else {}
    requested = requested_stars(
        model,
        catalogue,
        metadata,
        stars,
        source_ids,
        training_labels(model, stars) if source_ids else np.empty(0),
        chains,
    )
    outcomes = make_figures(Run(model=model, catalogue=open_catalogue(catalogue_path), stars=star_files), ANALYSES)
    groups = _figure_groups(outcomes)
    _add_accuracy(groups["accuracy"], model, catalogue, metadata, stars)
    _add_spectra(groups["fits"], model, catalogue, metadata, stars)
    _add_curves(groups["model"], model)
    status = text_column(catalogue, "status")
    solved = status == OK
    card = model_card(model)
    stars_shown = [_star_section(star) for star in requested]
    missing = [o for o in outcomes if o.product is None]
    shown_groups = [g for g in groups.values() if g.text or g.shown]
    context: dict[str, Any] = {
        "title": "xpbayes report",
        "places": _places(shown_groups, stars_shown, missing=bool(missing)),
        "card": model.card,
        "metadata": metadata,
        "n_solved": int(solved.sum()),
        "n_converged": int(np.sum(catalogue["converged"].to_numpy(zero_copy_only=False)[solved])),
        "parallax": parallax_sentence(metadata),
        "groups": shown_groups,
        "tiles": _tiles(groups["accuracy"]),
        "stars": stars_shown,
        "flags": flag_table(catalogue),
        "statuses": Table(
            ("status", "stars"),
            [(n, f"{c:,}") for n, c in sorted(Counter(status.tolist()).items(), key=lambda item: -item[1])],
            1,
            "Every star of the input has a row; its status says how it fared.",
        ),
        "card_sections": [
            (
                s.title,
                s.sentences,
                Table(s.headings, s.rows, 1 if s.headings[:1] != ("check",) else 3) if s.rows else None,
            )
            for s in card
        ],
        "phases": _phase_table(model),
        "timings": _timing_table(model, metadata, timings),
        "facts": _fact_table(model, metadata),
        "training_settings": json.dumps(model.card.get("settings", {}), indent=1, ensure_ascii=False),
        "inference_settings": json.dumps(metadata.get("settings", {}), indent=1, ensure_ascii=False),
        "missing": missing,
    }
    return write_page("report.html", context, out)


def _figure_groups(outcomes: Sequence[Outcome]) -> dict[str, Group]:
    """The figures that could be drawn, section by section."""
    by_name = {o.analysis.name: o for o in outcomes}
    groups = {}
    for key, (title, names) in GROUPS.items():
        groups[key] = Group(key, title)
        for name in (n for n in names if n in by_name):
            product, analysis = by_name[name].product, by_name[name].analysis
            if product is not None:
                drawn = embed(product.figure, product.alt)
                groups[key].shown.append(Shown(name, analysis.title, drawn, product.caption, analysis.paper))
    return groups


def _add_accuracy(
    group: Group, model: TrainedModel, catalogue: pa.Table, metadata: dict[str, Any], stars: Spectra
) -> None:
    """Put the comparison with labels first, or the sentence that there are none."""
    floor = TrainingConfig.model_validate(model.card["settings"]).floor_for(len(model.labels))
    drawn = has_posteriors(catalogue)
    try:
        modes = compare(catalogue, stars, model.labels, floor, "mode")
    except InputError:  # a catalogue of unlabelled stars: the page says so
        group.text.append("Not compared with labels because no inferred star has labels in the star table.")
        return
    sides: dict[str, str] = {
        Side.HELD_OUT: "None of them took part in training: they were held out by source_id.",
        Side.KEPT_ASIDE: "Posteriors were calibrated on them: these figures are not a test.",
        Side.TRAINING: "They are on the training side of the split: these figures are not a test.",
    }
    side = sides.get(
        str(metadata.get("selection")),
        "Stars of the training set may be among them: infer with --only held-out for a test.",
    )
    floors = ", ".join(
        f"{figures.display_scale(n) * f:g} {figures.LABEL_UNIT.get(n, '')}"
        for n, f in zip(model.labels, floor, strict=True)
    )
    comparison = compare(catalogue, stars, model.labels, floor) if drawn else modes
    group.text.append(
        f"{len(comparison.source_id):,} inferred stars have labels. {side} Pulls and coverage count label errors, with "
        f"{floors} added in quadrature. Robust scatter is 1.4826 × the median absolute deviation; bias is the median of "
        "inferred minus label; coverage is the share of stars within the 68 % interval (ideal 68.3 %) and within 1.96 σ "
        "(ideal 95 %)."
    )
    if metadata["settings"].get("model_uncertainty", False):
        group.text.append("Errors contain what training leaves unknown of the model.")
    if drawn:
        calibrated = model.calibration is not None and metadata["settings"].get("calibrate", False)
        how = "as calibrated on stars kept aside of training" if calibrated else "not calibrated"
        what = f"Posterior medians, {how}; the 68 % interval is ± half of p84 − p16, σ the standard deviation."
        group.tables.append(("Accuracy of posterior medians", accuracy_table(accuracy(comparison), what)))
    else:
        group.text.append("There are no posterior medians because the catalogue was inferred without draws.")
    what = (
        "Modes with errors from the Fisher matrix, as ZGR23 publish them: no prior in the errors, nothing calibrated."
    )
    group.tables.append(("Accuracy of modes", accuracy_table(accuracy(modes), what)))
    inferred = "Posterior medians" if drawn else "Modes"
    width = "half of p16 to p84" if drawn else "Fisher's error"
    group.shown[:0] = [
        Shown(
            LABELLED,
            "Inferred against spectroscopic labels",
            embed(figures.against_labels(comparison), "Inferred parameters against labels with running percentiles"),
            f"{inferred} against labels (top) and the difference (bottom), with running 16th, 50th and 84th "
            "percentiles in bins of at least 15 stars. Each lower panel shows the central 98 % of its differences. "
            + parallax_sentence(metadata),
        ),
        Shown(
            "accuracy-pulls",
            "Pulls",
            embed(figures.pulls(comparison), "Histograms of pulls beside unit Gaussians"),
            f"Pulls, (inferred − label) / σ, beside a unit Gaussian; σ is {width}, with the label's error in quadrature. "
            "The outermost bins collect everything beyond 6 σ.",
        ),
    ]


def _add_spectra(
    group: Group, model: TrainedModel, catalogue: pa.Table, metadata: dict[str, Any], stars: Spectra
) -> None:
    """Put example spectra first."""
    solved = text_column(catalogue, "status") == OK
    estimate = list_column(catalogue, "stellar_params_est")[solved]
    error = list_column(catalogue, "stellar_params_err")[solved]
    source_id = catalogue["gdr3_source_id"].to_numpy()[solved]
    row = rows_of(source_id, stars.source_id)
    known = row >= 0
    examples = []
    for kind, i in choose_examples(estimate[known], np.asarray(model.forward.label_scale), EXAMPLE_KINDS):
        star = np.flatnonzero(known)[i]
        fit = spectrum_fit(model, stars, int(row[star]), estimate[star])
        values = ", ".join(
            f"{figures.LABEL_TEXT.get(n, n)} = {figures.display_scale(n) * estimate[star, k]:.{0 if n == 'teff' else 2}f}"
            f" ± {figures.display_scale(n) * error[star, k]:.{0 if n == 'teff' else 2}f}"
            for k, n in enumerate(model.labels)
        )
        examples.append((f"{kind}\n{values}", fit))
    if not examples:
        group.text.append("No example spectra because none of the inferred stars is in the star table.")
        return
    drawn = embed(
        figures.spectra(model.channels.wavelengths, examples),
        "Observed and model spectra of example stars with residuals in units of sigma",
    )
    caption = (
        "Stars nearest to six typical kinds. Points are data with their marginal 1 σ errors, calibration and model error "
        "included; the line is the model at the inferred parameters; below each, the residual in σ. Neighbouring residuals "
        f"are correlated. {parallax_sentence(metadata)}"
    )
    group.shown.insert(0, Shown("spectra", "Example spectra", drawn, caption))


def _add_curves(group: Group, model: TrainedModel) -> None:
    """Put the scatter against published extinction curves below the curve."""
    curve = np.exp(np.asarray(model.forward.ln_curve, np.float64))
    rows = [
        (c.name, str(len(c.wavelength_nm)), f"{c.rms:.1%}")
        for c in compare_with_published(model.channels.wavelengths, curve)
    ]
    caption = (
        "Scatter of the learned over published extinction curves, after scaling. R(λ) has one free value per channel; "
        "nothing tells it to be smooth."
    )
    table = Table(("curve", "channels", "rms"), rows, 1, caption)
    for i, one in enumerate(group.shown):
        if one.id == "curve":
            group.shown[i] = replace(one, table=table)


def _star_section(star: RequestedStar) -> StarSection:
    """Draw one requested star."""
    name = f"Gaia DR3 {star.fit.source_id}"
    key = f"star-{star.fit.source_id}"
    if not star.solved:
        return StarSection(star, headline(star), [], [])
    shown = [
        Shown(
            f"{key}-spectrum",
            "Spectrum, fit and residuals",
            embed(
                star_figure(star.fit), f"Observed and model spectrum of {name} with residuals in units of sigma", 130
            ),
            "Points are data with their marginal 1 σ errors, calibration and model error included; the solid line is the "
            "model at the catalogue's estimate, dashed the second optimum where there is one that competes; below, the "
            "residual in σ.",
        ),
        Shown(
            f"{key}-posterior",
            "Posterior beside Fisher and Laplace",
            embed(posterior_figure(star), f"Posterior of every parameter of {name} by method", 130),
            "Fisher leaves the prior out, Laplace has it; both are Gaussians around the mode. Bars are quantiles of draws "
            "from the posterior itself, which need not be symmetric. The dotted line is the spectroscopic label, or Gaia's "
            "parallax, where it is inside of the panel.",
        ),
    ]
    if len(star.fit.label_names) > 1 and len(star.neighbours.source_id):
        shown.append(
            Shown(
                f"{key}-neighbours",
                "Neighbours in label space",
                embed(neighbour_figure(star), f"Labels of {name}, of its neighbours and of the training stars", 130),
                "The star with its Fisher errors among the labels of the training stars, and the stars of the catalogue "
                "whose inferred labels are nearest.",
            )
        )
    tables = [(f"Parameters of {name}", parameter_table(star)), (f"Neighbours of {name}", neighbour_table(star))]
    return StarSection(star, headline(star), tables, shown)


def _tiles(accuracy_group: Group) -> list[tuple[str, str]]:
    """Scatter of every label over all compared stars, for the top of the page."""
    rows = [row for _, table in accuracy_group.tables[:1] for row in table.rows if row[1] == "all"]
    return [(row[3], f"scatter in {row[0]}") for row in rows]


def _places(groups: Sequence[Group], stars: Sequence[StarSection], *, missing: bool) -> list[Place]:
    """The contents."""
    places = [Place(g.id, g.title, [Place(s.id, s.title) for s in g.shown]) for g in groups]
    if stars:
        inside = [Place(f"star-{s.star.fit.source_id}", str(s.star.fit.source_id)) for s in stars]
        places.append(Place("stars", "Requested stars", inside))
    places += [Place("flags", "Flags"), Place("card", "Model card"), Place("run", "This run")]
    return [*places, Place("missing", "Not drawn")] if missing else places


def _phase_table(model: TrainedModel) -> Table:
    rows = []
    for phase in model.card.get("phases", []):
        update = phase["update"]
        if update == "model":
            first, last = phase["loss_per_star"][0], phase["loss_per_star"][-1]
            result = f"loss per star {first:.1f} → {last:.1f}"
        elif update == "stars":
            result = f"L per star {phase['objective_per_star']:.1f}, {phase['converged']:.1%} converged"
        elif update == "model_error":
            first, last = phase["ln_likelihood_per_star"][0], phase["ln_likelihood_per_star"][-1]
            result = f"ln likelihood per star {first:.1f} → {last:.1f}"
        elif update == "self_cleaning":
            result = f"{phase['dropped_by']['both']:.1%} of the stars dropped"
        else:
            result = "–"
        rows.append(
            (
                str(phase["phase"]),
                update.replace("_", " "),
                result,
                str(phase.get("epochs", "–")),
                f"{phase.get('seconds', float('nan')):.1f}",
            )
        )
    return Table(("phase", "what moved", "result", "passes", "seconds"), rows, 3, "Phases of the training.")


def _timing_table(model: TrainedModel, metadata: dict[str, Any], timings: dict[str, float]) -> Table:
    if not timings:
        own = {"training": model.card.get("training_seconds"), "inference": metadata.get("seconds")}
        timings = {stage: seconds for stage, seconds in own.items() if seconds is not None}
    return Table(("stage", "seconds"), [(k, f"{v:.1f}") for k, v in timings.items()], 1, "How long each stage took.")


def _fact_table(model: TrainedModel, metadata: dict[str, Any]) -> Table:
    card, channels = model.card, model.channels
    split, source, inferred = card.get("split", {}), card.get("input", {}), metadata.get("input", {})
    rows = [
        ("model", f"{card.get('arrays_checksum', 'not written')}, made {card.get('created', 'at an unknown time')}"),
        ("trained on", f"{source.get('path', 'unknown')} {source.get('checksum', '')}".strip()),
        ("catalogue made", str(metadata.get("created", "in parts; each carries the same settings"))),
        (
            "inferred from",
            f"{inferred.get('path', 'unknown')} {inferred.get('checksum', '')}".strip()
            + f", {inferred.get('n_stars', 0):,} stars, selection {metadata.get('selection', 'all')}",
        ),
        ("channels", f"{len(channels)}, {channels.wavelengths[0]:.0f} to {channels.wavelengths[-1]:.0f} nm"),
        (
            "network",
            f"{' × '.join(str(n) for n in card.get('settings', {}).get('hidden', ()))} tanh neurons, "
            f"seed {card.get('seed')}",
        ),
        ("split", f"{split.get('fraction', 0):.0%} of source_ids held out, seed {split.get('seed')}"),
        ("versions, training", _versions(card.get("versions", {}))),
        ("versions, inference", _versions(metadata.get("versions", {}))),
    ]
    return Table(("what", "value"), rows, 1, "Where everything came from.", (1,))


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items()) or "unknown"
