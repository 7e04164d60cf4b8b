"""A survey drawn from a trained model, written in the formats of the real one, the truth beside it.

Stars are drawn from the model's label prior, put at distances and behind dust, observed with Gaia-like errors and
written as bulk XP_CONTINUOUS csv.gz, Gaia source table, 2MASS and unWISE matches, LAMOST and Hot Payne labels,
reddening and a survey.toml that ties them together: the end-to-end test of every door, at any size.
The noise is the one that inference assumes: coefficient covariance, the calibration errors of ZGR23 Eq. 2, the model's
own error if it has one, a floor of 1 % in the bands.
"""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.archive.labels import JOIN_TEFF_K
from xpbayes.archive.photometric import TWO_MASS_BANDS, UNWISE_BANDS, UNWISE_ZERO_POINT
from xpbayes.archive.star_table import fixed_list, write_parquet
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.calibration.design_matrix import LN_ERROR_SHAPE, design_matrix
from xpbayes.calibration.error_model import inflate
from xpbayes.calibration.photometry import FLUX_ERROR_FLOOR, LN10_OVER_2P5, zero_point_flux
from xpbayes.calibration.xp_covariance import FLUX_UNIT_SI, XpSide, coefficient_covariance, merge_weights
from xpbayes.channels import BANDS, XP_GRID_NM
from xpbayes.errors import InputError
from xpbayes.modelfile import TrainedModel, load_model

Say = Callable[[str], None]

LN_ERROR_LEVEL = {"bp": (0.0664, 0.0491, -1.1673), "rp": (0.0549, 0.1206, -1.1685)}
"""Mean ln error of a side's coefficients as a quadratic in ln of its mean flux [1e-18 W m^-2 nm^-1]: a least-squares
fit to 2,000 Gaia DR3 sources, scatter 0.2."""
LN_ERROR_SCATTER = 0.2
G_ZERO_POINT = 18.5
"""G is about this for a mean XP flux of 1e-18 W m^-2 nm^-1 (Vega: 2.5e-11 W m^-2 nm^-1); errors need no better."""
BRIGHT_G, FAINT_G = 8.0, 17.65
"""XP spectra of DR3 were published down to G = 17.65."""
DISTANCE_SCALE_KPC = 0.5
"""Distances follow r^2 exp(-r / scale): a smooth disc that is seen to a few kpc."""
E_PER_KPC = 0.15
"""Typical extinction near the plane [mag/kpc]."""
NUMBER_ROWS = 256
"""Stars drawn and written at once."""

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


