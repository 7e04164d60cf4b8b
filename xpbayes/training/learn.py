"""Learn the model from stars with labels: phases as the settings list them, each a MAP of ZGR23 Eq. 10.

A phase moves the model (SVI with an AutoDelta guide on `models.posterior.training_posterior`), the stars (second-order
solver or gradient steps on the same density), both, or re-estimates the covariance of the model's relative error, which
later phases fold into the whitening; self-cleaning marks outliers. The gradient steps are in `phases.py`. A run that
was stopped goes on from the last phase that ended.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import Stars, are_in_files, evenly, in_memory, pieces, scratch_copy, write_rows
from xpbayes.device import prepare_device
from xpbayes.errors import InputError
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.solver import solve
from xpbayes.models.extinction import NearInfraredLaw, grey_excess
from xpbayes.models.forward import ForwardModel, initial_model
from xpbayes.models.model_error import relative_sigma
from xpbayes.models.prior import LabelPrior, draw_labels, ln_priors
from xpbayes.models.star_model import StarModel
from xpbayes.training.curve_variation import learn_curve_variation
from xpbayes.training.gauge import move_gauge, moves_by_kind
from xpbayes.training.model_error import MAX_STARS, learn_model_error
from xpbayes.training.phases import run_gradient_phase, run_star_steps
from xpbayes.training.self_cleaning import diagnostic, high_quality, pulls, survivors
from xpbayes.training.weights import kept_by_kind, kinds_of_star, star_weights

if TYPE_CHECKING:
    from xpbayes.config import Phase, TrainingConfig

log = logging.getLogger(__name__)

MIN_START_EXTINCTION = 0.02
"""Estimates of E are clipped to this before the first phase [mag]."""
CURVE_GUESS_SLOPE = 1.5
"""R ~ (550 nm / wavelength)^1.5 before the first phase: close enough to any dust."""
CURVE_GUESS_AT_550 = 2.8
FEW_STARS = 1000
"""Training on fewer is likely to diverge: 400 do, 1,200 do not."""
FEW_ADVICE = f", and fewer than {FEW_STARS} are likely to; bring more, or adapt a trained model to them"
GUESS_STARS = 100_000
"""Evenly picked: enough for a mean."""


@dataclass(frozen=True)
class Trained:
    """What training yields."""

    model: StarModel  # what was learned; its error is None if switched off
    theta_log: Float[Array, "star parameter"]  # (star, label + 2) solutions of the training stars
    phases: list[dict[str, Any]]  # what happened, phase by phase: plain data, saved in the model's card
    survivor: NDArray[np.bool_]  # (star,) False where self-cleaning marked an outlier; all True without self-cleaning


class TrainingState(NamedTuple):
    """Everything that one phase hands to the next."""

    model: StarModel  # without a label prior; its error is what `learn_model_error` returned, None before
    theta_log: Array  # (star, label + 2)
    survivor: Array  # (star,) False where self-cleaning marked an outlier
    weight: Array  # (star,) how much each counts where the model or the gauge moves
    key_data: Array  # of the JAX random key that the next phases split


def fit_label_prior(labels: np.ndarray, n_components: int, seed: int) -> LabelPrior:
    """Fit a mixture of full-covariance Gaussians to (star, label) training labels with scikit-learn (METHOD 5)."""
    from sklearn.mixture import GaussianMixture

    center, scale = labels.mean(axis=0), labels.std(axis=0)
    fit = GaussianMixture(n_components, reg_covar=1e-4, max_iter=200, init_params="k-means++", random_state=seed).fit(
        (labels - center) / scale
    )
    whitening = fit.precisions_cholesky_ / scale[None, :, None]
    prior = LabelPrior(
        ln_weight=jnp.asarray(np.log(fit.weights_), jnp.float32),
        mean=jnp.asarray(fit.means_ * scale + center, jnp.float32),
        whitening=jnp.asarray(whitening, jnp.float32),
        ln_threshold=jnp.asarray(-jnp.inf),
    )
    draws = draw_labels(prior, jax.random.key(seed), 200_000)
    threshold = jnp.quantile(ln_priors(prior, draws), 1e-3)
    return replace(prior, ln_threshold=threshold)


def initial_theta(stars: Stars, *, curve_varies: bool = False) -> Float[Array, "star parameter"]:
    """Start every star at its measured values, E and parallax clipped to positive (phase 1 of ZGR23 Table 1)."""
    extinction = np.maximum(np.asarray(stars.reddening), MIN_START_EXTINCTION)
    parallax = np.maximum(np.asarray(stars.parallax), 1e-3)
    xi = np.zeros((len(stars), int(curve_varies)))
    return jnp.concatenate(
        [stars.labels, xi, jnp.log(extinction)[:, None], jnp.log(parallax)[:, None]], axis=1, dtype=jnp.float32
    )


def _guess_model(
    stars: Stars, theta_log: np.ndarray, wavelength_nm: np.ndarray, config: "TrainingConfig"
) -> ForwardModel:
    curve = CURVE_GUESS_AT_550 * (550.0 / wavelength_nm) ** CURVE_GUESS_SLOPE
    some = evenly(len(stars), GUESS_STARS)
    flux = np.asarray(stars.flux[some], dtype=np.float64)
    use = flux > 0
    ln_flux = np.log(np.where(use, flux, 1.0)) + np.asarray(stars.ln_scale[some])[:, None]
    ln_absolute = ln_flux - 2 * theta_log[some, -1:] + np.exp(theta_log[some, -2:-1]) * curve
    mean = np.sum(np.where(use, ln_absolute, 0.0), axis=0) / np.maximum(use.sum(axis=0), 1)
    model = initial_model(
        jax.random.key(config.seed),
        np.asarray(stars.labels),
        mean,
        np.log(curve),
        hidden=config.hidden_for(len(stars.labels)),
    )
    # Of no size at first: one shape of arrays from the first phase to the last, so that its programs serve all.
    return replace(model, curve_variation=jnp.zeros_like(model.ln_curve)) if config.curve_varies else model


def train(
    stars: Stars,
    wavelength_nm: np.ndarray,
    config: "TrainingConfig",
    checkpoint: Path | None = None,
    *,
    resume: bool = False,
    near_infrared: NearInfraredLaw | None = None,
) -> Trained:
    """Train a model.

    Args:
        stars: training stars: labels, and where known parallaxes and reddenings, as measurements; in memory, or in files
            (`data.stars`) if they are larger.
        wavelength_nm: (channel,) for the first guess of R(lambda), and for R1.
        config: the settings.
        checkpoint: file that receives the state after every phase; the caller deletes it once the result is safe.
        resume: go on from that file if it is there.
        near_infrared: what fixes the grey part of R, or None.

    Raises:
        InputError: the checkpoint belongs to other stars or settings, a phase has no stars, or a phase diverged.
    """
    # Here: validating a checkpoint needs packages that a machine for steps alone may lack.
    from xpbayes.training.checkpoint import read_checkpoint, tree_checksum, write_checkpoint

    prepare_device()
    if not are_in_files(stars):
        stars = jax.tree.map(jnp.asarray, stars)
    phases: list[dict[str, Any]] = []
    done, belongs_to = 0, {}
    if checkpoint is not None:
        law, settings = jax.tree.leaves(near_infrared), config.model_dump(mode="json")
        belongs_to = {"stars": tree_checksum(stars), "settings": settings, "near_infrared": law}
    if checkpoint is not None and resume and checkpoint.is_file():
        state, about = read_checkpoint(checkpoint, belongs_to)
        phases, done = about["phases"], about["done"]
        log.info(f"resumed after phase {done}/{len(config.phases)} from {checkpoint}")
    else:
        theta_log = initial_theta(stars, curve_varies=config.curve_varies)
        state = TrainingState(
            StarModel(_guess_model(stars, np.asarray(theta_log, dtype=np.float64), wavelength_nm, config)),
            theta_log,
            jnp.ones(len(stars), bool),
            jnp.ones(len(stars)),
            jax.random.key_data(jax.random.key(config.seed)),
        )
    for number, phase in enumerate(config.phases, start=1):
        if number <= done or not getattr(config, phase.update, True):  # two kinds of phase have a switch
            continue
        begun = time.perf_counter()
        phase = phase.scaled(config.epochs_scale).for_width(max(config.hidden_for(len(stars))))
        run = _Run(phase, number, stars, config, wavelength_nm, near_infrared)
        state, entry, summary = _RUNNERS[phase.update](run, state)
        entry = {"phase": number, **phase.model_dump(mode="json"), **entry, "seconds": time.perf_counter() - begun}
        phases.append(entry)
        if checkpoint is not None:
            write_checkpoint(checkpoint, state, belongs_to | {"done": number, "phases": phases})
        log.info(f"phase {number}/{len(config.phases)} {phase.update}: {summary} ({entry['seconds']:.1f} s)")
    prior = fit_label_prior(np.asarray(stars.labels), config.prior_components, config.seed)
    model, theta_log = replace(state.model, prior=prior), state.theta_log
    if model.forward.curve_variation is not None and not np.any(model.forward.curve_variation):
        log.info("no variation of the extinction curve: too few stars behind dust")
        model = replace(model, forward=replace(model.forward, curve_variation=None))
        theta_log = jnp.delete(theta_log, model.forward.n_labels, axis=1)
    return Trained(model, theta_log, phases, np.asarray(state.survivor))


# -------------------------------------------------------------------------------------------------------------- phases


class _Run(NamedTuple):
    """One phase and what it works on: all training stars, with the measurement's own whitening."""

    phase: "Phase"
    number: int
    stars: Stars
    config: "TrainingConfig"
    wavelength_nm: np.ndarray
    near_infrared: NearInfraredLaw | None

    def effective(self, state: TrainingState) -> Stars:
        """The stars with the model's error in their whitening; on disk beside their own, if that is in files.

        Anew for every phase, from the state alone: a run that was stopped goes on with the same errors.
        """
        if state.model.error is None or not are_in_files(self.stars):
            return fold_in_model_error(state.model, self.stars, state.theta_log)
        folded = scratch_copy(self.stars)
        for rows in pieces(len(self.stars)):
            part = fold_in_model_error(state.model, in_memory(self.stars, rows), state.theta_log[rows])
            write_rows(folded, rows, part)
        return folded

    def rows(self, state: TrainingState) -> NDArray[np.integer]:
        """Rows of the stars that take part."""
        if self.phase.stars == "all":
            return np.arange(len(self.stars))
        if self.phase.stars == "survivors":
            chosen = np.asarray(state.survivor)
            why = "self-cleaning dropped every star; raise its limits, which are max_..._pull"
        else:
            cuts = high_quality(self.stars, self.config.high_quality)
            chosen = np.logical_and.reduce(list(cuts.values()))
            name, passed = min(cuts.items(), key=lambda cut: cut[1].sum())
            why = (
                f"none of {len(self.stars)} stars is of high quality (strictest: {name}, passed by {passed.sum()}); "
                "relax it"
            )
        if not chosen.any():
            raise InputError(f"training phase {self.number}: {why}")
        return np.flatnonzero(chosen)

    def require_sound(self, sound: bool) -> None:
        """Raise InputError for a phase whose result is not finite."""
        if not sound:
            raise InputError(
                f"training phase {self.number} ({self.phase.update}, {self.phase.method}) diverged on {len(self.stars)} "
                f"stars{FEW_ADVICE if len(self.stars) < FEW_STARS else ''}; lower its learning_rate or set a gradient_clip"
            )


