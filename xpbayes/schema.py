"""Every column of a star table and of a catalogue, once: name, type, unit, UCD, one sentence. Flag bits, once.

Writers, readers, documentation and exports all take their columns from here.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import pyarrow as pa

from xpbayes.channels import FLUX_UNIT, Channels
from xpbayes.release import DEFAULT_RELEASE, DR3

STAR_TABLE_VERSION = 1
CATALOGUE_VERSION = 1

LABEL_UNITS = {"teff": "kK", "feh": "dex", "logg": "dex", "alpha_m": "dex"}
LABEL_UCDS = {
    "teff": "phys.temperature.effective",
    "feh": "phys.abund.Z",
    "logg": "phys.gravity",
    "alpha_m": "phys.abund",
}
DEFAULT_LABELS = ("teff", "feh", "logg")

# A column is a line `name | type | unit | UCD`, with `?` after the name of one that readers do without, and its sentence
# on the lines below. Braces are filled in by whoever knows channels, labels and how the catalogue was made.
_STAR_TABLE = """
source_id | int64 | | meta.id;meta.main
    Gaia source identifier, of the table's data release
ra? | float64 | deg | pos.eq.ra;meta.main
    right ascension (ICRS)
dec? | float64 | deg | pos.eq.dec;meta.main
    declination (ICRS)
flux | list {n_channels} | {flux_unit} | phot.flux.density
    observed flux in every channel
xp_whitening | list {n_packed} | ({flux_unit})-1 | stat.covariance
    packed lower triangle, row by row, of W with W^T W the inverse covariance of the XP samples; zero rows and columns where
    a sample is missing
band_inverse_error | list {n_bands} | ({flux_unit})-1 | stat.error;phot.flux.density
    1/sigma of the flux in every broad band, 0 where missing
parallax? | float32 | mas | pos.parallax.trig
    parallax measured by Gaia
parallax_error? | float32 | mas | stat.error;pos.parallax.trig
    standard error of parallax
spectroscopic_parallax? | float32 | mas | pos.parallax.spect
    parallax implied by the labels and the dereddened Ks magnitude; may constrain training only
spectroscopic_parallax_error? | float32 | mas | stat.error;pos.parallax.spect
    standard error of spectroscopic_parallax
reddening? | float32 | mag | phot.color.excess
    estimate of the extinction scalar E
reddening_error? | float32 | mag | stat.error;phot.color.excess
    standard error of reddening
"""
_LABEL = """
{name}? | float32 | {unit} | {ucd}
    spectroscopic label {name}
{name}_error? | float32 | {unit} | stat.error;{ucd}
    standard error of the label {name}
"""
_FORMER_ID = """
{former_id} | int64 | | meta.id;meta.main
    {title} source identifier
"""
_ID = """
source_id | int64 | | {id_ucd}
    Gaia source identifier, unique within its data release
release | string | | meta.version
    data release that source_id is of
"""
_CATALOGUE = """
ra | float64 | deg | pos.eq.ra;meta.main
    right ascension (ICRS)
dec | float64 | deg | pos.eq.dec;meta.main
    declination (ICRS)
stellar_params_est | list {n} | {mixed} | phys;stat.max
    posterior mode, in the sampled coordinates, of {order}
stellar_params_err | list {n} | {mixed} | stat.error;phys
    1-sigma errors of {order}: square roots of the diagonal of stellar_params_cov_triu
chi2_opt | float32 | | stat.fit.chi2
    chi^2 of the flux at the solution
ln_prior | float32 | | stat.likelihood
    ln of the Gaussian-mixture prior on the labels at the solution
teff_confidence | float32 | | stat.probability
    probability that Teff agrees with spectroscopy (Eq. 27); null where the model has no classifier
feh_confidence | float32 | | stat.probability
    probability that [Fe/H] agrees with spectroscopy (Eq. 27); null where the model has no classifier
logg_confidence | float32 | | stat.probability
    probability that log g agrees with spectroscopy (Eq. 27); null where the model has no classifier
quality_flags | uint8 | | meta.code.qual
    bits of QualityFlag; below 8 basic, 0 strict
