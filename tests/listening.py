"""What xpbayes says while it works, as a list of lines."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xpbayes.progress import LOGGER


class _Ear(logging.Handler):
    def __init__(self, react: Callable[[str], object]) -> None:
        super().__init__()
        self._react = react

    def emit(self, record: logging.LogRecord) -> None:
        self._react(record.getMessage())


@contextmanager
def heard(react: Callable[[str], object] | None = None) -> Iterator[list[str]]:
    """Collect the lines, or do something at each."""
    lines: list[str] = []
    ear, before = _Ear(react or lines.append), LOGGER.level
    LOGGER.addHandler(ear)
    LOGGER.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        LOGGER.removeHandler(ear)
        LOGGER.setLevel(before)
