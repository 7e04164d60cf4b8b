"""The command line: parse, call one function of `runs`, print. No mathematics here, no heavy import at the top."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated

import typer

from xpbayes.cli import catalogue, model  # noqa: F401  (the verbs join the application)
from xpbayes.cli.options import app
from xpbayes.errors import InputError


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from xpbayes import __version__

        print(__version__)
        raise typer.Exit


class TerminatedError(BaseException):
    """The process was asked to end: whatever is open is closed on the way out, as for an interruption."""


def _terminate(number: int, frame: object) -> None:
    raise TerminatedError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: a user's mistake is one sentence and exit status 2, an interruption 130, SIGTERM 143.

    The arguments are those that the process was started with if None.
    """
    # Before NumPy is imported anywhere: many small factorisations are far slower with several BLAS threads each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            app(arguments)
        finally:
            if sys.stdout is not None:  # it is closed
                sys.stdout.flush()  # here a full disk can still be said in words
    except InputError as error:
        print(f"xpbayes: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # files are read and written in words of their own; what is left is the output itself
        if sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries once more on its way out
        if error.errno == errno.EPIPE:
            sys.exit(1)  # nobody reads on: not worth a word
        where = error.filename or "standard output"
        print(f"xpbayes: {where}: cannot be read or written ({error.strerror or error})", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("xpbayes: interrupted; nothing half-written is left under a final name", file=sys.stderr)
        sys.exit(130)
    except TerminatedError:
        print("xpbayes: terminated; nothing half-written is left under a final name", file=sys.stderr)
        sys.exit(143)
