"""Every writer on a full disk: one sentence, nothing under a final name, nothing left behind.

The system itself refuses to write more than a few bytes of a file (RLIMIT_FSIZE), so what C libraries write is met as well.
"""

import ast
import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import xpbayes
from tests.hostile.doors import small_curve_map, small_dust_map, small_view, star_table
from xpbayes.analysis.figures.drawing import panels, save_figure
from xpbayes.analysis.pages.page import Page, Section, Table, save_figures
from xpbayes.analysis.posterior_file import write_posterior
from xpbayes.data.json_file import write_json
from xpbayes.data.parquet import write_parquet
from xpbayes.data.rejected import Rejected, write_quarantine
from xpbayes.data.stars import make_star_files
from xpbayes.errors import InputError
from xpbayes.files import write_text
from xpbayes.production.beside import save_weight_factor
from xpbayes.simulation.files import write_bulk, write_csv
from xpbayes.simulation.sky import Dust
from xpbayes.training.checkpoint import write_checkpoint
from xpbayes.training.network_uncertainty import NetworkCovariance

BYTES = 64
SOURCE = Path(xpbayes.__file__).parent


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond a few bytes while this lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # an import would leave a broken library behind
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = bytecode


def figure():
    drawn, _ = panels(1, 1, 2.0, 2.0)
    return drawn


def draws(path: Path) -> object:
    import xarray as xr

    return write_posterior(
        {"posterior": xr.Dataset({"teff": ("draw", np.random.default_rng(0).normal(size=999))})}, path
    )


def votable(path: Path, kind: str) -> object:
    from xpbayes.production import export

    class InMemory:
        columns = xpbayes.schema.catalogue_columns(3, release=None)[:3]
        n_rows = 50

        def tables(self, names=None, rows_at_once=0):
            names = [c.name for c in self.columns] if names is None else names
            columns = {"gdr3_source_id": pa.array(range(50)), "ra": pa.array(np.ones(50)), "dec": pa.array(np.ones(50))}
            yield pa.table({n: columns[n] for n in names})

    return getattr(export, f"write_{kind}")(InMemory(), path)


def weights(path: Path) -> object:
    return save_weight_factor(NetworkCovariance(np.ones((60, 2), np.float32), 0.5, 3), path.parent, "sha256:1")