zgr23_flags? | uint8 | | meta.code.qual
    the bits of quality_flags as ZGR23 Table 2 has them: bit 5 by Eq. 26, bits 6 and 7 not set
fit_quality? | float32 | | stat.probability
    share of ordinary stars of the same S/N, kept aside in training, whose fluxes the model describes worse; null where the
    model has no record of it
stellar_params_icov_triu | list {n_triu} | | stat.covariance
    upper triangle, row by row, of {information} {order}{factors}
stellar_params_cov_triu | list {n_triu} | | stat.covariance
    upper triangle, row by row, of {covariance}, the covariance of {order}{factors}{wider}
laplace_cov_triu | list {n_triu} | | stat.covariance
    upper triangle, row by row, of the covariance of {order} from the full posterior's Hessian, prior
    included{factors}{wider}
stellar_params_mean | list {n} | {mixed} | phys;stat.mean
    mean {drawn}{no_draws}
stellar_params_std | list {n} | {mixed} | phys;stat.stdev
    standard deviation {drawn}{stretched}{no_draws}
stellar_params_median | list {n} | {mixed} | phys;stat.median
    median {drawn}{no_draws}
stellar_params_p16 | list {n} | {mixed} | phys;stat.value
    16 % quantile {drawn}{stretched}{no_draws}
stellar_params_p84 | list {n} | {mixed} | phys;stat.value
    84 % quantile {drawn}{stretched}{no_draws}
e_unbounded | float32 | mag | phys.absorption
    E at the optimum as if it could be negative: the peak of the Gaussian in E that the mode, in ln E, lies above; unbiased
    for stars without dust where n_modes is 1, to be averaged
e_unbounded_err | float32 | mag | stat.error;phys.absorption
    1-sigma error of e_unbounded
k_hat | float32 | | stat.fit.param
    Pareto shape of the importance weights; above 0.7 mean, std and quantiles cannot be trusted
n_effective | float32 | | meta.number
    effective number of draws; of the worst parameter for chains
n_modes | int16 | | meta.number
    distinct optima found within 9 of the best in L
runner_up_est | list {n} | {mixed} | phys;stat.max
    the second optimum's {order}; null if there is one only
runner_up_delta | float32 | | stat.likelihood
    by how much L = -2 ln posterior is higher at the second optimum
extrapolation | float32 | | stat.value
    how far outside the training sample the star lies: 0 its middle, 1 its outermost thousandth, or held inside by the prior
    against its fluxes by 2 sigma; null where the model has no record of it
p_spurious_parallax? | float32 | | stat.probability
    probability that the measured parallax is spurious, its error far larger than stated, given fidelity_v2, RUWE and the
    fluxes; null where neither column was there, or no parallax was used
p_outside_model? | float32 | | stat.probability
    probability that the source is none of the training sample's kinds of stars; above 0.5 for 1 % of stars kept aside in
    training; null where the model has no record of it
reliability? | list {n} | | stat.probability
    probability that stellar_params_median is within 2 of its 68 % interval's halves of the truth, of {order}; null where the
    model has no record of it
n_obs | int16 | | meta.number
    channels that entered the fit
dof | int16 | | stat.fit.dof
    n_obs, plus one for a parallax, minus the number of parameters
converged | bool | | meta.code.qual
    the scaled gradient test was met
n_iterations | int16 | | meta.number
    solver iterations of the winning start
newton_decrement | float32 | | stat.fit.residual
    g^T H^-1 g of the objective at the solution: what one more Newton step could still gain, twice over
hessian_positive | bool | | meta.code.qual
    the full Hessian at the solution is positive definite
method | string | | meta.code
    how the errors were computed
status | string | | meta.code.status
    'ok', or why the star has no solution
"""
_MODEL_UNCERTAINTY = """
stellar_params_model_err | list {n} | {mixed} | stat.error;phys
    1-sigma error of {order} that training leaves in the model, common to similar stars; part of all other errors where
    method says so, else null
