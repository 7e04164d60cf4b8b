"""Gradient phases of training: SVI with AutoDelta guides on `models.posterior.training_posterior` (METHOD 3 and 4).

One step takes a batch of stars. It moves the model with the batch's stars conditioned at their values, or the stars
with the model conditioned, or first one and then the other. The table of all stars' parameters lives outside of the
guide: a batch's rows are gathered, become the guide's sites, and are scattered back, so a star that is not in the batch
cannot move and the cost of a step does not grow with the number of stars.

Learning rates are those of ZGR23's losses, chi^2 per star: gradients of the model are taken of
-2 ln posterior / n_stars (Eq. 12), those of a star of its own -2 ln posterior (Eq. 13, 14).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STRETCH, Stars, are_in_files, in_memory
from xpbayes.models.forward import ForwardModel

if TYPE_CHECKING:
    from xpbayes.config import Phase


class _Setup(NamedTuple):
    """What a compiled step depends on beside its arrays: what it moves and how, see `config.Phase`."""

    n_stars: int  # stars of the phase, for the weight prior and for scaling batches
    move_stars: bool  # whether a step moves the batch's stars after the model
    optimizer: str
    momentum: float
    gradient_clip: float
    robust_scale: float
    fixed: tuple[str, ...] = ()  # the model's sites that do not move


def learning_rates(phase: "Phase", initial: float, n_steps: int) -> np.ndarray:
    """(step,) learning rate of every step of a phase from the initial one; its epochs share the steps evenly."""
    share = np.arange(n_steps) / n_steps
    if phase.schedule == "cosine":
        return initial * (phase.final_rate + (1.0 - phase.final_rate) * 0.5 * (1.0 + np.cos(np.pi * share)))
    return initial * phase.step_factor ** np.floor(share * phase.epochs / phase.step_epochs)


def _clip_each(largest: float) -> Any:
    """Limit the norm of every site's gradient on its own."""
    import optax

    def clip(gradient: Array) -> Array:
        return gradient * jnp.minimum(1.0, largest / jnp.maximum(jnp.sqrt(jnp.sum(gradient**2)), 1e-30))

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _transformation(setup: _Setup, rate: Array, per_loss: float, *, is_model: bool) -> Any:
    """Optax chain from the gradient of SVI's loss, `per_loss` of which is the paper's, to a step of model or stars."""
    import optax

    chain = [optax.scale(per_loss)]
    if setup.gradient_clip > 0:
        chain.append(optax.clip_by_global_norm(setup.gradient_clip) if is_model else _clip_each(setup.gradient_clip))
    if setup.optimizer == "adam":
        chain.append(optax.scale_by_adam())
    elif is_model and setup.momentum > 0:
        chain.append(optax.trace(decay=setup.momentum))
    if is_model and setup.fixed:
        still = frozenset(_locations(dict.fromkeys(setup.fixed)))
        chain.append(optax.masked(optax.set_to_zero(), lambda sites: {name: name in still for name in sites}))
    return optax.chain(*chain, optax.scale(-rate))


def _guide(posterior: Callable[..., None], values: dict[str, Any]) -> Any:
    from numpyro.infer.autoguide import AutoDelta
    from numpyro.infer.initialization import init_to_value

    return AutoDelta(posterior, init_loc_fn=init_to_value(values=values))


def _locations(values: dict[str, Any]) -> dict[str, Any]:
    """Values of sites as parameters of an AutoDelta guide."""
    return {f"{name}_auto_loc": value for name, value in values.items()}


def _values(locations: dict[str, Any]) -> dict[str, Any]:
    return {name.removesuffix("_auto_loc"): value for name, value in locations.items()}


def _posterior(setup: _Setup, forward: ForwardModel, *, robust: bool) -> Callable[[Stars, dict[str, Any]], None]:
    """The training posterior of a batch with some of its sites conditioned; R1 always is.

    Beside a point for every xi there is no best R1: larger, with every xi smaller, it is always better. `curve_variation`
    learns it with the xi marginalised.
    """
    from numpyro import handlers

    from xpbayes.models.posterior import ModelShape, training_posterior

    shape = ModelShape(
        hidden=tuple(w.shape[1] for w in forward.weights[:-1]),
        n_channels=forward.ln_curve.shape[0],
        n_stars=setup.n_stars,
        label_center=forward.label_center,
        label_scale=forward.label_scale,
        curve_varies=forward.curve_variation is not None,
        robust_scale=setup.robust_scale if robust else 0.0,
    )
    always = {} if forward.curve_variation is None else {"R1": forward.curve_variation}

    def conditioned(batch: Stars, fixed: dict[str, Any]) -> None:
        handlers.condition(training_posterior, data=fixed | always)(batch, shape)

    return conditioned


class _Carry(NamedTuple):
    """What one step hands to the next: the model's optimiser state, the table of all stars, how much each counts."""

    model_state: Any
    table: Array
    weight: Array


