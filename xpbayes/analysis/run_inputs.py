"""What the analyses read: a model, a catalogue of any size, a star table of any size, and files that the user names.

In: a folder as `xpbayes demo` leaves it, or single paths. Out: `Run`, whose `rows` streams the catalogue once, joined
with columns of the star table by source_id. Nothing is refitted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xpbayes.channels import Channels
from xpbayes.data.join import Lookup
from xpbayes.data.parquet import column_names, open_parquet, read_footer, read_parquet, read_together
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.spectra_file import MATRICES, read_header, star_table_files
from xpbayes.errors import InputError, nearest
from xpbayes.instrument.instrument import DEFAULT_ID, InstrumentId
from xpbayes.instrument.transfer import Transfer
from xpbayes.production.meeting import moved_by, require_fitting, require_same_stars
from xpbayes.production.model_file import CARD, TrainedModel, load_model
from xpbayes.production.reader import Catalogue, open_catalogue

T = TypeVar("T")
ROWS_AT_ONCE = 65_536
STARS_AT_ONCE = 2_048
"""Stars whose fluxes and whitening factors are in memory together: 16 MB."""


@dataclass(frozen=True)
class StarFiles:
    """A star table on disk, one file or several, of which only some columns are wanted at a time."""

    files: tuple[Path, ...]  # Parquet
    channels: Channels  # of the fluxes
    label_names: tuple[str, ...]
    names: frozenset[str]  # columns that all files have
    n_rows: int  # stars
    instrument: InstrumentId = DEFAULT_ID  # what the XP samples were calibrated with
    transfer: Transfer | None = None  # applied to the fluxes that are handed out, where they are of its source
    wanted: Channels | None = None  # of the fluxes that are handed out; the files' own if None

    def seen_by(self, model: TrainedModel, where: str) -> "StarFiles":
        """The same stars as a model takes them; InputError as `require_fitting`."""
        require_fitting(model, self.channels, self.instrument, where)
        return replace(self, transfer=model.transfer, wanted=model.channels)

    def columns(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """(star,) each of scalar columns, all stars; a number that is missing, or a column that is, is NaN."""
        out = {n: np.full(self.n_rows, np.nan) for n in names if n not in self.names}
        for name in dict.fromkeys(n for n in names if n in self.names):  # one by one: half the memory at the peak
            out[name] = read_together(self.files, partial(read_parquet, columns=[name]))[name].to_numpy()
        return out

    def _groups(self, most: int | None) -> list[tuple[Path, int]]:
        """Row groups to read: all, or evenly spaced ones that hold about so many stars."""
        groups = [(path, k) for path in self.files for k in range(read_footer(path)[0].num_row_groups)]
        return groups if most is None else groups[:: max(1, -(-self.n_rows // most))]

    def sampled_ids(self, most: int | None) -> NDArray[np.int64]:
        """(star,) source_ids of the stars that `batches` hands out."""
        parts = []
        for path, k in self._groups(most):
            with open_parquet(path) as file:
                parts.append(file.read_row_group(k, columns=["source_id"])["source_id"].to_numpy())
        return np.concatenate(parts)

    def batches(self, most: int | None = None) -> Iterator[Spectra]:
        """Stars with fluxes and whitening factors, `STARS_AT_ONCE` at a time; of the same row groups."""
        names = ["source_id", *(n for n in MATRICES if n in self.names)]
        for path, k in self._groups(most):
            with open_parquet(path) as file:
                for batch in file.iter_batches(STARS_AT_ONCE, row_groups=[k], columns=names):
                    yield self._table(pa.Table.from_batches([batch]))

    def _table(self, rows: pa.Table) -> Spectra:
        none = np.zeros((len(rows), 0), np.float32)
        there = {n: np.asarray(_numbers(rows[n]), np.float32) for n in MATRICES if n in rows.column_names}
        flux, whitening, bands = (there.get(n, none) for n in MATRICES)
        source_id = rows["source_id"].to_numpy()
        table = Spectra(
            self.channels, self.label_names, source_id, flux, whitening, bands, {}, instrument=self.instrument
        )
        table = table if self.wanted is None else table.on(self.wanted)
        return table if self.transfer is None else moved_by(self.transfer, table)[0]


def open_stars(path: str | Path) -> StarFiles:
    """Find the files of a star table; InputError if none is there, one is of another kind, or their channels differ."""
    files = tuple(star_table_files(path))
    headers = [read_header(file) for file in files]
    first = headers[0][0]
    for file, (header, _) in zip(files, headers, strict=True):
        first.channels.require_same(header.channels, files[0].name, file.name)
        first.instrument.require_same(header.instrument, files[0].name, file.name)
    names = frozenset.intersection(*(frozenset(column_names(file)) for file in files))
    return StarFiles(files, first.channels, first.labels, names, sum(n for _, n in headers), first.instrument)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a catalogue, with what the star table knows about the same stars."""

    columns: Mapping[str, NDArray[Any]]  # (row,) or (row, item) of the catalogue; missing numbers are NaN
    joined: Mapping[str, NDArray[Any]]  # of the star table; NaN for a star that is not there
    solved: NDArray[np.bool_]  # (row,) which have a solution

    def __len__(self) -> int:
        return len(self.solved)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]


