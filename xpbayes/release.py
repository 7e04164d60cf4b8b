"""Gaia's data releases: all that the package takes from one release and another may have otherwise, once.

DR3 is as published. Of DR4 most is announced only; `docs/dr4.md` says which of it has been verified.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xpbayes.errors import InputError, nearest


@dataclass(frozen=True)
class SideBases:
    """What is known of one side's basis functions before anybody asks GaiaXPy.

    Attributes:
        count: coefficients of a spectrum.
        model: GaiaXPy's name of the instrument model; None while none is known.
        basis_id: Gaia's number of the set of basis functions; None while it is unknown, any is then taken.
    """

    count: int
    model: str | None = None
    basis_id: int | None = None


@dataclass(frozen=True)
class Release:
    """One data release.

    Attributes:
        name: short name, in options and files.
        title: how Gaia's archive calls it.
        schema: of its tables in the archive.
        epoch: reference epoch of its positions [Julian year].
        bp, rp: its basis functions.
        source_columns: of gaia_source, in the order in which they are asked for.
        renamed: columns of gaia_source that have another name there: our name to its.
        summary_columns: of xp_summary; empty where no such table is known.
        spurious_table: of fidelities and crowding, its source_ids being this release's; "" where there is none.
        has_spectra: the condition that a star of gaia_source has continuous spectra.
        two_mass_joins: tables that lead from gaia_source to 2MASS, in this release's schema; () where none are known.
        parallax_bias: column of gaia_source with the bias to be subtracted [mas]; "" where there is none.
        products: DataLink's retrieval type of each product that is known.
        id_aliases: names under which tables keep this release's identifiers, beside source_id.
        designations: beginnings of its sources' names, in capitals.
        crosswalk: table of the archive that leads from the release before to this one; "" where none is needed.
    """

    name: str
    title: str
    schema: str
    epoch: float
    bp: SideBases
    rp: SideBases
    source_columns: tuple[str, ...]
    id_aliases: tuple[str, ...]
    designations: tuple[str, ...]
    products: Mapping[str, str] = field(hash=False)
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)
    summary_columns: tuple[str, ...] = ()
    spurious_table: str = ""
    has_spectra: str = "g.has_xp_continuous = 'true'"
    two_mass_joins: tuple[str, str] | tuple[()] = ()
    parallax_bias: str = ""
    crosswalk: str = ""

    @property
    def counts(self) -> tuple[int, int]:
        """Coefficients of BP and of RP."""
        return self.bp.count, self.rp.count


_SOURCE_COLUMNS = (
    "random_index",
    "source_id",
    "ref_epoch",
    "ra",
    "ra_error",
    "dec",
    "dec_error",
    "parallax",
    "parallax_error",
    "pmra",
    "pmra_error",
    "pmdec",
    "pmdec_error",
    "ruwe",
    "astrometric_excess_noise",
    "phot_g_mean_mag",
    "phot_g_mean_flux",
    "phot_g_mean_flux_error",
    "phot_bp_mean_mag",
    "phot_bp_mean_flux",
    "phot_bp_mean_flux_error",
    "phot_rp_mean_mag",
    "phot_rp_mean_flux",
    "phot_rp_mean_flux_error",
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
_BEFORE_DR4 = ("gdr3_", "gaia_", "gaiadr3_", "gaia_dr3_", "gaiaedr3_", "gaia_edr3_", "dr3_", "edr3_")

DR3 = Release(
    name="dr3",
    title="Gaia DR3",
    schema="gaiadr3",
    epoch=2016.0,
    bp=SideBases(55, "v375wi", 56),
    rp=SideBases(55, "v142r", 57),
    source_columns=_SOURCE_COLUMNS,
    summary_columns=("bp_n_measurements", "bp_chi_squared", "rp_n_measurements", "rp_chi_squared"),
    spurious_table="external.gaiaedr3_spurious",
    two_mass_joins=("tmass_psc_xsc_best_neighbour", "tmass_psc_xsc_join"),
    products={"continuous": "XP_CONTINUOUS", "sampled": "XP_SAMPLED"},
    id_aliases=("sourceid", *(f"{p}source_id" for p in _BEFORE_DR4)),
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
    renamed={"astrometric_params_solved": "astrometric_params"},
    parallax_bias=_BIAS,
    products={"continuous": "MEAN_SPECTRUM_XP"},
    id_aliases=("sourceid", *(f"{p}source_id" for p in ("gdr4_", "gaia_", "gaiadr4_", "gaia_dr4_", "dr4_"))),
    designations=("DR4",),
    crosswalk="dr3_neighbourhood",
)
RELEASES = {release.name: release for release in (DR3, DR4)}
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
