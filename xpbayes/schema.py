"""Every column of a star table and of a catalogue, once: name, type, unit, UCD, one sentence. Flag bits, once.

Longer than other modules, as it is one literal table: whoever wants to know a column finds it here.

Writers, readers, documentation and exports all take their columns from here.
"""

import json
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


@dataclass(frozen=True)
class Column:
    """One column of a file.

    Attributes:
        name: column name.
        type: Arrow type.
        unit: unit in VOUnit syntax, "" if none.
        ucd: IVOA UCD1+, "" if none fits.
        description: one sentence.
        required: a reader refuses a file without it.
    """

    name: str
    type: pa.DataType
    unit: str
    ucd: str
    description: str
    required: bool = True

    def field(self) -> pa.Field:
        """Return the Arrow field with unit, UCD and description in its metadata."""
        return pa.field(
            self.name,
            self.type,
            metadata={"unit": self.unit, "ucd": self.ucd, "description": self.description},
        )


def star_table_columns(channels: Channels, labels: tuple[str, ...] = DEFAULT_LABELS) -> tuple[Column, ...]:
    """List the columns of a star table.

    Args:
        channels: the channel set of the fluxes.
        labels: names of the stellar labels, Teff first.
    """
    f32 = pa.float32()
    columns = [
        Column("source_id", pa.int64(), "", "meta.id;meta.main", "Gaia source identifier, of the table's data release"),
        Column("ra", pa.float64(), "deg", "pos.eq.ra;meta.main", "right ascension (ICRS)", required=False),
        Column("dec", pa.float64(), "deg", "pos.eq.dec;meta.main", "declination (ICRS)", required=False),
        Column("flux", pa.list_(f32, len(channels)), FLUX_UNIT, "phot.flux.density", "observed flux in every channel"),
        Column(
            "xp_whitening",
            pa.list_(f32, channels.n_packed),
            f"({FLUX_UNIT})-1",
            "stat.covariance",
            "packed lower triangle, row by row, of W with W^T W the inverse covariance of the XP samples; "
            "zero rows and columns where a sample is missing",
        ),
        Column(
            "band_inverse_error",
            pa.list_(f32, channels.n_bands),
            f"({FLUX_UNIT})-1",
            "stat.error;phot.flux.density",
            "1/sigma of the flux in every broad band, 0 where missing",
        ),
        Column("parallax", f32, "mas", "pos.parallax.trig", "parallax measured by Gaia", required=False),
        Column(
            "parallax_error", f32, "mas", "stat.error;pos.parallax.trig", "standard error of parallax", required=False
        ),
        Column(
            "spectroscopic_parallax",
            f32,
            "mas",
            "pos.parallax.spect",
            "parallax implied by the labels and the dereddened Ks magnitude; may constrain training only",
            required=False,
        ),
        Column(
            "spectroscopic_parallax_error",
            f32,
            "mas",
            "stat.error;pos.parallax.spect",
            "standard error of spectroscopic_parallax",
            required=False,
        ),
        Column("reddening", f32, "mag", "phot.color.excess", "estimate of the extinction scalar E", required=False),
        Column(
            "reddening_error",
            f32,
            "mag",
            "stat.error;phot.color.excess",
            "standard error of reddening",
            required=False,
        ),
    ]
    for name in labels:
        unit, ucd = LABEL_UNITS.get(name, ""), LABEL_UCDS.get(name, "")
        columns.append(Column(name, f32, unit, ucd, f"spectroscopic label {name}", required=False))
        columns.append(
            Column(
                f"{name}_error", f32, unit, f"stat.error;{ucd}", f"standard error of the label {name}", required=False
            )
        )
    # A set without bands, or without XP samples, has no such column: Parquet has no lists of length zero.
    return tuple(c for c in columns if not (pa.types.is_fixed_size_list(c.type) and c.type.list_size == 0))


