"""Files as they are, without a survey.toml: which of them hold spectra, and which tables beside them belong to these.

In: files of XP spectra in any format, folders of them, patterns, HATS catalogues. Out: a `Survey` with the same settings
that `as_toml` writes, so that the files and the survey.toml made of them are the same input. Files are told by their
columns alone. Star tables and survey.toml files are passed on as they are.
"""

import glob
import hashlib
import json
import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xpbayes.archive.columns import SOURCE_ID, Column
from xpbayes.archive.gaia_source import MEASURED
from xpbayes.archive.label_surveys import OWN_LABELS, LabelColumns, surveys_of
from xpbayes.archive.open_file import SUFFIXES, TEXT
from xpbayes.archive.photometric import BANDS_OF, TWO_MASS_FIELDS, TWO_MASS_MAGNITUDES, UNWISE_FIELDS, UNWISE_MEASURED
from xpbayes.archive.reddening import FIELDS as REDDENING_FIELDS
from xpbayes.archive.survey_config import Survey, check_survey, expand, hats_files, open_survey
from xpbayes.archive.tables import column_names
from xpbayes.archive.xp import product_of
from xpbayes.channels import Channels
from xpbayes.data.parquet import METADATA_KEY, is_parquet
from xpbayes.data.spectra_file import read_header, star_table_files
from xpbayes.errors import InputError, nearest
from xpbayes.files import refuse_repeated

log = logging.getLogger(__name__)

KINDS = {"gaia": "Gaia's source table", "two_mass": "2MASS", "unwise": "unWISE"}
"""Tables that are joined to spectra without labels, by their sections in survey.toml."""
MOST_LOOKED_AT = 100
"""Files beside the spectra whose columns are looked at; a folder of more is an archive, not a user's desk."""
Named = str | PathLike[str]
CompanionFiles = Mapping[str, Named | Sequence[Named]] | None
"""Kind of table -> its files, as `open_inputs` takes them."""
Input = Path | Survey
"""A star table or a folder of them, and what was made of anything else."""


def open_inputs(inputs: Named | Survey | Sequence[Named | Survey], companions: CompanionFiles = None) -> list[Input]:
    """Find out what inputs are.

    Star tables, folders of them and survey.toml files stay as they are; files of XP spectra, folders or patterns of them,
    and HATS catalogues together make one survey. `companions`, kind of table -> its files, none if empty, belong to
    these; kinds that are not named are looked for in the files of spectra and beside them.

    Raises:
        InputError: there is no such file; a file has neither spectra nor stars; several tables could be a companion;
            companions are named for what is no file of spectra.
    """
    named = {kind: _listed(files) for kind, files in (companions or {}).items()}
    for kind in named.keys() - KINDS.keys():
        raise InputError(f"there is no table '{kind}'{nearest(kind, KINDS)} to join to spectra; use {', '.join(KINDS)}")
    found: list[Input] = []
    spectra: list[Path] = []
    at = 0
    listed = [inputs] if isinstance(inputs, str | PathLike | Survey) else inputs
    for given in listed:
        one = given if isinstance(given, Survey) else Path(given)
        if isinstance(one, Survey):
            found.append(one)
        elif one.suffix == ".toml":
            found.append(open_survey(one))
        else:
            new = list(spectra_in(one))
            at = at if spectra or not new else len(found)
            spectra += new
            found += [] if new else [one]
    if twice := [path for path in spectra if spectra.count(path) > 1]:
        raise InputError(f"{twice[0]}: is named twice among the inputs; name every file once")
    if spectra:
        refuse_repeated(expand(tuple(glob.escape(str(path)) for path in spectra), Path()))
        found.insert(at, _survey_of(spectra, named))
    elif files := [file for listed in named.values() for file in listed]:
        raise InputError(
            f"{files[0]}: is for files of spectra, and none is named; a survey.toml names its own tables, star tables have "
            f"theirs joined"
        )
    return found


def _listed(files: Named | Sequence[Named]) -> tuple[str, ...]:
    return (str(files),) if isinstance(files, str | PathLike) else tuple(map(str, files))


