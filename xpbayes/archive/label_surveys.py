"""Label surveys: which column of which catalogue means what, as far as its published data model says.

`LabelSurvey` is a ``[[labels]]`` table of survey.toml. Column names are matched without case. A Gaia identifier is only
taken from a column that holds DR3's (EDR3's are the same): DR2 gave some stars other ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from xpbayes.archive.columns import SOURCE_ID
from xpbayes.config import FrozenSettings
from xpbayes.errors import InputError, nearest
from xpbayes.release import DR3, GALAH_ID_COLUMNS


class LabelColumns(FrozenSettings):
    """Which columns of a label catalogue mean what; of several names, the first that the file has."""

    source_id: tuple[str, ...] = Setting(
        (), description="Gaia's source_id, of the spectra's release; custom: the only column that can be it if absent"
    )
    ra: tuple[str, ...] = Setting(("ra",), description="right ascension [deg]")
    dec: tuple[str, ...] = Setting(("dec",), description="declination [deg]")
    snr: tuple[str, ...] = Setting((), description="signal-to-noise ratios; every one is a column of its own")
    labels: dict[str, tuple[str, ...]] = Setting(
        {"teff": ("teff",), "feh": ("feh",), "logg": ("logg",)}, description="label name = its column"
    )
    errors: dict[str, tuple[str, ...]] = Setting(
        {"teff": ("teff_err",), "feh": ("feh_err",), "logg": ("logg_err",)},
        description="label name = its error's column",
    )


class FlagRule(FrozenSettings):
    """A quality flag of a label catalogue: which values are good, or which bits are bad."""

    column: tuple[str, ...] = Setting(
        min_length=1, description="the flag's column; of several names, the first there is"
    )
    allowed: tuple[int | str, ...] = Setting((), description="values that are good; true and false are 1 and 0")
    forbidden_bits: tuple[int, ...] = Setting((), description="bits that may not be set, counted from 0")
    label: str | None = Setting(None, description="the one label that the flag is about; else it is about the star")

    @field_validator("column", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_rule(self) -> "FlagRule":
        if bool(self.allowed) == bool(self.forbidden_bits):
            raise ValueError("a flag needs either allowed or forbidden_bits")
        if not all(0 <= bit < 63 for bit in self.forbidden_bits):
            raise ValueError("bits are counted from 0 to 62")
        return self

    @property
    def sentence(self) -> str:
        """The rule in words."""
        if self.allowed:
            return f"{self.column[0]} not {' or '.join(map(str, self.allowed))}"
        return f"{self.column[0]} with bit {' or '.join(map(str, self.forbidden_bits))}"


@dataclass(frozen=True)
class SurveyPreset:
    """What is known about a survey."""

    columns: LabelColumns  # its columns
    source: str  # where its data model is published, and what of it could not be checked there
    epoch: float = 2000.0  # of its positions [Julian year]
    teff_range: tuple[float, float] = (0.0, float("inf"))  # labels outside are not used [K]
    flags: tuple[FlagRule, ...] = ()  # the cuts that the survey recommends, on those of these columns that a file has


JOIN_TEFF_K = 7000.0
"""LAMOST's own labels below, the Hot Payne's above (ZGR23 Section 2.2)."""

THREE = {"teff": "teff", "feh": "feh", "logg": "logg"}


def _columns(
    labels: dict[str, str],
    errors: str,
    source_id: tuple[str, ...] = (),
    snr: tuple[str, ...] = (),
    ra: tuple[str, ...] = ("ra",),
    dec: tuple[str, ...] = ("dec",),
) -> LabelColumns:
    """Columns of labels, and of their errors, whose names are made of the labels' in one way."""
    return LabelColumns(
        source_id=source_id,
        snr=snr,
        labels={label: (name,) for label, name in labels.items()},
        errors={label: (errors.format(name),) for label, name in labels.items()},
        ra=ra,
        dec=dec,
    )