model_cov_triu | list {n_triu} | | stat.covariance
    upper triangle, row by row, of the covariance of {order} that training leaves in the model
"""
_REFINED = """
refined_median | list {n_labels} | {label_units} | phys;stat.median
    median of {labels} as refined by what the residual spectrum tells
refined_p16 | list {n_labels} | {label_units} | phys;stat.value
    16 % quantile of refined {labels}
refined_p84 | list {n_labels} | {label_units} | phys;stat.value
    84 % quantile of refined {labels}
refined_std | list {n_labels} | {label_units} | phys;stat.stdev
    standard deviation of refined {labels}
refined_cov_triu | list {n_label_triu} | | stat.covariance
    upper triangle, row by row, of the covariance of refined {labels}
refined_move | list {n_labels} | | stat.value
    refined median minus stellar_params_median, of {labels} in units of the latter's 68 % interval's half
refined_share | float32 | | stat.value
    share of the second stage in refined labels: 1 where it has learned, 0 where they are the forward posterior
"""
# Of the star's own extinction curve, R + xi R1.
_CURVE = """
xi | float32 | | phys;stat.max
    xi of the extinction curve R + xi R1 at the posterior mode; 0 is the mean curve
xi_err | float32 | | stat.error;phys
    1-sigma error of xi by Laplace; 1, its prior's, where there is too little dust
xi_mean | float32 | | phys;stat.mean
    posterior mean of xi
xi_std | float32 | | phys;stat.stdev
    posterior standard deviation of xi
xi_median | float32 | | phys;stat.median
    posterior median of xi
xi_p16 | float32 | | phys;stat.value
    16 % quantile of xi
xi_p84 | float32 | | phys;stat.value
    84 % quantile of xi
xi_cov | list {n} | | stat.covariance
    Laplace covariance of xi with {order}
r_v | float32 | | phys
    R(V) of the dust by the law of Gordon et al. (2023); null where xi_err > 0.7, or beyond 2.3 to 5.6
r_v_err | float32 | | stat.error;phys
    1-sigma error of r_v
"""
# Of hypothesis B, an unresolved second source on the main sequence; null where it was not compared with A.
_BINARIES = """
ln_odds_binary | float32 | | stat.likelihood
    ln of the evidence of an unresolved pair of stars (B) over that of one, at even prior odds; null where they were not
    compared
binary_flux_ratio | float32 | | phot.flux;arith.ratio
    second source over first under B, 500 to 800 nm: posterior mean
binary_flux_ratio_err | float32 | | stat.error
    1-sigma error of binary_flux_ratio
binary_teff2 | float32 | kK | phys.temperature.effective
    effective temperature of the second source under B: posterior mean
binary_teff2_err | float32 | kK | stat.error;phys.temperature.effective
    1-sigma error of binary_teff2
binary_params | list {n} | {mixed} | phys;stat.mean
    posterior mean of the brighter star under hypothesis B: {order}
binary_params_err | list {n} | {mixed} | stat.error;phys
    1-sigma errors of the brighter star under hypothesis B: {order}