class QualityFlag(IntFlag):
    """quality_flags: ZGR23 Table 2, but for bits 5 to 7. Bits are never reused; below 8 = basic reliability, 0 = strict."""

    UNCERTAIN_TEFF = 1 << 0
    """The confidence in Teff is below 0.5."""
    UNCERTAIN_FEH = 1 << 1
    """The confidence in [Fe/H] is below 0.5."""
    UNCERTAIN_LOGG = 1 << 2
    """The confidence in log g is below 0.5."""
    POOR_FIT = 1 << 3
    """chi2_opt / 61 exceeds 2 (Eq. 24), or there is no fit at all."""
    UNLIKELY_TYPE = 1 << 4
    """ln_prior lies below the model's threshold (Eq. 25)."""
    PARALLAX_TENSION = 1 << 5
    """The parallax is likelier spurious than not, or 3 of both errors off the fitted one; Eq. 26 is in zgr23_flags."""
    UNUSUAL_SPECTRUM = 1 << 6
    """fit_quality is below 0.001."""
    EXTRAPOLATION = 1 << 7
    """extrapolation exceeds 1."""


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
    model_uncertainty = bool(about.get("settings", {}).get("model_uncertainty", False))
    release = (about.get("instrument") or {}).get("release")
    refined = bool(about.get("settings", {}).get("second_stage", False))
    refined = refined and "second_stage_checksum" in (about.get("model") or {})
    return catalogue_columns(
        len(about["labels"]),
        model_uncertainty=model_uncertainty,
        refined=refined,
        curve=bool((about.get("model") or {}).get("curve_varies", False)),
        binaries=bool(about.get("settings", {}).get("binaries", False)),
        release=release,
    )


FORMER_ID = f"g{DR3.name}_source_id"
"""The identifier's name in ZGR23 Table 2 and in catalogues of version 0.1.0; DR3's catalogues keep it as an alias."""


def release_of(about: Mapping[str, Any]) -> str:
    """Data release of the stars of a catalogue that has these metadata; before catalogues said so there was one."""
    return str((about.get("instrument") or {}).get("release", DR3.name))


def id_column(names: Collection[str]) -> str:
    """Which of a catalogue's columns holds the identifiers."""
    return "source_id" if "source_id" in names else FORMER_ID