SURVEYS: dict[str, SurveyPreset] = {
    "lamost_afgk": SurveyPreset(
        # Without identifiers: its gaia_source_id is DR2's.
        _columns(THREE, "{}_err", (), ("snrg", "snrr", "snri"), ra=("ra_obs", "ra"), dec=("dec_obs", "dec")),
        source="LAMOST DR8 v1.0, LRS A, F, G and K type star catalogue, "
        "lamost.org/dr8/v1.0/doc/lr-data-production-description: matched with Gaia DR2; the single columns follow the "
        "released file and were not found in that page's stored text",
        teff_range=(0.0, JOIN_TEFF_K),
    ),
    "hot_payne": SurveyPreset(
        LabelColumns(
            snr=("snrg", "snrr", "snri"),
            labels={"teff": ("teff",), "feh": ("feh", "fe_h", "[fe/h]"), "logg": ("logg",)},
            errors={
                "teff": ("teff_err", "e_teff"),
                "feh": ("feh_err", "e_feh", "e_[fe/h]"),
                "logg": ("logg_err", "e_logg"),
            },
            ra=("ra", "radeg", "ra_icrs"),
            dec=("dec", "dedeg", "de_icrs"),
        ),
        source="Xiang et al. 2022, A&A 662, A66 (catalogue J/A+A/662/A66 at the CDS): the columns could not be checked; "
        "name them under [labels.columns] where they differ",
        teff_range=(JOIN_TEFF_K, float("inf")),
    ),
    "apogee": SurveyPreset(
        _columns(
            {"teff": "teff", "feh": "fe_h", "logg": "logg", "alpha_m": "alpha_m"},
            "{}_err",
            ("gaiaedr3_source_id",),  # the gaia_source_id of earlier releases is DR2's
            ("snr",),
        ),
        source="SDSS DR17 allStar, data.sdss.org/datamodel/files/APOGEE_ASPCAP/APRED_VERS/ASPCAP_VERS/allStar.html "
        "(catalogue III/286 at the CDS); positions J2000. Flags: sdss4.org/dr17/irspec/apogee-bitmasks, of ASPCAPFLAG "
        "TEFF_BAD (16), LOGG_BAD (17), M_H_BAD (19), STAR_BAD (23), NO_ASPCAP_RESULT (31), of STARFLAG the bad bits "
        "BAD_PIXELS (0), VERY_BRIGHT_NEIGHBOR (3), BAD_RV_COMBINATION (18)",
        flags=(
            FlagRule(column=("aspcapflag",), forbidden_bits=(16, 17, 19, 23, 31)),
            FlagRule(column=("starflag",), forbidden_bits=(0, 3, 18)),
            FlagRule(column=("fe_h_flag",), allowed=(0,), label="feh"),
        ),
    ),
    "galah": SurveyPreset(
        _columns(
            {"teff": "teff", "feh": "fe_h", "logg": "logg", "alpha_m": "alpha_fe"},  # DR4 gives single elements
            "e_{}",
            GALAH_ID_COLUMNS,
            ("snr_px_ccd2", "snr_c2_iraf"),  # DR4, DR3
        ),
        source="GALAH DR4, galah-survey.org/dr4/table_schema, tables allstar and allspec; positions are those of Gaia's "
        "DR3. Flags: galah-survey.org/dr4/flags recommends flag_sp = 0 and, for an abundance, its own flag = 0, "
        "galah-survey.org/dr3/flags flag_fe_h = 0 as well, which github.com/svenbuder/GALAH_DR4 would neglect",
        epoch=DR3.epoch,
        flags=(
            FlagRule(column=("flag_sp",), allowed=(0,)),
            FlagRule(column=("flag_fe_h",), allowed=(0,), label="feh"),
            FlagRule(column=("flag_alpha_fe",), allowed=(0,), label="alpha_m"),
        ),
    ),
    "desi": SurveyPreset(
        _columns(
            {**THREE, "alpha_m": "alphafe"},
            "{}_err",
            ("source_id",),  # in the extension GAIA, not RVTAB, whose ref_id is DR2's: without it by position
            ("sn_b", "sn_r", "sn_z"),
            ra=("target_ra",),
            dec=("target_dec",),
        ),
        source="DESI Milky Way Survey value-added catalogue, mwsall, extension RVTAB, "
        "github.com/desimilkyway/desi-mws-edr-datamodel docs/mwsall.rst; positions at REF_EPOCH, typically 2015.5. "
        "Flags: of RVTAB RVS_WARN, RVSpecfit's warnings, SUCCESS, and RR_SPECTYPE, which must say that it is a star",
        epoch=2015.5,
        flags=(
            FlagRule(column=("rvs_warn",), allowed=(0,)),
            FlagRule(column=("success",), allowed=(1,)),
            FlagRule(column=("rr_spectype",), allowed=("STAR",)),
        ),
    ),
    "sdssv": SurveyPreset(
        _columns(
            {"teff": "teff", "feh": "fe_h", "logg": "logg", "alpha_m": "alpha_m_atm"},
            "e_{}",
            ("gaia_dr3_source_id",),
            ("snr",),
        ),
        source="SDSS DR19 astraAllStarASPCAP, sdss-astra.readthedocs.io/en/latest/user/glossary.html and "
        "sdss.org/dr19/mwm/astra/accessing-astra-files; flag_bad is Astra's own summary of what must not be used, made of "
        "each pipeline's result_flags (github.com/sdss/astra, its models)",
        flags=(FlagRule(column=("flag_bad",), allowed=(0,)),),
    ),
    "custom": SurveyPreset(LabelColumns(), source="whatever the user names"),
}


