"""Every figure of the paper from the user's own run: the list of analyses, and how they are drawn and written.

In: finished products (`run_inputs.Run`). Out: NAME.png and .pdf, NAME.ecsv with the numbers, analyses.json, and a page
index.html that shows all figures with captions; a figure that cannot be drawn has a line that says why.
The catalogue is read once for all figures, in memory that does not grow with it.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xpbayes.analysis.figures import (
    clusters,
    confidence,
    correlations,
    curve_neighbours,
    dust,
    extinction_curve,
    flux_residuals,
    prior_corner,
    residual_columns,
    spectra,
    star_counts,
    training_record,
)
from xpbayes.analysis.figures.drawing import save_figure
from xpbayes.analysis.pages.page import DPI, Aside, Page, Picture, Points, Section, as_png, parallax_sentence
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, NumberTable, Product, Task
from xpbayes.errors import InputError, nearest
from xpbayes.files import refuse_overwriting, whole_file, write_text

log = logging.getLogger(__name__)

INDEX, RECORD = "index.html", "analyses.json"
ANALYSES: tuple[Analysis, ...] = (
    star_counts.KIEL,
    training_record.SELF_CLEANING,
    prior_corner.PRIOR,
    correlations.CORRELATIONS,
    residual_columns.RESIDUALS,
    residual_columns.PULLS,
    flux_residuals.FLUX_RESIDUALS,
    confidence.CONFIDENCE,
    confidence.CONFIDENCE_PULLS,
    spectra.MAIN_SEQUENCE,
    spectra.METALLICITY,
    spectra.GIANT_BRANCH,
    extinction_curve.CURVE,
    residual_columns.EXTERNAL,
    star_counts.RELIABILITY,
    clusters.CLUSTERS,
    dust.SFD,
    dust.DUST_SKY,
    dust.BIRDS_EYE_VIEW,
    flux_residuals.SKY_RESIDUALS,
    training_record.CHECKS,
    extinction_curve.CURVE_FAMILIES,
    curve_neighbours.CURVE_NEIGHBOURS,
    flux_residuals.SKY_RESIDUALS_CURVE,
)
"""In the order of the paper, then what goes beyond it."""
ABSENT = {
    "model": "no model was named (--model)",
    "catalogue": "no catalogue was named (--catalogue)",
    "stars": "no star table was named (--stars)",
    "external": "no table of another survey was named (--external)",
    "clusters": "no table of globular clusters was named (--clusters)",
    "dust_map": "no dust map was named (--dust-map); make one with 'xpbayes dustmap'",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one analysis: the figure, or why there is none."""

    analysis: Analysis
    product: Product | None
    reason: str = ""

    @property
    def line(self) -> str:
        """In one line."""
        if self.product is not None:
            return f"{self.analysis.name}: drawn"
        return f"{self.analysis.name}: not drawn because {self.reason}"

    @property
    def files(self) -> list[str]:
        """Names of the files that it is written into: two pictures, then one for each table of numbers."""
        name = self.analysis.name
        tables = self.product.tables if self.product is not None else ()
        return [f"{name}.png", f"{name}.pdf", *(f"{name}_{key}.ecsv" if key else f"{name}.ecsv" for key in tables)]

    @property
    def entry(self) -> dict[str, Any]:
        """What the record says of it."""
        about = {"name": self.analysis.name, "paper": self.analysis.paper, "title": self.analysis.title}
        if self.product is None:
            return {**about, "not_drawn_because": self.reason}
        return {**about, "caption": self.product.caption, "files": self.files}


def choose(only: Sequence[str]) -> list[Analysis]:
    """The analyses of these names, all if there are none; InputError for an unknown one."""
    known = {a.name: a for a in ANALYSES}
    for name in only:
        if name not in known:
            raise InputError(f"there is no analysis '{name}'{nearest(name, known)}; known are {', '.join(known)}")
    return [a for a in ANALYSES if not only or a.name in only]


def make_figures(run: Run, analyses: Sequence[Analysis]) -> list[Outcome]:
    """Draw figures from one pass through the catalogue.

    Raises:
        InputError: a file is damaged or lacks a column.
    """
    tasks: list[Task | str] = []
    for analysis in analyses:
        absent = [need for need in analysis.needs if getattr(run, need) is None]
        try:
            tasks.append(ABSENT[absent[0]] if absent else analysis.start(run))
        except (NotDrawnError, InputError) as error:  # what one figure alone needs may be wrong: the others are drawn
            tasks.append(str(error))
    gather(run, [g for task in tasks if isinstance(task, Task) for g in task.gatherers])
    outcomes = []
    for analysis, task in zip(analyses, tasks, strict=True):
        try:
            outcome = Outcome(analysis, task.product()) if isinstance(task, Task) else Outcome(analysis, None, task)
        except (NotDrawnError, InputError) as error:
            outcome = Outcome(analysis, None, str(error))
        log.info(outcome.line)
        outcomes.append(outcome)
    return outcomes


