"""What every figure of the paper is made of: a topic gathers numbers from the rows of a catalogue, then draws them.

A topic's module holds the numbers (a `Gatherer`, or a plain function), the drawing, and one `Analysis` that says what it
needs. `gallery.py` reads the catalogue once for all of them. Nothing here reads a file or knows a figure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xpbayes.analysis.run_inputs import Rows, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NotDrawnError(Exception):
    """A figure cannot be drawn from what is there; the text completes the sentence 'not drawn because ...'."""


@dataclass(frozen=True)
class Series:
    """One column of a figure's numbers.

    Attributes:
        values: (row,) numbers or words.
        unit: in VOUnit syntax, "" if none.
        about: one phrase.
    """

    values: Any
    unit: str = ""
    about: str = ""


NumberTable = Mapping[str, Series]
"""Column name -> values; all of one length."""


@dataclass(frozen=True)
class Product:
    """A finished figure.

    Attributes:
        figure: the drawing.
        alt: what a screen reader says.
        caption: what is shown, with cuts and counts.
        tables: the numbers; the key completes the file's name and may be empty.
    """

    figure: "Figure"
    alt: str
    caption: str
    tables: Mapping[str, NumberTable]


class Gatherer(Protocol):
    """Collects what a figure shows while the catalogue passes by; memory must not grow with it."""

    @property
    def reads(self) -> Sequence[str]:
        """Catalogue columns that `add` looks at."""

    @property
    def joins(self) -> Sequence[str]:
        """Star-table columns that `add` looks at."""

    def add(self, rows: Rows) -> None:
        """Take the next rows."""


@dataclass(frozen=True)
class Task:
    """One figure in the making.

    Attributes:
        gatherers: what must see the catalogue before `product`; several tasks may share one.
        product: draws; may raise NotDrawnError, or InputError for a file that it reads.
    """

    gatherers: tuple[Gatherer, ...]
    product: Callable[[], Product]


@dataclass(frozen=True)
class Analysis:
    """One figure of the paper.

    Attributes:
        name: how the command line and the files call it.
        paper: which figure of ZGR23 it corresponds to; empty if none.
        title: in words.
        start: begins it; may raise NotDrawnError at once, or InputError for a file that it reads.
        needs: which inputs it cannot do without, by their names in `run_inputs.Run`.
    """

    name: str
    paper: str
    title: str
    start: Callable[[Run], Task]
    needs: tuple[str, ...] = field(default=())

    @property
    def origin(self) -> str:
        """Where the idea of the figure is from, in words."""
        return f"{self.paper} of the paper" if self.paper else "not in the paper"


def require_columns(run: Run, names: Sequence[str]) -> None:
    """Raise NotDrawnError if the star table lacks a column."""
    missing = [name for name in names if not run.star_column(name)]
    if missing:
        raise NotDrawnError(f"the star table has no column {missing[0]}")


def require_variation(run: Run) -> None:
    """Raise NotDrawnError if the model, or the catalogue if there is one, has one extinction curve for all stars."""
    if run.model is not None and (
        run.model.forward.curve_variation is None or not np.asarray(run.model.forward.curve_variation).any()
    ):
        raise NotDrawnError("the model has one extinction curve for all stars; train one with --curve-variation")
    if run.catalogue is not None and not any(c.name == "xi" for c in run.catalogue.columns):
        raise NotDrawnError("the catalogue has no column xi: its model has one extinction curve for all stars")


def drawn_now(make: Callable[[Run], Product]) -> Callable[[Run], Task]:
    """For a figure that no catalogue row takes part in."""
    return lambda run: Task((), lambda: make(run))
