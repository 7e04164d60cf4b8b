"""The one kind of error a user is meant to read.

`InputError` is raised where files, settings or arguments come in. Its text is one sentence: where, how many, which one
first, what to do. The command line prints it without a traceback and exits with status 2.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used. The message is complete in itself, and on one line.

    Names that come from files may hold anything: what does not print - line ends, a terminal's commands - is escaped.
    """

    def __init__(self, sentence: object = "") -> None:
        text = str(sentence)
        printed = text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        super().__init__(printed)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