def _model_optimizer(setup: _Setup) -> Any:
    """The model's optimiser at rate zero: what starts and reads its state."""
    from numpyro.optim import optax_to_numpyro

    return optax_to_numpyro(_transformation(setup, jnp.asarray(0.0), 1.0, is_model=True))


def _moving_sites(forward: ForwardModel) -> dict[str, Any]:
    """Values of the model's sites that gradients move."""
    from xpbayes.models.posterior import model_site_values

    return model_site_values(replace(forward, curve_variation=None))


@partial(jax.jit, static_argnames="setup")
def _start(setup: _Setup, forward: ForwardModel) -> Any:
    """SVI state of the model before the first step."""
    from numpyro.infer.svi import SVIState

    return SVIState(_model_optimizer(setup).init(_locations(_moving_sites(forward))), None, jax.random.key(0))


@partial(jax.jit, static_argnames="setup")
def _steps(
    setup: _Setup,
    forward: ForwardModel,
    stars: Stars,
    carry: _Carry,
    order: Array,
    model_rate: Array,
    star_rate: Array,
    begin: Array,
) -> tuple[_Carry, Array]:
    """Steps `begin` and later of those that `order` (step, batch) lists, and the sum of their losses as SVI counts it.

    A step's loss is the model's before it moves.
    """
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.svi import SVIState

    from xpbayes.models.posterior import star_sites, theta_from_sites

    sites_of = partial(star_sites, curve_varies=forward.curve_variation is not None)
    batch_size = order.shape[1]
    key = jax.random.key(0)  # a point guide draws nothing
    first, at_first = stars.take(order[0]), carry.table[order[0]]
    of_model, of_stars = (_posterior(setup, forward, robust=robust) for robust in (True, False))
    model_guide = _guide(of_model, _moving_sites(forward))
    star_guide = _guide(of_stars, sites_of(at_first))

    def model_svi(rate: Array) -> Any:
        optimizer = _transformation(setup, rate, 2.0 / setup.n_stars, is_model=True)
        return SVI(of_model, model_guide, optimizer, Trace_ELBO())

    def stars_svi(rate: Array) -> Any:
        optimizer = _transformation(setup, rate, 2.0 * batch_size / setup.n_stars, is_model=False)
        return SVI(of_stars, star_guide, optimizer, Trace_ELBO())

    # A guide sets itself up when it is first called: here, once, and not inside every step.
    model_svi(model_rate[0]).init(key, first, sites_of(at_first))
    if setup.move_stars:
        stars_svi(star_rate[0]).init(key, first, _moving_sites(forward))

    def step(number: Array, so_far: tuple[_Carry, Array]) -> tuple[_Carry, Array]:
        carry, losses = so_far
        index, rate_of_model, rate_of_stars = order[number], model_rate[number], star_rate[number]
        state, table, weight = carry
        batch = _weighted(stars.take(index), weight[index])
        current = table[index]
        svi = model_svi(rate_of_model)
        svi.init(key, batch, sites_of(current))
        state, loss = svi.update(state, batch, sites_of(current))
        if setup.move_stars:
            fixed = _values(svi.get_params(state))
            svi = stars_svi(rate_of_stars)
            svi.init(key, batch, fixed)
            at_rest = SVIState(svi.optim.init(_locations(sites_of(current))), None, key)
            end, _ = svi.update(at_rest, batch, fixed)
            table = table.at[index].set(theta_from_sites(_values(svi.get_params(end))))
        return _Carry(state, table, weight), losses + loss

    with jax.default_matmul_precision("highest"):
        return jax.lax.fori_loop(begin, order.shape[0], step, (carry, jnp.zeros(())))


def _weighted(stars: Stars, weight: Array) -> Stars:
    """Stars whose fluxes count by a weight: the same as errors that are larger by its root."""
    return replace(stars, whitening=stars.whitening * jnp.sqrt(weight)[:, None, None])


