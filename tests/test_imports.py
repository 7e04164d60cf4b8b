"""Imports go down the levels of the house only, and nowhere in circles; importing changes nothing."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xpbayes

PACKAGE = Path(xpbayes.__file__).parent
LEVELS = (
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"api"},
    {"runs"},
    {"analysis"},
    {"simulation"},
    {"production"},
    {"checks"},
    {"refinement"},
    {"training"},
    {"inference", "archive"},
    {"models"},
    {"data"},
    {"instrument"},
    {"schema", "channels", "config", "device", "errors", "files", "identity", "progress", "release"},
)
"""From the top: a room imports from itself and from lower levels; rooms of one level know nothing of each other."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = {
    "xpbayes"
    + "".join(f".{part}" for part in path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path, *, everywhere: bool) -> Iterator[str]:
    """Modules of the package that a file imports; `everywhere` also in functions and for type checkers."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "xpbayes")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "xpbayes":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


def test_every_room_has_a_level():
    assert {room_of(module) for module in FILES} == set(LEVEL)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_only(module):
    """Those inside functions and those for type checkers included."""
    room = room_of(module)
    for imported in imports(FILES[module], everywhere=True):
        other = room_of(imported)
        is_leaf = LEVEL[room] == len(LEVELS) - 1
        below = LEVEL[other] > LEVEL[room] or other == room or (is_leaf and LEVEL[other] == LEVEL[room])
        assert below, f"{module} imports {imported}, which is not below it"


def names_imported(source: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of all that a source imports from the package, in functions too; no name for a whole module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "xpbayes")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "xpbayes":
            yield from ((node.module, alias.name) for alias in node.names)


def is_there(module: str, name: str | None) -> bool:
    """Whether a module of the package exists, and has the name or a module of that name."""
    if module not in FILES:
        return False
    return name is None or f"{module}.{name}" in FILES or hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", FILES)
def test_what_is_imported_exists(module):
    """Those inside functions and those for type checkers included: nothing else sees them before they run."""
    missing = [of for of in names_imported(FILES[module].read_text()) if not is_there(*of)]
    assert not missing, f"{module} imports what is not there: {missing}"


def test_an_import_of_nothing_is_found():
    source = "def f():\n    from xpbayes.config import Phase, Phrase\n    import xpbayes.nowhere\n"
    assert [of for of in names_imported(source) if not is_there(*of)] == [
        ("xpbayes.config", "Phrase"),
        ("xpbayes.nowhere", None),
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every circle that a walk through the graph comes upon, as the modules on it."""
    found, done = [], set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for imported in sorted(graph[module]):
                walk(imported, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())
    return found


def test_no_circles():
    """Those inside functions and those for type checkers included; the package itself names its verbs."""
    graph = {m: set(imports(p, everywhere=True)) - {"xpbayes"} for m, p in FILES.items() if m != "xpbayes"}
    assert not circles(graph), "\n".join(" → ".join(c) for c in circles(graph))


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]


def test_importing_changes_neither_the_environment_nor_jax_and_needs_nothing_of_posix():
    """XLA's flags and JAX's settings are the process's own until a computation begins; Windows has no fcntl."""
    code = (
        "import os, sys, builtins, importlib, numpyro, jax\n"
        "found = builtins.__import__\n"
        "def hide(name, names=None, *rest, **more):\n"
        "    ours = (names or {}).get('__name__', '').startswith('xpbayes')\n"
        "    if ours and name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'tty', 'pty', 'syslog'):\n"
        "        raise ModuleNotFoundError(f'{names[\"__name__\"]} imports {name}, which only POSIX has')\n"
        "    return found(name, names, *rest, **more)\n"
        "builtins.__import__ = hide\n"
        "before = dict(os.environ), dict(jax.config.values)\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "after = dict(os.environ), dict(jax.config.values)\n"
        "changed = [{k: new.get(k) for k in old.keys() | new.keys() if old.get(k) != new.get(k)}\n"
        "           for old, new in zip(before, after)]\n"
        "print(changed)\n"
        "from xpbayes.device import prepare_device\n"
        "prepare_device()\n"
        "print(os.environ['XLA_FLAGS'], jax.config.values['jax_cpu_enable_async_dispatch'])"
    )
    modules = [m for m in FILES if not m.endswith("__main__")]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
    unchanged, prepared = run.stdout.splitlines()
    assert unchanged == "[{}, {}]"
    assert prepared == "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false False"


def test_what_is_of_one_data_release_is_in_its_profile():
    of_dr3 = re.compile("gaiadr3|v375wi|Gaia DR3|2016.0")
    assert {module for module, path in FILES.items() if of_dr3.search(path.read_text())} == {"xpbayes.release"}
