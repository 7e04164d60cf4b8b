"""Train and apply the confidence classifiers (ZGR23 Eq. 27 and Appendix B).

In: fits of stars with spectroscopic labels, made without those labels by a model that never saw these stars.
Out: a `ConfidenceNets` and the record of its training. Only arrays in, arrays out: which stars are held out, and which
pass the basic cut, the caller says.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from xpbayes.config import ConfidenceConfig
from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.errors import InputError
from xpbayes.models.reliability import (
    DROPOUT,
    HIDDEN,
    ConfidenceNets,
    confidence,
    flux_pulls,
    initial_nets,
    layers_ln_odds,
    network_input,
)
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_log

log = logging.getLogger(__name__)

GOOD_BELOW, BAD_ABOVE = 4.0, 9.0
"""chi2_eps of good and bad estimates; what lies between trains nothing (Eq. 27)."""
RESIDUAL_FLOOR = {"teff": 0.1, "feh": 0.1, "logg": 0.1}
"""epsilon of Eq. 27 [kK, dex, dex]."""
LN_FLOOR = 1e-7
"""Features of the form ln X are ln max(X, 1e-7) (Appendix B)."""
CHI2_CHANNELS = 61
"""The reduced chi^2 divides by 61 whatever was observed, as Eq. 24 does."""
MIN_PER_CLASS = 30
"""Fewer good or bad stars among those to learn from teach a classifier nothing; that label then stays without."""
TINY = 1e-9
"""Floor for E [mag] and parallax [mas] before taking logarithms."""
BATCH = 1024
"""Stars evaluated together, always: one program, so that a star's numbers do not depend on who shares its batch."""
EPOCHS_AT_ONCE = 16
"""Epochs between two looks at the stopping rule."""
SURVEY_COLUMNS = (
    "parallax",
    "parallax_error",
    *(f"phot_{band}_mean_flux{error}" for band in ("g", "bp", "rp") for error in ("", "_error")),
    "phot_bp_rp_excess_factor",
    "phot_g_mean_mag",
    "ruwe",
    "fidelity_v2",
    "norm_dg",
    "bp_chi_squared",
    "rp_chi_squared",
)
"""Columns of the star table that features are made of; absent ones are NaN."""


# ---------------------------------------------------------------------------------------------------------- features


class Estimates(NamedTuple):
    """What the fit says about each star."""

    # (star, parameter) labels, E [mag], parallax [mas], and 1-sigma errors
    estimate: NDArray[np.floating]
    error: NDArray[np.floating]
    chi2: NDArray[np.floating]  # (star,) of the fluxes
    ln_prior: NDArray[np.floating]
    xi: NDArray[np.floating] | None = None  # (star,) of their extinction curves; None where the curve does not vary


