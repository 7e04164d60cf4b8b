"""Learn the model from stars with labels: alternating phases, each a MAP of the training posterior (ZGR23 Eq. 10).

A model phase is SVI with an AutoDelta guide on `models.posterior.training_posterior`, the stars conditioned at their
current values. A star phase is the second-order solver on the same density, the model fixed. A model_error phase
re-estimates the covariance of the model's relative error, which later phases fold into the whitening.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.config import Phase, TrainingConfig
from xpbayes.inference.model_error import fold_in_model_error, learn_model_error, relative_sigma
from xpbayes.inference.solver import solve
from xpbayes.models.forward import ForwardModel, initial_model
from xpbayes.models.prior import LabelPrior, draw_labels, ln_prior
from xpbayes.stars import Stars, chunk_size

STAR_CHUNK = 4096
MIN_START_EXTINCTION = 0.02
"""Estimates of E are clipped to this before the first phase [mag]."""
CURVE_GUESS_SLOPE = 1.5
"""R ~ (550 nm / wavelength)^1.5 before the first phase: close enough to any dust."""
CURVE_GUESS_AT_550 = 2.8


@dataclass
class TrainingRecord:
    """What happened during training, phase by phase: plain data, saved in the model's card."""

    phases: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """What training yields.

    Attributes:
        model: the forward model.
        prior: the label mixture.
        model_error: (channel, rank) F, S = F F^T; None if switched off.
        parameters: (star, label + 2) solutions of the training stars.
        record: the training record.
    """

    model: ForwardModel
    prior: LabelPrior
    model_error: Float[Array, "channel rank"] | None
    parameters: Float[Array, "star parameter"]
    record: TrainingRecord


def fit_label_prior(labels: np.ndarray, n_components: int, seed: int) -> LabelPrior:
    """Fit the Gaussian mixture with scikit-learn (METHOD 5).

    Args:
        labels: (star, label) training labels.
        n_components: number of full-covariance Gaussians.
        seed: of the initialisation.
    """
    from sklearn.mixture import GaussianMixture

    center, scale = labels.mean(axis=0), labels.std(axis=0)
    fit = GaussianMixture(
        n_components, reg_covar=1e-4, max_iter=200, init_params="k-means++", random_state=seed
    ).fit((labels - center) / scale)
    whitening = fit.precisions_cholesky_ / scale[None, :, None]
    prior = LabelPrior(
        ln_weight=jnp.asarray(np.log(fit.weights_), jnp.float32),
        mean=jnp.asarray(fit.means_ * scale + center, jnp.float32),
        whitening=jnp.asarray(whitening, jnp.float32),
        ln_threshold=jnp.asarray(-jnp.inf),
    )
    draws = draw_labels(prior, jax.random.key(seed), 200_000)
    threshold = jnp.quantile(jax.vmap(partial(ln_prior, prior))(draws), 1e-3)
    return LabelPrior(prior.ln_weight, prior.mean, prior.whitening, threshold)


def initial_parameters(stars: Stars) -> Float[Array, "star parameter"]:
    """Start every star at its measured values, E and parallax clipped to positive (phase 1 of ZGR23 Table 1)."""
    extinction = np.maximum(np.asarray(stars.reddening), MIN_START_EXTINCTION)
    parallax = np.maximum(np.asarray(stars.parallax), 1e-3)
    return jnp.concatenate(
        [stars.labels, jnp.log(extinction)[:, None], jnp.log(parallax)[:, None]], axis=1, dtype=jnp.float32
    )


def _guess_model(stars: Stars, parameters: np.ndarray, wavelength_nm: np.ndarray, config: TrainingConfig) -> ForwardModel:
    curve = CURVE_GUESS_AT_550 * (550.0 / wavelength_nm) ** CURVE_GUESS_SLOPE
    flux = np.asarray(stars.flux, dtype=np.float64)
    use = flux > 0
    ln_flux = np.log(np.where(use, flux, 1.0)) + np.asarray(stars.ln_scale)[:, None]
    ln_absolute = ln_flux - 2 * parameters[:, -1:] + np.exp(parameters[:, -2:-1]) * curve
    mean = np.sum(np.where(use, ln_absolute, 0.0), axis=0) / np.maximum(use.sum(axis=0), 1)
    return initial_model(
        jax.random.key(config.seed), np.asarray(stars.labels), mean, np.log(curve), hidden=config.hidden
    )


