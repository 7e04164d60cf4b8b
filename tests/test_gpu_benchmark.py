"""The benchmark that is taken to a GPU: what it imports there exists there."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"

IMPORTS = """
import ast, importlib, runpy, sys
script = runpy.run_path(sys.argv[1], run_name="gpu")
sys.meta_path.insert(0, script["Absent"]())
used = [n for n in ast.walk(ast.parse(open(sys.argv[1]).read())) if isinstance(n, ast.ImportFrom)]
used = [n for n in used if n.module.startswith("xpbayes.")]
for node in used:
    for name in node.names:
        getattr(importlib.import_module(node.module), name.name)
print(len(used), any(p in sys.modules for p in script["ABSENT"]))
"""


def test_all_that_the_gpu_benchmark_uses_imports_without_packages_that_are_not_beside_a_gpu():
    run = subprocess.run([sys.executable, "-c", IMPORTS, SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    used, met = run.stdout.split()
    assert int(used) > 10 and met == "False"


def test_what_is_absent_is_refused():
    code = "import runpy, sys; sys.meta_path.insert(0, runpy.run_path(sys.argv[1])['Absent']()); import pydantic"
    run = subprocess.run([sys.executable, "-c", code, SCRIPT], capture_output=True, text=True, check=False)
    assert "pydantic is not beside the GPU" in run.stderr


def test_an_unknown_part_is_refused():
    run = subprocess.run([sys.executable, SCRIPT, "--parts", "nots"], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "'nots' is no part" in run.stderr
