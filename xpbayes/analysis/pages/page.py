"""What every HTML page is made of: pictures, tables, sections, and the templates that they are put into.

In: finished figures and text. Out: one file that works offline: pictures, style and the little script that sorts tables
are inside of it. Words and layout of single pages are in templates/.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpbayes.files import whole_file

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


@dataclass(frozen=True)
class Table:
    """A table of text; a page lets its reader sort it by any column.

    Attributes:
        headings: of the columns.
        rows: cells; the first of a row names it.
        n_text: so many columns from the left are words, the others numbers.
        caption: above the table; where there is none, a screen reader says the section's title.
        wide: columns, counted from 0, that hold sentences.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_text: int = 1
    caption: str = ""
    wide: Sequence[int] = ()


@dataclass(frozen=True)
class Place:
    """An entry of a page's contents.

    Attributes:
        id: of the heading that it leads to.
        title: what it says.
        inside: entries below it.
    """

    id: str
    title: str
    inside: "Sequence[Place]" = ()


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        title: its heading.
        text: what the reader should know.
        table, figure: below the text; None if there is none.
    """

    title: str
    text: str
    table: Table | None = None
    figure: Drawn | None = None


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


def parallax_sentence(metadata: dict[str, Any]) -> str:
    """Whether parallaxes were used, in words: every page that shows results says so."""
    n = metadata.get("n_with_parallax", 0)
    if n == 0:
        return (
            "No parallax was used: every parameter on this page, parallax included, is inferred from flux alone "
            "(parallax error taken as infinite)."
        )
    return f"Measured parallaxes were used for {n:,} stars."


def write_sections(path: Path, title: str, subtitle: str, notice: str, sections: Sequence[Section]) -> Path:
    """Write one self-contained HTML page.

    Args:
        path: of the page.
        title, subtitle: at its top.
        notice: the answer, in one sentence.
        sections: what follows.

    Raises:
        InputError: it cannot be written.
    """
    places = [Place(f"s{i}", section.title) for i, section in enumerate(sections, 1)]
    context = {"title": title, "subtitle": subtitle, "notice": notice, "sections": sections, "places": places}
    return write_page("sections.html", context, path)


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
        loader=PackageLoader("xpbayes.analysis.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(context)
    with whole_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out