@dataclass(frozen=True)
class Recipe:
    """How realistic the survey is.

    Attributes:
        seed: of all random numbers.
        like: a file of real continuous spectra with correlations: their error profiles and correlations are used,
            scaled to each star's brightness. None: profiles of the median DR3 source, made-up correlations.
        missing_band: share of 2MASS and unWISE measurements that are absent or of poor quality.
        missing_side: share of stars without BP (half of them) or RP.
        crowded: share of stars with a neighbour: norm_dg above both limits, and bands that hold its light too.
        binaries: share of stars with an unresolved companion from the same prior.
        outliers: share of stars with a stretch of ten samples that is wrong by 30 %.
        labelled: share of stars with labels.
        stars_per_file: rows per bulk file.
    """

    seed: int = 0
    like: Path | None = None
    missing_band: float = 0.0
    missing_side: float = 0.0
    crowded: float = 0.0
    binaries: float = 0.0
    outliers: float = 0.0
    labelled: float = 1.0
    stars_per_file: int = 5000

    def check(self) -> None:
        """Raise InputError for a share outside 0 ... 1."""
        for name in ("missing_band", "missing_side", "crowded", "binaries", "outliers", "labelled"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is a share, between 0 and 1")
        if self.stars_per_file < 1 or self.seed < 0:
            raise InputError("stars_per_file must be at least 1 and seed at least 0")


@dataclass(frozen=True)
class _Errors:
    """Errors of real or typical sources to draw from.

    Attributes:
        profile: per side, (template, 55) ln error minus its mean.
        correlation: per side, (template, 1485) packed correlations; None: made up.
    """

    profile: tuple[NDArray[np.float64], NDArray[np.float64]]
    correlation: tuple[NDArray[np.float64], NDArray[np.float64]] | None


def simulate(
    model: TrainedModel | Path,
    n_stars: int,
    out: Path,
    recipe: Recipe = Recipe(),
    say: Say = lambda line: None,
) -> list[Path]:
    """Write a survey drawn from a trained model.

    Args:
        model: the model, or its folder.
        n_stars: how many stars.
        out: folder for the files; must not hold a survey yet.
        recipe: how realistic.
        say: receives one line per step.

    Returns:
        the files written, survey.toml first, truth.parquet second.

    Raises:
        InputError: not a model, a model without the 61 XP samples, a bad share, or a folder that is in use.
    """
    recipe.check()
    if n_stars < 1:
        raise InputError(f"cannot simulate {n_stars} stars; ask for at least one")
    trained = model if isinstance(model, TrainedModel) else load_model(model)
    xp = trained.channels.wavelengths[: trained.channels.n_xp]
    if trained.channels.n_xp != XP_GRID_NM.size or not np.allclose(xp, XP_GRID_NM):
        raise InputError(
            f"the model has {trained.channels.n_xp} XP samples, not the 61 on 392-992 nm; use another model"
        )
    if out.exists() and (not out.is_dir() or (out / "survey.toml").exists()):
        raise InputError(f"{out}: is in use; choose another folder")
    errors = _errors_like(recipe.like)
    try:
        (out / "xp").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}); choose another folder") from error
    rng = np.random.default_rng(recipe.seed)
    stars = _draw_stars(trained, n_stars, recipe, rng)
    files: list[Path] = []
    observed = np.zeros((n_stars, len(trained.channels)))
    for number, start in enumerate(range(0, n_stars, recipe.stars_per_file)):
        stop = min(start + recipe.stars_per_file, n_stars)
        path = out / "xp" / f"XpContinuousMeanSpectrum_{number:04d}.csv.gz"
        _write_bulk(path, _observe_xp(stars, errors, recipe, rng, start, stop, observed))
        files.append(path)
        say(f"{path.name}: {stop - start} spectra")
    files += _write_bands(stars, trained, recipe, rng, out, observed)
    files += _write_gaia(stars, rng, out)
    files += _write_labels(stars, trained.labels, recipe, rng, out)
    files.append(_write_reddening(stars, rng, out))
    truth = _write_truth(stars, trained, observed, out)
    survey = out / "survey.toml"
    survey.write_text(_survey_toml(trained, {f.name for f in files}))
    say(f"wrote {survey}: xpbayes prepare {survey} --out stars/")
    return [survey, truth, *files]


@dataclass(frozen=True)
class _Stars:
    """The truth.

    Attributes:
        source_id: (star,) with the position in its upper bits, as Gaia's.
        ra, dec: (star,) [deg].
        parameters: (star, label + 2) labels, ln E, ln parallax.
        flux: (star, channel) noiseless flux, companion included [1e-18 W m^-2 nm^-1].
        g: (star,) rough G magnitude.
        has_bp, has_rp, crowded, binary, outlier: (star,) which stars are special.
        model_error: (star, channel) relative error of the model, drawn.
    """

    source_id: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    parameters: NDArray[np.float64]
    flux: NDArray[np.float64]
    g: NDArray[np.float64]
    has_bp: NDArray[np.bool_]
    has_rp: NDArray[np.bool_]
    crowded: NDArray[np.bool_]
    binary: NDArray[np.bool_]
    outlier: NDArray[np.bool_]
    model_error: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.source_id)


