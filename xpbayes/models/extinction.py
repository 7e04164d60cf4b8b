"""Dust: from one star's intrinsic log flux to the log flux that reaches the telescope.

In: ln_flux (channel,), any linear unit inside the log; E [mag]; ln_curve = ln R (channel,). Out: (channel,), same unit.
Not here: the prior on E (`posterior.py`), where the curve comes from (`inference/training.py`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def attenuate(
    ln_flux: Float[Array, " channel"], extinction: Float[Array, ""], ln_curve: Float[Array, " channel"]
) -> Float[Array, " channel"]:
    """Dim one star by dust: ln f = ln f_abs - E R (ZGR23 Eq. 7).

    Args:
        ln_flux: (channel,) natural log of the intrinsic flux.
        extinction: () E [mag]. No sign check: traced values cannot raise; the prior owns E > 0.
        ln_curve: (channel,) ln R [-], optical depth per unit E.

    Returns:
        (channel,) log of the dimmed flux. A batch of stars is `jax.vmap(attenuate, (0, 0, None))`.
    """
    return ln_flux - extinction * jnp.exp(ln_curve)