def apply_cuts(
    keep: NDArray[np.bool_], passed: Mapping[str, NDArray[np.bool_]], taken: dict[str, int]
) -> NDArray[np.bool_]:
    """(star,) which of those to keep pass all cuts; `taken` counts on how many stars each was the first to take."""
    keep = keep.copy()
    for name, good in passed.items():
        taken[name] = taken.get(name, 0) + int((keep & ~good).sum())
        keep &= good
    return keep


def in_words(taken: Mapping[str, int]) -> str:
    """Which cuts took how many stars, "none" if none did."""
    return ", ".join(f"{what}: {count:,}" for what, count in taken.items() if count) or "none"


@dataclass(frozen=True)
class Run:
    """Finished products, and what else the user brought."""

    model: TrainedModel | None = None
    catalogue: Catalogue | None = None
    stars: StarFiles | None = None  # that the catalogue was inferred from
    external: Path | None = None  # table of another survey's labels,
    survey: str = "custom"  # a name in `archive.label_surveys.SURVEYS`
    clusters: Path | None = None  # table of globular clusters
    dust_map: Path | None = None  # folder of `xpbayes dustmap`
    curve: Path | None = None  # a published extinction curve
    sfd: Path | None = None  # folder of the SFD maps; the dustmaps package's own if None
    shared: dict[str, Any] = field(default_factory=dict)  # what several figures gather together

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Make a thing when it is first asked for, and hand out the same one from then on."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels of model and catalogue."""
        if self.model is not None:
            return self.model.labels
        return tuple(self.catalogue.about["labels"]) if self.catalogue is not None else ()

    @property
    def uses_parallax(self) -> bool:
        """Whether any star's parallax took part in the catalogue."""
        return self.catalogue is not None and bool(self.catalogue.about.get("n_with_parallax", 0))

    def star_column(self, name: str) -> bool:
        """Whether the star table has a column."""
        return self.stars is not None and name in self.stars.names

    def rows(self, reads: Sequence[str], joins: Sequence[str]) -> Iterator[Rows]:
        """Stream columns of the catalogue and the star table; InputError if a file is damaged or lacks a column."""
        assert self.catalogue is not None
        wanted = list(dict.fromkeys(("status", *(("source_id",) if joins else ()), *reads)))
        _require(self.catalogue, wanted)
        lookup, columns = None, {}
        if joins and self.stars is not None:
            columns = self.stars.columns(("source_id", *joins))
            lookup = Lookup.of(columns.pop("source_id"))
        for table in self.catalogue.tables(wanted, ROWS_AT_ONCE):
            values = {name: _numbers(table[name]) for name in reads}
            joined: dict[str, NDArray[Any]] = {}
            if lookup is not None:
                row = lookup.rows(table["source_id"].to_numpy())
                for name in joins:
                    joined[name] = np.where(row >= 0, columns[name][row].astype(np.float64), np.nan)
            yield Rows(values, joined, np.asarray(pc.fill_null(pc.equal(table["status"], OK), False)))