_Outcome = tuple[TrainingState, dict[str, Any], str]
"""The new state, what the record keeps, and a summary in words."""


def _move_model(run: _Run, state: TrainingState) -> _Outcome:
    """Move the model, or model and stars, by gradient steps."""
    rows, law = run.rows(state), run.near_infrared
    key, phase_key = jax.random.split(jax.random.wrap_key_data(state.key_data))
    forward, theta_log, losses = run_gradient_phase(
        state.model.forward,
        run.effective(state),
        state.theta_log,
        run.phase,
        run.config.batch_size,
        phase_key,
        rows,
        state.weight,
    )
    if law is not None:
        forward, theta_log = _without_grey(forward, theta_log, law)
    run.require_sound(bool(np.isfinite(losses[-1])))
    new = state._replace(
        model=replace(state.model, forward=forward), theta_log=theta_log, key_data=jax.random.key_data(key)
    )
    entry = {"n_stars": len(rows), "loss_per_star": losses}
    return new, entry, f"loss per star {losses[0]:.1f} -> {losses[-1]:.1f}"


def _move_stars(run: _Run, state: TrainingState) -> _Outcome:
    """Move the stars alone, by the second-order solver or by gradient steps."""
    rows, phase = run.rows(state), run.phase
    entry: dict[str, Any] = {"n_stars": len(rows)}
    where = (state.model.forward, run.effective(state), state.theta_log, phase)
    if phase.method == "newton":
        theta_log, converged, objective = run_star_phase(*where, rows)
        entry |= {"converged": converged, "objective_per_star": objective}
        summary = f"L per star {objective:.1f}, {converged:.1%} converged"
    else:
        theta_log = run_star_steps(*where, run.config.batch_size, rows)
        run.require_sound(bool(jnp.isfinite(theta_log).all()))
        summary = f"{phase.epochs} steps of {len(rows)} stars"
    return state._replace(theta_log=theta_log), entry, summary


