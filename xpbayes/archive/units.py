"""Declared units, honoured through astropy.units: what turns a file's numbers into ours, or a refusal."""

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from xpbayes.errors import InputError

UNDECLARED = {"", "-", "--", "none", "null", "unitless", "dimensionless", "nan", "n/a", "1", "arbitrary"}
"""What stands in unit fields where there is no unit."""
SPELT = {"kelvin": "K", "degk": "K", "deg k": "K", "degrees": "deg", "degree": "deg", "magnitude": "mag", "mags": "mag"}
"""Spellings that no standard knows, in lower case."""
COUNTS = re.compile(r"'?(\belectrons?\b|\be-|\bcounts?\b|\bct\b|\bphotons?\b)'?\s*[.*]?\s*")
"""Counted things carry no unit."""
LOGARITHM = re.compile(r"^(?:log|log10|dex)\s*\((.*)\)$|^\[(.+)\]$")
FORMS = (None, "vounit", "cds", "fits", "ogip")
"""astropy's spellings of units, tried in turn: each standard writes powers and products in its own way."""


@lru_cache(maxsize=512)
def unit_change(declared: str, wanted: str) -> tuple[float, float] | None:
    """Factor and summand that turn a file's declared unit, as any standard spells it, into ours, as astropy spells it.

    (1, 0) where nothing changes; None where the unit is unknown or of another kind.
    """
    import astropy.units as u

    have, want = _parse(declared), _parse(wanted)
    if have is None or want is None:
        return None
    logarithms = [isinstance(one, u.function.FunctionUnitBase) for one in (have, want)]
    if have in (u.dex, u.dimensionless_unscaled) and (logarithms[1] or want == u.dex):
        return 1.0, 0.0  # "dex" alone says that it is a logarithm, not of what
    if logarithms[0] and want == u.dex and have.physical_unit == u.dimensionless_unscaled:
        return 1.0, 0.0
    try:
        if any(logarithms):
            return (1.0, float(have.to(want, 0.0))) if all(logarithms) else None
        factor = float(have.to(want))
    except u.UnitsError:
        return None
    return (factor, 0.0) if factor > 0 else None  # magnitudes and decades have opposite signs


def is_declared(text: Any) -> bool:
    """Tell whether a unit field says something."""
    return str(text or "").strip().strip("'\"").lower() not in UNDECLARED


def yaml_header(lines: Iterable[str], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a table's header in YAML says, as ECSV has it and astropy's HDF5 and Parquet; and the units in it.

    InputError: it cannot be read: in which units the columns are, nobody can tell then.
    """
    from astropy.table.meta import get_header_from_yaml

    try:
        about = get_header_from_yaml(lines) or {}  # a first line alone says nothing
        units = {str(c["name"]): str(c["unit"]) for c in about.get("datatype") or () if is_declared(c.get("unit"))}
    except Exception as error:  # YAML can hold anything
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: its header of columns and units cannot be read ({reason}); write the table again"
        ) from error
    return about, units


def _parse(text: str) -> Any:
    import astropy.units as u

    text = text.strip().strip('"')
    text = SPELT.get(text.lower(), text)
    logarithm = LOGARITHM.match(text)
    if logarithm is not None:
        inner = (logarithm[1] or logarithm[2]).strip()
        if inner.lower() in ("cgs", "g", "solar", "sun", "h", "fe/h", "m/h"):
            return u.dex
        physical = _parse(inner)
        return None if physical is None or isinstance(physical, u.DexUnit) else u.dex(physical)
    text = COUNTS.sub("", text).strip()
    if text.startswith("/"):
        text = "1 " + text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the spelling is the file's, not the user's
        for form in FORMS:
            try:
                return u.Unit(text, format=form)
            except (ValueError, TypeError):
                continue
    return None
