"""The posterior, twice the same density: as NumPyro models, and as the objective of the fast per-star solver.

Both are built from the same functions (`forward`, `likelihood`, `prior`); tests/models compares them. Sites are
`labels`, `ln_E`, `ln_plx`, `xi` where the curve varies, `companion` of pairs (each star), and `weights_i`, `biases_i`,
`ln_R`, `R1` (the model). A star is sampled in ln E and ln parallax with improper flat priors; the factor `jacobian`
turns them into flat priors in E and parallax (METHOD 3: under AutoDelta a positive site with a flat prior would find
another mode).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import constraints

from xpbayes.data.stars import ParallaxDoubt, Stars
from xpbayes.models.forward import ForwardModel, layer_sizes
from xpbayes.models.likelihood import deviance, ln_normalisation, n_observed, whitened_residual
from xpbayes.models.pair import PairForward, predict_flux
from xpbayes.models.prior import LabelPrior, draw_labels, ln_prior
from xpbayes.models.star_model import StarModel


class WhitenedStudent(dist.Distribution):
    """Multivariate Student t, or Gaussian where `inv_dof` is 0; the whitening W has W^T W the inverse scale matrix.

    W is lower-triangular; missing components (zero rows) do not count. A `robust_scale` s > 0 replaces rho(chi^2) by s
    asinh(rho / s), as the ZGR23 authors do in training (s = 660); the normalisation stays as it is.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "whitening": constraints.real_matrix,
        "inv_dof": constraints.nonnegative,
    }
    support = constraints.real_vector
    pytree_data_fields = ("loc", "whitening", "inv_dof")
    pytree_aux_fields = ("robust_scale",)

    def __init__(self, loc: Array, whitening: Array, inv_dof: Array | float = 0.0, robust_scale: float = 0.0):
        batch = jnp.broadcast_shapes(loc.shape[:-1], whitening.shape[:-2], jnp.shape(inv_dof))
        self.loc, self.whitening, self.robust_scale = loc, whitening, robust_scale
        self.inv_dof = jnp.broadcast_to(jnp.asarray(inv_dof, loc.dtype), batch)
        super().__init__(batch_shape=batch, event_shape=loc.shape[-1:])

    def log_prob(self, value: Array) -> Array:
        """Ln density over the observed components."""
        residual = jnp.vectorize(whitened_residual, signature="(n),(n),(n,n)->(n)")(self.loc, value, self.whitening)
        rho = deviance(jnp.sum(residual**2, axis=-1), n_observed(self.whitening), self.inv_dof).value
        if self.robust_scale > 0:
            rho = self.robust_scale * jnp.arcsinh(rho / self.robust_scale)
        return ln_normalisation(self.whitening, self.inv_dof) - 0.5 * rho

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw; missing components come out at their mean."""
        noise_key, amplitude_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, sample_shape + self.batch_shape + self.event_shape, dtype=self.loc.dtype)
        heavy = self.inv_dof > 0
        half_nu = 0.5 / jnp.where(heavy, self.inv_dof, 1.0)
        gamma = jax.random.gamma(amplitude_key, half_nu, sample_shape + self.batch_shape) / half_nu
        amplitude = jnp.where(heavy, 1.0 / jnp.sqrt(gamma), 1.0)
        diagonal = jnp.diagonal(self.whitening, axis1=-2, axis2=-1)
        missing = diagonal <= 0
        factor = self.whitening + jnp.eye(diagonal.shape[-1]) * missing[..., None]
        factor = jnp.broadcast_to(factor, noise.shape + noise.shape[-1:])
        white = jax.scipy.linalg.solve_triangular(factor, noise[..., None], lower=True)[..., 0]
        return self.loc + jnp.where(missing, 0.0, white * amplitude[..., None])


class LabelMixture(dist.Distribution):
    """The label prior as a NumPyro distribution."""

    support = constraints.real_vector
    pytree_data_fields = ("prior",)

    def __init__(self, prior: LabelPrior):
        self.prior = prior
        super().__init__(batch_shape=(), event_shape=prior.mean.shape[-1:])

    def log_prob(self, value: Array) -> Array:
        """Ln p, normalised."""
        return jnp.vectorize(lambda labels: ln_prior(self.prior, labels), signature="(n)->()")(value)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw labels."""
        return draw_labels(self.prior, key, math.prod(sample_shape)).reshape(*sample_shape, *self.event_shape)


def _flat(shape: tuple[int, ...] = ()) -> dist.Distribution:
    """Improper flat prior over reals of the given event shape."""
    support = constraints.independent(constraints.real, len(shape)) if shape else constraints.real
    return dist.ImproperUniform(support, (), event_shape=shape)


def _measured(
    name: str, value: Array, observed: Array, inverse_error: Array, doubt: ParallaxDoubt | None = None
) -> None:
    """Observe a scalar with a Gaussian error, far larger perhaps if in doubt, or nothing where its inverse is zero."""
    known = inverse_error > 0
    sigma = 1.0 / jnp.where(known, inverse_error, 1.0)
    density = dist.Normal(value, sigma)
    if doubt is not None:
        both = jnp.stack([sigma, sigma / doubt.narrowing], axis=-1)
        shares = dist.Categorical(jnp.stack([1.0 - doubt.prior, doubt.prior], axis=-1))
        density = dist.MixtureSameFamily(shares, dist.Normal(value[..., None], both))
    numpyro.sample(name, density.mask(known), obs=observed)


