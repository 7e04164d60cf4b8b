"""A catalogue in other formats, with units, UCDs and descriptions from the one schema.

In: the rows of a catalogue of any size, as they are or `flat`. Out: a file, or for HATS a folder. Files are written row
block by row block, so memory does not grow with the catalogue. A null stays one: NaN in floats, in VOTable the null bit,
in CSV and ECSV an empty cell.
"""

import base64
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xpbayes.data.parquet import METADATA_KEY
from xpbayes.errors import InputError
from xpbayes.files import reason_of, whole_file
from xpbayes.production.flat import flat_rows
from xpbayes.production.reader import Catalogue, Rows
from xpbayes.production.table import catalogue_about, items_of, write_catalogue
from xpbayes.schema import Column, astropy_metadata, columns_of

FORMATS = {"hats": "", "votable": ".vot", "fits": ".fits", "csv": ".csv", "ecsv": ".ecsv", "parquet": ".parquet"}
"""What `export` writes, and the suffix of each."""
ROWS_PER_PIXEL = 1_000_000
"""Most rows of one HATS partition: some 400 MB in memory."""
FINEST_ORDER, ORDER_OF_SMALL = 10, 6
"""HEALPix orders down to which HATS counts stars; hats-import takes half a minute for the finest, whatever the number
of stars, and a catalogue that fits into one partition needs no fine counts to be cut."""
FITS_BLOCK = 2880
"""FITS files are made of blocks of so many bytes."""
BINARY_TYPES: dict[pa.DataType, tuple[str, str, str]] = {
    pa.float32(): (">f4", "float", "E"),
    pa.float64(): (">f8", "double", "D"),
    pa.int64(): (">i8", "long", "K"),
    pa.int32(): (">i4", "int", "J"),
    pa.int16(): (">i2", "short", "I"),
    pa.int8(): (">i2", "short", "I"),
    pa.uint8(): ("u1", "unsignedByte", "B"),
    pa.uint16(): (">i4", "int", "J"),
    pa.uint32(): (">i8", "long", "K"),
    pa.bool_(): ("S1", "boolean", "L"),
}
"""Items of both binary formats as NumPy, VOTable and FITS call them."""
TITLE = "Stellar parameters from Gaia XP spectra (xpbayes)"


class BinaryColumn:
    """One column as both binary formats write it; `width` is that of text."""

    def __init__(self, column: Column, width: int) -> None:
        self.column, self.name = column, column.name
        kind = column.type
        self.is_list, self.is_text = pa.types.is_fixed_size_list(kind), pa.types.is_string(kind)
        self.count = kind.list_size if self.is_list else 1
        if self.is_text:
            self.item, self.votable, self.fits = f"S{width}", "char", f"{width}A"
        else:
            self.item, self.votable, self.fits = BINARY_TYPES[kind.value_type if self.is_list else kind]

    @property
    def unit(self) -> str:
        """The unit, if it is one: a vector of several quantities says its units in the description."""
        return "" if "," in self.column.unit else self.column.unit

    @property
    def description(self) -> str:
        """The description, with the units of a vector of several quantities."""
        mixed = f" [{self.column.unit}]" if "," in self.column.unit else ""
        return self.column.description + mixed

    def dtype(self) -> tuple[Any, ...]:
        """Entry of a NumPy record type."""
        return (self.name, self.item, (self.count,)) if self.is_list else (self.name, self.item)


def binary_columns(catalogue: Rows) -> list[BinaryColumn]:
    """Describe every column; reads the text columns once, for their widths."""
    width = {c.name: 1 for c in catalogue.columns if pa.types.is_string(c.type)}
    for table in catalogue.tables(list(width)) if width else ():
        width = {name: max(n, pc.max(pc.binary_length(table[name])).as_py() or 1) for name, n in width.items()}
    return [BinaryColumn(c, width.get(c.name, 1)) for c in catalogue.columns]


