"""The one kind of error a user is meant to read.

`InputError` is raised where files, settings or arguments come in. Its text is one sentence: where, how many, which one
first, what to do. The command line prints it without a traceback and exits with status 2.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used. The message is complete in itself."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