def _learn_error(run: _Run, state: TrainingState) -> _Outcome:
    """Learn the covariance of the model's own error."""
    rows, model = run.rows(state), state.model
    some = rows[evenly(len(rows), MAX_STARS)]
    # Anew where the curve varies: what the last one took for its own of another R1 it would not give back.
    start = model.error if model.forward.curve_variation is None else None
    error, history = learn_model_error(
        model.forward,
        in_memory(run.stars, some),
        state.theta_log[some],
        run.phase.epochs,
        start,
        np.asarray(state.weight)[some],
    )
    entry = {"n_stars": len(rows), "ln_likelihood_per_star": history}
    summary = f"median relative error {np.median(relative_sigma(error)):.2%}"
    return state._replace(model=replace(model, error=error)), entry, summary


def _move_gauge(run: _Run, state: TrainingState) -> _Outcome:
    """Move model and stars along what fluxes do not see; stars outside of the phase move with the others' functions."""
    rows, before, names = run.rows(state), np.asarray(state.theta_log), run.config.labels
    weight = np.zeros(len(run.stars))
    weight[rows] = np.asarray(state.weight, np.float64)[rows]
    moved = move_gauge(state.model.forward, run.stars, before, weight, labels=run.phase.move_labels)
    entry = {"n_stars": len(rows), "scale_of_E": moved.scale, "moves": moves_by_kind(moved, before, names)}
    if not run.phase.move_labels:  # of what has moved before, the record now tells whether it is at rest
        moved = move_gauge(moved.forward, run.stars, moved.theta_log, weight, labels=False, last=True)
        entry["last_moves"] = moves_by_kind(moved, before, names)
    largest = np.abs(np.median(moved.by, axis=0))
    summary = f"E times {moved.scale:.4f}, median move of E {largest[-2]:.4f} mag, of ln parallax {largest[-1]:.4f}"
    new = state._replace(
        model=replace(state.model, forward=moved.forward), theta_log=jnp.asarray(moved.theta_log, jnp.float32)
    )
    return new, entry, summary