def run_gradient_phase(  # noqa: PLR0913 - what a phase moves, of what, and how
    forward: ForwardModel,
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
    phase: "Phase",
    batch_size: int,
    key: Array,
    rows: NDArray[np.integer] | None = None,
    weight: Float[Array, " star"] | None = None,
    fixed: tuple[str, ...] = (),
) -> tuple[ForwardModel, Float[Array, "star parameter"], list[float]]:
    """Run a phase that moves the model, or both: random batches, each star at most once an epoch.

    Args:
        forward: the forward model.
        stars: all stars; in memory, or in files (`data.stars`), which are then read some thousand stars at a time.
        theta_log: (star, label + 2) where they are.
        phase: what to do.
        batch_size: stars per step.
        key: of the batches.
        rows: the stars that take part; all if None.
        weight: (star,) how much the fluxes of each count; 1 if None.
        fixed: sites of the model that do not move (`models.posterior.model_site_values`).

    Returns:
        the model, the stars' parameters, and per epoch the mean over batches of -ln posterior / n_stars.
    """
    from xpbayes.models.posterior import model_from_sites

    members = np.arange(len(stars)) if rows is None else np.asarray(rows)
    n_stars = len(members)
    batch_size = min(batch_size, n_stars)
    n_batches = n_stars // batch_size
    setup = _Setup(
        n_stars,
        move_stars=phase.update == "both",
        optimizer=phase.method,
        momentum=phase.momentum,
        gradient_clip=phase.gradient_clip,
        robust_scale=phase.robust_scale,
        fixed=fixed,
    )
    n_steps = phase.epochs * n_batches
    model_rates = learning_rates(phase, phase.learning_rate, n_steps).reshape(phase.epochs, n_batches)
    star_rates = learning_rates(phase, phase.star_learning_rate, n_steps).reshape(phase.epochs, n_batches)
    at_once = max(1, min(n_batches, STRETCH // batch_size)) if are_in_files(stars) else n_batches
    counts = np.ones(len(stars), np.float32) if weight is None else np.asarray(weight, np.float32)
    carry = _Carry(_start(setup, forward), theta_log, jnp.asarray(counts))
    table = np.array(theta_log)
    losses = []
    for epoch, epoch_key in enumerate(jax.random.split(key, phase.epochs)):
        order = np.asarray(jax.random.permutation(epoch_key, n_stars))[: n_batches * batch_size]
        order = members[order].reshape(n_batches, batch_size)
        rates = [np.asarray(r[epoch], np.float32) for r in (model_rates, star_rates)]
        loss = jnp.zeros(())
        for done in range(0, n_batches, at_once):
            # The last steps share their stretch with some before them, which are not made again: one program serves all.
            first = min(done, n_batches - at_once)
            steps = slice(first, first + at_once)
            these = [r[steps] for r in rates]
            if at_once == n_batches:
                carry, more = _steps(setup, forward, stars, carry, order, *these, done - first)
            else:
                there = np.sort(order[steps], axis=None)  # files are read from front to back
                near = _Carry(carry.model_state, jnp.asarray(table[there]), jnp.asarray(counts[there]))
                local = np.searchsorted(there, order[steps])
                near, more = _steps(setup, forward, in_memory(stars, there), near, local, *these, done - first)
                table[there] = near.table
                carry = carry._replace(model_state=near.model_state)
            loss = loss + more
        losses.append(loss / (n_batches * n_stars))
    locations = _model_optimizer(setup).get_params(carry.model_state.optim_state)
    found = model_from_sites(_values(locations), forward.label_center, forward.label_scale)
    found = replace(found, curve_variation=forward.curve_variation)
    moved = carry.table if at_once == n_batches else jnp.asarray(table)
    return found, moved, np.asarray(jnp.stack(losses), np.float64).tolist()


@partial(jax.jit, static_argnames="setup")
def _star_steps(setup: _Setup, forward: ForwardModel, stars: Stars, theta_log: Array, rates: Array) -> Array:
    """Every step of one batch of stars, the model fixed: their new parameters."""
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.svi import SVIState

    from xpbayes.models.posterior import star_sites, theta_from_sites

    key = jax.random.key(0)
    fixed = _moving_sites(forward)
    posterior = _posterior(setup, forward, robust=False)
    begin_at = star_sites(theta_log, curve_varies=forward.curve_variation is not None)
    guide = _guide(posterior, begin_at)

    def at(rate: Array) -> Any:
        return SVI(posterior, guide, _transformation(setup, rate, 2.0, is_model=False), Trace_ELBO())

    begin = at(rates[0])
    begin.init(key, stars, fixed)
    state = SVIState(begin.optim.init(_locations(begin_at)), None, key)

    def step(state: Any, rate: Array) -> tuple[Any, Array]:
        svi = at(rate)
        svi.init(key, stars, fixed)
        return svi.update(state, stars, fixed)

    with jax.default_matmul_precision("highest"):
        state, _ = jax.lax.scan(step, state, rates)
    return theta_from_sites(_values(begin.get_params(state)))


def run_star_steps(
    forward: ForwardModel,
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
    phase: "Phase",
    batch_size: int,
    rows: NDArray[np.integer] | None = None,
) -> Float[Array, "star parameter"]:
    """Run a gradient phase that moves the stars alone: every star takes `phase.epochs` steps.

    Arguments are those of `run_gradient_phase`; a batch's stars have their gradients clipped together.
    """
    members = np.arange(len(stars)) if rows is None else np.asarray(rows)
    n_stars = len(members)
    size = min(batch_size, n_stars)
    setup = _Setup(
        size,
        move_stars=True,
        optimizer=phase.method,
        momentum=0.0,
        gradient_clip=phase.gradient_clip,
        robust_scale=0.0,
    )
    rates = jnp.asarray(learning_rates(phase, phase.learning_rate, phase.epochs), jnp.float32)
    moved = theta_log
    for begin in range(0, n_stars, size):
        # The last batch reaches back to stay whole; its stars start from where the phase found them.
        batch = members[min(begin, n_stars - size) :][:size]
        new = _star_steps(setup, forward, in_memory(stars, batch), theta_log[batch], rates)
        last = members[begin : begin + size]
        moved = moved.at[last].set(new[size - len(last) :])
    return moved
