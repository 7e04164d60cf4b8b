"""Every figure of the paper from the user's own run: the list of analyses, and how they are drawn and written.

In: finished products (`run_inputs.Run`). Out: NAME.png and .pdf, NAME.ecsv with the numbers, analyses.json, and a page
index.html that shows all figures with captions; a figure that cannot be drawn has a line that says why.
The catalogue is read once for all figures, in memory that does not grow with it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpbayes.analysis import confidence_panels, correlations, external, residual_columns
from xpbayes.analysis.figures import (
    clusters,
    flux_residuals,
    kiel,
    model_spectra,
    prior_corner,
    reddening_law,
    reliability,
    self_cleaning,
    sfd,
    sky_dust,
    sky_residuals,
)
from xpbayes.analysis.pages.page import Drawn, Place, as_png, parallax_sentence, picture, write_page
from xpbayes.analysis.run_inputs import Run, find_inputs, open_run
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, NumberTable, Product, Task
from xpbayes.errors import InputError, nearest
from xpbayes.files import whole_file

Say = Callable[[str], None]
INDEX, RECORD = "index.html", "analyses.json"
DPI = 150
ANALYSES: tuple[Analysis, ...] = (
    kiel.KIEL,
    self_cleaning.SELF_CLEANING,
    prior_corner.PRIOR,
    correlations.CORRELATIONS,
    residual_columns.RESIDUALS,
    residual_columns.PULLS,
    flux_residuals.FLUX_RESIDUALS,
    confidence_panels.CONFIDENCE,
    confidence_panels.CONFIDENCE_PULLS,
    model_spectra.MAIN_SEQUENCE,
    model_spectra.METALLICITY,
    model_spectra.GIANT_BRANCH,
    reddening_law.CURVE,
    external.EXTERNAL,
    reliability.RELIABILITY,
    clusters.CLUSTERS,
    sfd.SFD,
    sky_dust.DUST_SKY,
    sky_dust.BIRDS_EYE_VIEW,
    sky_residuals.SKY_RESIDUALS,
)
"""In the order of the paper."""
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
    """What became of one analysis.

    Attributes:
        analysis: which.
        product: the figure, or
        reason: why there is none.
    """

    analysis: Analysis
    product: Product | None
    reason: str = ""

    @property
    def line(self) -> str:
        """In one line."""
        if self.product is not None:
            return f"{self.analysis.name}: drawn"
        return f"{self.analysis.name}: not drawn because {self.reason}"


@dataclass(frozen=True)
class Written:
    """What was written of one figure.

    Attributes:
        files: their names.
        drawn: the picture, for the page.
    """

    files: tuple[str, ...]
    drawn: Drawn


def choose(only: Sequence[str]) -> list[Analysis]:
    """The analyses of these names, all if there are none; InputError for an unknown one."""
    known = {a.name: a for a in ANALYSES}
    for name in only:
        if name not in known:
            raise InputError(f"there is no analysis '{name}'{nearest(name, known)}; known are {', '.join(known)}")
    return [a for a in ANALYSES if not only or a.name in only]


def make_figures(run: Run, analyses: Sequence[Analysis], say: Say = lambda line: None) -> list[Outcome]:
    """Draw figures from one pass through the catalogue.

    Args:
        run: what is there.
        analyses: which figures.
        say: receives one line per figure.

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
        say(outcome.line)
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


def write_figures(run: Run, outcomes: Sequence[Outcome], out: Path, versions: Mapping[str, str]) -> Path:
    """Write figures, their numbers, a record of all, and the page that shows them.

    Args:
        run: what they were drawn from.
        outcomes: from `make_figures`.
        out: folder for everything.
        versions: of the software, for the page.

    Returns:
        path of the page.

    Raises:
        InputError: nothing could be drawn, or a file cannot be written.
    """
    drawn = [o for o in outcomes if o.product is not None]
    if not drawn:
        raise InputError(f"none of {len(outcomes)} figures can be drawn; the first, {outcomes[0].line}")
    written = {o.analysis.name: write_product(o.analysis, o.product, out) for o in drawn if o.product is not None}
    record = [_entry(o, written) for o in outcomes]
    with whole_file(out / RECORD) as temporary:
        text = json.dumps({"kind": "analyses", "figures": record}, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return write_page("analyses.html", _context(run, outcomes, written, versions), out / INDEX)


def write_product(analysis: Analysis, product: Product, out: Path) -> Written:
    """Write one figure as PNG and PDF, and its numbers as ECSV.

    Raises:
        InputError: one cannot be written.
    """
    names = [f"{analysis.name}.png", f"{analysis.name}.pdf"]
    png = as_png(product.figure, DPI)
    product.figure.set_layout_engine("none")  # the layout is found: to find it again takes as long as to draw
    with whole_file(out / names[0]) as temporary:
        temporary.write_bytes(png)
    with whole_file(out / names[1]) as temporary:
        product.figure.savefig(temporary, dpi=DPI, format="pdf")
    for key, table in product.tables.items():
        names.append(f"{analysis.name}_{key}.ecsv" if key else f"{analysis.name}.ecsv")
        _write_numbers(table, out / names[-1], analysis, product.caption)
    return Written(tuple(names), picture(png, product.figure, product.alt, DPI))


def _write_numbers(table: NumberTable, path: Path, analysis: Analysis, caption: str) -> None:
    from astropy.table import Column, Table

    columns = [
        Column(series.values, name=name, unit=series.unit or None, description=series.about or None)
        for name, series in table.items()
    ]
    numbers = Table(columns, meta={"figure": analysis.title, "paper": f"ZGR23 {analysis.paper}", "caption": caption})
    with whole_file(path) as temporary:
        numbers.write(temporary, format="ascii.ecsv", overwrite=True)


def _entry(outcome: Outcome, written: Mapping[str, Written]) -> dict[str, Any]:
    about = {"name": outcome.analysis.name, "paper": outcome.analysis.paper, "title": outcome.analysis.title}
    if outcome.product is None:
        return {**about, "not_drawn_because": outcome.reason}
    return {**about, "caption": outcome.product.caption, "files": written[outcome.analysis.name].files}


def _context(
    run: Run, outcomes: Sequence[Outcome], written: Mapping[str, Written], versions: Mapping[str, str]
) -> dict[str, Any]:
    figures: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    for o in outcomes:
        done = written.get(o.analysis.name)
        if o.product is None or done is None:
            missing.append({"analysis": o.analysis, "caption": o.reason})
        else:
            about = {"analysis": o.analysis, "drawn": done.drawn, "caption": o.product.caption, "files": done.files}
            figures.append(about)
    places = [Place(f["analysis"].name, f["analysis"].title) for f in figures]
    return {
        "title": "xpbayes figures",
        "places": [*places, Place("missing", "Not drawn")] if missing else places,
        "figures": figures,
        "missing": missing,
        "n_drawn": len(figures),
        "n_rows": run.catalogue.n_rows if run.catalogue is not None else 0,
        "n_training": run.model.card.get("n_training", 0) if run.model is not None else 0,
        "parallax": parallax_sentence(run.catalogue.about) if run.catalogue is not None else "",
        "versions": versions,
    }
