"""What every figure of the paper is made of: a topic gathers numbers from the rows of a catalogue, then draws them.

A topic's module holds the numbers (a `Gatherer`, or a plain function), the drawing, and an `Analysis` of each figure.
`gallery.py` reads the catalogue once for all of them. Nothing here reads a file or knows a figure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xpbayes.analysis.run_inputs import Rows, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NotDrawnError(Exception):
    """A figure cannot be drawn from what is there; the text completes the sentence 'not drawn because ...'."""


@dataclass(frozen=True)
class Series:
    """One column of a figure's numbers."""

    values: Any  # (row,) numbers or words
    unit: str = ""  # in VOUnit syntax, "" if none
    about: str = ""  # one phrase


NumberTable = Mapping[str, Series]
"""Column name -> values; all of one length."""


def table_of(rows: Sequence[tuple[Any, ...]], about: Mapping[str, str]) -> NumberTable:
    """A table of rows, their numbers without units: what each column is called, and is."""
    columns = zip(*rows, strict=True) if rows else iter([()] * len(about))
    return {name: Series(list(column), "", about[name]) for name, column in zip(about, columns, strict=True)}


@dataclass(frozen=True)
class Product:
    """A finished figure."""

    figure: "Figure"
    alt: str  # what a screen reader says
    caption: str  # what is shown, with cuts and counts
    tables: Mapping[str, NumberTable]  # the numbers; the key completes the file's name and may be empty


class Gatherer:
    """Collects what a figure shows while the catalogue passes by; memory must not grow with it."""

    reads: Sequence[str] = ()  # catalogue columns that `add` looks at
    joins: Sequence[str] = ()  # star-table columns that it looks at

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        raise NotImplementedError


@dataclass(frozen=True)
class Task:
    """One figure in the making."""

    gatherers: tuple[Gatherer, ...]  # what must see the catalogue before `product`; several tasks may share one
    product: Callable[[], Product]  # draws; may raise NotDrawnError, or InputError for a file that it reads


@dataclass(frozen=True)
class Analysis:
    """One figure of the paper."""

    name: str  # how the command line and the files call it
    paper: str  # which figure of ZGR23 it corresponds to; empty if none
    title: str
    start: Callable[[Run], Task]  # begins it; may raise as `Task.product`
    needs: tuple[str, ...] = ()  # inputs it cannot do without, by their names in `run_inputs.Run`

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
