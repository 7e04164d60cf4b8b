"""Pages and what they are made of: sections of sentences, tables and pictures, each of which also prints on a terminal.

In: finished figures and text. Out: one HTML file that works offline: pictures, style and the little script that sorts tables
are inside of it; templates/ lays it out.
"""

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpbayes.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

DPI = 150
WIDE = 120
"""Characters a line of printed tables: where a terminal is narrower, or a file takes its place, no number is cut."""


@dataclass(frozen=True)
class Picture:
    """A figure inside the page: its alt is what a screen reader says, its caption what is shown, with cuts and counts."""

    image: str  # PNG as a data URI
    alt: str
    width: int  # in pixels, so that the page does not jump while loading
    height: int
    caption: str = ""

    @classmethod
    def of(cls, figure: "Figure", alt: str, caption: str = "", dpi: int = DPI, png: bytes | None = None) -> "Picture":
        """Put a finished figure inside a page; `png` where `as_png` has drawn it already."""
        width, height = (int(v) for v in figure.get_size_inches() * dpi)
        data = base64.b64encode(as_png(figure, dpi) if png is None else png).decode()
        return cls(f"data:image/png;base64,{data}", alt, width, height, caption)


def as_png(figure: "Figure", dpi: int = DPI) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


@dataclass(frozen=True)
class Table:
    """A table of text; a page lets its reader sort it by any column."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]  # the first cell of a row names it
    n_text: int = 1  # so many columns from the left are words, the others numbers
    caption: str = ""  # above the table, below it on a terminal; where empty, a screen reader says the section's title
    wide: Sequence[int] = ()  # columns, counted from 0, that hold sentences

    def print(self, console: "Console", title: str = "") -> None:
        """Print it."""
        from rich.table import Table as Printed
        from rich.text import Text

        table = Printed(title=title or None, caption=self.caption or None, title_justify="left", caption_justify="left")
        for i, heading in enumerate(self.headings):
            left = i < self.n_text or i in self.wide
            table.add_column(Text(heading), justify="left" if left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))  # as text: rich takes [dex] for a style
        console.print(table)

    def write_csv(self, path: Path) -> Path:
        """Write headings and rows."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.headings, *self.rows])
        return write_text(path, text.getvalue())


@dataclass(frozen=True)
class Points:
    """A list of sentences, each after a name in bold, which may be empty."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Aside:
    """Small print, and files that it leads to."""

    text: str
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Folded:
    """Long text that opens when its title is clicked."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading and what follows; only sections with an id, where links lead, are in the contents."""

    title: str
    parts: "Sequence[Part]" = ()
    id: str = ""

    @property
    def inside(self) -> "list[Section]":
        """Its own sections that are in the contents."""
        return [p for p in self.parts if isinstance(p, Section) and p.id]

    def print(self, console: "Console") -> None:
        """Print heading, sentences and tables."""
        from rich.text import Text

        console.print("\n", Text(self.title, style="bold"), sep="")
        for part in self.parts:
            if isinstance(part, str):
                console.print(Text(part))
            elif isinstance(part, Table):
                part.print(console)


Part = str | Table | Picture | Points | Aside | Folded | Section
"""What a section may hold."""


@dataclass(frozen=True)
class Page:
    """One page."""

    title: str
    subtitle: str
    sections: Sequence[Section]  # those without an id are numbered
    notices: Sequence[str] = ()  # what to know first; on a page of one question, its answer
    tiles: Sequence[tuple[str, str]] = ()  # values that stand out, and what they are
    credit: str = "Method: Zhang, Green & Rix 2023, MNRAS 524, 1855. Gaia data: ESA/Gaia/DPAC."

    def write(self, path: Path) -> Path:
        """Write it, under a temporary name first.

        Raises:
            InputError: it cannot be written.
        """
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("xpbayes.analysis.pages", "templates"),
            autoescape=True,
            undefined=StrictUndefined,  # a name that is not there is a mistake, never an empty place
            trim_blocks=True,
            lstrip_blocks=True,
        )
        sections = [s if s.id else replace(s, id=f"s{i}") for i, s in enumerate(self.sections, 1)]
        text = environment.get_template("page.html").render(
            page=self, sections=sections, kind=lambda part: type(part).__name__.lower()
        )
        return write_text(path, text)


def wide_console(width: int = WIDE) -> "Console":
    """A console of at least so many characters a line."""
    from rich.console import Console

    return Console(highlight=False, width=max(Console().width, width))


def parallax_sentence(metadata: dict[str, Any]) -> str:
    """Whether parallaxes were used, in words: every page that shows results says so."""
    n = metadata.get("n_with_parallax", 0)
    if n == 0:
        return (
            "No parallax was used: every parameter on this page, parallax included, is inferred from flux alone "
            "(parallax error taken as infinite)."
        )
    return f"Measured parallaxes were used for {n:,} stars."


def save_figures(folder: Path, texts: Mapping[str, str], drawn: "Iterable[tuple[str, Figure]]") -> list[Path]:
    """Write text files and figures, by name, into a folder, which is made if need be; each before the next is drawn.

    Raises:
        InputError: the folder cannot be written.
    """
    written = [write_text(folder / name, text) for name, text in texts.items()]
    from xpbayes.analysis.figures.drawing import save_figure

    return [*written, *(save_figure(figure, folder / name, DPI) for name, figure in drawn)]