def _draw_stars(model: TrainedModel, n: int, recipe: Recipe, rng: np.random.Generator) -> _Stars:
    import astropy.units as u
    import jax
    from astropy_healpix import HEALPix

    from xpbayes.models.forward import predict_flux
    from xpbayes.models.prior import draw_labels

    predict = jax.jit(jax.vmap(predict_flux, (None, 0)))

    def fluxes(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(predict(model.forward, parameters.astype(np.float32)), np.float64)

    key = jax.random.key(int(rng.integers(2**31)))
    labels = np.asarray(draw_labels(model.prior, key, n), np.float64)
    distance = rng.gamma(3.0, DISTANCE_SCALE_KPC, n)
    extinction = np.maximum(rng.exponential(E_PER_KPC * distance), 0.003)
    parameters = np.concatenate([labels, np.log(extinction)[:, None], -np.log(distance)[:, None]], axis=1)

    # A star outside XP's range of brightness is put where it is inside: flux goes with the parallax squared.
    g = G_ZERO_POINT - 2.5 * np.log10(fluxes(parameters)[:, : XP_GRID_NM.size].mean(axis=1))
    wanted = np.clip(g, BRIGHT_G + rng.uniform(0, 1, n), FAINT_G - rng.uniform(0, 1.5, n))
    parameters[:, -1] += -0.2 * np.log(10.0) * (wanted - g)
    flux = fluxes(parameters)

    binary = rng.random(n) < recipe.binaries
    if binary.any():
        second = parameters.copy()
        second[:, : labels.shape[1]] = labels[rng.permutation(n)]
        if "feh" in model.labels:  # born together: the same metallicity
            second[:, model.labels.index("feh")] = labels[:, model.labels.index("feh")]
        companion = fluxes(second)
        fainter = companion[:, : XP_GRID_NM.size].mean(1) < flux[:, : XP_GRID_NM.size].mean(1)
        binary &= fainter
        flux = flux + np.where(binary[:, None], companion, 0.0)

    relative = np.zeros_like(flux)
    if model.model_error is not None:
        factor = np.asarray(model.model_error, np.float64)
        relative = rng.standard_normal((n, factor.shape[1])) @ factor.T

    healpix = HEALPix(nside=4096, order="nested", frame=None)
    pixel = rng.integers(healpix.npix, size=n)
    lon, lat = healpix.healpix_to_lonlat(pixel)
    # Gaia's own scheme: HEALPix of level 12 from bit 35 up, then a running number.
    source_id = (pixel.astype(np.int64) << 35) + 128 * (1 + np.arange(n, dtype=np.int64))
    side = rng.random(n)
    return _Stars(
        source_id=source_id,
        ra=lon.to_value(u.deg),
        dec=lat.to_value(u.deg),
        parameters=parameters,
        flux=flux,
        g=G_ZERO_POINT - 2.5 * np.log10(flux[:, : XP_GRID_NM.size].mean(axis=1)),
        has_bp=side >= 0.5 * recipe.missing_side,
        has_rp=side < 1.0 - 0.5 * recipe.missing_side,
        crowded=rng.random(n) < recipe.crowded,
        binary=binary,
        outlier=rng.random(n) < recipe.outliers,
        model_error=relative,
    )


def _errors_like(path: Path | None) -> _Errors:
    if path is None:
        order = np.linspace(-1.0, 1.0, 55)
        profiles = []
        for side in ("bp", "rp"):
            linear, quadratic, constant = LN_ERROR_SHAPE[side]
            profile = linear * order + quadratic * order**2 + constant
            profiles.append((profile - profile.mean())[None])
        return _Errors((profiles[0], profiles[1]), None)
    bp, rp = [], []
    for batch in read_xp_continuous(path):
        keep = batch.bp.present & batch.rp.present
        if batch.bp.correlation is not None and batch.rp.correlation is not None and keep.any():
            bp.append(batch.bp.take(keep))
            rp.append(batch.rp.take(keep))
    if not bp:
        raise InputError(f"{path}: no source has BP and RP with correlations; name a file of real continuous spectra")
    ln_error = [np.log(np.concatenate([s.error for s in sides])) for sides in (bp, rp)]
    correlation = [np.concatenate([s.correlation for s in sides if s.correlation is not None]) for sides in (bp, rp)]
    return _Errors(
        (ln_error[0] - ln_error[0].mean(1, keepdims=True), ln_error[1] - ln_error[1].mean(1, keepdims=True)),
        (correlation[0], correlation[1]),
    )


@dataclass(frozen=True)
class _Spectra:
    """Observed coefficients of some stars."""

    stars: _Stars
    at: NDArray[np.int64]
    bp: XpSide
    rp: XpSide


def _observe_xp(
    stars: _Stars,
    errors: _Errors,
    recipe: Recipe,
    rng: np.random.Generator,
    start: int,
    stop: int,
    observed: NDArray[np.float64],
) -> Iterator[_Spectra]:
    design = design_matrix() / FLUX_UNIT_SI
    k = design.shape[1] // 2
    n_xp = XP_GRID_NM.size
    # A merged sample is a sum of both sides. Each side alone must give the star's flux there too, or a star without
    # BP would have a wrong 642 nm sample: such rows are replaced by one row a side.
    w_bp, w_rp = merge_weights()
    merged = np.flatnonzero((w_bp > 0) & (w_rp > 0))
    bp_alone, rp_alone = np.zeros((2, len(merged), 2 * k))
    bp_alone[:, :k] = design[merged, :k] / w_bp[merged, None]
    rp_alone[:, k:] = design[merged, k:] / w_rp[merged, None]
    sides_apart = np.vstack([np.delete(design, merged, axis=0), bp_alone, rp_alone])
    for first in range(start, stop, NUMBER_ROWS):
        at = np.arange(first, min(first + NUMBER_ROWS, stop))
        flux = stars.flux[at, :n_xp] * (1.0 + stars.model_error[at, :n_xp])
        sides = [
            _errors_of_side(i, name, flux[:, part].mean(axis=1), errors, rng)
            for i, (name, part) in enumerate((("bp", slice(0, 25)), ("rp", slice(25, n_xp))))
        ]
        # The calibration's own errors are drawn in the samples, the measurement's in the coefficients.
        calibration = inflate(np.zeros((len(at), n_xp, n_xp)), flux, XP_GRID_NM)
        wrong = np.linalg.cholesky(calibration) @ rng.standard_normal((len(at), n_xp, 1))
        target = flux + wrong[:, :, 0]
        for odd in np.flatnonzero(stars.outlier[at]):
            low = int(rng.integers(0, n_xp - 10))
            target[odd, low : low + 10] *= 1.0 + 0.3 * rng.choice([-1.0, 1.0])
        # Coefficients that give these samples exactly, each order moved in proportion to its typical error.
        typical = np.exp(np.concatenate([errors.profile[0][0], errors.profile[1][0]]))
        wanted = np.hstack([np.delete(target, merged, axis=1), target[:, merged], target[:, merged]])
        inverse = np.linalg.pinv(sides_apart * typical, rcond=1e-14).T
        coefficient = typical * (wanted @ inverse)
        # One step of refinement: the bases are nearly degenerate, and the samples should come back to 1e-12.
        coefficient += typical * ((wanted - coefficient @ sides_apart.T) @ inverse)
        full = []
        for i, side in enumerate(sides):
            factor = np.linalg.cholesky(coefficient_covariance(side))
            noise = (factor @ rng.standard_normal((len(at), k, 1)))[:, :, 0]
            present = (stars.has_bp, stars.has_rp)[i][at]
            values = coefficient[:, i * k : (i + 1) * k] + noise
            full.append(XpSide(values, side.error, side.correlation, side.standard_deviation, present))
        noisy = np.concatenate([s.coefficient for s in full], axis=1)
        observed[at, :n_xp] = noisy @ design.T
        for alone, has_other in ((rp_alone, stars.has_bp[at]), (bp_alone, stars.has_rp[at])):
            observed[np.ix_(at[~has_other], merged)] = noisy[~has_other] @ alone.T
        yield _Spectra(stars, at, full[0], full[1])


def _errors_of_side(
    i: int, name: str, mean_flux: NDArray[np.float64], errors: _Errors, rng: np.random.Generator
) -> XpSide:
    n = len(mean_flux)
    level = np.polyval(LN_ERROR_LEVEL[name], np.log(np.maximum(mean_flux, 0.1)))
    level = level + LN_ERROR_SCATTER * rng.standard_normal(n)
    template = rng.integers(len(errors.profile[i]), size=n)
    error = np.exp(level[:, None] + errors.profile[i][template]).astype(np.float32)
    k = error.shape[1]
    row, column = np.tril_indices(k, -1)
    if errors.correlation is not None:
        correlation = errors.correlation[i][template]
    else:
        loading = 0.4 * rng.standard_normal((n, k, 3))
        matrix = loading @ loading.transpose(0, 2, 1) + np.eye(k)
        sigma = np.sqrt(np.diagonal(matrix, axis1=1, axis2=2))
        correlation = (matrix / sigma[:, :, None] / sigma[:, None, :])[:, row, column]
    return XpSide(
        coefficient=np.zeros((n, k)),
        error=error.astype(np.float64),  # what the file will hold: float32
        correlation=correlation.astype(np.float32).astype(np.float64),
        standard_deviation=rng.uniform(1.0, 1.3, n).astype(np.float32).astype(np.float64),
        present=np.ones(n, bool),
    )


def _write_bulk(path: Path, spectra: Iterator[_Spectra]) -> None:
    """Write the archive's bulk layout: an ECSV header in comments, arrays as "[...]", missing as null."""
    double, single = "%.17g", "%.9g"
    kinds = {"source_id": "int64", "solution_id": "int64"}
    with gzip.open(path, "wt", compresslevel=4) as stream:
        stream.write("# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n")
        for name in BULK_COLUMNS:
            array = "coefficient" in name
            kind = (
                "string" if array else kinds.get(name, "float32" if "deviation" in name or "chi" in name else "int16")
            )
            stream.write(f"# -\n#   name: {name}\n#   datatype: {kind}\n")
            if array:
                stream.write(f"#   subtype: '{'float64' if name.endswith('coefficients') else 'float32'}[null]'\n")
        stream.write(",".join(BULK_COLUMNS) + "\n")
        for block in spectra:
            for i, star in enumerate(block.at):
                cells = [str(block.stars.source_id[star]), str(SOLUTION_ID)]
                for identifier, side in (("56", block.bp), ("57", block.rp)):
                    if not side.present[i]:
                        cells += ["null"] * len(BULK_SIDE)
                        continue
                    assert side.correlation is not None  # always simulated
                    k = side.n_coefficients
                    arrays = (
                        f'"[{",".join([form] * len(v)) % tuple(v.tolist())}]"'
                        for form, v in (
                            (double, side.coefficient[i]),
                            (single, side.error[i]),
                            (single, side.correlation[i]),
                        )
                    )
                    cells += [identifier, "2000", str(k), "2055", "5", single % side.standard_deviation[i], "2000.0"]
                    cells += [*arrays, str(k), "1.0"]
                stream.write(",".join(cells) + "\n")


def _write_bands(
    stars: _Stars,
    model: TrainedModel,
    recipe: Recipe,
    rng: np.random.Generator,
    out: Path,
    observed: NDArray[np.float64],
) -> list[Path]:
    """2MASS magnitudes and unWISE nanomaggies of the bands that the model has."""
    n = len(stars)
    names = model.channels.band_names
    two_mass, unwise, quality = {}, {}, {}
    for j, name in enumerate(names, model.channels.n_xp):
        if name not in BANDS:
            continue
        flux = stars.flux[:, j] * (1.0 + stars.model_error[:, j])
        flux = flux * np.where(stars.crowded, 1.0 + rng.uniform(0.2, 1.0, n), 1.0)
        zero_point = zero_point_flux(BANDS[name])
        vega = -2.5 * np.log10(flux / zero_point)
        sigma = np.hypot(0.02, 0.03 * 10.0 ** (0.4 * (vega - 14.0)))  # [mag]: 0.03 at 14th magnitude, as 2MASS
        relative = np.hypot(LN10_OVER_2P5 * sigma, FLUX_ERROR_FLOOR)
        value = flux * np.maximum(1.0 + relative * rng.standard_normal(n), 0.05)
        good = rng.random(n) >= recipe.missing_band
        observed[:, j] = np.where(good, value, np.nan)
        if name in TWO_MASS_BANDS:
            two_mass[name] = (-2.5 * np.log10(value / zero_point), sigma)
            quality[name] = np.where(good, "A", "U")
        elif name in UNWISE_BANDS:
            maggies = value / zero_point * 10.0 ** (0.4 * UNWISE_ZERO_POINT)
            unwise[name] = (maggies, maggies * LN10_OVER_2P5 * sigma, np.where(good, 0.99, 0.1))
    files = []
    if two_mass:
        lines = [
            "source_id,designation," + ",".join(f"{b.lower()}_m,{b.lower()}_msigcom" for b in two_mass) + ",ph_qual"
        ]
        for i in range(n):
            cells = [f"{two_mass[b][0][i]:.17g},{two_mass[b][1][i]:.17g}" for b in two_mass]
            letters = "".join(str(quality[b][i]) if b in quality else "U" for b in TWO_MASS_BANDS)
            lines.append(f"{stars.source_id[i]},SIM{i:08d},{','.join(cells)},{letters}")
        files.append(_write_text(out / "tmass.csv.gz", lines))
    if unwise:
        parts = [f"flux_{b.lower()},dflux_{b.lower()},fracflux_{b.lower()},qf_{b.lower()}" for b in unwise]
        lines = ["source_id," + ",".join(parts)]
        for i in range(n):
            cells = [f"{unwise[b][0][i]:.17g},{unwise[b][1][i]:.17g},{unwise[b][2][i]:g},1.0" for b in unwise]
            lines.append(f"{stars.source_id[i]},{','.join(cells)}")
        files.append(_write_text(out / "unwise.csv.gz", lines))
    return files


def _write_gaia(stars: _Stars, rng: np.random.Generator, out: Path) -> list[Path]:
    z = np.maximum(10.0 ** (0.4 * (13.1 - 15.0)), 10.0 ** (0.4 * (stars.g - 15.0)))
    error = 1e-3 * np.sqrt(40.0 + 800.0 * z + 30.0 * z**2)  # Gaia's published performance, DR3 [mas]
    parallax = np.exp(stars.parameters[:, -1]) + error * rng.standard_normal(len(stars))
    norm_dg = np.where(stars.crowded, rng.uniform(-4.9, 0.0, len(stars)), rng.uniform(-30.0, -10.1, len(stars)))
    lines = [
        "source_id,ra,dec,ref_epoch,parallax,parallax_error,pmra,pmdec,ruwe,phot_g_mean_mag,phot_bp_rp_excess_factor,"
        "fidelity_v2,norm_dg"
    ]
    for i in range(len(stars)):
        lines.append(
            f"{stars.source_id[i]},{stars.ra[i]:.12f},{stars.dec[i]:.12f},2016.0,{parallax[i]:.10g},{error[i]:.8g},"
            f"0.0,0.0,1.0,{stars.g[i]:.6f},1.2,1.0,{norm_dg[i]:.4f}"
        )
    return [_write_text(out / "gaia_source.csv.gz", lines)]


LABEL_ERRORS = {"teff": 0.05, "feh": 0.05, "logg": 0.08}
"""Typical errors of LAMOST labels [kK, dex, dex]; 0.05 for any other label."""


def _write_labels(
    stars: _Stars, names: tuple[str, ...], recipe: Recipe, rng: np.random.Generator, out: Path
) -> list[Path]:
    """LAMOST below 7000 K, Hot Payne above; by position, as the real catalogues are matched."""
    n, n_labels = len(stars), len(names)
    sigma = np.array([LABEL_ERRORS.get(name, 0.05) for name in names]) * rng.uniform(0.5, 1.5, (n, n_labels))
    value = stars.parameters[:, :n_labels] + sigma * rng.standard_normal((n, n_labels))
    has = rng.random(n) < recipe.labelled
    offset = 0.05 / 3600.0 * rng.uniform(-1, 1, (n, 2))  # [deg], well inside the match radius
    hot = value[:, 0] * 1e3 >= JOIN_TEFF_K
    files = []
    for name, chosen in (("lamost.csv", has & ~hot), ("hot_payne.csv", has & hot)):
        if not chosen.any():
            continue
        lines = ["ra,dec,snrg,snrr,snri," + ",".join(f"{label},{label}_err" for label in names)]
        for i in np.flatnonzero(chosen):
            scale = [1e3 if label == "teff" else 1.0 for label in names]
            cells = ",".join(f"{v * s:.9g},{e * s:.9g}" for v, e, s in zip(value[i], sigma[i], scale, strict=True))
            snr = rng.uniform(25, 200)
            ra = (stars.ra[i] + offset[i, 0]) % 360.0
            dec = np.clip(stars.dec[i] + offset[i, 1], -90.0, 90.0)
            lines.append(f"{ra:.10f},{dec:.10f},{snr:.1f},{snr * 1.2:.1f},{snr * 1.1:.1f},{cells}")
        files.append(_write_text(out / name, lines))
    return files


def _write_reddening(stars: _Stars, rng: np.random.Generator, out: Path) -> Path:
    true = np.exp(stars.parameters[:, -2])
    sigma = np.hypot(0.02, 0.1 * true)
    value = true + sigma * rng.standard_normal(len(stars))
    lines = ["source_id,reddening,reddening_error"]
    lines += [f"{i},{v:.8g},{s:.8g}" for i, v, s in zip(stars.source_id, value, sigma, strict=True)]
    return _write_text(out / "reddening.csv", lines)


def _write_truth(stars: _Stars, model: TrainedModel, observed: NDArray[np.float64], out: Path) -> Path:
    """The truth: parameters, noiseless and observed flux (NaN where a band is bad), and what is odd about a star."""
    names = (*model.labels, "extinction", "parallax")
    values = np.concatenate([stars.parameters[:, :-2], np.exp(stars.parameters[:, -2:])], axis=1)
    columns: dict[str, pa.Array] = {"source_id": pa.array(stars.source_id)}
    columns |= {name: pa.array(values[:, i]) for i, name in enumerate(names)}
    kind = pa.list_(pa.float64(), len(model.channels))
    columns |= {"flux": fixed_list(stars.flux, kind), "flux_observed": fixed_list(observed, kind)}
    columns |= {
        name: pa.array(getattr(stars, name)) for name in ("has_bp", "has_rp", "crowded", "binary", "outlier", "g")
    }
    path = out / "truth.parquet"
    write_parquet(pa.table(columns), path)
    return path


def _write_text(path: Path, lines: list[str]) -> Path:
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text, compresslevel=4) if path.suffix == ".gz" else text)
    return path


