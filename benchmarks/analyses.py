"""Speed and memory of the figures: a synthetic catalogue of many rows, written in parts of a file and read once.

Rows are made, not inferred: plausible parameters, Fisher matrices, flags; a star table with the scalar columns that
figures join (labels for one star in twenty). Beside the time, one number of each figure is compared with what the rows
were made with. Fluxes are timed apart, on the bundled stars.

Usage: python benchmarks/analyses.py [--rows 1000000] [--only NAME ...] [--together]
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xpbayes.analysis.figures.dust import AgainstSfd
from xpbayes.analysis.pages.gallery import choose, gather, make_figures
from xpbayes.analysis.run_inputs import Run, open_stars
from xpbayes.channels import xp_channels
from xpbayes.production.reader import open_catalogue

FIGURES = ("kiel", "correlations", "residuals", "pulls", "confidence", "external", "reliability", "clusters")
AT_ONCE = 100_000
LABELS = ("teff", "feh", "logg")
ROW, COLUMN = np.triu_indices(5)
SCATTER = np.array([0.09, 0.12, 0.15, 0.03, 0.05])
"""Of inferred minus true: what `residuals` must find again."""


def rows(first: int, n: int, random: np.random.Generator) -> tuple[dict, dict]:
    """Catalogue columns and star columns of some stars."""
    source_id = (np.arange(first, first + n, dtype=np.int64) * 2_654_435_761) % 2**62
    truth = np.stack(
        [random.uniform(3.5, 7, n), random.normal(-0.1, 0.3, n), random.uniform(1, 5, n), random.gamma(2, 0.1, n),
         random.gamma(2, 0.4, n) + 0.05], axis=1,
    )  # fmt: skip
    estimate = np.abs(truth + SCATTER * random.normal(size=(n, 5)))
    estimate[:, 1] = truth[:, 1] + SCATTER[1] * random.normal(size=n)
    jacobian = random.normal(size=(n, 8, 5))
    fisher = np.einsum("sci,scj->sij", jacobian, jacobian) / (SCATTER[:, None] * SCATTER)
    parallax_error = random.uniform(0.02, 0.3, n)
    fisher[:, 4, 4] += parallax_error**-2.0
    ra, dec = random.uniform(0, 360, n), np.degrees(np.arcsin(random.uniform(-1, 1, n)))
    flags = random.choice([0, 1, 8], n, p=[0.7, 0.12, 0.18]).astype(np.uint8)
    confidence = random.beta(4, 1, (n, 3)).astype(np.float32)

    def lists(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])

    catalogue = {
        "gdr3_source_id": source_id, "ra": ra, "dec": dec, "stellar_params_est": lists(estimate),
        "stellar_params_err": lists(np.tile(SCATTER, (n, 1))), "stellar_params_icov_triu": lists(fisher[:, ROW, COLUMN]),
        "chi2_opt": np.full(n, 60.0, np.float32), "quality_flags": flags, "n_obs": np.full(n, 64, np.int16),
        "dof": np.full(n, 60, np.int16), "converged": np.ones(n, bool),
        **{f"{name}_confidence": confidence[:, k] for k, name in enumerate(LABELS)},
        "status": pa.array(np.full(n, "ok")).dictionary_encode(),
    }  # fmt: skip
    known = random.random(n) < 0.05
    stars = {"source_id": source_id, "parallax": truth[:, 4] + parallax_error * random.normal(size=n)}
    stars["parallax_error"] = parallax_error
    for k, name in enumerate(LABELS):
        stars[name] = np.where(known, truth[:, k], np.nan)
        stars[f"{name}_error"] = np.where(known, 0.02, np.nan)
    stars |= {"reddening": truth[:, 3], "reddening_error": np.full(n, 0.01)}
    stars |= {
        "phot_g_mean_mag": random.uniform(9, 17, n),
        "pmra": random.normal(0, 5, n),
        "pmdec": random.normal(0, 5, n),
    }
    stars |= {
        f"phot_{b}_mean_mag": stars["phot_g_mean_mag"] + d * truth[:, 0] / 7 for b, d in (("bp", 0.8), ("rp", -0.7))
    }
    return catalogue, {k: v if k == "source_id" else v.astype(np.float32) for k, v in stars.items()}


def write(folder: Path, n: int) -> None:
    """Write catalogue, star table, survey and clusters."""
    random = np.random.default_rng(0)
    about = {"kind": "catalogue", "labels": LABELS, "model": {}, "n_with_parallax": n}
    channels = json.loads(xp_channels(("J", "H", "Ks")).to_json())
    table_about = {"kind": "star table", "version": 1, "channels": channels, "labels": LABELS}
    writers: dict[str, pq.ParquetWriter] = {}
    for first in range(0, n, AT_ONCE):
        both = rows(first, min(AT_ONCE, n - first), random)
        for name, columns, metadata in zip(("catalogue", "stars"), both, (about, table_about), strict=True):
            table = pa.table(columns).replace_schema_metadata({"xpbayes": json.dumps(metadata)})
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema, compression="zstd")
            writers[name].write_table(table, row_group_size=32_768)
        if first == 0:
            survey = {k: both[1][k][both[1]["teff"] > 0] for k in ("source_id", *LABELS)}
            lines = ["source_id,ra,dec,teff,teff_err,feh,feh_err,logg,logg_err"]
            lines += [
                f"{s},0,0,{1e3 * t:.1f},50,{f:.3f},0.05,{g:.3f},0.1"
                for s, t, f, g in zip(*survey.values(), strict=True)
            ]  # fmt: skip
            (folder / "external.csv").write_text("\n".join(lines))
    for writer in writers.values():
        writer.close()
    (folder / "clusters.csv").write_text(
        "name,ra,dec,pmra,pmdec,parallax,radius,inner_radius,pm_radius\nhere,200,-40,0,0,0.2,3,0.1,6\n"
    )


class Clock:
    """Wall-clock time, and CPU time of all threads beside it: on a busy machine only the second says something."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return f"{wall:7.1f} s wall, {cpu:7.1f} s CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", default=list(FIGURES))
    parser.add_argument("--together", action="store_true", help="time all figures together only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, arguments.rows)
        made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        catalogue, stars = open_catalogue(folder / "catalogue.parquet"), open_stars(folder / "stars.parquet")
        size = sum((folder / f"{n}.parquet").stat().st_size for n in ("catalogue", "stars")) / 2**30
        print(f"{catalogue.n_rows:,} rows, {size:.2f} GiB on disk; making them took up to {made:.2f} GiB of memory")

        def run() -> Run:
            return Run(
                catalogue=catalogue, stars=stars, external=folder / "external.csv", clusters=folder / "clusters.csv"
            )  # fmt: skip

        for names in ([n] for n in arguments.only if not arguments.together):
            clock = Clock()
            (outcome,) = make_figures(run(), choose(names))
            print(f"{clock}  {outcome.line}")
        clock = Clock()
        outcomes = make_figures(run(), choose(arguments.only))
        print(f"{clock}  all of them from one pass")
        clock, sfd = Clock(), AgainstSfd(lambda ra, dec: np.full(len(ra), 0.1))
        gather(run(), [sfd])
        print(f"{clock}  sfd without the look-up, {sfd.n:,} stars")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
        for outcome in outcomes:
            if outcome.analysis.name == "residuals" and outcome.product is not None:
                summary = outcome.product.tables["summary"]
                found = np.asarray(summary["scatter"].values) / np.array([1e3, 1, 1, 1, 1])
                print(
                    "scatter found over scatter put in (parallax has Gaia's error too):", np.round(found / SCATTER, 3)
                )


if __name__ == "__main__":
    main()