def fill_records(table: pa.Table, columns: list[BinaryColumn], out: NDArray[Any]) -> NDArray[np.bool_]:
    """Fill (row,) NumPy records with a table's rows; returns (row, column) which scalar cells are null."""
    null = np.zeros((table.num_rows, len(columns)), bool)
    for i, column in enumerate(columns):
        values = table[column.name].combine_chunks()
        if values.null_count and not column.is_list:
            null[:, i] = values.is_null().to_numpy(zero_copy_only=False)
        if column.is_text:
            out[column.name] = [b"" if v is None else v.encode() for v in values.to_pylist()]
        elif column.is_list:
            out[column.name] = items_of(values).to_numpy(zero_copy_only=False).reshape(-1, column.count)
        elif pa.types.is_boolean(values.type):
            known = values.fill_null(False).to_numpy(zero_copy_only=False)
            out[column.name] = np.where(null[:, i], b"?", np.where(known, b"T", b"F"))
        else:
            filled = values if pa.types.is_floating(values.type) else values.fill_null(0)
            out[column.name] = filled.to_numpy(zero_copy_only=False)
    return null


# ------------------------------------------------------------------------------------------------------------ VOTable


def write_votable(catalogue: Rows, path: Path) -> None:
    """Write a VOTable 1.4 with a BINARY2 stream, row block by row block."""
    columns = binary_columns(catalogue)
    n_flags = -(-len(columns) // 8)
    kind = np.dtype([("_null", "u1", (n_flags,)), *(c.dtype() for c in columns)])
    before, after = _votable_frame(columns, catalogue.n_rows).split(b"@DATA@")
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        stream.write(before)
        waiting = b""
        for table in catalogue.tables(None):
            records = np.zeros(table.num_rows, kind)
            null = fill_records(table, columns, records)
            padded = np.zeros((len(null), n_flags * 8), bool)
            padded[:, : len(columns)] = null
            records["_null"] = np.packbits(padded, axis=1)
            raw = waiting + records.tobytes()
            whole = len(raw) // 57 * 57  # 76 characters a line
            stream.write(base64.encodebytes(raw[:whole]))
            waiting = raw[whole:]
        stream.write(base64.encodebytes(waiting))
        stream.write(after)


def _votable_frame(columns: list[BinaryColumn], n_rows: int) -> bytes:
    """The XML around the data, by astropy, with @DATA@ where the data belong."""
    from astropy.io.votable.tree import Field, Resource, TableElement, VOTableFile

    file = VOTableFile(version="1.4")
    resource = Resource()
    file.resources.append(resource)
    table = TableElement(file, name="xpbayes", nrows=n_rows)
    table.description = TITLE
    resource.tables.append(table)
    for column in columns:
        about: dict[str, Any] = {"name": column.name, "ucd": column.column.ucd or None}
        if column.unit:
            about["unit"] = "'dex'" if column.unit == "dex" else column.unit  # no unit of VOUnit: bare it is 0.1 ex
        about["datatype"] = column.votable
        if column.is_text or column.count > 1:
            about["arraysize"] = column.item[1:] if column.is_text else str(column.count)
        field = Field(file, **about)
        field.description = column.description
        table.fields.append(field)
    out = BytesIO()
    file.to_xml(out)
    data = b'<DATA>\n<BINARY2>\n<STREAM encoding="base64">\n@DATA@</STREAM>\n</BINARY2>\n</DATA>\n'
    return out.getvalue().replace(b"</TABLE>", data + b"</TABLE>")


# --------------------------------------------------------------------------------------------------------------- FITS


def write_fits(catalogue: Rows, path: Path) -> None:
    """Write a FITS binary table, row block by row block.

    UCDs and descriptions stand in the keywords TUCDn and TCOMMn. An integer that is null is 0: FITS marks none.
    """
    from astropy.io import fits

    columns = binary_columns(catalogue)
    kind = np.dtype([c.dtype() for c in columns])
    header = fits.Header()
    header["XTENSION"] = ("BINTABLE", "binary table")
    header["BITPIX"], header["NAXIS"] = 8, 2
    header["NAXIS1"], header["NAXIS2"] = kind.itemsize, catalogue.n_rows
    header["PCOUNT"], header["GCOUNT"], header["TFIELDS"] = 0, 1, len(columns)
    header["EXTNAME"] = "XPBAYES"
    for i, column in enumerate(columns, 1):
        header[f"TTYPE{i}"] = column.name
        header[f"TFORM{i}"] = column.fits if column.is_text else f"{column.count}{column.fits}"
        if column.unit:
            header[f"TUNIT{i}"] = column.unit
        header[f"TUCD{i}"] = column.column.ucd
        header[f"TCOMM{i}"] = column.description
    primary = fits.PrimaryHDU()
    primary.header["TITLE"] = TITLE
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        stream.write(primary.header.tostring().encode("ascii"))
        stream.write(header.tostring().encode("ascii"))
        written = 0
        for table in catalogue.tables(None):
            records = np.zeros(table.num_rows, kind)
            null = fill_records(table, columns, records)
            for i, column in enumerate(columns):
                if column.item == "S1" and not column.is_text:
                    records[column.name][null[:, i]] = b"\0"
            written += stream.write(records.tobytes())
        stream.write(b"\0" * (-written % FITS_BLOCK))


# --------------------------------------------------------------------------------------------------- CSV, ECSV, Parquet


def write_csv(catalogue: Rows, path: Path) -> None:
    """Write CSV of flat columns, row block by row block; a cell without a value is empty."""
    _write_cells(catalogue, path, ())


def write_ecsv(catalogue: Rows, path: Path) -> None:
    """Write astropy's ECSV of flat columns: CSV under a header with types, units, UCDs and descriptions."""
    header = ["%ECSV 1.0", "---", "delimiter: ','", "datatype:"]
    for c in catalogue.columns:
        about = {"name": c.name, "datatype": {"float": "float32", "double": "float64"}.get(str(c.type), str(c.type))}
        about |= {"unit": c.unit} if c.unit else {}
        header.append(f"- {json.dumps(about | {'description': c.description, 'meta': {'ucd': c.ucd}})}")
    _write_cells(catalogue, path, [*header, f"meta: {json.dumps({'title': TITLE})}", "schema: astropy-2.0"])


def _write_cells(catalogue: Rows, path: Path, header: Sequence[str]) -> None:
    """Rows as comma-separated text; what is NaN in memory is an empty cell, which readers take for missing."""
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed")
    names = ",".join(c.name for c in catalogue.columns)
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        stream.write("".join([*(f"# {line}\n" for line in header), f"{names}\n"]).encode())
        for table in catalogue.tables(None):
            for i, column in enumerate(table.columns):
                if pa.types.is_floating(column.type):
                    known = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
                    table = table.set_column(i, table.field(i), known)
            pa_csv.write_csv(table, stream, options)


def write_flat_parquet(catalogue: Rows, path: Path) -> None:
    """Write Parquet of flat columns with units, UCDs and descriptions, as pandas, astropy and DuckDB open it."""
    schema = pa.schema([c.field() for c in catalogue.columns])
    schema = schema.with_metadata(
        {METADATA_KEY.decode(): json.dumps({"kind": "flat table"}), **astropy_metadata(schema)}
    )
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in catalogue.tables(None):
            writer.write_table(table.cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata))