def _id_columns(release: str | None) -> tuple[Column, ...]:
    alias = Column(FORMER_ID, pa.int64(), "", "meta.id;meta.main", f"{DR3.title} source identifier")
    if release is None:
        return (alias,)
    ucd = "meta.id" if release == DR3.name else "meta.id;meta.main"
    own = (
        Column("source_id", pa.int64(), "", ucd, "Gaia source identifier, unique within its data release"),
        Column("release", pa.string(), "", "meta.version", "data release that source_id is of"),
    )
    return (alias, *own) if release == DR3.name else own


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
        n_labels: number of stellar labels; Table 2 has three, hence five parameters and fifteen covariances.
        model_uncertainty: errors are widened by what training leaves unknown of the model, and two columns say by how
            much.
        refined: the model has a second stage, which refined the labels.
        curve: the model knows how the extinction curve varies.
        binaries: stars were compared with unresolved pairs of stars.
        release: short name of the stars' data release; None for a catalogue of version 0.1.0, which does not say.
    """
    f32, boolean = pa.float32(), pa.bool_()
    n_parameters = n_labels + 2
    n_triu = n_parameters * (n_parameters + 1) // 2
    mixed = "kK, dex, dex, mag, mas" if n_labels == 3 else "kK, dex..., mag, mas"
    order = (
        "(Teff, [Fe/H], log g, E, parallax)" if n_labels == 3 else "(labels in the model's order, then E and parallax)"
    )
    wider = ", model_cov_triu added" if model_uncertainty else ""
    stretched = ", stretched by stellar_params_model_err" if model_uncertainty else ""
    information = "the inverse of stellar_params_cov_triu, for" if model_uncertainty else "the Fisher matrix of"
    covariance = "the inverse of the Fisher matrix" if model_uncertainty else "its inverse"
    factors = ", each parameter by the factor found on stars kept aside, if the model was calibrated"
    added = (
        Column(
            "stellar_params_model_err",
            pa.list_(f32, n_parameters),
            mixed,
            "stat.error;phys",
            f"1-sigma error of {order} that training leaves in the model, common to similar stars; part of all other errors "
            "where method says so, else null",
        ),
        Column(
            "model_cov_triu",
            pa.list_(f32, n_triu),
            "",
            "stat.covariance",
            f"upper triangle, row by row, of the covariance of {order} that training leaves in the model",
        ),
    )
    return (
        *_id_columns(release),
        Column("ra", pa.float64(), "deg", "pos.eq.ra;meta.main", "right ascension (ICRS)"),
        Column("dec", pa.float64(), "deg", "pos.eq.dec;meta.main", "declination (ICRS)"),
        Column(
            "stellar_params_est",
            pa.list_(f32, n_parameters),
            mixed,
            "phys;stat.max",
            f"posterior mode, in the sampled coordinates, of {order}",
        ),
        Column(
            "stellar_params_err",
            pa.list_(f32, n_parameters),
            mixed,
            "stat.error;phys",
            f"1-sigma errors of {order}: square roots of the diagonal of stellar_params_cov_triu",
        ),
        Column("chi2_opt", f32, "", "stat.fit.chi2", "chi^2 of the flux at the solution"),
        Column(
            "ln_prior", f32, "", "stat.likelihood", "ln of the Gaussian-mixture prior on the labels at the solution"
        ),
        Column(
            "teff_confidence",
            f32,
            "",
            "stat.probability",
            "probability that Teff agrees with spectroscopy (Eq. 27); null where the model has no classifier",
        ),
        Column(
            "feh_confidence",
            f32,
            "",
            "stat.probability",
            "probability that [Fe/H] agrees with spectroscopy (Eq. 27); null where the model has no classifier",
        ),
        Column(
            "logg_confidence",
            f32,
            "",
            "stat.probability",
            "probability that log g agrees with spectroscopy (Eq. 27); null where the model has no classifier",
        ),
        Column("quality_flags", pa.uint8(), "", "meta.code.qual", "bits of QualityFlag; below 8 basic, 0 strict"),
        Column(
            "zgr23_flags",
            pa.uint8(),
            "",
            "meta.code.qual",
            "the bits of quality_flags as ZGR23 Table 2 has them: bit 5 by Eq. 26, bits 6 and 7 not set",
            required=False,
        ),
        Column(
            "fit_quality",
            f32,
            "",
            "stat.probability",
            "share of ordinary stars of the same S/N, kept aside in training, whose fluxes the model describes worse; null "
            "where the model has no record of it",
            required=False,
        ),
        Column(
            "stellar_params_icov_triu",
            pa.list_(f32, n_triu),
            "",
            "stat.covariance",
            f"upper triangle, row by row, of {information} {order}{factors}",
        ),
        Column(
            "stellar_params_cov_triu",
            pa.list_(f32, n_triu),
            "",
            "stat.covariance",
            f"upper triangle, row by row, of {covariance}, the covariance of {order}{factors}{wider}",
        ),
        Column(
            "laplace_cov_triu",
            pa.list_(f32, n_triu),
            "",
            "stat.covariance",
            f"upper triangle, row by row, of the covariance of {order} from the full posterior's Hessian, prior included"
            + factors
            + wider,
        ),
        *(
            Column(
                f"stellar_params_{name}",
                pa.list_(f32, n_parameters),
                mixed,
                ucd,
                f"{what} of {order} over the posterior, from importance-reweighted draws or, where method says nuts, from "
                f"Markov chains; as calibrated on stars kept aside, if the model was{more}; null if no draws were "
                "asked for",
            )
            for name, ucd, what, more in (
                ("mean", "phys;stat.mean", "mean", ""),
                ("std", "phys;stat.stdev", "standard deviation", stretched),
                ("median", "phys;stat.median", "median", ""),
                ("p16", "phys;stat.value", "16 % quantile", stretched),
                ("p84", "phys;stat.value", "84 % quantile", stretched),
            )
        ),
        Column(
            "e_unbounded",
            f32,
            "mag",
            "phys.absorption",
            "E at the optimum as if it could be negative: the peak of the Gaussian in E that the mode, in ln E, lies above; "
            "unbiased for stars without dust where n_modes is 1, to be averaged",
        ),
        Column("e_unbounded_err", f32, "mag", "stat.error;phys.absorption", "1-sigma error of e_unbounded"),
        Column(
            "k_hat",
            f32,
            "",
            "stat.fit.param",
            "Pareto shape of the importance weights; above 0.7 mean, std and quantiles cannot be trusted",
        ),
        Column("n_effective", f32, "", "meta.number", "effective number of draws; of the worst parameter for chains"),
        Column("n_modes", pa.int16(), "", "meta.number", "distinct optima found within 9 of the best in L"),
        Column(
            "runner_up_est",
            pa.list_(f32, n_parameters),
            mixed,
            "phys;stat.max",
            f"the second optimum's {order}; null if there is one only",
        ),
        Column(
            "runner_up_delta",
            f32,
            "",
            "stat.likelihood",
            "by how much L = -2 ln posterior is higher at the second optimum",
        ),
        Column(
            "extrapolation",
            f32,
            "",
            "stat.value",
            "how far outside the training sample the star lies: 0 its middle, 1 its outermost thousandth, or held inside by "
            "the prior against its fluxes by 2 sigma; null where the model has no record of it",
        ),
        Column(
            "p_spurious_parallax",
            f32,
            "",
            "stat.probability",
            "probability that the measured parallax is spurious, its error far larger than stated, given fidelity_v2, RUWE "
            "and the fluxes; null where neither column was there, or no parallax was used",
            required=False,
        ),
        Column(
            "p_outside_model",
            f32,
            "",
            "stat.probability",
            "probability that the source is none of the training sample's kinds of stars; above 0.5 for 1 % of stars kept "
            "aside in training; null where the model has no record of it",
            required=False,
        ),
        Column(
            "reliability",
            pa.list_(f32, n_parameters),
            "",
            "stat.probability",
            f"probability that stellar_params_median is within 2 of its 68 % interval's halves of the truth, of {order}; "
            "null where the model has no record of it",
            required=False,
        ),
        Column("n_obs", pa.int16(), "", "meta.number", "channels that entered the fit"),
        Column("dof", pa.int16(), "", "stat.fit.dof", "n_obs, plus one for a parallax, minus the number of parameters"),
        Column("converged", boolean, "", "meta.code.qual", "the scaled gradient test was met"),
        Column("n_iterations", pa.int16(), "", "meta.number", "solver iterations of the winning start"),
        Column(
            "newton_decrement",
            f32,
            "",
            "stat.fit.residual",
            "g^T H^-1 g of the objective at the solution: what one more Newton step could still gain, twice over",
        ),
        Column(
            "hessian_positive", boolean, "", "meta.code.qual", "the full Hessian at the solution is positive definite"
        ),
        Column("method", pa.string(), "", "meta.code", "how the errors were computed"),
        Column("status", pa.string(), "", "meta.code.status", "'ok', or why the star has no solution"),
        *(added if model_uncertainty else ()),
        *(_refined_columns(n_labels) if refined else ()),
        *(_curve_columns(n_parameters, order) if curve else ()),
        *(_binary_columns(n_parameters, mixed, order) if binaries else ()),
    )


BINARY_COLUMNS = (
    "ln_odds_binary", "binary_flux_ratio", "binary_flux_ratio_err", "binary_teff2", "binary_teff2_err", "binary_params",
    "binary_params_err",
)  # fmt: skip


def _binary_columns(n_parameters: int, mixed: str, order: str) -> tuple[Column, ...]:
    """Of hypothesis B, an unresolved second source on the main sequence; null where it was not compared with A."""
    f32, many, primary = pa.float32(), pa.list_(pa.float32(), n_parameters), "of the brighter star under hypothesis B"
    each = (
        (f32, "", "stat.likelihood", "ln of the evidence of an unresolved pair of stars (B) over that of one, at even "
         "prior odds; null where they were not compared"),
        (f32, "", "phot.flux;arith.ratio", "second source over first under B, 500 to 800 nm: posterior mean"),
        (f32, "", "stat.error", "1-sigma error of binary_flux_ratio"),
        (f32, "kK", "phys.temperature.effective", "effective temperature of the second source under B: posterior mean"),
        (f32, "kK", "stat.error;phys.temperature.effective", "1-sigma error of binary_teff2"),
        (many, mixed, "phys;stat.mean", f"posterior mean {primary}: {order}"),
        (many, mixed, "stat.error;phys", f"1-sigma errors {primary}: {order}"),
    )  # fmt: skip
    return tuple(Column(name, *rest) for name, rest in zip(BINARY_COLUMNS, each, strict=True))


def _curve_columns(n_parameters: int, order: str) -> tuple[Column, ...]:
    """Of the star's own extinction curve, R + xi R1."""
    f32 = pa.float32()
    each = (
        ("xi", "phys;stat.max", "xi of the extinction curve R + xi R1 at the posterior mode; 0 is the mean curve"),
        ("xi_err", "stat.error;phys", "1-sigma error of xi by Laplace; 1, its prior's, where there is too little dust"),
        ("xi_mean", "phys;stat.mean", "posterior mean of xi"),
        ("xi_std", "phys;stat.stdev", "posterior standard deviation of xi"),
        ("xi_median", "phys;stat.median", "posterior median of xi"),
        ("xi_p16", "phys;stat.value", "16 % quantile of xi"),
        ("xi_p84", "phys;stat.value", "84 % quantile of xi"),
    )
    return (
        *(Column(name, f32, "", ucd, what) for name, ucd, what in each),
        Column("xi_cov", pa.list_(f32, n_parameters), "", "stat.covariance", f"Laplace covariance of xi with {order}"),
        Column(
            "r_v",
            f32,
            "",
            "phys",
            "R(V) of the dust by the law of Gordon et al. (2023); null where xi_err > 0.7, or beyond 2.3 to 5.6",
        ),
        Column("r_v_err", f32, "", "stat.error;phys", "1-sigma error of r_v"),
    )


