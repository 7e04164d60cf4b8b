"""The report: one self-contained HTML page about a run, from finished products only.

In: model, catalogue, star table, and source_ids of stars that get a section of their own. Works offline: figures, for which
`gallery` draws all of the paper's that the data allow, are embedded, nothing is fetched.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.extinction_curve import compare_with_published
from xpbayes.analysis.figures.spectra import choose_examples, draw_spectra, spectrum_fit
from xpbayes.analysis.pages.gallery import ANALYSES, Outcome, make_figures, not_drawn
from xpbayes.analysis.pages.model_card import accuracy_table, model_card
from xpbayes.analysis.pages.numbers import heading, number, share, text
from xpbayes.analysis.pages.page import Folded, Page, Part, Picture, Section, Table, parallax_sentence
from xpbayes.analysis.pages.requested_stars import read_draws, requested_stars, star_section
from xpbayes.analysis.run_inputs import Run, StarFiles, require_model
from xpbayes.analysis.validation import accuracy, compare, has_posteriors
from xpbayes.config import TrainingConfig
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split
from xpbayes.production.meeting import require_same_stars, stars_for
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.reader import open_catalogue
from xpbayes.production.table import catalogue_about, list_column, read_catalogue, text_column
from xpbayes.schema import FLAG_SENTENCES, QualityFlag
from xpbayes.training.training_set import training_cuts

GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "accuracy": ("Accuracy", ("residuals", "pulls", "external", "clusters", "sfd")),
    "population": ("The stars", ("kiel", "reliability", "prior")),
    "errors": ("Error bars", ("checks", "correlations", "confidence", "confidence_pulls")),
    "fits": ("Fits to spectra", ("flux_residuals", "sky_residuals", "self_cleaning")),
    "model": ("The model", ("main_sequence", "metallicity", "giant_branch", "curve")),
    "dust": (
        "Dust",
        ("dust_sky", "birds_eye", "curve_families", "curve_neighbours", "sky_residuals_curve"),
    ),
}
"""Sections of the report by their id: title, and the analyses that they show, every one of the gallery's once."""
CREDIT = (
    "Method: Zhang, Green & Rix 2023, MNRAS 524, 1855. Gaia data: ESA/Gaia/DPAC. Labels: SDSS-IV APOGEE DR17 where the "
    "bundled sample is used."
)


@dataclass(frozen=True)
class Reported:
    """What the report is about: a model, all rows of a catalogue, and the star table that it was inferred from."""

    model: TrainedModel
    catalogue: pa.Table
    stars: Spectra

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the catalogue was made with."""
        return catalogue_about(self.catalogue)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the inference."""
        return self.about.get("settings", {})

    def training_labels(self) -> NDArray[np.float64]:
        """(star, label) labels of the stars that the model was trained on, as far as the table holds them."""
        kept = training_cuts(self.stars, self.model.labels, self.model.card["settings"]["teff_max"])
        return kept.take(Split.of(self.model.card).on(Side.TRAINING, kept.source_id)).labels(self.model.labels)[0]


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
    """Write the report of a catalogue, a file or a folder of parts, and its star table, in memory and on disk.

    Timings are seconds of further stages. Stars of `source_ids` get a section of their own, with posteriors from `draws`, a
    file of `xpbayes sample`.

    Raises:
        InputError: model, catalogue, star table and draws do not belong together, a requested star is not there, or the
            page cannot be written.
    """
    on_disk = open_catalogue(catalogue_path)
    require_model(on_disk.about, model, str(catalogue_path))
    require_same_stars(on_disk.about, star_files.instrument, str(catalogue_path), "the star table")
    star_files = star_files.seen_by(model, "the star table")
    stars = stars_for(model, stars, "the star table")
    catalogue = read_catalogue(catalogue_path)
    run = Reported(model, catalogue, stars)
    about = run.about
    chains = read_draws(draws, model) if draws is not None else {}
    training = run.training_labels() if source_ids else np.empty(0)
    requested = [
        star_section(star, training) for star in requested_stars(model, catalogue, about, stars, source_ids, chains)
    ]
    outcomes = make_figures(Run(model=model, catalogue=on_disk, stars=star_files), ANALYSES)
    first, tiles = _accuracy(run)
    before = {"accuracy": first, "fits": _spectra(run)}
    after = {"curve": [_curves(model)]}
    by_name = {o.analysis.name: o for o in outcomes}
    groups = [
        Section(title, [*before.get(key, []), *_shown([by_name[n] for n in names if n in by_name], after)], key)
        for key, (title, names) in GROUPS.items()
    ]
    solved = text_column(catalogue, "status") == OK
    converged = catalogue["converged"].to_numpy(zero_copy_only=False)[solved]
    made = [f"xpbayes {about['versions']['xpbayes']}"] if "xpbayes" in about.get("versions", {}) else []
    made += [f"catalogue of {about['created']}"] if about.get("created") else []
    origin = model.card.get("parallax_used", "")
    return Page(
        "Stellar parameters from Gaia XP spectra",
        ", ".join([*made, f"stars from {about.get('input', {}).get('path', 'an unknown table')}"]),
        [
            *(g for g in groups if g.parts),
            *([Section("Requested stars", requested, "stars")] if requested else []),
            Section("Flags", [flag_table(catalogue), _status_table(catalogue)], "flags"),
            Section("Model card", [*model_card(model), Section("Training", [_phase_table(model)])], "card"),
            Section("This run", _provenance(run, timings), "run"),
            *not_drawn(
                outcomes,
                "Options in brackets are those of 'xpbayes analyse', which draws these figures from further files.",
            ),
        ],
        [parallax_sentence(about) + (f" Parallaxes in training: {origin}." if "spectroscopic" in origin else "")],
        [
            (f"{model.card['n_training']:,}", "training stars"),
            (f"{solved.sum():,}", "stars inferred"),
            (share(converged.mean() if len(converged) else 0.0), "converged"),
            *tiles,
        ],
        CREDIT,
    ).write(out)