def _without_grey(
    forward: ForwardModel, theta_log: Float[Array, "star parameter"], law: NearInfraredLaw
) -> tuple[ForwardModel, Float[Array, "star parameter"]]:
    """Take the grey part of R away and dim every star by its parallax instead: the same fluxes.

    A step along this direction, which no spectrum sees, would take alternating phases hundreds of rounds.
    """
    excess = grey_excess(jnp.exp(forward.ln_curve), law)
    curve = jnp.log(jnp.exp(forward.ln_curve) - excess)
    moved = theta_log.at[:, -1].add(-0.5 * excess * jnp.exp(theta_log[:, -2]))
    return replace(forward, ln_curve=curve), moved


def _vary_curve(run: _Run, state: TrainingState) -> _Outcome:
    """Learn R1; the stars' xi follow in the next phase of the stars."""
    forward, law = state.model.forward, run.near_infrared
    variation, history = learn_curve_variation(forward, run.stars, state.theta_log, run.wavelength_nm, run.phase.epochs)
    if law is not None and law.of_variation and np.any(variation):
        variation -= grey_excess(variation, law, positive=False)
    size = np.abs(np.asarray(variation)) / np.exp(np.asarray(forward.ln_curve))
    entry = {"ln_likelihood_per_star": history, "largest_relative_variation": float(size.max())}
    summary = f"R varies by {np.median(size):.2%} (median channel), at most {size.max():.2%}"
    model = replace(state.model, forward=replace(forward, curve_variation=variation))
    return state._replace(model=model), entry, summary


