"""The house: quick imports, links that cannot split the package, documented columns."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import xarray as xr

import xpbayes
from xpbayes.analysis.pages.calibration_page import CalibrationCheck
from xpbayes.analysis.pages.posterior_comparison import PosteriorComparison

ROOT = Path(xpbayes.__file__).parents[1]


def test_importing_xpbayes_is_quick_in_what_it_imports():
    code = "import sys, xpbayes; print([m for m in ('jax', 'numpy', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_exists_and_is_documented():
    for name in xpbayes.__all__:
        assert getattr(xpbayes, name) is not None
        if name != "__version__":
            assert getattr(xpbayes, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        xpbayes.nothing  # noqa: B018


@pytest.mark.parametrize("room", ["models", "inference", "analysis"])
def test_links_show_the_rooms_but_refuse_to_be_imported(room):
    link = ROOT / room
    if not link.is_symlink():
        pytest.skip("an installed package has no links beside it")
    assert link.resolve() == ROOT / "xpbayes" / room
    run = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"import xpbayes.{room}, not the link" in run.stderr


def test_version_matches_the_metadata():
    from importlib.metadata import version

    assert version("xpbayes") == xpbayes.__version__


def test_a_folder_called_xpbayes_does_not_hide_the_package():
    """Setuptools installs the project by a path only if it is told where packages lie; a finder comes after folders."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-dir"] == {"": "."}


def results_of(hint: Any) -> Iterator[type]:
    """Data classes of the package in an annotation, those in lists and tuples among them."""
    if is_dataclass(hint) and hint.__module__.startswith("xpbayes."):
        yield hint
    for inner in get_args(hint):
        yield from results_of(inner)


def test_what_public_verbs_give_back_says_what_its_fields_are():
    verbs = [verb for verb in (getattr(xpbayes, name) for name in xpbayes.__all__) if inspect.isfunction(verb)]
    verbs += [method for name, method in inspect.getmembers(xpbayes.Model, inspect.isfunction) if name[0] != "_"]
    later = {"CalibrationCheck": CalibrationCheck, "PosteriorComparison": PosteriorComparison, "xr": xr}
    hints = [get_type_hints(verb, localns=later).get("return") for verb in verbs]
    found = {kind for hint in hints for kind in results_of(hint)}
    assert {"Fit", "Model", "StarFit", "Prediction", "DustMaps"} <= {kind.__name__ for kind in found}
    for kind in found:
        attributes = "".join(base.__doc__ or "" for base in kind.__mro__).partition("Attributes:")[2]
        told = {name for line in attributes.splitlines() for name in line.partition(":")[0].strip().split(", ")}
        assert {field.name for field in fields(kind)} <= told, kind