def _shown(outcomes: Sequence[Outcome], after: Mapping[str, list[Table]]) -> list[Section]:
    """The figures that could be drawn, and what belongs below them."""
    sections = []
    for analysis, product in ((o.analysis, o.product) for o in outcomes if o.product is not None):
        picture = Picture.of(product.figure, product.alt, f"{product.caption} ({analysis.origin}.)")
        sections.append(Section(analysis.title, [picture, *after.get(analysis.name, [])], analysis.name))
    return sections


def flag_table(catalogue: pa.Table) -> Table:
    """How many stars carry each flag, and the sentence that explains it."""
    flags = catalogue["quality_flags"].to_numpy()
    has_confidence = catalogue["teff_confidence"].null_count < len(catalogue)
    kinds = [
        (flag.name or "", str(int(flag).bit_length() - 1), (flags & int(flag)) > 0, sentence)
        for flag, sentence in FLAG_SENTENCES.items()
        if has_confidence or flag >= QualityFlag.POOR_FIT  # else the confidence bits cannot be set
    ]
    kinds.append(("basic reliability", "–", flags < 8, "quality_flags < 8"))
    kinds.append(("strict", "–", flags == 0, "quality_flags == 0: none at all"))
    rows = [(name, bit, f"{of.sum():,}", share(of.mean()), meaning) for name, bit, of, meaning in kinds]
    return Table(("flag", "bit", "stars", "share", "meaning"), rows, 1, "Stars by quality flag.", (4,))


def _status_table(catalogue: pa.Table) -> Table:
    rows = [(name, f"{n:,}") for name, n in Counter(text_column(catalogue, "status").tolist()).most_common()]
    return Table(("status", "stars"), rows, 1, "Every star of the input has a row; its status says how it fared.")