def spectra_in(given: Path) -> Iterator[Path]:
    """Files of XP spectra, or HATS folders, that an input stands for; none where it is a star table, or a folder of them."""
    if glob.has_magic(str(given)) and not given.exists():
        names = sorted(glob.glob(str(given), recursive=True))
        if not names:
            raise InputError(f"{given}: no such file; check the path")
        for name in names:
            yield from spectra_in(Path(name)) if not Path(name).is_dir() or hats_files(Path(name)) else ()
    elif given.is_dir():
        if hats_files(given):
            yield given
        elif not any(_is_ours(path) for path in given.glob("*.parquet")):
            found = [path for path in _tables_in(given) if _are_spectra(_columns(path))]
            if not found:
                raise InputError(
                    f"{given}: holds neither files of XP spectra nor star tables (.parquet); check the path"
                )
            yield from found
    elif given.is_file() and not _is_ours(given):
        names = column_names(given)
        if product_of(names) is None and given.suffix != ".parquet":
            looks_like = next((f"; as {KINDS[k]} it is named by --{k.replace('_', '-')}" for k in kinds_of(names)), "")
            raise InputError(
                f"{given}: has neither coefficients (bp_coefficients, rp_coefficients) nor sampled fluxes (flux, "
                f"flux_error); name a file of Gaia XP spectra, a star table or a survey.toml{looks_like}"
            )
        yield from [given] if product_of(names) else []


def _are_spectra(names: set[str]) -> bool:
    """Whether columns are those of spectra beyond doubt: other tables, too, have a flux."""
    return product_of(names) == "continuous" or (
        product_of(names) == "sampled" and any("flux" in name and "err" in name for name in names)
    )


def _is_ours(path: Path) -> bool:
    """Whether a file is Parquet of xpbayes, or is damaged: the reader of star tables says how."""
    try:
        if not is_parquet(path):
            return path.suffix == ".parquet"
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return True


def _tables_in(folder: Path) -> list[Path]:
    """Files of a folder that can be tables, by their suffixes, and its HATS catalogues."""
    known = {*TEXT, *SUFFIXES, ".zip"}

    def can_be(path: Path) -> bool:
        suffix = path.suffix.lower() if path.suffix.lower() != ".gz" else Path(path.stem).suffix.lower()
        return bool(hats_files(path)) if path.is_dir() else suffix in known and path.is_file()

    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and can_be(path))


def _columns(path: Path) -> set[str]:
    """Lower-case names of a file's columns, or of a HATS catalogue's; none where it cannot be read, or is ours."""
    if path.is_dir():
        return next((_columns(file) for file in hats_files(path)), set())
    if path.suffix == ".parquet" and _is_ours(path):
        return set()
    try:
        return {name.lower() for name in column_names(path)}
    except InputError:
        return set()


# --------------------------------------------------------------------------------------------------------- companions


def _names(columns: Iterable[Column], wanted: Sequence[str]) -> set[str]:
    return {alias for column in columns if column.name in wanted for alias in column.all_names}


TOLD_BY = {
    "gaia": [_names(MEASURED.values(), ["parallax"]), _names(MEASURED.values(), ["parallax_error"])],
    "two_mass": [_names(TWO_MASS_FIELDS, TWO_MASS_MAGNITUDES), _names(TWO_MASS_FIELDS, ["ph_qual"])],
    "unwise": [_names(UNWISE_FIELDS, UNWISE_MEASURED)],
}
"""What is to be found by itself must be beyond doubt: 2MASS with its quality flags, parallaxes with their errors."""


def kinds_of(names: Iterable[str]) -> list[str]:
    """Which companion tables a file with these columns can be: with an identifier and one of each group of columns."""
    here = {name.lower() for name in names}
    identifiers = set(SOURCE_ID.all_names)
    return [kind for kind, groups in TOLD_BY.items() if all(here & group for group in (identifiers, *groups))]