def _require(catalogue: Catalogue, names: Sequence[str]) -> None:
    for file in catalogue.files:
        there = column_names(file)
        missing = next((name for name in names if name not in there), None)
        if missing is not None:
            raise InputError(
                f"{file}: has no column '{missing}'{nearest(missing, there)}; infer it again with this xpbayes"
            )


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """(row,) or (row, item); floating, NaN where null, unless it is of integers or booleans without nulls."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=False)


CANDIDATES = {
    "model": ("model",),
    "catalogue": ("catalogue.parquet", "catalogue"),
    "stars": ("stars.parquet", "stars"),
    "external": tuple(f"external.{s}" for s in ("parquet", "fits", "csv", "ecsv", "vot")),
    "clusters": tuple(f"clusters.{s}" for s in ("ecsv", "csv", "fits", "parquet", "vot")),
    "dust_map": ("map", "dust_map"),
    "curve": ("extinction_curve.txt",),
}
"""What each input is called inside the folder of a run."""


def find_inputs(folder: Path | None, named: dict[str, Path | None]) -> dict[str, Path]:
    """Say where the inputs are: what the user named, by the names of `CANDIDATES`, else what the folder holds.

    InputError if a named path is not there, the folder is not, or it holds nothing to analyse.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: is no folder of a run; name one, or use --model and --catalogue")
    found: dict[str, Path] = {}
    for name, candidates in CANDIDATES.items():
        path = named.get(name)
        if path is not None:
            if not path.exists():
                raise InputError(f"{path}: no such file or folder; check --{name.replace('_', '-')}")
            found[name] = path
        elif folder is not None:
            inside = [folder / c for c in candidates if (folder / c).exists()]
            if inside:
                found[name] = inside[0]
    if not {"model", "catalogue"} & found.keys():
        raise InputError(
            f"{folder or 'nothing'}: holds neither a model (model/{CARD}) nor a catalogue (catalogue.parquet or "
            f"catalogue/); name them with --model and --catalogue"
        )
    return found


def require_model(about: dict[str, Any], model: TrainedModel, where: str) -> None:
    """Raise InputError for a catalogue, of this name, that says of itself that another model made it."""
    if tuple(about["labels"]) != model.labels:
        raise InputError(f"{where}: was made with labels {about['labels']}, the model has {model.labels}")
    if about.get("model", {}).get("arrays_checksum") not in (None, model.card.get("arrays_checksum")):
        raise InputError(f"{where}: was made with another model; name the model that made it")


def open_run(paths: dict[str, Path], survey: str = "custom", sfd: Path | None = None) -> Run:
    """Open what `find_inputs` found; InputError if something is damaged, unfinished, or belongs to another model."""
    model = load_model(paths["model"]) if "model" in paths else None
    catalogue = open_catalogue(paths["catalogue"]) if "catalogue" in paths else None
    stars = open_stars(paths["stars"]) if "stars" in paths else None
    if model is not None and catalogue is not None:
        require_model(catalogue.about, model, str(paths["catalogue"]))
    if model is not None and stars is not None:
        stars = stars.seen_by(model, str(paths["stars"]))
    if catalogue is not None and stars is not None:
        require_same_stars(catalogue.about, stars.instrument, str(paths["catalogue"]), str(paths["stars"]))
    rest: dict[str, Any] = {name: paths.get(name) for name in ("external", "clusters", "dust_map", "curve")}
    return Run(model=model, catalogue=catalogue, stars=stars, survey=survey, sfd=sfd, **rest)
