"""How likely measured parallaxes are spurious, by what Gaia says of their solutions, before any flux is looked at.

A spurious parallax is one whose error is far larger than stated: two sources were taken for one, or a companion's orbit for
the parallax's ellipse. Two columns tell: fidelity_v2, the probability of a sound solution (Rybizki et al. 2022), and RUWE,
beyond 1.4 for solutions that do not follow a single star's motion (Lindegren et al. 2021). A companion makes RUWE large
long before it spoils the parallax, so RUWE alone never makes a parallax as good as certainly spurious.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.data.stars import ParallaxDoubt

INFLATION = 8.0
"""Error of a spurious parallax in units of the stated one: false parallaxes are several, up to some tens, of these off."""
LEAST, MOST = 0.003, 0.98
"""Of the probability: Gaia's columns miss some, and what they call hopeless may be right."""
HIGH_RUWE, BY_RUWE, STEEPNESS = 1.4, 0.6, 14.0
"""Half as likely as by the largest RUWE at the published limit; a hundredth of it at 1."""


def parallax_doubt(fidelity: NDArray[np.floating], ruwe: NDArray[np.floating]) -> ParallaxDoubt | None:
    """Prior probability that each parallax is spurious, from (star,) fidelity_v2 and RUWE, NaN where missing.

    A star that has neither column is taken at its word, and None comes back if no star has any.
    """
    known = np.isfinite(fidelity) | np.isfinite(ruwe)
    if not known.any():
        return None
    by_fidelity = np.where(np.isfinite(fidelity), 1.0 - np.clip(fidelity, 0.0, 1.0), 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        by_ruwe = np.where(ruwe > 0, BY_RUWE / (1.0 + (HIGH_RUWE / np.where(ruwe > 0, ruwe, 1.0)) ** STEEPNESS), 0.0)
    either = np.clip(1.0 - (1.0 - by_fidelity) * (1.0 - by_ruwe), LEAST, MOST)
    arrays: dict[str, Any] = {"prior": np.where(known, either, 0.0).astype(np.float32)}
    return ParallaxDoubt(**arrays, narrowing=np.full_like(arrays["prior"], 1.0 / INFLATION))
