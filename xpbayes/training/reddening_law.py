"""R(V) as a function of xi: where the laws of Gordon et al. (2023) lie along R + xi R1 (METHOD 11).

Along its own R(V) a published law A is, to first order, a R + b R1 + c: a is its amount of dust, c the grey part that no
spectrum sees, and b / a the xi of such dust. R itself need not be a published law: xi is counted from the R(V) whose law R
resembles most.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.models.extinction import ReddeningLaw
from xpbayes.models.forward import ForwardModel
from xpbayes.models.model_error import ModelError, relative_sigma

LOWEST, HIGHEST, N_LAWS = 2.3, 5.6, 34
"""R(V) for which the laws are defined."""
SHORTEST_NM, LONGEST_NM = 91.2, 32_000.0
FLOOR = 0.005
"""Relative error per channel beside the model's own."""
N_NODES, MAX_XI = 33, 8.0


def fit_law(
    forward: ForwardModel, wavelength_nm: Float[NDArray, " channel"], error: ModelError | None
) -> ReddeningLaw | None:
    """Tabulate R(V) along xi, channels weighing less where the model's error is large.

    None where the curve does not vary, or where xi does not rise with R(V).
    """
    if forward.curve_variation is None:
        return None
    import astropy.units as u
    from dust_extinction.parameter_averages import G23

    wavelength_nm = np.asarray(wavelength_nm, np.float64)
    known = (wavelength_nm > SHORTEST_NM) & (wavelength_nm < LONGEST_NM)
    curve, variation = np.exp(np.asarray(forward.ln_curve, np.float64)), np.asarray(forward.curve_variation, np.float64)
    sigma = np.full(len(curve), FLOOR) if error is None else np.hypot(FLOOR, relative_sigma(error))
    weight = known / sigma
    r_v = np.linspace(LOWEST, HIGHEST, N_LAWS)
    laws = np.zeros((N_LAWS, len(curve)))
    laws[:, known] = [G23(Rv=value)(wavelength_nm[known] * u.nm) for value in r_v]
    basis = np.stack([curve, variation, np.ones_like(curve)], axis=1)
    amount, along, _ = np.linalg.lstsq(basis * weight[:, None], (laws * weight).T, rcond=None)[0]
    xi = along / amount
    scale = laws @ (weight**2 * curve) / (laws**2 @ weight**2)
    misfit = np.sum((weight * (curve - scale[:, None] * laws)) ** 2, axis=1)
    xi -= xi[np.argmin(misfit)]
    if not (np.diff(xi) > 0).all():
        return None
    nodes = np.linspace(-MAX_XI, MAX_XI, N_NODES)
    at = np.interp(nodes, xi, r_v)
    return ReddeningLaw(tuple(nodes.round(6).tolist()), tuple(at.round(5).tolist()))
