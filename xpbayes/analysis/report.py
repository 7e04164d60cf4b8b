"""The report: one self-contained HTML page about a run, from finished products only.

Numbers come from `validation`, `extinction_curve` and `spectra`; drawings from `figures`; words and layout are in
templates/report.html. Works offline: figures are embedded, nothing is fetched, no script runs.
"""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.analysis import figures
from xpbayes.analysis.extinction_curve import CurveComparison, compare_with_published
from xpbayes.analysis.spectra import EXAMPLE_KINDS, choose_examples, spectrum_fit
from xpbayes.analysis.validation import Accuracy, Comparison, accuracy, compare
from xpbayes.archive.selection import held_out_by_source_id, training_cuts
from xpbayes.archive.star_table import OK, StarTable
from xpbayes.catalogue.table import list_column, read_catalogue, text_column
from xpbayes.config import TrainingConfig
from xpbayes.errors import InputError
from xpbayes.files import whole_file
from xpbayes.modelfile import TrainedModel
from xpbayes.schema import FLAG_SENTENCES, QualityFlag

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """A figure ready for the page.

    Attributes:
        image: PNG as a data URI.
        alt: what a screen reader says.
        width, height: in pixels, so that the page does not jump while loading.
    """

    image: str
    alt: str
    width: int
    height: int


def embed(figure: "Figure", alt: str, dpi: int = 150) -> Drawn:
    """Turn a figure into a picture inside the page.

    Args:
        figure: finished.
        alt: what a screen reader says.
        dpi: pixels per inch.
    """
    return picture(as_png(figure, dpi), figure, alt, dpi)


def as_png(figure: "Figure", dpi: int) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def picture(png: bytes, figure: "Figure", alt: str, dpi: int) -> Drawn:
    """Put the bytes of `as_png` inside the page."""
    width, height = (int(v) for v in figure.get_size_inches() * dpi)
    return Drawn(f"data:image/png;base64,{base64.b64encode(png).decode()}", alt, width, height)


def training_labels(model: TrainedModel, stars: StarTable) -> NDArray[np.float64]:
    """(star, label) labels of the stars that the model was trained on, as far as the table holds them."""
    split, limit = model.card["split"], model.card["settings"]["teff_max"]
    kept = training_cuts(stars, model.labels, limit)
    return kept.take(~held_out_by_source_id(kept.source_id, split["fraction"], split["seed"])).labels(model.labels)[0]


def accuracy_rows(rows: Sequence[Accuracy]) -> list[dict[str, str]]:
    """The accuracy table in words and displayed units."""
    out = []
    for row in rows:
        factor = figures.display_scale(row.label)
        digits = 0 if row.label == "teff" else 3
        out.append(
            {
                "label": f"{figures.LABEL_TEXT.get(row.label, row.label)} [{figures.LABEL_UNIT.get(row.label, '')}]",
                "group": row.group,
                "n": f"{row.n:,}",
                "scatter": f"{factor * row.scatter:.{digits}f}",
                "bias": f"{factor * row.bias:+.{digits}f}",
                "coverage68": f"{row.coverage68:.1%}",
                "coverage95": f"{row.coverage95:.1%}",
            }
        )
    return out


def flag_rows(catalogue: pa.Table) -> list[dict[str, str]]:
    """How many stars carry each flag, and the sentence that explains it."""
    flags = catalogue["quality_flags"].to_numpy()
    n = len(flags)
    rows = [
        {
            "name": flag.name or "",
            "bit": str(int(flag).bit_length() - 1),
            "n": f"{int(np.sum((flags & int(flag)) > 0)):,}",
            "share": f"{np.mean((flags & int(flag)) > 0):.1%}",
            "meaning": text,
        }
        for flag, text in FLAG_SENTENCES.items()
        if flag >= QualityFlag.POOR_FIT  # the confidence bits cannot be set before confidences exist
    ]
    passing = int(np.sum(flags < 8))
    rows.append(
        {
            "name": "none of these",
            "bit": "–",
            "n": f"{passing:,}",
            "share": f"{passing / n:.1%}",
            "meaning": "basic reliability, quality_flags < 8",
        }
    )
    return rows


def parallax_sentence(metadata: dict[str, Any]) -> str:
    """Whether parallaxes were used, in words: every page that shows results says so."""
    n = metadata.get("n_with_parallax", 0)
    if n == 0:
        return (
            "No parallax was used: every parameter on this page, parallax included, is inferred from flux alone "
            "(parallax error taken as infinite)."
        )
    return f"Measured parallaxes were used for {n:,} stars."


def _kiel_figure(model: TrainedModel, stars: StarTable, estimate: NDArray[np.float64]) -> Drawn | None:
    if not {"teff", "feh", "logg"} <= set(model.labels):
        return None
    order = [model.labels.index(n) for n in ("teff", "feh", "logg")]
    training = training_labels(model, stars)
    if not len(training):
        return None
    return embed(
        figures.kiel(training[:, order], estimate[:, order], ("training labels", "inferred")),
        f"Two Kiel diagrams: {len(training)} training stars and {len(estimate)} inferred stars, coloured by metallicity",
    )


