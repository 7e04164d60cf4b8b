"""Truth test of the dust map: stars in a known three-dimensional dust distribution, mapped, compared voxel by voxel.

Two modes, and the page says which is which:

* default: 200,000 stars with catalogue-like errors. Their types, and the Fisher matrices of (labels, E, ln parallax),
  are those of real stars of a catalogue inferred from flux alone; a Gaia parallax with the error of the star's
  magnitude is added to each; (E, parallax) is drawn around the truth with the resulting covariance and moved to the
  posterior's mode as inference does. No spectrum is made.
* --chain N: N stars through everything: spectra drawn from the model, archive files, calibration, inference, map.

Truth of a voxel: E averaged over its pixel, and over its distance bin as the map's stars are spread (and weighted)
there over the whole field. A mean over stars is that, and not the mean over the bin, which a line of its own shows.

Usage: python benchmarks/dust_map.py MODEL [CATALOGUE] [--stars 200000] [--region 80,0,6] [--chain N] [--figure F.png]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dust_map_truth import Compared, blur_scale, compare, robust_std, true_means

import xpbayes
from xpbayes.analysis.dust_map.build import build_dust_map
from xpbayes.analysis.dust_map.selection import galactic_pixel
from xpbayes.config import DustMapConfig, Recipe
from xpbayes.data.directions import unit_vectors
from xpbayes.production.table import catalogue_about, list_column, read_catalogue
from xpbayes.simulation.sky import SKY_FILE, Dust, Region, disc_with_clouds, dusty_sky, simulate_sky

TEMPLATE_SCALES = np.array([0.3, 0.5, 0.2, 1.5])
"""Teff [kK], log g, E [mag], G [mag]: how alike two stars must be for one to lend the other its errors."""


def gaia_parallax_error(g):
    """Gaia DR3's published performance [mas]."""
    z = np.maximum(10.0 ** (0.4 * (13.1 - 15.0)), 10.0 ** (0.4 * (g - 15.0)))
    return 1e-3 * np.sqrt(40.0 + 800.0 * z + 30.0 * z**2)


def full_matrices(triangle, p):
    out = np.zeros((len(triangle), p, p))
    i, j = np.triu_indices(p)
    out[:, i, j] = out[:, j, i] = triangle
    return out


def catalogue_like_stars(model, catalogue, dust, region, n, rng):
    """True and observed (E, parallax) of n stars, and the catalogue rows that inference would have written."""
    import jax
    from scipy.spatial import cKDTree

    from xpbayes.models.forward import predict_flux
    from xpbayes.simulation.stars import rough_g

    table = read_catalogue(catalogue)
    about = catalogue_about(table)
    if about["n_with_parallax"]:
        raise SystemExit("the catalogue must be inferred without parallaxes: they are added here")
    estimate, fisher = list_column(table, "stellar_params_est"), list_column(table, "stellar_params_icov_triu")
    p = estimate.shape[1]
    chi2 = table["chi2_opt"].to_numpy() / table["dof"].to_numpy()
    good = np.isfinite(estimate).all(1) & np.isfinite(fisher).all(1) & (chi2 < 5)
    estimate, fisher = estimate[good], full_matrices(fisher[good], p)
    # In ln parallax a Fisher matrix does not depend on the distance: flux goes with the parallax squared.
    fisher[:, -1] *= estimate[:, -1, None]
    fisher[:, :, -1] *= estimate[:, -1, None]
    predict = jax.jit(jax.vmap(predict_flux, (None, 0)))

    def magnitude(labels, e, parallax):
        parameters = np.concatenate([labels, np.log(e)[:, None], np.log(parallax)[:, None]], axis=1).astype(np.float32)
        return rough_g(np.asarray(predict(model.forward, parameters), np.float64))

    template_g = magnitude(estimate[:, :-2], estimate[:, -2], estimate[:, -1])
    labels = estimate[rng.integers(len(estimate), size=n), :-2]
    at = dusty_sky(dust, region)(n, lambda e, plx: magnitude(labels, e, plx), rng)
    g = magnitude(labels, at.extinction, at.parallax)
    features = np.stack([estimate[:, 0], estimate[:, 2], estimate[:, -2], template_g], axis=1) / TEMPLATE_SCALES
    wanted = np.stack([labels[:, 0], labels[:, 2], at.extinction, g], axis=1) / TEMPLATE_SCALES
    _, nearest = cKDTree(features).query(wanted)

    def covariance(parallax):
        information = fisher[nearest].copy()
        information[:, -1] /= parallax[:, None]
        information[:, :, -1] /= parallax[:, None]
        information[:, -1, -1] += 1.0 / gaia_parallax_error(g) ** 2
        return np.linalg.inv(information)

    true = covariance(at.parallax)[:, -2:, -2:]
    noise = (np.linalg.cholesky(true) @ rng.standard_normal((n, 2, 1)))[:, :, 0]
    e, plx = posterior_mode(at.extinction + noise[:, 0], at.parallax + noise[:, 1], true)
    reported = covariance(plx)
    i, j = np.triu_indices(p)
    rows = pa.table(
        {
            "gdr3_source_id": np.arange(n, dtype=np.int64),
            "ra": at.ra,
            "dec": at.dec,
            "stellar_params_est": pa.FixedSizeListArray.from_arrays(
                np.column_stack([labels, e, plx]).astype(np.float32).reshape(-1), p
            ),
            "stellar_params_cov_triu": pa.FixedSizeListArray.from_arrays(
                reported[:, i, j].astype(np.float32).reshape(-1), p * (p + 1) // 2
            ),
            "chi2_opt": rng.chisquare(61, n).astype(np.float32),
            "dof": np.full(n, 61, np.int16),
            "status": ["ok"] * n,
        }
    ).replace_schema_metadata({"xpbayes": '{"kind": "catalogue", "labels": ["teff", "feh", "logg"]}'})
    return at, g, true, rows


