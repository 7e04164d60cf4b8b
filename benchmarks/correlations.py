"""Fig. 6 on a catalogue with Gaia's parallax errors: median correlations beside the paper's, and what sets their signs.

The catalogue is one inferred from flux alone. Every star is given the parallax error of a real Gaia star of its G
magnitude (Gaia DR2, from the Green et al. 2020 table, if named; else Gaia DR3's published performance), which enters the
Fisher matrix as 1/sigma^2 (Eq. 22). Medians are printed for all stars, for giants and for dwarfs, with the covariance of
the model's own error, as the catalogue has it, and without, as the paper has it. Below, why parallax and [Fe/H] are
correlated: parallax follows log g (flux goes with radius squared and parallax squared), so its sign is that of log g and
[Fe/H], which a spectrum's shape decides, kind of star by kind of star, unless luminosity itself depends on [Fe/H].

Usage: python benchmarks/correlations.py MODEL CATALOGUE STARS [--errors-like GREEN2020_TABLE] [--most 2000]
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import xpbayes
from xpbayes.analysis.figures.correlations import PAPER, correlation_of_inverse, unpacked
from xpbayes.data.spectra import OK
from xpbayes.data.spectra_file import read_star_tables
from xpbayes.production.table import catalogue_about, list_column, read_catalogue, text_column

SHORT = {"teff": "Teff", "feh": "[Fe/H]", "logg": "log g", "extinction": "E", "parallax": "plx"}
PAIRS = (
    ("logg", "parallax"), ("feh", "parallax"), ("extinction", "parallax"), ("teff", "feh"), ("feh", "extinction"),
    ("teff", "extinction"), ("feh", "logg"), ("teff", "logg"), ("teff", "parallax"),
)  # fmt: skip
IN_PAPER = {**PAPER, ("extinction", "parallax"): (0.266, 0.047)}
"""Section 4.3 of the paper prints this one beside Fig. 6."""
KINDS = (
    ("red clump giant", (4.8, -0.1, 2.5)),
    ("metal-poor giant", (4.7, -1.3, 1.8)),
    ("Sun-like dwarf", (5.77, 0.0, 4.44)),
    ("K dwarf", (4.6, -0.1, 4.6)),
)


def gaia_errors(g, table, random):
    """Parallax error [mas] of every star: that of a real star of nearly the same G, or the published performance."""
    if table is None:
        z = np.maximum(10.0 ** (0.4 * (13.1 - 15.0)), 10.0 ** (0.4 * (g - 15.0)))
        return 1e-3 * np.sqrt(40.0 + 800.0 * z + 30.0 * z**2)
    magnitude, error = table
    order = np.argsort(magnitude)
    at = np.searchsorted(magnitude[order], g) + random.integers(-10, 11, len(g))
    return error[order][np.clip(at, 0, len(order) - 1)]


def read_green(path: Path):
    """G magnitudes and parallax errors [mas] of the Green et al. (2020) table."""
    import h5py

    with h5py.File(path) as file:
        table = next(v for v in file.values() if isinstance(v, h5py.Dataset) and v.dtype.names)
        g, error = np.asarray(table["mag"])[:, 0], np.asarray(table["parallax_err"])
    good = np.isfinite(g) & np.isfinite(error) & (error > 0)
    return g[good], error[good]


def fisher_matrices(model, stars, estimate):
    """(star, parameter, parameter) from the fluxes of these stars at their estimates, the measurement's error alone."""
    import jax
    import jax.numpy as jnp

    from xpbayes.models.forward import predict_flux

    def one(star, at):
        def flux(values):
            inside = jnp.concatenate([values[:-2], jnp.log(values[-2:])])
            return predict_flux(model.forward, inside, star.ln_scale)

        white = star.whitening @ jax.jacfwd(flux)(at)
        return white.T @ white

    with jax.default_matmul_precision("highest"):
        batch = jax.tree.map(jnp.asarray, stars.stars(model.labels))
        return np.asarray(jax.jit(jax.vmap(one))(batch, jnp.asarray(estimate, jnp.float32)), np.float64)