class LabelSurvey(FrozenSettings):
    """One label catalogue: a ``[[labels]]`` table of survey.toml."""

    survey: str = Setting("custom", description=f"what is known about the survey: one of {', '.join(SURVEYS)}")
    files: tuple[str, ...] = Setting(min_length=1, description="files, * allowed; relative to survey.toml")
    hdu: int | str | None = Setting(
        None, description="number or name of the one table to read, where files hold several"
    )
    allow_truncated: bool = Setting(False, description="read tables that their server says it has cut short")
    flags: tuple[FlagRule, ...] | None = Setting(
        None, description="quality flags to cut on; the survey's recommended ones if absent, none if empty"
    )
    columns: LabelColumns | None = Setting(None, description="the columns, where they differ from the survey's own")
    teff_unit: Literal["K", "kK"] = Setting("K", description="unit of Teff and its error where the file declares none")
    match: Literal["auto", "source_id", "position"] = Setting(
        "auto", description="auto: by source_id where the file has one, else by position"
    )
    radius_arcsec: float = Setting(0.25, gt=0, description="largest separation of a match by position")
    epoch: float | None = Setting(None, description="epoch of the positions [Julian year]; the survey's own if absent")
    teff_min: float | None = Setting(None, description="labels below are not used [K]")
    teff_max: float | None = Setting(None, description="labels from here on are not used [K]")
    snr_min: float = Setting(0.0, ge=0, description="every S/N must exceed this")
    error_floor: dict[str, Annotated[float, Setting(ge=0)]] = Setting(
        {}, description="per label, added to the error in quadrature [kK, dex]; train adds its own label_error_floor"
    )

    def preset(self) -> SurveyPreset:
        """Return what is known about the survey; InputError for an unknown name."""
        if self.survey not in SURVEYS:
            raise InputError(
                f"unknown label survey '{self.survey}'{nearest(self.survey, SURVEYS)}; known are {', '.join(SURVEYS)}"
            )
        return SURVEYS[self.survey]

    def rules(self) -> tuple[FlagRule, ...]:
        """Return the flags to cut on."""
        return self.preset().flags if self.flags is None else self.flags

    def teff_limits(self) -> tuple[float, float]:
        """Return the range of Teff whose labels are used [K]."""
        low, high = self.preset().teff_range
        return low if self.teff_min is None else self.teff_min, high if self.teff_max is None else self.teff_max


# --------------------------------------------------------------------------------------------- telling what a table is

OWN_LABELS = {"teff": ("teff", "t_eff"), "feh": ("feh", "fe_h", "[fe/h]"), "logg": ("logg", "log_g")}
OWN_ERRORS = ("{}_err", "{}_error", "e_{}", "err_{}", "sigma_{}")
"""Names that people give to labels and their errors in tables of their own."""
OF_A_CATALOGUE = "teff_p16"
"""A column of what `infer` writes: its labels train no model."""


def surveys_of(names: Iterable[str]) -> dict[str, LabelColumns | None]:
    """Tell by the names of a table's columns which surveys' labels it can hold; several where their columns are alike.

    Returns survey -> its columns, None where they are the preset's own.
    """
    here = {name.lower() for name in names}

    def any_of(wanted: Iterable[str]) -> bool:
        return any(name in here for name in wanted)

    def can_be(of: LabelColumns) -> bool:
        labels = all(any_of(of.labels[name]) and any_of(of.errors[name]) for name in OWN_LABELS)
        identifiers = [name for name in of.source_id if name != SOURCE_ID.name]
        by_position = any_of(of.ra) and any_of(of.dec) and all(name in here for name in of.snr)
        return labels and (any_of(identifiers) if identifiers else by_position)

    if OF_A_CATALOGUE in here:
        return {}
    known: dict[str, LabelColumns | None] = {
        name: None for name, preset in SURVEYS.items() if name != "custom" and can_be(preset.columns)
    }
    if known or not any_of(SOURCE_ID.all_names):
        return known
    found: dict[str, tuple[str, str]] = {}
    for label, spellings in OWN_LABELS.items():
        pairs = ((value, error.format(value)) for value in spellings for error in OWN_ERRORS)
        pair = next((pair for pair in pairs if all(name in here for name in pair)), None)
        if pair is None:
            return {}
        found[label] = pair
    columns = LabelColumns(
        labels={label: (value,) for label, (value, _) in found.items()},
        errors={label: (error,) for label, (_, error) in found.items()},
    )
    return {"custom": None if columns == LabelColumns() else columns}