def posterior_mode(e_hat, plx_hat, covariance):
    """Mode of N(E, parallax | estimate, covariance) E parallax, one coordinate after the other."""
    e, plx = np.maximum(e_hat, 0.01), np.maximum(plx_hat, 0.01)
    v_e, c, v_plx = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    for _ in range(200):
        a = e_hat + c / plx
        new_e = 0.5 * (a + np.sqrt(a**2 + 4 * v_e))
        b = plx_hat + c / new_e
        new_plx = 0.5 * (b + np.sqrt(b**2 + 4 * v_plx))
        moved = max(np.max(np.abs(new_e - e)), np.max(np.abs(new_plx / plx - 1)))
        e, plx = new_e, new_plx
        if moved < 1e-9:
            break
    return e, plx


def chain(model_path, n, region, scratch):
    """N stars through spectra, files, calibration and inference: their catalogue, truth and dust."""
    files = simulate_sky(Path(model_path), n, scratch / "survey", Recipe(), region)
    catalogue = scratch / "catalogue.parquet"
    source_id = xpbayes.infer(model_path, files[0], catalogue)["gdr3_source_id"].to_numpy()
    truth = pq.read_table(files[1])
    row = {star: i for i, star in enumerate(truth["source_id"].to_pylist())}
    truth = truth.take([row[star] for star in source_id.tolist()])
    return catalogue, truth, Dust.read(scratch / "survey" / SKY_FILE)