def _ln(value: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.log(np.maximum(value, LN_FLOOR))  # NaN stays NaN


@partial(jax.jit, static_argnames="own_level")
def _pulls(model: StarModel, stars: Stars, theta: Array, own_level: bool) -> Array:
    theta_log = to_log(jnp.concatenate([theta[:, :-2], jnp.maximum(theta[:, -2:], TINY)], axis=1))
    with jax.default_matmul_precision("highest"):
        return jax.vmap(partial(flux_pulls, model, own_level=own_level))(stars, theta_log)


def star_features(
    model: StarModel,
    stars: Stars,
    fit: Estimates,
    survey: Mapping[str, NDArray[np.floating]],
    *,
    own_level: bool = False,
) -> NDArray[np.float32]:
    """Compute the features of Appendix B: (star, feature) in the order of `models.reliability.feature_names`, or NaN.

    Args:
        model: the trained model.
        stars: the stars with the whitening factors of their measurements; labels are not looked at.
        fit: what the fit says about them.
        survey: (star,) values of `SURVEY_COLUMNS`, NaN where missing.
        own_level: flux residuals are those beyond a grey factor: the estimates give no more.
    """
    n_labels = model.forward.n_labels
    estimate = np.asarray(fit.estimate, np.float32)
    if fit.xi is not None:
        estimate = np.insert(estimate, n_labels, fit.xi, axis=1)
    pulls = (
        by_blocks(partial(_pulls, model, own_level=own_level), STAR_BLOCK, stars, estimate)
        if len(stars)
        else np.zeros((0, stars.flux.shape[1]))
    )

    def snr(value: str, error: str) -> NDArray[np.float64]:
        return np.arcsinh(survey[value] / survey[error])

    with np.errstate(invalid="ignore", divide="ignore"):
        tension = np.abs(survey["parallax"] - fit.estimate[:, -1]) / survey["parallax_error"]
        columns = [
            _ln(fit.chi2 / CHI2_CHANNELS),
            _ln(tension),
            fit.ln_prior,
            *fit.estimate[:, :n_labels].T,
            *fit.error[:, :n_labels].T,
            snr("parallax", "parallax_error"),
            *(snr(f"phot_{band}_mean_flux", f"phot_{band}_mean_flux_error") for band in ("g", "bp", "rp")),
            _ln(survey["phot_bp_rp_excess_factor"]),
            survey["phot_g_mean_mag"],
            _ln(survey["ruwe"]),
            survey["fidelity_v2"],
            survey["norm_dg"],
            _ln(survey["bp_chi_squared"]),
            _ln(survey["rp_chi_squared"]),
            *np.arcsinh(np.asarray(pulls)).T,
        ]
        return np.stack(columns, axis=1).astype(np.float32)


@jax.jit
def _confidences(nets: ConfidenceNets, features: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(partial(confidence, nets))(features)


def confidences(nets: ConfidenceNets, features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Confidence (star, target) of every star in every target, from (star, feature)."""
    out = [np.zeros((0, len(nets.targets)), np.float32)]
    for start in range(0, len(features), BATCH):
        part = np.asarray(features[start : start + BATCH], np.float32)
        padded = np.pad(part, ((0, BATCH - len(part)), (0, 0)), mode="edge")
        out.append(np.asarray(_confidences(nets, jnp.asarray(padded))[: len(part)]))
    return np.concatenate(out)


# ---------------------------------------------------------------------------------------------------------- training


def residual_chi2(
    difference: NDArray[np.floating],
    error: NDArray[np.floating],
    label_error: NDArray[np.floating],
    floor: NDArray[np.floating] | float,
) -> NDArray[np.float64]:
    """chi2_eps of Eq. 27: how well an estimate agrees with the label, small residuals always counting as agreement.

    Difference, both 1-sigma errors and the floor epsilon have one unit [kK or dex] and any shape.
    """
    return np.asarray(difference, np.float64) ** 2 / (np.square(error) + np.square(label_error) + np.square(floor))


@dataclass(frozen=True)
class TrainedConfidence:
    """The classifiers, and plain data for the model's card: counts, losses, which features were there."""

    nets: ConfidenceNets
    record: dict[str, Any] = field(default_factory=dict)


def train_confidence(
    features: NDArray[np.floating],
    chi2_eps: NDArray[np.floating],
    validation: NDArray[np.bool_],
    targets: tuple[str, ...],
    names: tuple[str, ...],
    config: ConfidenceConfig,
) -> TrainedConfidence:
    """Train one classifier per target label.

    Args:
        features: (star, feature), NaN where missing. Only stars that the model was not trained on and that pass the
            basic cut.
        chi2_eps: (star, target) of Eq. 27.
        validation: (star,) which stars are held out: they steer the learning rate and when to stop, nothing else.
        targets: names of the labels.
        names: names of the features.
        config: the settings.

    Raises:
        InputError: no label has enough good and bad stars.
    """
    good, bad = chi2_eps < GOOD_BELOW, chi2_eps > BAD_ABOVE
    fitted = ~validation
    counts: dict[str, dict[str, int]] = {}
    enough = []
    for i, name in enumerate(targets):
        of = {"good": good[fitted, i], "bad": bad[fitted, i]}
        of |= {"validation_good": good[validation, i], "validation_bad": bad[validation, i]}
        counts[name] = n = {kind: int(members.sum()) for kind, members in of.items()}
        if min(n["good"], n["bad"]) >= MIN_PER_CLASS and min(n["validation_good"], n["validation_bad"]) > 0:
            enough.append(i)
        else:
            log.info(f"{name}: {n['good']} good and {n['bad']} bad stars are too few; no classifier")
    if not enough:
        first = counts[targets[0]]
        raise InputError(
            f"{fitted.sum()} label stars are too few to train confidences: {targets[0]} has {first['good']} good and "
            f"{first['bad']} bad ones, {MIN_PER_CLASS} of each are needed, and some held out; infer more held-out stars"
        )
    good, bad, kept = good[:, enough], bad[:, enough], tuple(targets[i] for i in enough)
    center, inverse_scale, indicator = (jnp.asarray(v, jnp.float32) for v in _standardisation(features[fitted]))
    start_key, epoch_key = jax.random.split(jax.random.key(config.seed))
    nets = initial_nets(start_key, center, inverse_scale, indicator, kept, names)
    nets, history = _run(nets, features, good, bad, validation, config, epoch_key)
    present = np.isfinite(features[fitted]).mean(axis=0)
    unused = [name for name, scale in zip(names, inverse_scale.tolist(), strict=True) if scale == 0]
    return TrainedConfidence(
        nets,
        {
            "targets": list(kept),
            "architecture": {"hidden": list(HIDDEN), "activation": "relu", "dropout": DROPOUT},
            "settings": config.model_dump(mode="json"),
            "counts": counts,
            "features_present": {n: round(float(s), 4) for n, s in zip(names, present, strict=True)},
            "features_unused": unused,
            **history,
        },
    )


def _standardisation(
    features: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centre, inverse scale and indicator of every feature; a feature that never varied has inverse scale 0."""
    n_features = features.shape[1]
    center, inverse_scale = np.zeros((2, n_features))
    present = np.isfinite(features)
    for i in range(n_features):
        values = np.asarray(features[present[:, i], i], np.float64)
        if values.size < 2:
            continue
        low, center[i], high = np.percentile(values, [16, 50, 84])
        scale = 0.5 * (high - low) or values.std()
        inverse_scale[i] = 1.0 / scale if scale > 0 else 0.0
    share = present.mean(axis=0)
    return center, inverse_scale, ((share > 0) & (share < 1)).astype(np.float64)


class ClassifierState(NamedTuple):
    """Training between two epochs; per target: the rate, the best loss so far, its epoch and its weights."""

    parameters: Any
    optimiser: Any
    rate: Array
    best_loss: Array
    best_epoch: Array
    rate_epoch: Array
    best: Any
    epoch: Array
    key: Array


def _per_target(value: Array, leaf: Array) -> Array:
    return value.reshape(-1, *(1,) * (leaf.ndim - 1))


def _run(  # noqa: PLR0915 - the jitted epoch closes over the sample's constants
    nets: ConfidenceNets,
    features: NDArray[np.floating],
    good: NDArray[np.bool_],
    bad: NDArray[np.bool_],
    validation: NDArray[np.bool_],
    config: ConfidenceConfig,
    key: Array,
) -> tuple[ConfidenceNets, dict[str, Any]]:
    """Run epochs until every classifier's validation loss has stopped falling; keep each one's best."""
    import optax

    fitted = ~validation
    n_good, n_bad = good[fitted].sum(axis=0), bad[fitted].sum(axis=0)
    # Weighting the rare class up multiplies the odds that a classifier learns by a known factor, undone at the end: what
    # is published is a probability for the sample as it is.
    share_good = n_good / (n_good + n_bad)
    weight_good, weight_bad = (0.5 / share_good) ** config.balance, (0.5 / (1 - share_good)) ** config.balance
    ln_odds_shift = jnp.asarray(np.log(weight_good / weight_bad), jnp.float32)
    weight = good * weight_good + bad * weight_bad
    weight = weight / weight[fitted].mean(axis=0)

    def side(member: NDArray[np.bool_]) -> tuple[Array, Array, Array, Array]:
        x = jax.vmap(partial(network_input, nets))(jnp.asarray(features[member], jnp.float32))
        known = (good | bad)[member]
        return x, jnp.asarray(good[member], jnp.float32), jnp.asarray(weight[member], jnp.float32), jnp.asarray(known)

    learn, check = side(fitted), side(validation)
    n = int(fitted.sum())
    batch = min(config.batch_size, max(1, n // config.min_batches))
    n_batches = n // batch
    plateau, patience = config.schedule_for(n)
    adam, cross_entropy = optax.scale_by_adam(), optax.sigmoid_binary_cross_entropy
    widths = [layer.shape[1] for layer in nets.weights[:-1]]
    n_targets = len(nets.targets)

    def loss(parameters: Any, x: Array, y: Array, w: Array, key: Array) -> Array:
        weights, biases = parameters
        keys = jax.random.split(key, len(widths))
        keep = [
            jax.random.bernoulli(k, 1.0 - DROPOUT, (x.shape[0], n_targets, width))
            for k, width in zip(keys, widths, strict=True)
        ]
        ln_odds = jax.vmap(partial(layers_ln_odds, weights, biases))(x, keep)
        penalty = sum(jnp.sum(layer**2) for layer in weights[:-1])
        return jnp.sum(jnp.mean(w * cross_entropy(ln_odds, y), axis=0)) + config.l2 * penalty

    def validation_loss(parameters: Any, check: Any) -> Array:
        x, y, _, known = check
        ln_odds = jax.vmap(partial(layers_ln_odds, parameters[0], parameters[1]))(x) - ln_odds_shift
        return jnp.sum(known * cross_entropy(ln_odds, y), axis=0) / jnp.sum(known, axis=0)

    def one_epoch(learn: Any, check: Any, state: ClassifierState, _: None) -> tuple[ClassifierState, Array]:
        x, y, w, _ = learn
        key, order_key, drop_key = jax.random.split(state.key, 3)
        order = jax.random.permutation(order_key, n)[: n_batches * batch].reshape(n_batches, batch)

        def step(carry: Any, given: Any) -> tuple[Any, None]:
            parameters, optimiser = carry
            index, key = given
            gradient = jax.grad(loss)(parameters, x[index], y[index], w[index], key)
            update, optimiser = adam.update(gradient, optimiser)
            parameters = jax.tree.map(lambda p, u: p - _per_target(state.rate, p) * u, parameters, update)
            return (parameters, optimiser), None

        (parameters, optimiser), _ = jax.lax.scan(
            step, (state.parameters, state.optimiser), (order, jax.random.split(drop_key, n_batches))
        )
        value = validation_loss(parameters, check)
        epoch = state.epoch + 1
        stopped = state.epoch - state.best_epoch >= patience
        better = (value < state.best_loss) & ~stopped
        best_epoch = jnp.where(better, epoch, state.best_epoch)
        waited = epoch - jnp.maximum(best_epoch, state.rate_epoch)
        lower = waited >= plateau
        # A lower rate goes on from the best weights so far: a small sample is overfitted within one plateau.
        best = jax.tree.map(lambda new, old: jnp.where(_per_target(better, new), new, old), parameters, state.best)
        return ClassifierState(
            parameters=jax.tree.map(lambda old, new: jnp.where(_per_target(lower, new), old, new), best, parameters),
            optimiser=optimiser,
            rate=jnp.where(lower, 0.1 * state.rate, state.rate),
            best_loss=jnp.where(better, value, state.best_loss),
            best_epoch=best_epoch,
            rate_epoch=jnp.where(lower, epoch, state.rate_epoch),
            best=best,
            epoch=epoch,
            key=key,
        ), value

    @jax.jit
    def run_epochs(state: ClassifierState, learn: Any, check: Any) -> tuple[ClassifierState, Array]:
        with jax.default_matmul_precision("highest"):
            return jax.lax.scan(
                partial(one_epoch, learn, check), state, None, length=min(EPOCHS_AT_ONCE, config.max_epochs)
            )

    # Starting at the sample's own odds spares the first epochs.
    odds = jnp.asarray(np.log(n_good * weight_good / (n_bad * weight_bad)), jnp.float32)
    parameters = (nets.weights, (*nets.biases[:-1], nets.biases[-1] + odds[:, None]))
    zero = jnp.zeros(n_targets, jnp.int32)
    state = ClassifierState(
        parameters,
        adam.init(parameters),
        jnp.full(n_targets, config.learning_rate, jnp.float32),
        jnp.full(n_targets, jnp.inf, jnp.float32),
        zero,
        zero,
        parameters,
        jnp.asarray(0, jnp.int32),
        key,
    )
    losses = []
    while int(state.epoch) < config.max_epochs:
        state, values = run_epochs(state, learn, check)
        losses.append(np.asarray(values))
        epoch, best_epoch = int(state.epoch), np.asarray(state.best_epoch)
        if epoch % (4 * EPOCHS_AT_ONCE) == 0:
            best = ", ".join(f"{t} {v:.4f}" for t, v in zip(nets.targets, np.asarray(state.best_loss), strict=True))
            log.info(f"confidence: epoch {epoch}, lowest validation loss {best}")
        if (epoch - best_epoch >= patience).all():
            break
    weights, biases = state.best
    nets = replace(nets, weights=weights, biases=(*biases[:-1], biases[-1] - ln_odds_shift[:, None]))
    history = np.concatenate(losses)
    return nets, {
        "n_training": int(fitted.sum()),
        "n_validation": int(validation.sum()),
        "batch": batch,
        "plateau": plateau,
        "patience": patience,
        "epochs": int(state.epoch),
        "best_epoch": dict(zip(nets.targets, np.asarray(state.best_epoch).tolist(), strict=True)),
        "validation_loss": dict(zip(nets.targets, np.asarray(state.best_loss, np.float64).tolist(), strict=True)),
        "validation_loss_every_16": history[::16].astype(np.float64).round(5).tolist(),
    }