def _accuracy(run: Reported) -> tuple[list[Part], list[tuple[str, str]]]:
    """The comparison with labels, or the sentence that there are none; and scatters over all stars, for the page's top."""
    model, settings = run.model, run.settings
    floor = TrainingConfig.model_validate(model.card["settings"]).floor_for(len(model.labels))
    drawn = has_posteriors(run.catalogue)
    try:
        modes = compare(run.catalogue, run.stars, model.labels, floor, "mode")
    except InputError:  # a catalogue of unlabelled stars: the page says so
        return ["Not compared with labels because no inferred star has labels in the star table."], []
    sides: dict[str, str] = {
        Side.HELD_OUT: "None of them took part in training: they were held out by source_id.",
        Side.KEPT_ASIDE: "Posteriors were calibrated on them: these figures are not a test.",
        Side.TRAINING: "They are on the training side of the split: these figures are not a test.",
    }
    side = sides.get(
        str(run.about.get("selection")),
        "Stars of the training set may be among them: infer with --only held-out for a test.",
    )
    units = zip(model.labels, floor, strict=True)
    floors = ", ".join(f"{drawing.display_scale(n) * f:g} {drawing.LABEL_UNIT.get(n, '')}" for n, f in units)
    comparison = compare(run.catalogue, run.stars, model.labels, floor, "posterior") if drawn else modes
    parts: list[Part] = [
        f"{len(comparison.source_id):,} inferred stars have labels. {side} Pulls and coverage count label errors, with "
        f"{floors} added in quadrature. Robust scatter is 1.4826 × the median absolute deviation; bias is the median of "
        "inferred minus label; coverage is the share of stars within the 68 % interval (ideal 68.3 %) and within 1.96 σ "
        "(ideal 95 %)."
    ]
    if settings.get("model_uncertainty", False):
        parts.append("Errors contain what training leaves unknown of the model.")
    rows, intro, parts = accuracy(comparison), parts, []
    if drawn:
        calibrated = model.calibration is not None and settings.get("calibrate", False)
        how = "as calibrated on stars kept aside of training" if calibrated else "not calibrated"
        what = f"Posterior medians, {how}; the 68 % interval is ± half of p84 − p16, σ the standard deviation."
        parts.append(accuracy_table(rows, what))
    else:
        parts.append("There are no posterior medians because the catalogue was inferred without draws.")
    what = (
        "Modes, as ZGR23 publish them, with errors from the Fisher matrix: no prior in the errors; calibrated likewise."
    )
    parts.append(accuracy_table(accuracy(modes), what))
    inferred, width = ("Posterior medians", "half of p16 to p84") if drawn else ("Modes", "Fisher's error")
    against = Picture.of(
        drawing.against_labels(comparison),
        "Inferred parameters against labels with running percentiles",
        f"{inferred} against labels (top) and the difference (bottom), with running 16th, 50th and 84th percentiles in bins "
        "of at least 15 stars. Each lower panel shows the central 98 % of its differences. "
        + parallax_sentence(run.about),
    )
    pulls = Picture.of(
        drawing.pulls(comparison),
        "Histograms of pulls beside unit Gaussians",
        f"Pulls, (inferred − label) / σ, beside a unit Gaussian; σ is {width}, with the label's error in quadrature. "
        "The outermost bins collect everything beyond 6 σ.",
    )
    parts.append(Section("Inferred against spectroscopic labels", [against], "accuracy-labels"))
    parts.append(Section("Distribution of pulls", [pulls], "accuracy-pulls"))
    if "refined_median" in run.catalogue.column_names:  # the recommended values come first
        parts = [_refined(run, floor), Section("Forward posterior", parts, "accuracy-forward")]
        with suppress(InputError):  # no star with labels has a refined one
            rows = accuracy(compare(run.catalogue, run.stars, model.labels, floor, "refined"))
    tiles = [(number(r.label, r.scatter), f"scatter in {heading(r.label)}") for r in rows if r.group == "all"]
    return [*intro, *parts], tiles


def _refined(run: Reported, floor: Sequence[float]) -> Section:
    """The comparison of refined labels with measured ones."""
    try:
        refined = compare(run.catalogue, run.stars, run.model.labels, floor, "refined")
    except InputError:  # no star with labels has a refined one
        return Section("Refined labels", ["No star with labels has refined ones."], "accuracy-refined")
    known = run.catalogue["refined_share"].drop_null().to_numpy()
    sentence = (
        "The recommended values: the second stage's labels, for the same stars; the forward posterior's are below. "
        f"{share(np.mean(known < 1.0))} of the catalogue's stars are in part or wholly unlike those that it learned from "
        "(refined_share below 1): their refined labels fade into the forward posterior's."
    )
    what = "Refined labels; the 68 % interval is ± half of p84 − p16, σ the standard deviation."
    picture = Picture.of(
        drawing.against_labels(refined),
        "Refined against measured labels with running percentiles",
        "Refined labels against measured ones (top) and the difference (bottom), as below.",
    )
    return Section("Refined labels", [sentence, accuracy_table(accuracy(refined), what), picture], "accuracy-refined")


def _spectra(run: Reported) -> list[Part]:
    """Example spectra, or the sentence that there are none."""
    model, stars = run.model, run.stars
    solved = text_column(run.catalogue, "status") == OK
    estimate = list_column(run.catalogue, "stellar_params_est")[solved]
    error = list_column(run.catalogue, "stellar_params_err")[solved]
    at = rows_of(run.catalogue["source_id"].to_numpy()[solved], stars.source_id)
    reduced = (run.catalogue["chi2_opt"].to_numpy() / run.catalogue["dof"].to_numpy())[solved]
    known = np.flatnonzero(at >= 0)
    examples = []
    for kind, i in choose_examples(estimate[known], np.asarray(model.forward.label_scale)):
        star = known[i]
        values = ", ".join(
            f"{text(n)} = {drawing.display_scale(n) * estimate[star, k]:.{0 if n == 'teff' else 2}f}"
            f" ± {drawing.display_scale(n) * error[star, k]:.{0 if n == 'teff' else 2}f}"
            for k, n in enumerate(model.labels)
        )
        shown = spectrum_fit(model, stars, int(at[star]), estimate[star])
        examples.append((f"{kind}, χ²/dof = {reduced[star]:.2f}\n{values}", shown))
    if not examples:
        return ["No example spectra because none of the inferred stars is in the star table."]
    picture = Picture.of(
        draw_spectra(model.channels.wavelengths, examples),
        "Observed and model spectra of example stars with residuals in units of sigma",
        "Stars nearest to six typical kinds, with posterior modes and Fisher errors. Points are data with their marginal "
        "1 σ errors, calibration and model error included; the line is the model at the mode; below each, the residual in "
        "σ. The model's error is correlated over wide stretches: where a star's bands, or half of its spectrum, lie 2 or "
        "3 σ to one side, as of a giant behind much dust, that is one deviation and not as many as there are points; "
        f"χ²/dof, which knows all correlations, says how unlikely it is. {parallax_sentence(run.about)}",
    )
    return [Section("Example spectra", [picture], "spectra")]