def _refined_columns(n_labels: int) -> tuple[Column, ...]:
    """Of the second stage, in the labels alone."""
    f32, n_triu = pa.float32(), n_labels * (n_labels + 1) // 2
    mixed = "kK, dex, dex" if n_labels == 3 else "kK, dex..."
    order = "(Teff, [Fe/H], log g)" if n_labels == 3 else "the labels, in the model's order,"
    each = (
        ("median", "phys;stat.median", f"median of {order} as refined by what the residual spectrum tells"),
        ("p16", "phys;stat.value", f"16 % quantile of refined {order}"),
        ("p84", "phys;stat.value", f"84 % quantile of refined {order}"),
        ("std", "phys;stat.stdev", f"standard deviation of refined {order}"),
    )
    return (
        *(Column(f"refined_{name}", pa.list_(f32, n_labels), mixed, ucd, what) for name, ucd, what in each),
        Column(
            "refined_cov_triu",
            pa.list_(f32, n_triu),
            "",
            "stat.covariance",
            f"upper triangle, row by row, of the covariance of refined {order}",
        ),
        Column(
            "refined_move",
            pa.list_(f32, n_labels),
            "",
            "stat.value",
            f"refined median minus stellar_params_median, of {order} in units of the latter's 68 % interval's half",
        ),
        Column(
            "refined_share",
            f32,
            "",
            "stat.value",
            "share of the second stage in refined labels: 1 where it has learned, 0 where they are the forward posterior",
        ),
    )


def arrow_schema(columns: tuple[Column, ...], metadata: dict[str, str]) -> pa.Schema:
    """Build an Arrow schema from columns and file-level metadata."""
    return pa.schema([c.field() for c in columns], metadata=metadata)


TEXT_WIDTH = 64
"""Characters that astropy reserves for a text column of ours."""


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