def train(
    stars: Stars,
    wavelength_nm: np.ndarray,
    config: TrainingConfig,
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train a model.

    Args:
        stars: training stars: labels, and where known parallaxes and reddenings, as measurements.
        wavelength_nm: (channel,) wavelengths, for the first guess of R(lambda) only.
        config: the settings.
        say: receives one line per phase.
    """
    record = TrainingRecord()
    stars = jax.tree.map(jnp.asarray, stars)
    parameters = initial_parameters(stars)
    model = _guess_model(stars, np.asarray(parameters, dtype=np.float64), wavelength_nm, config)
    factor: Array | None = None
    effective = stars
    key = jax.random.key(config.seed)
    for number, phase in enumerate(config.phases, start=1):
        if phase.update == "model_error" and not config.model_error:
            continue
        begun = time.perf_counter()
        entry: dict[str, Any] = {"phase": number, **phase.model_dump()}
        if phase.update == "model":
            key, phase_key = jax.random.split(key)
            model, losses = run_model_phase(model, effective, parameters, phase, config, phase_key)
            entry["loss_per_star"] = losses
            summary = f"loss per star {losses[0]:.1f} -> {losses[-1]:.1f}"
        elif phase.update == "stars":
            parameters, converged, objective = run_star_phase(model, effective, parameters, phase)
            entry |= {"converged": converged, "objective_per_star": objective}
            summary = f"L per star {objective:.1f}, {converged:.1%} converged"
        else:
            factor, history = learn_model_error(model, stars, parameters, phase.epochs, factor)
            effective = fold_in_model_error(stars, factor)
            entry["ln_likelihood_per_star"] = history
            summary = f"median relative error {np.median(relative_sigma(factor)):.2%}"
        entry["seconds"] = time.perf_counter() - begun
        record.phases.append(entry)
        say(f"phase {number}/{len(config.phases)} {phase.update}: {summary} ({entry['seconds']:.1f} s)")
    prior = fit_label_prior(np.asarray(stars.labels), config.prior_components, config.seed)
    return Trained(model, prior, factor, parameters, record)


def run_model_phase(
    model: ForwardModel,
    stars: Stars,
    parameters: Float[Array, "star parameter"],
    phase: Phase,
    config: TrainingConfig,
    key: Array,
) -> tuple[ForwardModel, list[float]]:
    """Move the model, not the stars: SVI with an AutoDelta guide over random batches.

    Returns:
        the model, and per epoch the mean over batches of -ln posterior / n_stars.
    """
    import optax
    from numpyro import handlers
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoDelta
    from numpyro.infer.initialization import init_to_value

    from xpbayes.models.posterior import (
        ModelShape,
        model_from_sites,
        model_site_values,
        star_sites,
        training_posterior,
    )

    n_stars = len(stars)
    batch_size = min(config.batch_size, n_stars)
    n_batches = n_stars // batch_size
    shape = ModelShape(
        config.hidden, stars.flux.shape[1], n_stars, model.label_center, model.label_scale, phase.robust_scale
    )
    schedule = optax.cosine_decay_schedule(phase.learning_rate, phase.epochs * n_batches, phase.final_rate)

    def posterior(batch: Stars, fixed: dict[str, Any]) -> None:
        handlers.condition(training_posterior, data=fixed)(batch, shape)

    # One program for the whole phase: outside of jit, SVI's own start would compile hundreds of single operations.
    @jax.jit
    def run(key: Array, stars: Stars, parameters: Array, order: Array) -> tuple[dict[str, Array], Array]:
        guide = AutoDelta(posterior, init_loc_fn=init_to_value(values=model_site_values(model)))
        svi = SVI(posterior, guide, optax.adam(schedule), Trace_ELBO())

        def step(state: Any, index: Array) -> tuple[Any, Array]:
            return svi.update(state, stars.take(index), star_sites(parameters[index]))

        with jax.default_matmul_precision("highest"):
            state = svi.init(key, stars.take(order[0]), star_sites(parameters[order[0]]))
            state, loss = jax.lax.scan(step, state, order)
        return svi.get_params(state), loss

    start_key, order_key = jax.random.split(key)
    order = np.stack(
        [
            np.asarray(jax.random.permutation(k, n_stars)[: n_batches * batch_size]).reshape(n_batches, batch_size)
            for k in jax.random.split(order_key, phase.epochs)
        ]
    )
    found, loss = run(start_key, stars, parameters, jnp.asarray(order.reshape(-1, batch_size)))
    values = {name.removesuffix("_auto_loc"): value for name, value in found.items()}
    losses = np.asarray(loss, np.float64).reshape(phase.epochs, n_batches).mean(axis=1) / n_stars
    return model_from_sites(values, model.label_center, model.label_scale), losses.tolist()


def run_star_phase(
    model: ForwardModel, stars: Stars, parameters: Float[Array, "star parameter"], phase: Phase
) -> tuple[Float[Array, "star parameter"], float, float]:
    """Move the stars, not the model: the second-order solver, from where they are.

    Returns:
        the new parameters, the share of stars that converged, and the mean of L per star.
    """
    n, size = len(stars), chunk_size(len(stars), STAR_CHUNK)
    solutions = []
    for i in range(0, n, size):
        start = jnp.pad(parameters[i : i + size], ((0, max(0, i + size - n)), (0, 0)), mode="edge")
        solutions.append(solve(model, None, stars.take(slice(i, i + size)).padded(size), start, phase.epochs))
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts)[:n], *solutions)
    return together.parameters, float(jnp.mean(together.converged)), float(jnp.mean(together.objective))