WRITERS: dict[str, Callable[[Rows, Path], None]] = {
    ".parquet": write_flat_parquet,
    ".csv": write_csv,
    ".ecsv": write_ecsv,
    ".fits": write_fits,
    ".vot": write_votable,
}
"""What writes a file, by its suffix."""


def save_catalogue(catalogue: pa.Table, path: str | Path, *, flat: bool | None = None) -> Path:
    """Write a catalogue in memory to one file, in the format that its suffix names.

    Args:
        catalogue: what `infer` returned.
        path: file to write: .parquet, .csv, .ecsv, .fits or .vot.
        flat: flat columns, or those of the catalogue; flat in every format but Parquet if None.

    Raises:
        InputError: the suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    is_flat, about = check_suffix(path, flat=flat), catalogue_about(catalogue)
    own = [c.name for c in columns_of(about)]
    if not is_flat and path.suffix == ".parquet":
        return write_catalogue(catalogue, path)
    rows = Rows(len(catalogue), columns_of(about), lambda names: iter([catalogue.select(names or own)]))
    WRITERS[path.suffix](flat_rows(rows, about) if is_flat else rows, path)
    return path


OF_OTHER_FILES = {".txt", ".tsv", ".dat", ".xml", ".votable", ".fit", ".pq", ".h5", ".hdf5", ".gz", ".zip", ".json",
                  ".xlsx"}  # fmt: skip
"""Suffixes of files that catalogues are not written as: who asks for one does not want a folder."""


def check_folder(path: Path) -> None:
    """Raise InputError for the folder of a catalogue in parts that is named like a file."""
    if path.suffix.lower() in {*WRITERS, *OF_OTHER_FILES} and not path.is_dir():
        raise InputError(
            f"{path}: '{path.suffix}' is no format of catalogues; use {', '.join(WRITERS)}, or name a folder for parts"
        )


def check_suffix(path: Path, *, flat: bool | None = None) -> bool:
    """Whether a file is to hold flat columns: as asked for, else in every format but Parquet.

    Raises:
        InputError: nothing is written under that suffix, or not these columns.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"{path}: '{path.suffix}' is no format of catalogues; use {', '.join(WRITERS)}")
    if flat is False and path.suffix in (".csv", ".ecsv"):
        raise InputError(f"{path}: {path.suffix[1:].upper()} has one number a column; leave out --no-flat")
    return path.suffix != ".parquet" if flat is None else flat