def medians(fisher, which):
    """(parameter, parameter) medians over some stars."""
    found, good = correlation_of_inverse(np.moveaxis(fisher[which], 0, -1))
    return np.median(found[:, :, good], axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("catalogue", help="inferred without parallaxes")
    parser.add_argument("stars")
    parser.add_argument("--errors-like", type=Path, help="table of Green et al. 2020 (HDF5)")
    parser.add_argument("--most", type=int, default=2000)
    arguments = parser.parse_args()
    model, catalogue = xpbayes.load_model(arguments.model), read_catalogue(arguments.catalogue)
    about = catalogue_about(catalogue)
    if about["n_with_parallax"]:
        raise SystemExit("the catalogue must be inferred without parallaxes: their errors are added here")
    names = (*model.labels, "extinction", "parallax")
    catalogue = catalogue.take(np.flatnonzero(text_column(catalogue, "status") == OK)[: arguments.most])
    table = read_star_tables(arguments.stars)
    row = {int(s): i for i, s in enumerate(table.source_id)}
    stars = table.take(np.array([row[s] for s in catalogue["gdr3_source_id"].to_pylist()]))
    estimate = list_column(catalogue, "stellar_params_est")
    real = None if arguments.errors_like is None else read_green(arguments.errors_like)
    g = stars.column("phot_g_mean_mag")
    error = gaia_errors(g, real, np.random.default_rng(0))
    logg = estimate[:, names.index("logg")]
    groups = {"all": np.isfinite(g), "giants": np.isfinite(g) & (logg < 3.8), "dwarfs": np.isfinite(g) & (logg >= 3.8)}
    print(
        f"{len(stars)} stars, G {np.nanpercentile(g, [16, 50, 84]).round(1)}, parallax "
        f"{np.median(estimate[:, -1]):.2f} mas, error {1e3 * np.nanmedian(error):.0f} uas "
        f"({'of real Gaia DR2 stars' if real is not None else 'Gaia DR3, published performance'})"
    )
    stored = np.moveaxis(unpacked(list_column(catalogue, "stellar_params_icov_triu"), len(names)), -1, 0)
    cases = {
        "the catalogue's Fisher matrices, with the model's own error": stored,
        "the same without it, as in the paper": fisher_matrices(model, stars, estimate),
    }
    for case, flux_only in cases.items():
        both = flux_only.copy()
        both[:, -1, -1] += np.where(np.isfinite(error), error, np.inf) ** -2.0
        print(f"\n{case}: flux only -> with parallax\n{'':14}{'paper':>18}", end="")
        print("".join(f"{f'{name} ({which.sum()})':>19}" for name, which in groups.items()))
        found = {n: (medians(flux_only, w), medians(both, w)) for n, w in groups.items()}
        for a, b in PAIRS:
            i, j = names.index(a), names.index(b)
            paper = IN_PAPER.get((a, b))
            said = f"{paper[0]:+.3f} -> {paper[1]:+.3f}" if paper else "not printed"
            ours = "".join(f"{f'{m[0][i, j]:+.3f} -> {m[1][i, j]:+.3f}':>19}" for m in found.values())
            print(f"{SHORT[a] + ' - ' + SHORT[b]:14}{said:>18}{ours}")
    explain(model, stars, estimate, names)


def explain(model, stars, estimate, names) -> None:
    """Print the derivatives that decide the sign."""
    import jax
    import jax.numpy as jnp

    from xpbayes.models.forward import predict_flux

    covariance = np.linalg.inv(fisher_matrices(model, stars, estimate))
    feh, logg, plx = (names.index(n) for n in ("feh", "logg", "parallax"))
    print(
        "\nper kind of star: mean over channels of d ln F / d [Fe/H] and d ln F / d log g at fixed Teff and parallax;"
    )
    print("along the degeneracy (Teff, E, parallax free), change per dex of [Fe/H]; no parallax, no model error:")
    print(f"{'':18}{'dlnF/d[Fe/H]':>14}{'dlnF/dlogg':>12}{'log g [dex]':>13}{'ln plx':>9}{'ln plx | log g':>16}")
    scale = np.asarray(model.forward.label_scale)
    for kind, labels in KINDS:
        at = jnp.asarray([*labels, np.log(0.05), 0.0], jnp.float32)
        slope = np.asarray(jax.jacfwd(lambda u: jnp.log(predict_flux(model.forward, u)))(at))
        near = int(np.argmin(np.sum(((estimate[:, :3] - labels) / scale) ** 2, axis=1)))
        c = covariance[near].copy()
        c[plx] /= estimate[near, plx]
        c[:, plx] /= estimate[near, plx]
        fixed = np.ix_([feh, logg], [feh, logg])
        partial = np.linalg.solve(c[fixed], c[[feh, logg], plx])
        print(
            f"{kind:18}{slope[:, feh].mean():+14.3f}{slope[:, logg].mean():+12.3f}{c[feh, logg] / c[feh, feh]:+13.2f}"
            f"{c[feh, plx] / c[feh, feh]:+9.2f}{partial[0]:+16.2f}"
        )


if __name__ == "__main__":
    main()
