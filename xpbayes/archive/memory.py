"""Spectra with nothing joined to them but what their own table holds: of one file, or of a table that is in memory.

A table in memory goes through the same doors as a file: identifiers, units, missing values and shapes are decided there.
"""

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from xpbayes.archive.arrays import cells
from xpbayes.archive.columns import ReadOptions
from xpbayes.archive.companion_table import SeenIds
from xpbayes.archive.companions import Companions
from xpbayes.archive.gaia_source import read_gaia_source
from xpbayes.archive.open_file import MOUNTED
from xpbayes.archive.raw_table import RawTable, sliced
from xpbayes.archive.stream import stream_file
from xpbayes.archive.survey_config import SurveySettings, XpSettings
from xpbayes.archive.tables import column_names
from xpbayes.data.spectra import Spectra, join_star_tables
from xpbayes.errors import InputError

log = logging.getLogger(__name__)
NUMBER = count(1)


def spectra_of_files(path: Path, files: Sequence[Path], release: str | None = None) -> Spectra:
    """Read and calibrate all spectra of files, which `path` stands for; their own parallaxes and positions come along.

    They are of a data release, or as their coefficients say if None. InputError: there are no spectra, or none of the rows
    can be used.
    """
    with_parallax = [file for file in files if "parallax" in {n.lower() for n in column_names(file)}]
    gaia = read_gaia_source(with_parallax, options=ReadOptions(release=release)) if with_parallax else None
    companions = Companions(gaia, None, None, None, None, None, (), {})
    survey = SurveySettings(release=release, bands=(), select="all", xp=XpSettings(files=tuple(map(str, files))))
    seen = SeenIds()
    parts = [part for file in files for part in stream_file(survey, file, companions, seen)]
    rejected = [row for part in parts for row in part.rejected]
    tables = [part.table for part in parts if len(part.table)]
    names = [str(table.provenance["source"]) for table in tables]
    sentence = ""
    if rejected:
        first = rejected[0]
        sentence = f"{len(rejected)} rows cannot be used (first: {first.file}, row {first.row}, {first.reason})"
    if not tables:
        raise InputError(f"{path}: has no spectrum that can be used{'; ' if sentence else ''}{sentence}")
    if sentence:
        log.warning("%s: %s", path, sentence)
    return join_star_tables(tables, names)


def spectra_of_table(rows: Any, release: str | None = None) -> Spectra:
    """Calibrate the spectra of a pandas, astropy or Arrow table with Gaia's own column names.

    InputError: it is no table, has no spectra, or none of its rows can be used.
    """
    path = Path(f"<table {next(NUMBER)} in memory>")
    MOUNTED[path] = _raw_table(rows)
    try:
        return spectra_of_files(path, [path], release)
    finally:
        del MOUNTED[path]


def _raw_table(rows: Any) -> RawTable:
    """Any table by its columns, as the format modules hand on those of a file."""
    names = getattr(rows, "colnames", None) or getattr(rows, "column_names", None) or getattr(rows, "columns", None)
    if names is None or not hasattr(rows, "__len__"):
        raise InputError(
            f"a {type(rows).__name__} is no table; give a pandas, astropy or Arrow table of XP coefficients"
        )
    units = {n: str(u) for n in names if (u := getattr(rows[n], "unit", None)) is not None}
    columns = {str(n): cells(rows[n]) for n in names}
    return RawTable(("0",), tuple(columns), sliced(len(rows), lambda part, name: columns[name][part]), units)
