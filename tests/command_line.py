"""`xpbayes` as a user runs it, but in this process: what was imported and compiled for one test serves the next."""

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout

from xpbayes.cli import main


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one command and return what the operating system would see of it; an uncaught exception is the test's."""
    words, code = list(map(str, arguments)), 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def refused(*arguments: object) -> str:
    """Run, expect a refusal, and return its one sentence."""
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("xpbayes: ")]
    assert len(lines) == 1 and result.stdout == ""
    return lines[0]