def _weigh(run: _Run, state: TrainingState) -> _Outcome:
    """Decide how much every star counts; nothing moves."""
    names = run.config.labels
    weight = star_weights(state.model.forward, run.stars, state.theta_log)
    kinds = kinds_of_star(np.asarray(state.theta_log, np.float64)[:, : len(names)], names)
    entry = {"n_stars": len(run.stars), "kept_by_kind": kept_by_kind(weight, kinds)}
    summary = f"{np.mean(weight < 0.5):.1%} of the stars count less than half"
    return state._replace(weight=jnp.asarray(weight, jnp.float32)), entry, summary


def _clean(run: _Run, state: TrainingState) -> _Outcome:
    """Mark outliers; nothing moves."""
    stars, names = run.effective(state), run.config.labels
    found = pulls(state.model.forward, stars, state.theta_log)
    stays = survivors(found, run.phase)
    dropped = {name: float(np.mean(~mask)) for name, mask in stays.items()}
    entry = {
        "n_stars": len(stars),
        "dropped_by": dropped,
        "dropped": {name: np.flatnonzero(~stays[name]).tolist() for name in ("parameters", "fluxes")},
        "kept_by_kind": kept_by_kind(stays["both"], kinds_of_star(np.asarray(stars.labels), names)),
        "diagnostic": diagnostic(stars, state.theta_log, found, names),
    }
    summary = (
        f"{dropped['parameters']:.1%} by parameters, {dropped['fluxes']:.1%} by fluxes, {dropped['both']:.1%} dropped"
    )
    return state._replace(survivor=jnp.asarray(stays["both"])), entry, summary


_RUNNERS: dict[str, Callable[[_Run, TrainingState], _Outcome]] = {
    "model": _move_model,
    "both": _move_model,
    "stars": _move_stars,
    "gauge": _move_gauge,
    "weights": _weigh,
    "curve_variation": _vary_curve,
    "model_error": _learn_error,
    "self_cleaning": _clean,
}


def run_star_phase(
    forward: ForwardModel,
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
    phase: "Phase",
    rows: NDArray[np.integer] | None = None,
) -> tuple[Float[Array, "star parameter"], float, float]:
    """Move the stars, in memory or in files, not the model: the second-order solver, from where they are.

    Returns:
        the new theta_log, the share of stars that converged, and the mean of L per star.
    """
    members = np.arange(len(stars)) if rows is None else np.asarray(rows)
    converged, objective = [], []
    moved = np.array(theta_log)
    for piece in pieces(len(members)):
        at = members[piece]
        # The solver counts evaluations, the one at the start among them.
        found = solve(StarModel(forward), in_memory(stars, at), theta_log[at], phase.epochs + 1)
        moved[at] = found.theta_log
        converged.append(np.asarray(found.converged))
        objective.append(np.asarray(found.objective))
    return jnp.asarray(moved), float(np.mean(np.concatenate(converged))), float(np.mean(np.concatenate(objective)))