DUST = Dust(0.1, 0.1, 2.6, np.ones((9, 3)), np.ones(9), np.ones(9))
LINES = [["a", "b" * 50], ["c", "d" * 50]]
WRITERS: dict[str, Callable[[Path], object]] = {
    "text.txt": lambda path: write_text(path, "x" * 99),
    "json.json": lambda path: write_json({"a": ["x"] * 99}, path),
    "quarantine.csv": lambda path: write_quarantine([Rejected("a", i, i, "why") for i in range(99)], path),
    "table.parquet": lambda path: write_parquet(pa.table({"source_id": np.arange(99)}), path),
    "stars.parquet": lambda path: star_table(path.parent),
    "checkpoint.safetensors": lambda path: write_checkpoint(path, np.ones(99), {"stars": "", "settings": {}}),
    "weight_factor.safetensors": weights,
    "draws.nc": draws,
    "figure.png": lambda path: save_figure(figure(), path, 100),
    "figure.pdf": lambda path: save_figure(figure(), path, 100),
    "figures": lambda path: save_figures(path, {}, [("a.png", figure())]),
    "page.html": lambda path: Page("a", "b", [Section("c", ["d"])]).write(path),
    "table.csv": lambda path: Table(["a", "b"], LINES).write_csv(path),
    "map.fits": lambda path: small_dust_map().write(path),
    "curve.fits": lambda path: small_curve_map().write(path),
    "view.fits": lambda path: small_view().write(path),
    "catalogue.vot": lambda path: votable(path, "votable"),
    "catalogue.fits": lambda path: votable(path, "fits"),
    "sky.json": DUST.write,
    "bulk.csv.gz": lambda path: write_bulk(path, ()),
    "band.csv": lambda path: write_csv(path, {"source_id": ("%d", np.arange(99))}),
    "band.csv.gz": lambda path: write_csv(path, {"source_id": ("%d", np.random.default_rng(0).integers(1 << 40, size=99))}),
    "scratch": lambda path: make_star_files(path.parent, 9, 66, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_full_disk_is_one_sentence(tmp_path, name):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / name
    path.write_bytes(b"before") if path.suffix else None
    with full_disk(), pytest.raises(InputError) as said:
        WRITERS[name](path)
    assert "\n" not in str(said.value) and os.strerror(errno.EFBIG) in str(said.value)
    left = {p.name: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert left == ({name: b"before"} if path.suffix else {}) or name == "scratch"
    WRITERS[name](path)  # with room, it is written


NO_WRITERS = {"write_text", "write_bytes", "savefig", "to_netcdf", "writeto", "write_table", "save_file", "tofile"}
"""Calls that write a file by its name."""
ALLOWED = {
    "xpbayes/files.py", "xpbayes/data/parquet.py",  # the writers that others use
    "xpbayes/archive/companion_table.py",  # sorted runs: temporary, refused in one sentence
    "xpbayes/production/export.py",  # a schema in a temporary folder
}  # fmt: skip


def _is_write_mode(call: ast.Call) -> bool:
    modes = [a.value for a in call.args[1:2] if isinstance(a, ast.Constant)]
    modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    return any(isinstance(m, str) and set(m) & set("wax") for m in modes)


def test_no_file_is_written_but_through_the_one_writer():
    """Whoever calls a writer of files does so inside `with whole_file(...)`."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE.parent))
        if name in ALLOWED:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        safe = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and "whole_file" in ast.unparse(node).partition(":\n")[0]
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in safe:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            plain = called in NO_WRITERS and not ast.unparse(node.func).startswith(("drawing.", "write_text"))
            opened = called == "open" and _is_write_mode(node)
            where = f"{name}:{node.lineno}: {ast.unparse(node)[:80]}"
            in_memory = called == "savefig" and ast.unparse(node.args[0]) in ("buffer", "drawn")
            assert not plain or isinstance(node.func, ast.Name) or in_memory, where
            assert not opened or name in TEMPORARY, where


TEMPORARY = {
    "xpbayes/archive/open_file.py", "xpbayes/data/stars.py",  # unpacked members and working copies: never final names
    "xpbayes/analysis/dust_map/selection.py",
}  # fmt: skip


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [None, NO_SPACE, RuntimeError("Some mapping failed")])
def test_hats_on_a_full_disk(tmp_path, monkeypatch, error):
    """Here, the system refuses; a worker's own error arrives as it is, or as hats-import's RuntimeError."""
    pipeline = pytest.importorskip("hats_import.pipeline")
    from tests.production.test_export import ABOUT, made_up
    from xpbayes.production import engine
    from xpbayes.production.export import write_hats
    from xpbayes.production.reader import open_catalogue
    from xpbayes.production.table import describe, to_arrow, write_catalogue

    def stop(*_: object) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        raise error

    catalogue = open_catalogue(write_catalogue(describe(to_arrow(made_up(9), 3), ABOUT), tmp_path / "c.parquet"))
    monkeypatch.setattr(pipeline, "pipeline_with_client", stop)
    monkeypatch.setattr(engine, "local_cluster", nullcontext)
    monkeypatch.setattr("distributed.Client", nullcontext)
    room = nullcontext() if error else full_disk()
    reason = error.args[-1] if error else os.strerror(errno.EFBIG)
    with room, pytest.raises(InputError, match=f"^[^\n]*hats: cannot be written .*{reason}[^\n]*$"):
        write_hats(catalogue, tmp_path / "out" / "hats", processes=1)
    assert not any((tmp_path / "out").iterdir())