"""


@dataclass(frozen=True)
class Column:
    """One column of a file."""

    name: str
    type: pa.DataType
    unit: str  # in VOUnit syntax, "" if none
    ucd: str  # IVOA UCD1+, "" if none fits
    description: str  # one sentence
    required: bool = True  # a reader refuses a file without it

    def field(self) -> pa.Field:
        """Return the Arrow field with unit, UCD and description in its metadata."""
        return pa.field(
            self.name,
            self.type,
            metadata={"unit": self.unit, "ucd": self.ucd, "description": self.description},
        )


def _columns(table: str, **words: object) -> tuple[Column, ...]:
    """The columns of one of the tables above, its braces filled in."""
    out = []
    for entry in re.split(r"\n(?=\S)", table.rstrip())[1:]:
        first, sentence = entry.split("\n", 1)
        name, kind, unit, ucd = (part.strip().format(**words) for part in first.split("|"))
        size = kind.removeprefix("list ")
        arrow = pa.type_for_alias(kind) if size == kind else pa.list_(pa.float32(), int(size))
        description = " ".join(sentence.split()).format(**words)
        out.append(Column(name.removesuffix("?"), arrow, unit, ucd, description, required=not name.endswith("?")))
    return tuple(out)


def star_table_columns(channels: Channels, labels: tuple[str, ...] = DEFAULT_LABELS) -> tuple[Column, ...]:
    """List the columns of a star table with these channels and labels, Teff first."""
    sizes = {"n_channels": len(channels), "n_packed": channels.n_packed, "n_bands": channels.n_bands}
    columns = _columns(_STAR_TABLE, flux_unit=FLUX_UNIT, **sizes)
    for name in labels:
        columns += _columns(_LABEL, name=name, unit=LABEL_UNITS.get(name, ""), ucd=LABEL_UCDS.get(name, ""))
    # A set without bands, or without XP samples, has no such column: Parquet has no lists of length zero.
    return tuple(c for c in columns if not (pa.types.is_fixed_size_list(c.type) and c.type.list_size == 0))


class QualityFlag(IntFlag):
    """quality_flags: ZGR23 Table 2, but for bits 5 to 7. Bits are never reused; below 8 = basic reliability, 0 = strict."""

    UNCERTAIN_TEFF = 1 << 0
    UNCERTAIN_FEH = 1 << 1
    UNCERTAIN_LOGG = 1 << 2
    POOR_FIT = 1 << 3
    UNLIKELY_TYPE = 1 << 4
    PARALLAX_TENSION = 1 << 5
    UNUSUAL_SPECTRUM = 1 << 6
    EXTRAPOLATION = 1 << 7


FLAG_SENTENCES = {
    QualityFlag.UNCERTAIN_TEFF: "the confidence in Teff is below 0.5",
    QualityFlag.UNCERTAIN_FEH: "the confidence in [Fe/H] is below 0.5",
    QualityFlag.UNCERTAIN_LOGG: "the confidence in log g is below 0.5",
    QualityFlag.POOR_FIT: "chi2_opt / 61 exceeds 2 (Eq. 24), or there is no fit",
    QualityFlag.UNLIKELY_TYPE: "ln_prior is below the model's threshold (Eq. 25)",
    QualityFlag.PARALLAX_TENSION: "p_spurious_parallax exceeds 0.5, or fitted and measured parallax differ by more than 3 "
    "sigma of both together (in zgr23_flags 10 sigma of the measured one alone, Eq. 26)",
    QualityFlag.UNUSUAL_SPECTRUM: "fit_quality is below 0.001: hardly any star of this S/N fits so badly",
    QualityFlag.EXTRAPOLATION: "extrapolation exceeds 1: beyond the training sample",
}
"""Each flag in one plain sentence, for documents and pages."""


def columns_of(about: Mapping[str, Any]) -> tuple[Column, ...]:
    """List the columns of the catalogue that has these metadata."""
    settings, model = about.get("settings", {}), about.get("model") or {}
    return catalogue_columns(
        len(about["labels"]),
        model_uncertainty=bool(settings.get("model_uncertainty", False)),
        refined=bool(settings.get("second_stage", False)) and "second_stage_checksum" in model,
        curve=bool(model.get("curve_varies", False)),
        binaries=bool(settings.get("binaries", False)),
        release=(about.get("instrument") or {}).get("release"),
    )


FORMER_ID = f"g{DR3.name}_source_id"
"""The identifier's name in ZGR23 Table 2 and in catalogues of version 0.1.0; DR3's catalogues keep it as an alias."""


def release_of(about: Mapping[str, Any]) -> str:
    """Data release of the stars of a catalogue that has these metadata; before catalogues said so there was one."""
    return str((about.get("instrument") or {}).get("release", DR3.name))


def id_column(names: Collection[str]) -> str:
    """Which of a catalogue's columns holds the identifiers."""
    return "source_id" if "source_id" in names else FORMER_ID