def _observe_stars(forward: ForwardModel, stars: Stars, labels: Array, robust_scale: float) -> None:
    """A batch inside its plate, below its labels: E, parallax and xi with their Jacobian, and what was observed."""
    ln_extinction = numpyro.sample("ln_E", _flat())
    ln_parallax = numpyro.sample("ln_plx", _flat())
    intrinsic = [labels]
    if forward.curve_variation is not None:
        intrinsic.append(numpyro.sample("xi", dist.Normal(0.0, 1.0))[..., None])
    if isinstance(forward, PairForward):
        intrinsic.append(numpyro.sample("companion", dist.Normal(0.0, 1.0))[..., None])
    numpyro.factor("jacobian", ln_extinction + ln_parallax)
    _measured("parallax", jnp.exp(ln_parallax), stars.parallax, stars.parallax_inv_error, stars.doubt)
    _measured("reddening", jnp.exp(ln_extinction), stars.reddening, stars.reddening_inv_error)
    theta_log = jnp.concatenate([*intrinsic, ln_extinction[..., None], ln_parallax[..., None]], axis=-1)
    predict = jnp.vectorize(lambda p, scale: predict_flux(forward, p, scale), signature="(p),()->(c)")
    predicted = predict(theta_log, stars.ln_scale)
    numpyro.sample("flux", WhitenedStudent(predicted, stars.whitening, stars.inv_dof, robust_scale), obs=stars.flux)


def model_sites(shape: "ModelShape") -> ForwardModel:
    """Sample the model: W ~ N(0, n_W / N_star), flat biases, flat ln R, flat R1 (METHOD 3 and 11)."""
    sizes = layer_sizes(shape.label_center.shape[0], shape.hidden, shape.n_channels)
    n_weights = sum(i * o for i, o in sizes)
    sigma = (n_weights / shape.n_stars) ** 0.5
    weights = tuple(
        numpyro.sample(f"weights_{i}", dist.Normal(0.0, sigma).expand(size).to_event(2)) for i, size in enumerate(sizes)
    )
    biases = tuple(numpyro.sample(f"biases_{i}", _flat((out,))) for i, (_, out) in enumerate(sizes))
    ln_curve = numpyro.sample("ln_R", _flat((shape.n_channels,)))
    variation = numpyro.sample("R1", _flat((shape.n_channels,))) if shape.curve_varies else None
    return ForwardModel(weights, biases, ln_curve, shape.label_center, shape.label_scale, variation)


class ModelShape(NamedTuple):
    """What the training posterior needs to know beside the stars."""

    hidden: tuple[int, ...]  # neurons per hidden layer
    n_channels: int  # number of channels
    n_stars: int  # number of stars of the whole training set, for the weight prior and for scaling batches
    label_center: Float[Array, " label"]  # normalisation of the network's inputs, with their scale
    label_scale: Float[Array, " label"]
    robust_scale: float = 0.0  # see `WhitenedStudent`
    curve_varies: bool = False  # whether stars differ in their extinction curves


def training_posterior(stars: Stars, shape: ModelShape) -> None:
    """ZGR23 Eq. 10: model and stars together, labels as measurements.

    A batch's terms are scaled by n_stars / batch size, so that its density is an unbiased estimate of the whole.
    """
    forward = model_sites(shape)
    with handlers.scale(scale=shape.n_stars / len(stars)), numpyro.plate("star", len(stars)):
        labels = numpyro.sample("labels", _flat((stars.labels.shape[-1],)))
        for i in range(stars.labels.shape[-1]):
            _measured(f"label_{i}", labels[..., i], stars.labels[..., i], stars.label_inv_error[..., i])
        _observe_stars(forward, stars, labels, shape.robust_scale)


def star_posterior(stars: Stars, model: StarModel) -> None:
    """METHOD 5: stars without labels under a trained model; ZGR23 Eq. 17 to 19. Of pairs if its are (METHOD 12).

    The model's error is folded into the stars, whose labels are not looked at.
    """
    with numpyro.plate("star", len(stars)):
        labels = numpyro.sample("labels", LabelMixture(model.label_prior))
        _observe_stars(model.forward, stars, labels, 0.0)


def star_sites(
    theta_log: Float[Array, "star parameter"], *, curve_varies: bool = False, pair: bool = False
) -> dict[str, Any]:
    """Turn the solver's parameter vectors into values of the NumPyro sites."""
    n = theta_log.shape[-1] - 2 - curve_varies - pair
    sites = {"labels": theta_log[..., :n], "ln_E": theta_log[..., -2], "ln_plx": theta_log[..., -1]}
    sites |= {"xi": theta_log[..., n]} if curve_varies else {}
    return sites | ({"companion": theta_log[..., -3]} if pair else {})


def theta_from_sites(values: dict[str, Any]) -> Float[Array, "star parameter"]:
    """The inverse of `star_sites`."""
    columns = [values[name][..., None] for name in ("xi", "companion", "ln_E", "ln_plx") if name in values]
    return jnp.concatenate([values["labels"], *columns], axis=-1)


def model_site_values(forward: ForwardModel) -> dict[str, Any]:
    """Turn a forward model into values of the NumPyro sites."""
    values: dict[str, Any] = {f"weights_{i}": w for i, w in enumerate(forward.weights)}
    values |= {f"biases_{i}": b for i, b in enumerate(forward.biases)}
    values["ln_R"] = forward.ln_curve
    return values if forward.curve_variation is None else values | {"R1": forward.curve_variation}


def model_from_sites(values: dict[str, Any], label_center: Array, label_scale: Array) -> ForwardModel:
    """The inverse of `model_site_values`."""
    n_layers = sum(name.startswith("weights_") for name in values)
    return ForwardModel(
        weights=tuple(values[f"weights_{i}"] for i in range(n_layers)),
        biases=tuple(values[f"biases_{i}"] for i in range(n_layers)),
        ln_curve=values["ln_R"],
        label_center=label_center,
        label_scale=label_scale,
        curve_variation=values.get("R1"),
    )