def _survey_of(spectra: list[Path], named: Mapping[str, tuple[str, ...]]) -> Survey:
    """The survey of some files of spectra, with tables as named, or found."""
    tables = {kind: list(files) for kind, files in named.items() if files}
    wanted = [kind for kind in KINDS if kind not in named]
    said = {kind: ", ".join(Path(f).name for f in files) for kind, files in tables.items()}
    remarks: list[str] = []
    if wanted:
        own = {path: _columns(path) for path in spectra[:MOST_LOOKED_AT]}
        beside, n_beside = _beside(spectra, {str(f) for listed in named.values() for f in listed})
        for kind in wanted:
            inside = [str(path) for path, names in own.items() if kind in kinds_of(names)]
            near = [str(path) for path, names in beside.items() if kind in kinds_of(names)]
            if len(near) > 1 and not inside:
                raise InputError(
                    f"{near[0]} and {len(near) - 1} more tables beside the spectra could be {KINDS[kind]}; say which with "
                    f"--{kind.replace('_', '-')}, or --alone to go without"
                )
            if inside or near:
                tables[kind] = inside or near
                said[kind] = (
                    f"{', '.join(Path(p).name for p in inside or near)} ({'the spectra' if inside else 'found beside'})"
                )
        have_positions = own and all({"source_id", "ra", "dec"} <= names for names in own.values())
        if "gaia" in wanted and "gaia" not in tables and have_positions:
            tables["gaia"], said["gaia"] = list(map(str, own)), "the spectra (positions alone)"
        if "two_mass" in wanted and "two_mass" not in tables:
            near = [path.name for path, names in (own | beside).items() if "two_mass" in kinds_of([*names, "ph_qual"])]
            if near:
                remarks.append(f"{near[0]} has 2MASS magnitudes without ph_qual, and is left out")
        if n_beside > MOST_LOOKED_AT:
            remarks.append(f"{n_beside} files beside the spectra were not looked at")
    lacking = [title for kind, title in KINDS.items() if kind not in tables]
    parts = [*(f"{KINDS[kind]} from {where}" for kind, where in said.items()), *remarks]
    name = spectra[0].name if len(spectra) == 1 else f"{spectra[0].name} and {len(spectra) - 1} more"
    log.info(f"{name}: XP spectra; " + "; ".join([*parts, *([f"no {', no '.join(lacking)}"] if lacking else [])]))
    text = as_toml([_literal(path) for path in spectra], {kind: list(map(_literal, of)) for kind, of in tables.items()})
    checksum = f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}"
    here = Path.cwd() / "survey.toml"  # names are relative to where the command is given
    return Survey(here, check_survey(tomllib.loads(text), name), checksum, name)


def _beside(files: list[Path], named: set[str]) -> tuple[dict[Path, set[str]], int]:
    """Columns of other tables in the folders of the spectra, other spectra left out, and how many files there are."""
    spectra = {path.resolve() for path in files} | {Path(name).resolve() for name in named}
    folders = list(dict.fromkeys(path.parent for path in files))
    others = [p for folder in folders for p in _tables_in(folder) if p.resolve() not in spectra]
    if len(others) > MOST_LOOKED_AT:
        return {}, len(others)
    columns = {path: _columns(path) for path in others}
    return {path: names for path, names in columns.items() if names and product_of(names) is None}, len(others)


def survey_toml(inputs: Sequence[Named], companions: CompanionFiles = None) -> str:
    """Write down as a survey.toml what `infer` makes of files; but for labels, the catalogues of both are the same.

    Takes what `open_inputs` takes but star tables and survey.toml files, and tables that belong to the spectra and tables
    of labels, which are told by their columns; InputError as there, and for what is none of these.
    """
    tables = {kind: list(_listed(of)) for kind, of in (companions or {}).items()}
    spectra: list[Path] = []
    labels: list[LabelTable] = []
    beside_labels: dict[str, list[str]] = {}
    reddening: list[str] = []
    for given in map(Path, inputs):
        names = sorted(map(Path, glob.glob(str(given), recursive=True))) if glob.has_magic(str(given)) else []
        for path in [given] if given.exists() or not names else names:
            if path.is_dir() and not hats_files(path):
                labels += [table for inner in _tables_in(path) if (table := _label_table(inner, _columns(inner)))]
                spectra.append(path)
                continue
            here = _columns(path) if path.suffix != ".toml" else set()
            if not here or product_of(here):
                spectra.append(path)
            kinds = kinds_of(here) if product_of(here) is None else []
            found = _label_table(path, here)
            labels += [found] if found else []
            for kind in kinds:
                (beside_labels if found else tables).setdefault(kind, []).append(str(path))
            is_reddening = all(here & set(column.all_names) for column in REDDENING_FIELDS)
            reddening += [_literal(path)] * is_reddening
            if here and not (product_of(here) or kinds or found or is_reddening):
                raise InputError(
                    f"{path}: holds no XP spectra, is no table of Gaia, 2MASS (with ph_qual), unWISE or reddening, and has "
                    f"no labels ({', '.join(OWN_LABELS)}) with their errors; name other files"
                )
    opened = open_inputs(spectra, beside_labels | tables)
    for one in opened:
        if isinstance(one, Path) and not one.exists():
            raise InputError(f"{one}: no such file; check the path")
        if isinstance(one, Path) or one.path.name == one.name:
            raise InputError(f"{one if isinstance(one, Path) else one.path}: is no file of XP spectra; name such files")
    if not opened:
        raise InputError(f"{inputs[0]}: no file of XP spectra is named; name one beside its tables")
    (survey,) = (one for one in opened if isinstance(one, Survey))
    joined = {kind: getattr(survey.settings, kind).files for kind in KINDS}
    labels = [table for i, table in enumerate(labels) if table.path not in [other.path for other in labels[:i]]]
    for table in labels:
        log.info(f"{table.path.name}: labels of {table.survey}{table.or_others}")
    joined = {kind: files for kind, files in joined.items() if files}
    return as_toml(survey.settings.xp.files, joined, labels, reddening)


