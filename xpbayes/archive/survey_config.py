"""survey.toml: which files make a survey, and which measurements of them count. Reading one touches no data."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from xpbayes.archive.columns import ReadOptions
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import TrainingCuts
from xpbayes.archive.photometric import BANDS_OF, TwoMassCuts, UnwiseCuts
from xpbayes.archive.reddening import N_DRAWS
from xpbayes.channels import Channels, xp_channels
from xpbayes.config import FrozenSettings, parse_settings, read_toml
from xpbayes.errors import InputError, nearest
from xpbayes.files import file_checksum, reason_of, refuse_repeated
from xpbayes.release import RELEASES, release_named

FILES = "files, * allowed; relative to survey.toml"


class DoorSettings(FrozenSettings):
    """What every table of a survey has: its files, and how they are to be read."""

    files: tuple[str, ...] = Field((), description=FILES)
    source_id: str | None = Field(None, description="column of Gaia's identifiers, where several could be it")
    hdu: int | str | None = Field(None, description="number or name of the one table to read, where files hold several")
    allow_truncated: bool = Field(False, description="read tables that their server says it has cut short")

    def options(self, section: str, release: str | None = None) -> ReadOptions:
        """How the files are to be read; the section is named in messages, the data release is the survey's."""
        return ReadOptions(self.source_id, self.hdu, self.allow_truncated, section, release)


class XpSettings(DoorSettings):
    """XP spectra, continuous or sampled; every other table is joined to them by source_id."""

    files: tuple[str, ...] = Field(min_length=1, description=FILES)
    error_scaling: Literal["published", "divided"] = Field(
        "published", description="coefficient errors as published, or divided by bp/rp_standard_deviation"
    )


class GaiaSettings(DoorSettings):
    """Gaia's source table."""

    parallax_zero_point: bool = Field(False, description="subtract the zero point of Lindegren et al. (2021)")


class TwoMassSettings(DoorSettings):
    """2MASS matches by source_id."""

    quality_columns: tuple[str, ...] = Field((), description="flags of J, H and Ks, where there is no ph_qual")
    cuts: TwoMassCuts = TwoMassCuts()


class UnwiseSettings(DoorSettings):
    """The unWISE matches by source_id."""

    cuts: UnwiseCuts = UnwiseCuts()


class ReddeningSettings(DoorSettings):
    """Reddening estimates."""

    source: Literal["none", "columns", "bayestar19"] = Field("none", description="where estimates come from")
    files: tuple[str, ...] = Field((), description=f"for columns: {FILES}")
    map_file: str | None = Field(None, description="for bayestar19: bayestar2019.h5, if not where dustmaps keeps it")
    n_draws: int = Field(N_DRAWS, ge=2, description="for bayestar19: draws of parallax and map per star")
    seed: int = Field(0, ge=0, description="of these draws")


class SurveySettings(FrozenSettings):
    """A whole survey.toml."""

    release: str | None = Field(
        None, description=f"data release of the spectra: {', '.join(RELEASES)}; as their coefficients say if absent"
    )
    bands: tuple[str, ...] = Field(("J", "H", "Ks", "W1", "W2"), description="broad bands beside the 61 XP samples")
    label_names: tuple[str, ...] = Field(("teff", "feh", "logg"), min_length=1, description="labels, Teff first")
    select: Literal["auto", "all", "labelled", "training"] = Field(
        "auto", description="which stars are written; auto: labelled ones if there are labels; training: after the cuts"
    )
    stars_per_file: int = Field(16_384, ge=1, description="most stars per output file")
    xp: XpSettings
    gaia: GaiaSettings = GaiaSettings()
    two_mass: TwoMassSettings = TwoMassSettings()
    unwise: UnwiseSettings = UnwiseSettings()
    labels: tuple[LabelSurvey, ...] = ()
    training_cuts: TrainingCuts = TrainingCuts()
    reddening: ReddeningSettings = ReddeningSettings()

    def xp_options(self) -> ReadOptions:
        """How the files of spectra are to be read."""
        return self.xp.options("[xp]", self.release)

    def channels(self) -> Channels:
        """Return the channel set: 66 by default; InputError for an unknown band."""
        return xp_channels(self.bands)

    def for_inference(self) -> "SurveySettings":
        """The same survey with every star that has a spectrum, and without what only training reads."""
        return self.model_copy(update={"select": "all", "labels": (), "reddening": ReddeningSettings()})


@dataclass(frozen=True)
class Survey:
    """A survey.toml as it was read, or as it would be written for files that were named without one."""

    path: Path  # of the survey.toml, whose folder relative names start from
    settings: SurveySettings  # what it says
    checksum: str  # of its text
    name: str = ""  # what it is called: the file, or the spectra that were named

    @property
    def base(self) -> Path:
        """Folder that relative names start from."""
        return self.path.parent

    @property
    def files(self) -> list[Path]:
        """All files that it names: of spectra, then of companion tables; InputError as `expand`."""
        return [*expand(self.settings.xp.files, self.base), *companion_files(self.settings, self.base)]


