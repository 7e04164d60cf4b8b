"""What lies around a run must not matter: locale, time zone, home, byte code; and nothing on disk is ever code."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xpbayes
from tests.archive.test_prepare import contents, survey
from xpbayes.archive.prepare import prepare

SOURCE = Path(xpbayes.__file__).parent
TREES = {
    str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))
}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_pickle_is_read_from_a_file_or_written_to_one():
    """Pickle goes from process to process in memory, in one module, and nowhere else."""
    modules = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
    for name, tree in TREES.items():
        imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & modules or (name == "production/engine.py" and imported & modules == {"pickle"}), name
        for call in calls(tree):
            text = ast.unparse(call.func)
            assert text not in ("pickle.dump", "pickle.load", "pickle.Unpickler") and "to_pickle" not in text, name
            assert "read_pickle" not in text and text not in ("eval", "exec", "yaml.load"), name
            if text == "np.load":
                assert any(k.arg == "allow_pickle" and ast.literal_eval(k.value) is False for k in call.keywords), name


def test_no_text_is_read_or_written_in_the_locale_s_encoding():
    for name, tree in TREES.items():
        for call in calls(tree):
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            given = {k.arg for k in call.keywords}
            mode = [a.value for a in call.args[1:2] if isinstance(a, ast.Constant)]
            opened = called == "open" and isinstance(call.func, ast.Name) and not (mode and "b" in str(mode[0]))
            written = called in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
            assert not (opened or written) or "encoding" in given, f"{name}:{call.lineno}: {ast.unparse(call)[:80]}"


@pytest.mark.parametrize(
    "around", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kolkata"}]
)
def test_the_same_bytes_whatever_lies_around(tmp_path, around):
    config = survey(tmp_path / "s", 'select = "all"')
    prepare(config, tmp_path / "here")
    for folder in (tmp_path, tmp_path / "s"):
        (folder / "__pycache__").mkdir()
        (folder / "numpy.py").write_text("raise RuntimeError")  # beside the data, not on the path
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent), "HOME": "/nonexistent", **around}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "xpbayes", "prepare", config, "--out", tmp_path / "there", "-q"]
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