def write_report(
    model: TrainedModel, catalogue_path: str | Path, stars: StarTable, out: Path, timings: dict[str, float]
) -> Path:
    """Write the report.

    Args:
        model: the trained model.
        catalogue_path: the catalogue.
        stars: the star table it was inferred from.
        out: HTML file.
        timings: seconds of further stages, for the timing table.

    Raises:
        InputError: model, catalogue and star table do not belong together, or the page cannot be written.
    """
    catalogue, metadata = read_catalogue(catalogue_path)
    if tuple(metadata["labels"]) != model.labels:
        raise InputError(f"{catalogue_path}: was made with labels {metadata['labels']}, the model has {model.labels}")
    if metadata["model"].get("arrays_checksum") not in (None, model.card.get("arrays_checksum")):
        raise InputError(f"{catalogue_path}: was made with another model; name the model that made it")
    status = text_column(catalogue, "status")
    solved = status == OK
    estimate = list_column(catalogue, "stellar_params_est")[solved]
    floor = TrainingConfig.model_validate(model.card["settings"]).floor_for(len(model.labels))
    comparison: Comparison | None
    try:
        comparison = compare(catalogue, stars, model.labels, floor)
    except InputError:
        comparison = None  # a catalogue of unlabelled stars: the page says so
    wavelength, curve = model.channels.wavelengths, np.exp(np.asarray(model.forward.ln_curve, np.float64))
    published: list[CurveComparison] = compare_with_published(wavelength, curve)

    error = list_column(catalogue, "stellar_params_err")[solved]
    source_id = catalogue["gdr3_source_id"].to_numpy()[solved]
    row_of = {int(s): i for i, s in enumerate(stars.source_id)}
    known = np.array([int(s) in row_of for s in source_id])
    examples = []
    for kind, i in choose_examples(estimate[known], np.asarray(model.forward.label_scale), EXAMPLE_KINDS):
        star = np.flatnonzero(known)[i]
        fit = spectrum_fit(model, stars, row_of[int(source_id[star])], estimate[star])
        values = ", ".join(
            f"{figures.LABEL_TEXT.get(n, n)} = {figures.display_scale(n) * estimate[star, k]:.{0 if n == 'teff' else 2}f}"
            f" ± {figures.display_scale(n) * error[star, k]:.{0 if n == 'teff' else 2}f}"
            for k, n in enumerate(model.labels)
        )
        examples.append((f"{kind}\n{values}", fit))

    timings = {**timings}
    if not timings:
        timings = {"training": model.card.get("training_seconds", np.nan), "inference": metadata.get("seconds", np.nan)}
    context: dict[str, Any] = {
        "title": "xpbayes report",
        "model": model,
        "card": model.card,
        "metadata": metadata,
        "n_solved": int(solved.sum()),
        "n_converged": int(np.sum(catalogue["converged"].to_numpy(zero_copy_only=False)[solved])),
        "parallax": parallax_sentence(metadata),
        "accuracy": accuracy_rows(accuracy(comparison)) if comparison else [],
        "n_compared": len(comparison.source_id) if comparison else 0,
        "label_floor": ", ".join(
            f"{figures.display_scale(n) * f:g} {figures.LABEL_UNIT.get(n, '')}"
            for n, f in zip(model.labels, floor, strict=True)
        ),
        "flags": flag_rows(catalogue),
        "statuses": sorted(Counter(status.tolist()).items(), key=lambda item: -item[1]),
        "curves": published,
        "timings": timings,
        "figures": {
            "kiel": _kiel_figure(model, stars, estimate),
            "curve": embed(
                figures.extinction_curve(wavelength, curve, published),
                "The learned extinction curve beside CCM89 and G23, and their ratio",
            ),
            "spectra": embed(
                figures.spectra(wavelength, examples),
                "Observed and model spectra of example stars with residuals in units of sigma",
            )
            if examples
            else None,
            "labels": embed(
                figures.against_labels(comparison), "Inferred parameters against labels with running percentiles"
            )
            if comparison
            else None,
            "pulls": embed(figures.pulls(comparison), "Histograms of pulls beside unit Gaussians")
            if comparison
            else None,
        },
    }
    return write_page("report.html", context, out)


def write_page(template: str, context: dict[str, Any], out: Path) -> Path:
    """Fill a template and write the page under a temporary name first.

    Args:
        template: its name in `templates`.
        context: what it names; a name that is not there is a mistake, never an empty place.
        out: HTML file.

    Raises:
        InputError: the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("xpbayes.analysis", "templates"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template(template).render(context)
    with whole_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out
