"""Gaia's data releases: all that the package takes from one release and another may have otherwise, once.

DR3 is as published. Of DR4 most is announced only; `docs/dr4.md` says which of it has been verified.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from xpbayes.errors import InputError, nearest


@dataclass(frozen=True)
class SideBases:
    """What is known of one side's basis functions before anybody asks GaiaXPy."""

    count: int  # coefficients of a spectrum
    model: str | None = None  # GaiaXPy's name of the instrument model; None while none is known
    # Gaia's number of the set of basis functions; None while it is unknown, any is then taken
    basis_id: int | None = None


@dataclass(frozen=True)
class Release:
    """One data release."""

    name: str  # short name, in options and files
    title: str  # how Gaia's archive calls it
    schema: str  # of its tables in the archive
    epoch: float  # reference epoch of its positions [Julian year]
    bp: SideBases
    rp: SideBases
    source_columns: tuple[str, ...]  # of gaia_source, in the order in which they are asked for
    designations: tuple[str, ...]  # what comes after "Gaia" in the names of its sources, in capitals
    products: Mapping[str, str] = field(hash=False)  # DataLink's retrieval type of each product that is known
    # Of columns of gaia_source that may have another name there, all names in the order to try them
    substitutes: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    # Of xp_summary
    summary_columns: tuple[str, ...] = ("bp_n_measurements", "bp_chi_squared", "rp_n_measurements", "rp_chi_squared")
    summary_is_known: bool = True  # whether there is an xp_summary; where that is unknown, the archive is asked
    spurious_table: str = ""  # of fidelities and crowding, its source_ids being this release's; "" where there is none
    parallax_bias: str = ""  # column of gaia_source with the bias to be subtracted [mas]; "" where there is none
    crosswalk: str = ""  # table of the archive that leads from the release before to this one; "" where none is needed

    @property
    def counts(self) -> tuple[int, int]:
        """Coefficients of BP and of RP."""
        return self.bp.count, self.rp.count

    def has_id(self, column: str) -> bool:
        """Whether a column of identifiers can be this release's: its name does not say that it is another's."""
        named = re.search(r"(?<![a-z])(?:gaia)?[ _]?g?e?dr(\d+)", column.lower())
        return named is None or named[1] == self.name.removeprefix("dr")


_SOURCE_COLUMNS = (
    "random_index",
    "source_id",
    "ref_epoch",
    *(f"{name}{error}" for name in ("ra", "dec", "parallax", "pmra", "pmdec") for error in ("", "_error")),
    "ruwe",
    "astrometric_excess_noise",
    *(f"phot_{band}_mean_{what}" for band in ("g", "bp", "rp") for what in ("mag", "flux", "flux_error")),
    "has_xp_continuous",
    "phot_bp_n_obs",
    "phot_rp_n_obs",
    "phot_bp_rp_excess_factor",
    "visibility_periods_used",
    "nu_eff_used_in_astrometry",
    "pseudocolour",
    "ecl_lat",
    "astrometric_params_solved",
)
_BIAS = "tentative_parallax_bias"

DR3 = Release(
    name="dr3",
    title="Gaia DR3",
    schema="gaiadr3",
    epoch=2016.0,
    bp=SideBases(55, "v375wi", 56),
    rp=SideBases(55, "v142r", 57),
    source_columns=_SOURCE_COLUMNS,
    spurious_table="external.gaiaedr3_spurious",
    products={"continuous": "XP_CONTINUOUS", "sampled": "XP_SAMPLED"},
    designations=("DR3", "EDR3"),
)
DR4 = Release(
    name="dr4",
    title="Gaia DR4",
    schema="gaiadr4",
    epoch=2017.5,
    bp=SideBases(51),
    rp=SideBases(55),
    source_columns=(*(n for n in _SOURCE_COLUMNS if n != "phot_bp_rp_excess_factor"), _BIAS),
    substitutes={
        "astrometric_params_solved": ("astrometric_params", "astrometric_params_solved"),
        "has_xp_continuous": ("has_xp_continuous", "has_mean_spectrum_xp", "has_xp_mean_spectrum"),
    },
    summary_is_known=False,
    parallax_bias=_BIAS,
    products={"continuous": "MEAN_SPECTRUM_XP"},
    designations=("DR4",),
    crosswalk="dr3_neighbourhood",
)
RELEASES = {release.name: release for release in (DR3, DR4)}
ID_ALIASES = (
    "sourceid",
    "gaia_source_id",
    *(
        f"{prefix}{named}_source_id"
        for release in RELEASES.values()
        for named in [d.lower() for d in release.designations]
        for prefix in ("g", "gaia", "gaia_", "")
        if (prefix, named) != ("g", "edr3")
    ),
)
"""Names under which tables keep identifiers, beside source_id; which release's, the name may say. DR2's are never taken."""
DEFAULT_RELEASE = DR3
"""What is meant where neither the user nor a file says which; all files of version 0.1.0 are of it."""
ZERO_POINT_PACKAGE = "gaiadr3-zeropoint"
"""The authors' package of the parallax zero point of Lindegren et al. (2021, A&A 649, A4), calibrated on EDR3 = DR3."""
GALAH_ID_COLUMNS = ("gaiadr3_source_id", "dr3_source_id")
"""Where GALAH DR4, and its DR3, keep Gaia's identifiers."""


def release_named(name: str) -> Release:
    """The release of that name; InputError if there is none."""
    if name not in RELEASES:
        raise InputError(f"unknown release '{name}'{nearest(name, RELEASES)}; known are {', '.join(RELEASES)}")
    return RELEASES[name]


def titles(names: tuple[str, ...] | list[str]) -> str:
    """Titles of releases in words; a name that is none stays."""
    return " and ".join(RELEASES[n].title if n in RELEASES else n for n in names)