def inner_rows(dust_map, region):
    """Pixels whose coarsest parents lie inside the region: others have stars in a part of them only."""
    import astropy.units as u
    from astropy_healpix import healpix_to_lonlat

    lon, lat = healpix_to_lonlat(dust_map.pixel >> 4, dust_map.finest // 4, order="nested")
    towards = unit_vectors(lon.to_value(u.deg), lat.to_value(u.deg))
    centre = unit_vectors(np.array(region.longitude), np.array(region.latitude))
    return towards @ centre > np.cos(np.radians(max(region.radius - 1.0, 0.5)))


def check_adaptive(dust_map, catalogue, config, limit):
    """Count the stars again, pixel by pixel with a dictionary: does every voxel use the finest nside that qualifies?"""
    columns = ["ra", "dec", "stellar_params_est", "stellar_params_cov_triu", "chi2_opt", "dof", "status"]
    table = pq.read_table(catalogue, columns=columns)
    estimate, triangle = list_column(table, "stellar_params_est"), list_column(table, "stellar_params_cov_triu")
    e, plx = estimate[:, -2], estimate[:, -1]
    keep = (np.array(table["status"].to_pylist()) == "ok") & (
        table["chi2_opt"].to_numpy() < 5 * table["dof"].to_numpy()
    )
    keep &= (e < 10) & (triangle[:, -3] < 0.04**2) & (np.sqrt(triangle[:, -1]) / plx < limit)
    pixel = galactic_pixel(table["ra"].to_numpy(), table["dec"].to_numpy(), config.nsides[0])
    bins = np.searchsorted(dust_map.edges, 1.0 / plx.astype(np.float32), side="right") - 1
    counts: dict[tuple[int, int, int], int] = {}
    for p, k in zip(pixel[keep].tolist(), bins[keep].tolist(), strict=True):
        for nside in config.nsides:
            key = (nside, p >> 2 * int(np.log2(config.nsides[0] // nside)), k)
            counts[key] = counts.get(key, 0) + 1
    wrong = 0
    for row, p in enumerate(dust_map.pixel.tolist()):
        for k in range(dust_map.nside.shape[1]):
            expected = 0
            for nside in reversed(config.nsides):
                if counts.get((nside, p >> 2 * int(np.log2(config.nsides[0] // nside)), k), 0) >= config.min_stars:
                    expected = nside
            wrong += expected != dust_map.nside[row, k]
    return dust_map.nside.size, wrong


def met(value, low, high):
    return "met" if low <= value <= high else "MISSED"


def line(name: str, compared: Compared) -> str:
    pull = compared.pull
    cumulative = np.median(compared.mean - compared.mean_true)
    return (
        f"{name:24} {len(pull):6} {np.median(compared.differential_true):9.4f} {np.median(compared.relative_bias):+9.3f} "
        f"{cumulative:+10.4f} {pull.mean():+7.2f} {pull.std():6.2f} {robust_std(pull):7.2f}"
    )


HEADER = f"{'':24} {'voxels':>6} {'true dE':>9} {'dE bias':>9} {'E bias':>10} {'pull':>7} {'std':>6} {'robust':>7}"


def some(compared: Compared, which) -> Compared:
    return Compared(*(getattr(compared, name)[which] for name in Compared.__dataclass_fields__))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("catalogue", nargs="?", help="inferred without parallaxes, such as demo/catalogue.parquet")
    parser.add_argument("--stars", type=int, default=200_000)
    parser.add_argument("--region", default="80,0,6")
    parser.add_argument("--chain", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--figure", help="draw recovered against true differential extinction (.png, .pdf)")
    arguments = parser.parse_args()
    region = Region.parse(arguments.region)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        begun = time.perf_counter()
        if arguments.chain:
            catalogue, truth, dust = chain(arguments.model, arguments.chain, arguments.region, scratch)
            true_e, true_distance = truth["extinction"].to_numpy(), 1.0 / truth["parallax"].to_numpy()
            print(f"chain: {arguments.chain} stars, spectra to map", end="")
        else:
            if arguments.catalogue is None:
                raise SystemExit("name a catalogue whose errors are imitated, or --chain N")
            dust, catalogue = disc_with_clouds(0), scratch / "catalogue.parquet"
            at, _, _, rows = catalogue_like_stars(
                xpbayes.load_model(arguments.model),
                arguments.catalogue,
                dust,
                region,
                arguments.stars,
                np.random.default_rng(arguments.seed),
            )
            pq.write_table(rows, catalogue)
            true_e, true_distance = at.extinction, 1.0 / at.parallax
            print(f"{arguments.stars} stars with catalogue-like errors, no spectra", end="")
        print(f", within {region.radius:g} deg of l, b = {region.longitude:g}, {region.latitude:g}", end="")
        print(f" ({time.perf_counter() - begun:.0f} s)")
        evaluate(catalogue, dust, region, true_e, true_distance, arguments.figure)


def evaluate(catalogue, dust, region, true_e, true_distance, figure) -> None:
    table = pq.read_table(catalogue)
    estimate, triangle = list_column(table, "stellar_params_est"), list_column(table, "stellar_params_cov_triu")
    sigma_e, relative = np.sqrt(triangle[:, -3]), np.sqrt(triangle[:, -1]) / estimate[:, -1]
    without_errors = catalogue.with_name("true.parquet")
    estimate[:, -2:] = np.column_stack([true_e, 1.0 / true_distance])
    flat = pa.array(estimate.astype(np.float32).reshape(-1))
    exact = pa.FixedSizeListArray.from_arrays(flat, estimate.shape[1])
    at = table.schema.get_field_index("stellar_params_est")
    pq.write_table(table.set_column(at, "stellar_params_est", exact), without_errors)
    trials = {
        "bins (default)": (catalogue, DustMapConfig()),
        "bins, prior kept": (catalogue, DustMapConfig(remove_prior=False)),
        "joint": (catalogue, DustMapConfig(method="joint")),
        "bins, stars without errors": (without_errors, DustMapConfig(remove_prior=False)),
    }
    kept = {name: (sigma_e < 0.04) & (relative < limit) for name, limit in (("sky", 0.1), ("profile", 0.33))}
    dropped, near = ~kept["profile"], true_distance < 5
    print(
        f"cuts: {dropped.mean():.0%} of the stars go; their true E is {np.median(true_e[dropped & near]):.3f} in the "
        f"median within 5 kpc, of those kept {np.median(true_e[~dropped & near]):.3f}"
    )
    error = list_column(table, "stellar_params_est")[:, -1] ** -1.0 - true_distance
    print("error of the kept stars' 1/parallax (half of the central 68 %):", end="")
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        which = kept["profile"] & (true_distance >= low) & (true_distance < high)
        if which.sum() >= 20:
            print(f" {1e3 * robust_std(error[which]):.0f} pc at {low:g}-{high:g} kpc;", end="")
    print()
    drawn = {}
    for trial, (rows_from, config) in trials.items():
        begun = time.perf_counter()
        maps = build_dust_map(rows_from, config)
        seconds = time.perf_counter() - begun
        print(f"\n{trial}: {maps.tally.kept} of {maps.tally.rows} stars, {seconds:.0f} s\n{HEADER}")
        for name, dust_map in (("sky", maps.sky), ("profile", maps.profile)):
            rows = inner_rows(dust_map, region)
            # Shared stars count by their number, those in hard bins by their weights.
            weights = None if config.method == "joint" else sigma_e[kept[name]] ** -2.0
            true = true_means(dust_map, dust.extinction, true_distance[kept[name]], weights)
            compared = compare(dust_map, true, rows)
            if not len(compared.bin):
                print(f"{name}: no voxel has enough stars")
                continue
            print(line(f"{name}, all", compared))
            drawn[trial, name] = compared
            for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
                middle = 0.5 * (dust_map.edges[1:] + dust_map.edges[:-1])[compared.bin]
                which = (middle >= low) & (middle < high)
                if which.sum() >= 10:
                    print(line(f"  bins in {low:g}-{high:g} kpc", some(compared, which)))
            if trial == "bins (default)":
                bias, pull = np.median(compared.relative_bias), compared.pull.std()
                print(f"  target: bias within 0.05 {met(bias, -0.05, 0.05)}, pull 1.00 +- 0.15 {met(pull, 0.85, 1.15)}")
                limit = {"sky": 0.1, "profile": 0.33}[name]
                # The rule is checked on the catalogue's own parallaxes: on the map that uses these.
                plain = DustMapConfig(remove_prior=False)
                again = build_dust_map(catalogue, plain)
                n, wrong = check_adaptive(getattr(again, name), catalogue, plain, limit)
                print(
                    f"  adaptive rule: {n} pixels x bins counted again, {wrong} differ {'met' if not wrong else 'MISSED'}"
                )
                volume = compare(dust_map, true_means(dust_map, dust.extinction), rows)
                print(line("  truth even in distance", volume))
        if rows_from is without_errors:
            continue
        print(f"  {'resolution':18} {'pixels':>8} {'size':>8} {'blur along r':>13}")
        for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
            print(resolution(maps.profile, dust, region, low, high))
    if figure:
        draw(drawn, Path(figure))


EDGES = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)


def resolution(profile, dust, region, low, high) -> str:
    middle = 0.5 * (profile.edges[1:] + profile.edges[:-1])
    bins = (middle >= low) & (middle < high)
    nside = profile.nside[inner_rows(profile, region)][:, bins]
    used = nside[nside > 0]
    if not used.size:
        return f"  {low:g}-{high:g} kpc: no voxel has enough stars"
    arcmin = 3517.9 / np.median(used)  # side of a HEALPix pixel
    blur = blur_scale(profile, dust.extinction, inner_rows(profile, region), low, high)
    size = 0.5 * (low + high) * 1e3 * np.radians(arcmin / 60)
    return f"  {low:g}-{high:g} kpc{'':10} {arcmin:7.1f}' {size:5.0f} pc {1e3 * blur:10.0f} pc"


def draw(drawn, path: Path) -> None:
    from matplotlib.figure import Figure

    trials = [trial for trial, name in drawn if name == "sky"]
    figure = Figure(figsize=(3.4 * len(trials), 6.4), layout="constrained")
    axes = figure.subplots(2, len(trials), squeeze=False)
    x = np.linspace(-5, 5, 201)
    for j, trial in enumerate(trials):
        compared = drawn[trial, "sky"]
        limit = np.percentile(compared.differential_true, 99)
        dots = axes[0, j].scatter(
            compared.differential_true,
            compared.differential,
            c=compared.bin,
            s=4,
            lw=0,
            cmap="viridis",
            rasterized=True,
        )
        axes[0, j].plot([0, limit], [0, limit], color="k", lw=0.7)
        axes[0, j].set(xlim=(-0.02, limit), ylim=(-0.05, limit), title=f"{trial}", xlabel="true ΔE [mag]")
        axes[1, j].hist(np.clip(compared.pull, -5, 5), np.linspace(-5, 5, 51), density=True, color="#1f6fb4")
        axes[1, j].plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color="k", lw=1)
        axes[1, j].set(xlabel="(ΔE − truth) / σ")
    axes[0, 0].set_ylabel("recovered ΔE [mag]")
    axes[1, 0].set_ylabel("density")
    figure.colorbar(dots, ax=axes[0].tolist(), label="distance bin", ticks=np.unique(compared.bin))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
