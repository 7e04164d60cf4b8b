"""Spectra with nothing joined to them but what their own table holds: of one file, or of a table that is in memory.

A table in memory goes through the same doors as a file: identifiers, units, missing values and shapes are decided there.
"""

import logging
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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


def spectra_of_file(path: Path, release: str | None = None) -> Spectra:
    """Read and calibrate all spectra of one file; parallaxes and positions of the same file are taken along.

    It is of a data release, or as its coefficients say if None. InputError: it has no spectra, or none of its rows can be
    used.
    """
    gaia = None
    if "parallax" in {n.lower() for n in column_names(path)}:
        gaia = read_gaia_source([path], options=ReadOptions(release=release))
    companions = Companions(gaia, None, None, None, None, None, (), {})
    survey = SurveySettings(release=release, bands=(), select="all", xp=XpSettings(files=(str(path),)))
    parts = list(stream_file(survey, path, companions, SeenIds()))
    rejected = [row for part in parts for row in part.rejected]
    tables = [part.table for part in parts if len(part.table)]
    sentence = ""
    if rejected:
        sentence = f"{len(rejected)} rows cannot be used (first: row {rejected[0].row}, {rejected[0].reason})"
    if not tables:
        raise InputError(f"{path}: has no spectrum that can be used{'; ' if sentence else ''}{sentence}")
    if sentence:
        log.warning("%s: %s", path, sentence)
    return join_star_tables(tables, [path.name] * len(tables))


def spectra_of_table(rows: Any, release: str | None = None) -> Spectra:
    """Calibrate the spectra of a pandas, astropy or Arrow table with Gaia's own column names.

    InputError: it is no table, has no spectra, or none of its rows can be used.
    """
    path = Path(f"<table {next(NUMBER)} in memory>")
    MOUNTED[path] = _raw_table(rows)
    try:
        return spectra_of_file(path, release)
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
    columns = {str(n): _cells(rows[n]) for n in names}
    return RawTable(("0",), tuple(columns), sliced(len(rows), lambda part, name: columns[name][part]), units)


def _cells(column: Any) -> Any:
    """A column as NumPy array, masked where it has nulls, or as list of cells where these are arrays or text."""
    if hasattr(column, "to_pylist"):  # Arrow; its integers with nulls stay integers
        is_number = str(column.type).startswith(("int", "uint", "float", "double", "halffloat"))
        return column.to_numpy() if is_number and not column.null_count else column.to_pylist()
    if not hasattr(column, "to_numpy"):  # astropy, or an array
        return np.ma.MaskedArray(column)
    values = column.to_numpy()
    if values.dtype.kind in "biuf":
        return values
    return [None if np.ndim(value) == 0 and pd.isna(value) else value for value in values]