# --------------------------------------------------------------------------------------------------------------- HATS


def write_hats(
    catalogue: Catalogue, path: Path, *, approximate_positions: bool = False, processes: int | None = None
) -> None:
    """Write a HATS catalogue, which LSDB opens: Parquet files by HEALPix pixel, for matching and cone searches.

    Args:
        catalogue, path: what to write, and the folder to make.
        approximate_positions: where ra and dec are missing, take the centre of the pixel in the source_id.
        processes: as for `engine.slots`.

    Raises:
        InputError: the folder exists or cannot be written, positions are missing, or hats-import is.
    """
    try:
        import hats_import  # noqa: F401
    except ImportError as error:
        raise InputError("exporting to HATS needs hats-import; pip install 'xpbayes[dist]'") from error
    if path.exists():
        raise InputError(f"{path}: exists already; choose another output")
    missing = sum(_without_position(t) for t in catalogue.tables(["ra", "dec"]))
    if missing and not approximate_positions:
        raise InputError(
            f"{missing} of {catalogue.n_rows} rows have no ra and dec, by which HATS is ordered; give the positions to "
            f"'xpbayes infer', or take them from the source_ids (to 0.9 arcmin) with --approximate-positions"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            schema = Path(scratch) / "schema.parquet"
            pq.write_table(pa.schema([c.field() for c in catalogue.columns]).empty_table(), schema)
            os.rename(_import(catalogue, Path(scratch), path.name, schema, processes), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason_of(error)}); choose another output") from error


def _without_position(table: pa.Table) -> int:
    ra, dec = (np.asarray(table[n].to_numpy(zero_copy_only=False), np.float64) for n in ("ra", "dec"))
    return int((~(np.isfinite(ra) & np.isfinite(dec))).sum())


def _import(catalogue: Catalogue, scratch: Path, name: str, schema: Path, processes: int | None) -> Path:
    from distributed import Client
    from hats_import.catalog.arguments import ImportArguments
    from hats_import.pipeline import pipeline_with_client

    from xpbayes.production.engine import local_cluster, slots
    from xpbayes.production.hats import CatalogueReader

    arguments = ImportArguments(
        output_path=scratch / "made",
        output_artifact_name=name,
        input_file_list=list(catalogue.files),
        file_reader=CatalogueReader(catalogue.about),
        ra_column="ra",
        dec_column="dec",
        sort_columns=catalogue.columns[0].name,
        use_schema_file=schema,
        pixel_threshold=ROWS_PER_PIXEL,
        highest_healpix_order=FINEST_ORDER if catalogue.n_rows > ROWS_PER_PIXEL else ORDER_OF_SMALL,
        expected_total_rows=catalogue.n_rows,
        tmp_dir=scratch,
        progress_bar=False,
    )
    workers = slots(processes)[: -(-catalogue.n_rows // ROWS_PER_PIXEL) or 1]  # more have nothing to do but to start
    with local_cluster(workers) as cluster, Client(cluster) as client:
        try:
            pipeline_with_client(arguments, client)
        except RuntimeError as error:  # a worker's own error, which hats-import prints but does not hand on
            raise InputError(
                f"{scratch.parent / name}: cannot be written ({reason_of(error)}); the workers' messages are above"
            ) from error
    return scratch / "made" / name
