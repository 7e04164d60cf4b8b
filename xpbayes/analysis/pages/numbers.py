"""How numbers are written on pages and terminals: one way for each parameter, in displayed units (Teff in K)."""

import numpy as np

from xpbayes.analysis.figures.drawing import display_scale, heading, text

__all__ = ["heading", "number", "pair", "share", "text"]

MISSING = "–"


def number(name: str, value: float, *, sign: bool = False) -> str:
    """A parameter's value or error, given in internal units, in displayed ones; a dash where there is none."""
    if not np.isfinite(value):
        return MISSING
    return f"{display_scale(name) * value:{'+' if sign else ''}.{ {'teff': 0, 'parallax': 4}.get(name, 3) }f}"


def pair(name: str, value: float, error: float) -> str:
    """Value ± error in displayed units, as many digits as the error deserves: two of its own."""
    value, error = display_scale(name) * value, display_scale(name) * error
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 6)) if np.isfinite(error) and error > 0 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def share(value: float) -> str:
    """A share in percent."""
    return f"{value:.1%}" if np.isfinite(value) else MISSING