def gather(run: Run, gatherers: Sequence[Gatherer]) -> None:
    """Read the catalogue once and show every row to every gatherer.

    Raises:
        InputError: a file is damaged or lacks a column.
    """
    distinct = list({id(g): g for g in gatherers}.values())
    if not distinct:
        return
    reads = [name for g in distinct for name in g.reads]
    joins = [name for g in distinct for name in g.joins]
    for rows in run.rows(list(dict.fromkeys(reads)), list(dict.fromkeys(joins))):
        for gatherer in distinct:
            gatherer.add(rows)


def write_figures(run: Run, outcomes: Sequence[Outcome], out: Path, inputs: Sequence[Path] = ()) -> Path:
    """Write figures, their numbers, a record of all, and the page that shows them, whose path is returned.

    Files and folders among the inputs must stay as they are.

    Raises:
        InputError: nothing could be drawn, or a file cannot be written, or is an input.
    """
    drawn = [o for o in outcomes if o.product is not None]
    if not drawn:
        raise InputError(f"none of {len(outcomes)} figures can be drawn; the first, {outcomes[0].line}")
    for name in (INDEX, RECORD, *(file for o in drawn for file in o.files)):
        refuse_overwriting(out / name, inputs)
    sections = [_write_product(o, o.product, out) for o in outcomes if o.product is not None]
    record = {"kind": "analyses", "figures": [o.entry for o in outcomes]}
    write_text(out / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    known = [
        f"xpbayes {version('xpbayes')}",
        f"a catalogue of {run.catalogue.n_rows:,} rows" if run.catalogue is not None else "",
        f"a model of {run.model.card.get('n_training', 0):,} training stars" if run.model is not None else "",
    ]
    return Page(
        "Figures of this run",
        f"{', '.join(filter(None, known))}. {len(sections)} of {len(outcomes)} figures could be drawn from what is there.",
        [*sections, *not_drawn(outcomes)],
        [parallax_sentence(run.catalogue.about)] if run.catalogue is not None else [],
        credit="Numbers of figures: Zhang, Green & Rix 2023, MNRAS 524, 1855. Gaia data: ESA/Gaia/DPAC.",
    ).write(out / INDEX)


def _write_product(outcome: Outcome, product: Product, out: Path) -> Section:
    """Write one figure as PNG and PDF, and its numbers as ECSV; returns what the page shows of it."""
    analysis, names = outcome.analysis, outcome.files
    png = as_png(product.figure)
    picture = Picture.of(product.figure, product.alt, product.caption, png=png)
    product.figure.set_layout_engine("none")  # the layout is found: to find it again takes as long as to draw
    with whole_file(out / names[0]) as temporary:
        temporary.write_bytes(png)
    save_figure(product.figure, out / names[1], DPI)
    for name, table in zip(names[2:], product.tables.values(), strict=True):
        _write_numbers(table, out / name, analysis, product.caption)
    return Section(
        analysis.title,
        [picture, Aside(f"{analysis.origin[0].upper()}{analysis.origin[1:]}. Files:", names)],
        analysis.name,
    )


def _write_numbers(table: NumberTable, path: Path, analysis: Analysis, caption: str) -> None:
    from astropy.table import Column, Table

    columns = [
        Column(series.values, name=name, unit=series.unit or None, description=series.about or None)
        for name, series in table.items()
    ]
    paper = f"ZGR23 {analysis.paper}" if analysis.paper else analysis.origin
    numbers = Table(columns, meta={"figure": analysis.title, "paper": paper, "caption": caption})
    with whole_file(path) as temporary:
        numbers.write(temporary, format="ascii.ecsv", overwrite=True)


def not_drawn(outcomes: Sequence[Outcome], *advice: str) -> list[Section]:
    """The section that says why figures are missing, after some advice; none if all are there."""
    missing = [
        (o.analysis.title, f"({o.analysis.paper or o.analysis.origin}): not drawn because {o.reason}.")
        for o in outcomes
        if o.product is None
    ]
    return [Section("Not drawn", [*advice, Points(missing)], "missing")] if missing else []
