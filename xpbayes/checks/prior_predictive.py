"""Stars drawn from the very posterior's own model: parameters from a proper prior, fluxes from the likelihood.

Simulation-based calibration needs the prior of the simulation to be that of the inference, and ours is flat in E and
parallax up to infinity. So each star borrows the noise of a real one, its template, and the prior is restricted to stars
that look about like the template: mean ln flux within `LEVEL` of its own, blue minus red within `COLOUR`, E below
`MAX_EXTINCTION`. That makes the prior proper and the noise realistic, and is exact: a posterior under the restricted
prior is the full one, cut off outside the same window, and `in_window` tells which draws are inside.

Within a window the prior is that of the inference: labels from the mixture, E and parallax flat. At given brightness a
flat parallax favours faint stars: the weight of labels and E is the length of their window in parallax, which goes
with the inverse root of their flux at 1 kpc.

The noise is a Student t with the template's whitening factor, missing bands included, at the amplitude that the
template was found to have, and with at least `MIN_DOF` degrees of freedom: with fewer, as a model may learn them, a
good part of simulated spectra would be nothing but noise. Simulated and inferred likelihood are the same.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import Stars
from xpbayes.models.forward import ForwardModel, predict_flux, predict_ln_flux
from xpbayes.models.likelihood import deviance, n_observed, whitened_residual
from xpbayes.models.posterior import WhitenedStudent
from xpbayes.models.prior import draw_labels
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear, to_log

MAX_EXTINCTION = 1.5
LEVEL, COLOUR = 0.5, 0.3
"""Half widths of the windows in ln flux: a factor of 1.6 in brightness, 0.3 mag in colour."""
MIN_DOF = 5.0
N_POOL, STARS_PER_POOL = 200_000, 333
"""Prior draws in a pool, and stars to every pool; all stars are picked from all pools: of one pool for many stars, truths
would come more than once."""


class Window(NamedTuple):
    """What a simulated star must look like: mean ln flux and blue minus red of its template, (star,) each."""

    level: Float[Array, "*star"]
    colour: Float[Array, "*star"]


@dataclass(frozen=True)
class Simulated:
    """Simulated stars as inference sees them; the model's own error is in the whitening factor."""

    stars: Stars
    truth: NDArray[np.float64]  # (star, parameter) labels, E [mag], parallax [mas]
    window: Window
    template: NDArray[np.int64]  # (star,) row of the template
    chi2_truth: NDArray[np.float64]  # (star,) chi^2 of the fluxes at the truth


def look(ln_flux: Float[Array, " channel"], n_xp: int) -> Window:
    """Mean ln flux and blue minus red of one spectrum's XP samples."""
    half = n_xp // 2
    return Window(jnp.mean(ln_flux[:n_xp]), jnp.mean(ln_flux[:half]) - jnp.mean(ln_flux[half:n_xp]))


def in_window(forward: ForwardModel, window: Window, theta_log: Float[Array, " parameter"], n_xp: int) -> Array:
    """Whether one point (labels, ln E, ln parallax) belongs to the restricted prior of one star."""
    here = look(predict_ln_flux(forward, theta_log), n_xp)
    near = (jnp.abs(here.level - window.level) < LEVEL) & (jnp.abs(here.colour - window.colour) < COLOUR)
    return near & (theta_log[-2] < jnp.log(MAX_EXTINCTION))


@jax.jit
def with_realistic_noise(stars: Stars, chi2: Float[Array, " star"]) -> Stars:
    """Templates, model error folded in, with the noise that their own fit's chi^2 has, and lighter tails."""
    weight = jax.vmap(deviance)(chi2, n_observed(stars.whitening), stars.inv_dof).slope
    return replace(
        stars,
        whitening=stars.whitening * jnp.sqrt(weight)[:, None, None],
        inv_dof=jnp.minimum(stars.inv_dof, 1.0 / MIN_DOF),
    )


@partial(jax.jit, static_argnums=1)
def _look_at_measured(stars: Stars, n_xp: int) -> Window:
    ln_flux = jnp.log(jnp.maximum(stars.flux, 1e-20)) + stars.ln_scale[:, None]
    return jax.vmap(lambda f: look(f, n_xp))(ln_flux)


@partial(jax.jit, static_argnums=2)
def _look_at_model(forward: ForwardModel, theta_log: Array, n_xp: int) -> Window:
    return jax.vmap(lambda u: look(predict_ln_flux(forward, u), n_xp))(theta_log)


