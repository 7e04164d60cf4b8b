"""What a run says while it works goes to the logger "xpbayes"; it is heard where somebody listens.

A program listens with Python's `logging`, a notebook with ``progress_shown()``, the command line does so by itself.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("xpbayes")


class Lines(logging.Handler):
    """Writes lines to standard error, where they do not mix with results; warnings in colour on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, however long it is."""
        style = "yellow" if record.levelno >= logging.WARNING else None
        self._console.print(self.format(record), style=style, markup=False, emoji=False)


@contextmanager
def progress_shown(wanted: bool = True) -> Iterator[None]:
    """Show what is said meanwhile on standard error, if wanted."""
    if not wanted:
        yield
        return
    before, lines = LOGGER.level, Lines()
    LOGGER.addHandler(lines)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
        LOGGER.removeHandler(lines)


def in_stars(n: int) -> str:
    """So many stars, in words."""
    return f"{n} star" if n == 1 else f"{n} stars"


def speed(stars_per_second: float) -> str:
    """A speed in words; of a few stars, whose programs take longer to compile than to run, it is no zero."""
    number = f"{stars_per_second:,.0f}" if stars_per_second >= 10 else f"{stars_per_second:.2g}"
    return f"{number} stars/s"