def _survey_toml(model: TrainedModel, files: set[str]) -> str:
    bands = ", ".join(f'"{b}"' for b in model.channels.band_names)
    names = ", ".join(f'"{n}"' for n in model.labels)
    text = [
        "# A simulated survey; the truth is in truth.parquet.",
        f"bands = [{bands}]",
        f"label_names = [{names}]",
        'select = "all"',
        "\n[xp]",
        'files = ["xp/*.csv.gz"]',
        "\n[gaia]",
        'files = ["gaia_source.csv.gz"]',
    ]
    for table, file in (("two_mass", "tmass.csv.gz"), ("unwise", "unwise.csv.gz")):
        if file in files:
            text += [f"\n[{table}]", f'files = ["{file}"]']
    text += ["\n[reddening]", 'source = "columns"', 'files = ["reddening.csv"]']
    labels = ", ".join(f'{n} = ["{n}"]' for n in model.labels)
    errors = ", ".join(f'{n} = ["{n}_err"]' for n in model.labels)
    for survey, file in (("lamost_afgk", "lamost.csv"), ("hot_payne", "hot_payne.csv")):
        if file in files:
            text += [
                "\n[[labels]]",
                f'survey = "{survey}"',
                f'files = ["{file}"]',
                "epoch = 2016.0",
                "[labels.columns]",
                'snr = ["snrg", "snrr", "snri"]',
                f"labels = {{ {labels} }}",
                f"errors = {{ {errors} }}",
            ]
    return "\n".join(text) + "\n"