def open_survey(path: Path) -> Survey:
    """Read a survey.toml; InputError as `read_survey`."""
    return Survey(path, read_survey(path), file_checksum(path), path.name)


def read_survey(path: Path) -> SurveySettings:
    """Read and check a survey.toml; InputError: no file, not TOML, an unknown key, settings that contradict each other."""
    return check_survey(read_toml(path), str(path))


def check_survey(data: dict[str, Any], path: str) -> SurveySettings:
    """Check what a survey.toml says; InputError as `read_survey`."""
    survey = parse_settings(SurveySettings, data, path)
    survey.channels()
    if survey.release is not None:
        release_named(survey.release)
    for label in survey.labels:
        known = {*survey.label_names, *(label.columns or label.preset().columns).labels}
        for name in (*(rule.label for rule in label.flags or ()), *label.error_floor):
            if name is not None and name not in known:
                raise InputError(
                    f"{path}: there is no label '{name}' to flag or to floor{nearest(name, known)}; correct it"
                )
    if survey.select in ("labelled", "training") and not survey.labels:
        raise InputError(f"{path}: select = '{survey.select}' needs labels; add a [[labels]] table")
    if survey.reddening.source == "columns" and not survey.reddening.files:
        raise InputError(f"{path}: reddening.source = 'columns' needs reddening.files")
    if len(survey.two_mass.quality_columns) not in (0, 3):
        raise InputError(
            f"{path}: two_mass.quality_columns names {len(survey.two_mass.quality_columns)} columns, not 3"
        )
    for name, bands in BANDS_OF.items():
        if getattr(survey, name).files and not set(bands) & set(survey.bands):
            raise InputError(f"{path}: [{name}] has files but bands has none of {', '.join(bands)}; add the bands")
    return survey


def expand(patterns: tuple[str, ...], base: Path) -> list[Path]:
    """Turn names and patterns, from a base folder, into a sorted list of files, each once; of a HATS folder all in it.

    InputError: a name or pattern has no file; a file has several names, or copies.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        whole = base / pattern
        try:
            names = sorted(glob.glob(str(whole), recursive=True)) if glob.has_magic(str(whole)) else [str(whole)]
            files = [file for n in names for file in ([Path(n)] if Path(n).is_file() else hats_files(Path(n)))]
            is_folder = whole.is_dir()
        except OSError as error:  # a name that no file can have, a folder that may not be read
            raise InputError(f"{str(whole)[:200]}: cannot be read ({reason_of(error)}); check the path") from error
        if not files and is_folder:
            raise InputError(f"{whole}: is a folder, but no HATS catalogue; name the files in it")
        if not files:
            raise InputError(f"{whole}: no such file; check the path")
        found.update(dict.fromkeys(files))
    refuse_repeated(list(found))
    return list(found)


def companion_files(survey: SurveySettings, base: Path) -> list[Path]:
    """The files of all tables that are joined to the spectra."""
    doors: tuple[DoorSettings | LabelSurvey, ...]
    doors = (survey.gaia, survey.two_mass, survey.unwise, *survey.labels, survey.reddening)
    return [path for door in doors if door.files for path in expand(door.files, base)]


def hats_files(folder: Path) -> list[Path]:
    """List the Parquet files of a HATS catalogue, in the order of its pixels; none for any other folder.

    It has ``hats.properties`` (``properties`` before HATS 1), or is a collection that names such a folder. Margins, indices
    and the like are no catalogues of their own.
    """
    collection = folder / "collection.properties"
    if os.path.isfile(collection):  # False, too, in a folder that may not be read
        primary = _properties(collection).get("hats_primary_table_url", "")
        inner = folder / primary
        return hats_files(inner) if primary and not os.path.isfile(inner / collection.name) else []
    own = next((folder / name for name in ("hats.properties", "properties") if os.path.isfile(folder / name)), None)
    if own is None or _properties(own).get("dataproduct_type", "") in NO_TABLES:
        return []

    def pixel(path: Path) -> tuple[list[int], str]:
        return [int(n) for n in re.findall(r"(?:Norder|Npix)=(\d+)", str(path.relative_to(folder)))], path.name

    files = [p for p in folder.rglob("*.parquet") if not p.name.startswith("_") and "Npix=" in str(p)]
    return sorted(files, key=pixel)


NO_TABLES = ("margin", "association", "index", "map")
"""HATS catalogues that repeat rows of others, or have none."""


def _properties(path: Path) -> dict[str, str]:
    """What a file of Java properties says."""
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