@dataclass(frozen=True)
class LabelTable:
    """A table of labels: where it is, and which surveys' it can be, with the columns that need to be named."""

    path: Path
    told: Mapping[str, LabelColumns | None]

    @property
    def survey(self) -> str:
        """The likeliest: one that the file is called after, else the first."""
        bare = self.path.name.lower().replace("_", "")
        return next((name for name in self.told if name.replace("_", "") in bare), next(iter(self.told)))

    @property
    def or_others(self) -> str:
        """Which else it could be, in words."""
        others = [name for name in self.told if name != self.survey]
        return f"; {' and '.join(others)} has the same columns, change survey if it is that" * bool(others)

    def lines(self) -> list[str]:
        """Its section of a survey.toml."""
        out = ["", "[[labels]]", f'survey = "{self.survey}"' + f"  # {self.or_others[2:]}" * bool(self.or_others)]
        out.append(_files([_literal(self.path)]))
        if (columns := self.told[self.survey]) is not None:
            out += ["", "[labels.columns]"]
            for name in ("labels", "errors"):
                named = getattr(columns, name).items()
                pairs = ", ".join(f"{label} = {json.dumps(list(of), ensure_ascii=False)}" for label, of in named)
                out.append(f"{name} = {{ {pairs} }}")
        return out


def _label_table(path: Path, names: set[str]) -> LabelTable | None:
    """A table with these columns, if it holds labels."""
    told = surveys_of(names)
    return LabelTable(path, told) if told else None


def as_toml(
    spectra: Sequence[str],
    tables: Mapping[str, Sequence[str]],
    labels: Sequence[LabelTable] = (),
    reddening: Sequence[str] = (),
) -> str:
    """A survey.toml of files of spectra, companions by their kinds, labels and reddening, relative to where it will lie."""
    bands = [band for kind, names in BANDS_OF.items() if kind in tables for band in names]
    lines = ["# Names start from this file's folder. What else can be set, docs/survey.md says.", ""]
    lines += [f"bands = {json.dumps(bands)}", "", "[xp]", _files(spectra)]
    for kind in KINDS:
        if kind in tables:
            lines += ["", f"[{kind}]", _files(tables[kind])]
    lines += [line for table in labels for line in table.lines()]
    if reddening:
        lines += ["", "[reddening]", 'source = "columns"', _files(reddening)]
    return "\n".join(lines) + "\n"


def _literal(path: Named) -> str:
    """A name as a pattern that is this name alone."""
    return glob.escape(str(path))


def _files(names: Sequence[str]) -> str:
    quoted = [json.dumps(name, ensure_ascii=False) for name in names]
    return (
        f"files = [{quoted[0]}]" if len(quoted) == 1 else "files = [\n" + "".join(f"    {q},\n" for q in quoted) + "]"
    )


def say_bands(inputs: Iterable[Input], channels: Channels) -> None:
    """Say which bands of the inputs a model does not use, and which of the model's they do not have."""
    for one in inputs:
        theirs = channels.band_names
        if isinstance(one, Survey):
            mine = one.settings.bands
        else:
            mine = read_header(star_table_files(one)[0])[0].channels.band_names
        unknown, missing = [b for b in mine if b not in theirs], [b for b in theirs if b not in mine]
        parts = [f"the model does not use {', '.join(unknown)}"] * bool(unknown)
        parts += [f"{', '.join(missing)} count as missing"] * bool(missing)
        if parts:
            log.info(f"{one.name}: {'; '.join(parts)}")