def catalogue_columns(
    n_labels: int = 3,
    *,
    model_uncertainty: bool = False,
    refined: bool = False,
    curve: bool = False,
    binaries: bool = False,
    release: str | None = DEFAULT_RELEASE.name,
) -> tuple[Column, ...]:
    """List the columns of a catalogue: ZGR23 Table 2, then what the solver has to say.

    Args:
        n_labels: Table 2 has three, hence five parameters and fifteen covariances.
        model_uncertainty: errors are widened by what training leaves unknown of the model, and two columns say by how
            much.
        refined: the model has a second stage, which refined the labels.
        curve: the model knows how the extinction curve varies.
        binaries: stars were compared with unresolved pairs of stars.
        release: short name of the stars' data release; None for a catalogue of version 0.1.0, which does not say.
    """
    n, usual = n_labels + 2, n_labels == 3
    order = "(Teff, [Fe/H], log g, E, parallax)" if usual else "(labels in the model's order, then E and parallax)"
    words = {
        "n": n,
        "n_triu": n * (n + 1) // 2,
        "n_labels": n_labels,
        "n_label_triu": n_labels * (n_labels + 1) // 2,
        "mixed": "kK, dex, dex, mag, mas" if usual else "kK, dex..., mag, mas",
        "order": order,
        "label_units": "kK, dex, dex" if usual else "kK, dex...",
        "labels": "(Teff, [Fe/H], log g)" if usual else "the labels, in the model's order,",
        "wider": ", model_cov_triu added" if model_uncertainty else "",
        "stretched": ", stretched by stellar_params_model_err" if model_uncertainty else "",
        "information": f"the {'inverse of stellar_params_cov_triu, for' if model_uncertainty else 'Fisher matrix of'}",
        "covariance": "the inverse of the Fisher matrix" if model_uncertainty else "its inverse",
        "factors": ", each parameter by the factor found on stars kept aside, if the model was calibrated",
        "drawn": f"of {order} over the posterior, from importance-reweighted draws or, where method says nuts, from Markov "
        "chains; as calibrated on stars kept aside, if the model was",
        "no_draws": "; null if no draws were asked for",
        "former_id": FORMER_ID,
        "title": DR3.title,
        "id_ucd": "meta.id" if release == DR3.name else "meta.id;meta.main",
    }
    tables = {
        _FORMER_ID: release in (None, DR3.name),
        _ID: release is not None,
        _CATALOGUE: True,
        _MODEL_UNCERTAINTY: model_uncertainty,
        _REFINED: refined,
        _CURVE: curve,
        _BINARIES: binaries,
    }
    return tuple(column for table, wanted in tables.items() if wanted for column in _columns(table, **words))


BINARY_COLUMNS = tuple(column.name for column in _columns(_BINARIES, n=0, mixed="", order=""))
TEXT_WIDTH = 64
"""Characters that astropy reserves for a text column of ours."""


def arrow_schema(columns: tuple[Column, ...], metadata: dict[str, str]) -> pa.Schema:
    """Build an Arrow schema from columns and file-level metadata."""
    return pa.schema([c.field() for c in columns], metadata=metadata)


def astropy_metadata(schema: pa.Schema) -> dict[str, str]:
    """File-level metadata from which ``astropy.table.Table.read`` takes units and descriptions, as it writes them itself."""
    columns = []
    for field in schema:
        kind = field.type.value_type if pa.types.is_fixed_size_list(field.type) else field.type
        about = {key: (field.metadata or {}).get(key.encode(), b"").decode() for key in ("unit", "description", "ucd")}
        column: dict[str, Any] = {"name": field.name, "datatype": "bool" if pa.types.is_boolean(kind) else str(kind)}
        mixed = "," in about["unit"]  # of a vector of several quantities: said in its description
        if about["unit"] and not mixed:
            column["unit"] = about["unit"]
        column["description"] = about["description"] + (f" [{about['unit']}]" if mixed else "")
        if about["ucd"]:
            column["meta"] = {"ucd": about["ucd"]}
        columns.append(column)
    text = {f"table::len::{f.name}": str(TEXT_WIDTH) for f in schema if pa.types.is_string(f.type)}
    return {"table_meta_yaml": json.dumps({"datatype": columns}), **text}
