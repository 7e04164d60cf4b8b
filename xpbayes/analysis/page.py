"""A page of sections, each with words and perhaps a table and a figure: what verbs that check things hand over."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xpbayes.analysis.report import Drawn, write_page


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        headings: of the columns.
        rows: cells.
        n_text: so many columns from the left are words, the others numbers.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_text: int = 1


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
    context = {"title": title, "subtitle": subtitle, "notice": notice, "sections": sections}
    return write_page("sections.html", context, path)
