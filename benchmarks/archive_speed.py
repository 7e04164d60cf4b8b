"""Speed of the archive doors, each figure beside the parity that makes it worth anything.

    OPENBLAS_NUM_THREADS=1 python benchmarks/archive_speed.py [--rows 4000] [--data FOLDER]

Rows per core-second are rows over the process's CPU time (all threads, user and system), not wall time; the median
of the repeats, and the best.
1. Bulk csv.gz -> flux, covariance, whitening, packed (what a star table holds), and `prepare`, which joins and writes
   star tables too; acceptance: 2,500.
2. The same file twice as long: the memory's high-water mark must not grow with the file.
3. The working format, a star table in Parquet; acceptance: 30,000.
4. Parity with GaiaXPy's calibrate on the file's first rows and, with --data, on every real source of xp_continuous and
   xp_2000 there.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # batched small factorisations are slower with threads
os.environ.setdefault("TQDM_DISABLE", "1")  # GaiaXPy's progress bars

import numpy as np

from xpbayes.archive.prepare import prepare
from xpbayes.archive.xp import read_xp
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.channels import XP_GRID_NM, xp_channels
from xpbayes.data.spectra import Spectra
from xpbayes.data.spectra_file import read_star_table, write_star_table
from xpbayes.instrument.bases import design_matrix
from xpbayes.instrument.xp_covariance import sample_spectra
from xpbayes.simulation import files
from xpbayes.simulation.spectra import ObservedXp, draw_errors, typical_errors

T = TypeVar("T")
DEFAULT_DATA = Path(__file__).resolve().parents[1] / "../shared/data"


def write_bulk(path: Path, n: int, seed: int = 0) -> None:
    """A bulk file of n made-up sources: full covariances, every digit that the archive prints."""
    rng = np.random.default_rng(seed)
    errors = typical_errors()
    inverse = np.linalg.pinv(design_matrix() / 1e-18)

    def blocks():
        for start in range(0, n, 256):
            size = min(256, n - start)
            colour = rng.uniform(-2, 2, (size, 1))
            flux = rng.uniform(5, 500, (size, 1)) * (XP_GRID_NM / 600.0) ** colour
            coefficient = flux @ inverse.T
            sides = []
            for i in range(2):
                side = draw_errors(flux.mean(axis=1), errors[i], rng)
                values = coefficient[:, 55 * i : 55 * (i + 1)] + side.error * rng.standard_normal(side.error.shape)
                sides.append(replace(side, coefficient=values))
            yield ObservedXp((start + np.arange(size) + 1) * 34359738368, *sides)

    files.write_bulk(path, blocks())


def figure(speeds: list[float]) -> str:
    return f"{np.median(speeds):,.0f} (best {max(speeds):,.0f})"


def timed(speeds: list[float], run: Callable[[], T], n: int) -> T:
    """Run, and note the rows per core-second."""
    begun = time.process_time()
    result = run()
    speeds.append(n / (time.process_time() - begun))
    return result


def read_all(path: Path) -> tuple[int, int, int]:
    n = quarantined = floored = 0
    for rows in read_xp(path):
        n += len(rows)
        quarantined += len(rows.rejected)
        floored += int(rows.xp.floored.sum())
    return n, quarantined, floored


def high_water_mb(path: Path) -> float:
    """Memory's high-water mark of a fresh process that reads a file."""
    code = (
        "import resource, sys; from pathlib import Path; from xpbayes.archive.xp import read_xp\n"
        "for rows in read_xp(Path(sys.argv[1])): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def gaiaxpy(table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from gaiaxpy import calibrate

    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spectra, _ = calibrate(table, sampling=XP_GRID_NM, save_file=False)
    ids = spectra["source_id"].to_numpy()
    return ids, np.stack(spectra["flux"].to_list()) / 1e-18, np.stack(spectra["flux_error"].to_list()) / 1e-18


def parity(path: Path, limit: int | None = None) -> tuple[int, float, float, float]:
    """Sources, worst difference of flux over its peak and of error over itself, least ratio of eigenvalues."""
    import pandas as pd

    worst_flux = worst_error = 0.0
    eigenvalue, n = np.inf, 0
    for batch in read_xp_continuous(path, batch_size=256):
        rows: dict = {"source_id": batch.source_id}
        for name, side in (("bp", batch.bp), ("rp", batch.rp)):
            k = side.n_coefficients
            full = np.broadcast_to(np.eye(k), (len(batch), k, k)).copy()
            if side.correlation is not None:
                i, j = np.tril_indices(k, -1)
                full[:, i, j] = full[:, j, i] = side.correlation
            unknown = np.where(np.isfinite(side.standard_deviation), side.standard_deviation, 1.0)
            rows[f"{name}_n_parameters"] = np.where(side.present, float(k), np.nan)
            rows[f"{name}_standard_deviation"] = np.where(side.present, unknown, np.nan)
            rows[f"{name}_coefficients"] = [
                v if p else np.nan for v, p in zip(side.coefficient, side.present, strict=True)
            ]
            rows[f"{name}_coefficient_errors"] = [
                v if p else np.nan for v, p in zip(side.error, side.present, strict=True)
            ]
            rows[f"{name}_coefficient_correlations"] = [
                v if p else np.nan for v, p in zip(full, side.present, strict=True)
            ]
            rows[f"{name}_n_relevant_bases"] = np.where(side.present, float(k), np.nan)
        ids, flux, error = gaiaxpy(pd.DataFrame(rows))
        order = np.argsort(batch.source_id)[np.searchsorted(np.sort(batch.source_id), ids)]
        ours, covariance, present = sample_spectra(batch.bp.take(order), batch.rp.take(order))
        assert (present == np.isfinite(flux)).all()
        peak = np.nanmax(np.abs(flux), axis=1, keepdims=True)
        own = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        worst_flux = max(
            worst_flux, float(np.max(np.abs(ours - flux)[present] / np.broadcast_to(peak, flux.shape)[present]))
        )
        worst_error = max(worst_error, float(np.max(np.abs(own / error - 1)[present])))
        for matrix, kept in zip(covariance, present, strict=True):
            value = np.linalg.eigvalsh(matrix[np.ix_(kept, kept)])
            eigenvalue = min(eigenvalue, float(value[0] / value[-1]))
        n += len(batch)
        if limit is not None and n >= limit:
            break
    return n, worst_flux, worst_error, eigenvalue


def say_parity(name: str, figures: tuple[int, float, float, float]) -> None:
    n, flux, error, eigenvalue = figures
    print(f"  parity with GaiaXPy, {name}: {n} sources, flux {flux:.1e}, error {error:.1e} relative; ", end="")
    print(f"smallest / largest eigenvalue {eigenvalue:.1e} ({'PSD' if eigenvalue > -1e-13 else 'NOT PSD'})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    fast = []
    for module in ("simdjson", "isal"):
        with contextlib.suppress(ImportError):
            __import__(module)
            fast.append(module)
    print(f"fast readers installed: {', '.join(fast) or 'none (standard library)'}")
    with tempfile.TemporaryDirectory() as folder:
        bulk, double = Path(folder) / "bulk.csv.gz", Path(folder) / "double.csv.gz"
        write_bulk(bulk, options.rows)
        design_matrix()  # GaiaXPy's import is paid once, not per row
        (Path(folder) / "survey.toml").write_text('[xp]\nfiles = ["bulk.csv.gz"]\n')
        read_all(bulk)  # the first time pays for imports, tables and fresh memory
        speeds, parse, prepared = [], [], []
        for i in range(options.repeats):  # interleaved: whatever else the machine does meets all of them alike
            n, quarantined, floored = timed(speeds, lambda: read_all(bulk), options.rows)
            assert n + quarantined == options.rows
            n = timed(parse, lambda: sum(len(batch) for batch in read_xp_continuous(bulk)), options.rows)
            timed(prepared, partial(prepare, Path(folder) / "survey.toml", Path(folder) / f"stars{i}"), options.rows)
        size = bulk.stat().st_size / options.rows / 1e3
        print(
            f"bulk csv.gz ({size:.1f} kB a row) -> flux, covariance, whitening: {figure(speeds)} rows per core-second"
        )
        print(f"  accepted at 2,500; {floored} of {n} rows needed the floor, {quarantined} were quarantined")
        print(f"  of which reading and checking the text alone: {figure(parse)} rows per core-second")
        print(f"bulk csv.gz -> star tables on disk (prepare): {figure(prepared)} rows per core-second")
        write_bulk(double, 2 * options.rows)
        first, second = high_water_mb(bulk), high_water_mb(double)
        print(
            f"memory: {first:.0f} MB at {options.rows} rows, {second:.0f} MB at {2 * options.rows} (flat in file size)"
        )
        say_parity("this file", parity(bulk, 256))

        rows = list(read_xp(bulk))
        channels = xp_channels()
        whole = Spectra(
            channels=channels,
            label_names=("teff", "feh", "logg"),
            source_id=np.concatenate([r.source_id for r in rows]),
            flux=np.concatenate([np.pad(r.xp.flux, ((0, 0), (0, 5))) for r in rows]),
            xp_whitening=np.concatenate([r.xp.whitening for r in rows]),
            band_inverse_error=np.zeros((options.rows, 5), np.float32),
            columns={},
        )
        path = write_star_table(whole, Path(folder) / "stars.parquet")
        speeds = []
        table = read_star_table(path)
        for _ in range(3 * options.repeats):
            del table  # memory that is held twice is fresh memory, which costs more than reading
            table = timed(speeds, lambda: read_star_table(path), options.rows)
        assert (table.flux == whole.flux).all() and (table.xp_whitening == whole.xp_whitening).all()
        print(
            f"star table in Parquet ({path.stat().st_size / len(table) / 1e3:.1f} kB a row): {figure(speeds)} rows per "
            f"core-second, bit for bit what was written; accepted at 30,000"
        )
    if not options.data.is_dir():
        print(f"  real sources: skipped, {options.data} is not there")
        return
    names = ["XP_CONTINUOUS_RAW.csv", "XP_CONTINUOUS_RAW_with_missing_BP.csv", "18Sco-XP-spectra.csv"]
    for name in names:
        say_parity(name, parity(options.data / "xp_continuous" / name))
    say_parity("xp_2000", parity(options.data / "xp_2000" / "xp_continuous_combined_chunk0.fits"))


if __name__ == "__main__":
    main()
