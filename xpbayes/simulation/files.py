"""Writers of the official file formats: bulk XP_CONTINUOUS, Gaia source, 2MASS, unWISE, labels, reddening.

In: plain arrays as a survey would have measured them. Out: the files that the archive's readers know.
"""

import gzip
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.files import whole_file
from xpbayes.simulation.spectra import ObservedXp

BULK_SIDE = (
    "basis_function_id",
    "degrees_of_freedom",
    "n_parameters",
    "n_measurements",
    "n_rejected_measurements",
    "standard_deviation",
    "chi_squared",
    "coefficients",
    "coefficient_errors",
    "coefficient_correlations",
    "n_relevant_bases",
    "relative_shrinking",
)
BULK_COLUMNS = ("source_id", "solution_id", *(f"{s}_{c}" for s in ("bp", "rp") for c in BULK_SIDE))
"""Columns of XpContinuousMeanSpectrum, in order."""
SOLUTION_ID = 4545469030156206080
DOUBLE, SINGLE = "%.17g", "%.9g"
"""Digits that give a float64 or a float32 back to the last bit."""


def write_bulk(path: Path, blocks: Iterable[ObservedXp]) -> Path:
    """Write the archive's bulk layout: an ECSV header in comments, arrays as "[...]", missing as null; gzip."""
    with (
        whole_file(path) as temporary,
        open(temporary, "wb") as packed,
        gzip.GzipFile(path.name.removesuffix(".gz"), "wb", compresslevel=4, fileobj=packed) as plain,
        io.TextIOWrapper(plain, encoding="ascii", newline="\n") as stream,
    ):
        stream.write("# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n")
        for name in BULK_COLUMNS:
            stream.write(f"# -\n#   name: {name}\n#   datatype: {_ecsv_type(name)}\n")
            if "coefficient" in name:
                stream.write(f"#   subtype: '{'float64' if name.endswith('coefficients') else 'float32'}[null]'\n")
        stream.write(",".join(BULK_COLUMNS) + "\n")
        for block in blocks:
            for i, source_id in enumerate(block.source_id.tolist()):
                cells = [str(source_id), str(SOLUTION_ID)]
                for identifier, side in (("56", block.bp), ("57", block.rp)):
                    if not side.present[i]:
                        cells += ["null"] * len(BULK_SIDE)
                        continue
                    assert side.correlation is not None  # always simulated
                    k = str(side.n_coefficients)
                    cells += [identifier, "2000", k, "2055", "5", SINGLE % side.standard_deviation[i], "2000.0"]
                    cells += [_array(DOUBLE, side.coefficient[i]), _array(SINGLE, side.error[i])]
                    cells += [_array(SINGLE, side.correlation[i]), k, "1.0"]
                stream.write(",".join(cells) + "\n")
    return path


def _ecsv_type(name: str) -> str:
    if name in ("source_id", "solution_id"):
        return "int64"
    if "coefficient" in name:
        return "string"
    return "float32" if "deviation" in name or "chi" in name else "int16"


def _array(form: str, values: NDArray[np.float64]) -> str:
    return f'"[{",".join([form] * len(values)) % tuple(values.tolist())}]"'


def write_csv(path: Path, columns: Mapping[str, tuple[str, NDArray[np.generic]]]) -> Path:
    """Write scalar columns as CSV, gzip if the name says so.

    Args:
        path: the file.
        columns: name -> (printf format, (row,) values).
    """
    form = ",".join(kind for kind, _ in columns.values())
    lines = [",".join(columns)]
    lines += [form % row for row in zip(*(values.tolist() for _, values in columns.values()), strict=True)]
    text = ("\n".join(lines) + "\n").encode()
    with whole_file(path) as temporary:
        temporary.write_bytes(gzip.compress(text, compresslevel=4) if path.suffix == ".gz" else text)
    return path