@jax.jit
def _observe(forward: ForwardModel, stars: Stars, theta_log: Array, keys: Array) -> tuple[Array, Array]:
    """Draw fluxes (star, channel) from the likelihood, and their chi^2 (star,) at the truth."""

    def one(given: tuple[Stars, Array, Array]) -> tuple[Array, Array]:
        star, u, key = given
        with jax.default_matmul_precision("highest"):
            predicted = predict_flux(forward, u, star.ln_scale)
            again = WhitenedStudent(predicted, star.whitening, star.inv_dof).sample(key)
            return again, jnp.sum((star.whitening @ (again - predicted)) ** 2)

    return jax.lax.map(one, (stars, theta_log, keys), batch_size=64)


def _pick(
    model: StarModel,
    colour: NDArray[np.float64],
    n_xp: int,
    max_extinction: float,
    seed: int,
    random: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    """Pick labels and ln E for every star from the prior within its window in colour, by their window in parallax.

    Pool after pool, each pick giving way to the next pool's with that one's share of the weight so far: as if from one
    pool of them all.

    Returns:
        (star, parameter - 1) labels, xi if the curve varies, and ln E; (star,) their mean ln flux at 1 kpc; (star,)
        whether there was any to pick.
    """
    n_stars = len(colour)
    picked, level = np.zeros((n_stars, model.forward.n_star_parameters - 1), np.float32), np.zeros(n_stars)
    so_far = np.zeros(n_stars)
    for key in jax.random.split(jax.random.key(seed), -(-n_stars // STARS_PER_POOL)):
        labels = draw_labels(model.label_prior, key, N_POOL)
        if model.forward.curve_variation is not None:
            labels = jnp.append(labels, jax.random.normal(jax.random.fold_in(key, 1), (N_POOL, 1)), axis=1)
        ln_extinction = jnp.log(jnp.asarray(max_extinction * (1.0 - random.random(N_POOL)), jnp.float32))
        dark = jnp.concatenate([labels, ln_extinction[:, None], jnp.zeros((N_POOL, 1))], axis=1)
        looks = _look_at_model(model.forward, dark, n_xp)
        # Sorted by colour, a window is a slice, and a pick by weight one search in the running sum.
        order = np.argsort(looks.colour)
        pool_level, pool_colour = (np.asarray(leaf, np.float64)[order] for leaf in looks)
        running = np.concatenate([[0.0], np.cumsum(np.exp(-0.5 * pool_level))])
        low = running[np.searchsorted(pool_colour, colour - COLOUR)]
        weight = running[np.searchsorted(pool_colour, colour + COLOUR)] - low
        so_far += weight
        chosen = np.flatnonzero(random.random(n_stars) * so_far < weight)
        at = low[chosen] + random.random(len(chosen)) * weight[chosen]
        row = np.clip(np.searchsorted(running, at, side="right") - 1, 0, N_POOL - 1)
        picked[chosen], level[chosen] = np.asarray(dark)[order[row], :-1], pool_level[row]
    return picked, level, so_far > 0


def simulate(
    model: StarModel,
    templates: Stars,
    n_xp: int,
    n_stars: int,
    seed: int,
    parallax_error: float,
    max_extinction: float = MAX_EXTINCTION,
) -> Simulated:
    """Draw stars from the restricted prior and their fluxes from the likelihood.

    Args:
        model: the trained model.
        templates: real stars, from `with_realistic_noise`.
        n_xp: how many of the channels are XP samples; they come first.
        n_stars: how many; templates are used again where they are fewer.
        seed: of all random numbers.
        parallax_error: [mas] of every second star, where templates have no parallax of their own; the others have none.
        max_extinction: E is below this; next to nought for stars without dust. `in_window` knows the default alone.
    """
    random = np.random.default_rng(seed)
    flux = np.asarray(templates.flux)
    usable = (flux > 0) & (np.diagonal(np.asarray(templates.whitening), axis1=1, axis2=2) > 0)
    whole = np.flatnonzero(usable[:, :n_xp].all(axis=1))
    if not len(whole):
        raise ValueError("no template has a positive flux in every XP channel")
    template = np.concatenate([random.permutation(whole) for _ in range(-(-n_stars // len(whole)))])[:n_stars]
    chosen = templates.take(template)
    window = _look_at_measured(chosen, n_xp)

    picked, level, found = _pick(model, np.asarray(window.colour, np.float64), n_xp, max_extinction, seed, random)
    middle = np.exp(0.5 * (np.asarray(window.level, np.float64) - level))
    reach = np.exp(0.5 * LEVEL)
    parallax = middle * (1.0 / reach + random.random(n_stars) * (reach - 1.0 / reach))
    theta_log = np.concatenate([picked, np.log(parallax)[:, None]], axis=1).astype(np.float32)

    known = np.asarray(chosen.parallax_inv_error) > 0
    own = np.where(known, 1.0 / np.where(known, chosen.parallax_inv_error, 1.0), parallax_error)
    measured, wider = known | (random.random(n_stars) < 0.5), np.ones(n_stars)
    if chosen.doubt is not None:
        spurious = random.random(n_stars) < np.asarray(chosen.doubt.prior)
        wider = np.where(spurious, 1.0 / np.asarray(chosen.doubt.narrowing), 1.0)
    keys = jax.random.split(jax.random.key(seed + 1), n_stars)
    fluxes, chi2 = _observe(model.forward, chosen, jnp.asarray(theta_log), keys)
    stars = replace(
        chosen,
        flux=fluxes,
        parallax=jnp.asarray(parallax + wider * own * random.standard_normal(n_stars), jnp.float32),
        parallax_inv_error=jnp.asarray(np.where(measured, 1.0 / own, 0.0), jnp.float32),
    )
    keep = np.flatnonzero(found)
    truth = to_linear(theta_log.astype(np.float64))
    return Simulated(
        stars.take(keep),
        truth[keep],
        Window(window.level[keep], window.colour[keep]),
        template[keep],
        np.asarray(chi2, np.float64)[keep],
    )


# --------------------------------------------------------------------------------------------------- what draws predict


def channel_ln_likelihood(
    residual: Float[Array, " channel"], whitening: Float[Array, "channel channel"], inv_dof: Float[Array, ""]
) -> Float[Array, " channel"]:
    """Ln density of every whitened residual given those before it; zero for channels that W says were not measured.

    W is lower-triangular, so row c of W (f - f_pred) is what channel c adds to the channels before it: the likelihood is a
    product over channels without approximation. Under the Student t each factor is one again, whose scale follows from the
    residuals before it.
    """
    present = jnp.diagonal(whitening) > 0
    square = jnp.where(present, residual**2, 0.0)
    before = jnp.cumsum(square) - square
    count = jnp.cumsum(present) - present
    heavy = inv_dof > 0
    nu = 1.0 / jnp.where(heavy, inv_dof, 1.0)
    dof = nu + count
    scale2 = (nu + before) / dof
    gammaln = jax.scipy.special.gammaln
    student = (
        gammaln(0.5 * (dof + 1.0)) - gammaln(0.5 * dof) - 0.5 * jnp.log(dof * jnp.pi * scale2)
        - 0.5 * (dof + 1.0) * jnp.log1p(square / (dof * scale2))
    )  # fmt: skip
    gaussian = -0.5 * square - 0.5 * jnp.log(2.0 * jnp.pi)
    return jnp.where(present, jnp.where(heavy, student, gaussian), 0.0)


@jax.jit
def predict_draws(
    forward: ForwardModel, star: Stars, theta: Float[Array, "draw parameter"], seed: Array
) -> tuple[Float[Array, "draw channel"], Float[Array, "draw channel"], Float[Array, "draw channel"]]:
    """Evaluate draws (draw, label + 2) of labels, E [mag] and parallax [mas] from one star, model error folded in.

    Returns:
        (draw, channel) each: ln likelihood of the whitened fluxes; a flux drawn from the predictive distribution, in the
        star's own unit (a channel that was not measured is drawn without noise); the same whitened.
    """

    def one(point: Array, key: Array) -> tuple[Array, Array, Array]:
        theta_log = to_log(point)
        predicted = predict_flux(forward, theta_log, star.ln_scale)
        residual = whitened_residual(predicted, star.flux, star.whitening)
        again = WhitenedStudent(predicted, star.whitening, star.inv_dof).sample(key)
        return channel_ln_likelihood(residual, star.whitening, star.inv_dof), again, star.whitening @ again

    with jax.default_matmul_precision("highest"):
        key = jax.random.fold_in(jax.random.key(seed), 0x5EED)
        return jax.vmap(one)(theta, jax.random.split(key, theta.shape[0]))


whitened_flux = jax.jit(jax.vmap(lambda star: star.whitening @ star.flux))
"""(star, channel) observed fluxes, whitened."""