def _curves(model: TrainedModel) -> Table:
    """The scatter against published extinction curves."""
    curve = np.exp(np.asarray(model.forward.ln_curve, np.float64))
    rows = [
        (c.name, str(len(c.wavelength_nm)), share(c.rms))
        for c in compare_with_published(model.channels.wavelengths, curve)
    ]
    caption = (
        "Scatter of the learned over published extinction curves, after scaling. R(λ) has one free value per channel; "
        "nothing tells it to be smooth."
    )
    return Table(("curve", "channels", "rms"), rows, 1, caption)


def _phase_table(model: TrainedModel) -> Table:
    rows = []
    for phase in model.card.get("phases", []):
        update, result = phase["update"], "–"
        if update in ("model", "model_error"):
            what = "loss" if update == "model" else "ln likelihood"
            values = phase[f"{what.replace(' ', '_')}_per_star"]
            result = f"{what} per star {values[0]:.1f} → {values[-1]:.1f}"
        elif update == "stars":
            result = f"L per star {phase['objective_per_star']:.1f}, {share(phase['converged'])} converged"
        elif update == "gauge":
            result = f"E times {phase['scale_of_E']:.4f}, ln parallax {phase['moves']['all'][-1]:+.4f} in the median"
        elif update == "weights":
            result = f"stars count {share(phase['kept_by_kind']['all'])}"
        elif update == "self_cleaning":
            result = f"{share(phase['dropped_by']['both'])} of the stars dropped"
        passes, seconds = str(phase.get("epochs", "–")), f"{phase.get('seconds', float('nan')):.1f}"
        rows.append((str(phase["phase"]), update.replace("_", " "), result, passes, seconds))
    return Table(("phase", "what moved", "result", "passes", "seconds"), rows, 3, "Phases of the training.")


def _provenance(run: Reported, timings: dict[str, float]) -> list[Part]:
    """Where everything came from, how long it took, and all settings."""
    card, about, channels = run.model.card, run.about, run.model.channels
    split, inferred = card.get("split", {}), about.get("input", {})
    aside = card.get("settings", {}).get("calibration_fraction", 0)
    hidden = " × ".join(str(n) for n in card.get("settings", {}).get("hidden", ()))
    rows = [
        ("model", f"{card.get('arrays_checksum', 'not written')}, made {card.get('created', 'at an unknown time')}"),
        ("trained on", _file(card.get("input", {}))),
        ("catalogue made", str(about.get("created", "in parts; each carries the same settings"))),
        (
            "inferred from",
            f"{_file(inferred)}, {inferred.get('n_stars', 0):,} stars, selection {about.get('selection', 'all')}",
        ),
        ("channels", f"{len(channels)}, {channels.wavelengths[0]:.0f} to {channels.wavelengths[-1]:.0f} nm"),
        ("network", f"{hidden} tanh neurons, seed {card.get('seed')}"),
        (
            "split",
            f"{split.get('fraction', 0):.0%} of source_ids held out, {aside:.0%} of the others kept aside for calibration, "
            f"seed {split.get('seed')}",
        ),
        ("versions, training", _versions(card)),
        ("versions, inference", _versions(about)),
    ]
    parts: list[Part] = [Table(("what", "value"), rows, 1, "Where everything came from.", (1,))]
    if not timings:
        own = {"training": card.get("training_seconds"), "inference": about.get("seconds")}
        timings = {stage: seconds for stage, seconds in own.items() if seconds is not None}
    if timings:
        took = [(stage, f"{seconds:.1f}") for stage, seconds in timings.items()]
        parts.append(Table(("stage", "seconds"), took, 1, "How long each stage took."))
    for stage, settings in (("training", card.get("settings", {})), ("inference", run.settings)):
        parts.append(Folded(f"All settings of the {stage}", json.dumps(settings, indent=1, ensure_ascii=False)))
    return parts


def _file(source: Mapping[str, Any]) -> str:
    return f"{source.get('path', 'unknown')} {source.get('checksum', '')}".strip()


def _versions(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in record.get("versions", {}).items()) or "unknown"
