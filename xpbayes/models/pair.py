"""Two stars in one source: the forward model of hypothesis B, an unresolved second source (METHOD 12).

f = [f_abs(labels) + f_abs(labels_2)] parallax^2 exp(-E R): the companion has the primary's metals, dust and parallax and
lies on the main sequence's ridge, so that a pair has one parameter more than a star. It is called `companion` and comes
after the labels (and xi, where the curve varies): a standard normal, whose cumulative probability u says where between
`DARK` and the star on the ridge that is as bright as the primary the companion's temperature is:
Teff_2 = DARK + (Teff_equal - DARK) u^(1/4). So the prior is normalised whatever the primary, and nearly uniform in the
flux ratio where the primary is on the main sequence itself.
"""

from dataclasses import field, fields
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.models.forward import FluxExpansion, ForwardModel, ln_absolute_flux
from xpbayes.models.forward import expand_ln_flux as expand_star
from xpbayes.models.forward import predict_flux as predict_star_flux
from xpbayes.models.forward import second_along as star_along
from xpbayes.models.forward import weighted_hessian as star_hessian

DARK = 2.8
"""Teff [kK] of the faintest companion: the end of hydrogen burning (Chabrier & Baraffe 2000). Below the ridge's own end a
companion has the ridge's last spectrum, ever fainter, and is as good as none."""
END_WIDTH = 0.05
"""Teff [kK] over which the one passes into the other."""
TEFF_EXPONENT = 0.25
"""Of u: light goes with about the fourth to fifth power of Teff - DARK along the ridge."""
DIMMING = 3.0
"""d ln f / d Teff [1/kK] there, as of dwarfs between 3,500 and 4,000 K."""
REACH = 4.0
"""The primary's labels count up to so many spreads from the middle where a companion as bright is looked up."""


class CompanionRidge(eqx.Module):
    """The main sequence as single stars follow it, for companions."""

    logg: Float[Array, " five"]  # coefficients of `ridge_terms`: log g as a function of Teff and [Fe/H]
    teff_range: Float[Array, " two"]  # Teff [kK] of the ridge's ends
    # coefficients of `brightness_terms`: logit of where in `teff_range` a ridge star is as bright as a primary
    as_bright: Float[Array, " term"]
    center: Float[Array, " three"]  # of Teff, [Fe/H], log g in these, with their scale
    scale: Float[Array, " three"]
    band: Float[Array, " channel"]  # weights of the channels in whose mean ln f brightness is compared
    at: tuple[int, int, int] = eqx.field(static=True)  # places of Teff, [Fe/H], log g among the labels

    def logg_at(self, teff: Array, feh: Array) -> Array:
        """Log g of the ridge at some Teff [kK] and [Fe/H]."""
        return ridge_terms(teff, feh) @ self.logg


def ridge_terms(teff: Array, feh: Array) -> Array:
    """(..., 5) what log g of the ridge is linear in."""
    t = teff - 5.5
    return jnp.stack([jnp.ones_like(t), t, t**2, t**3, feh], axis=-1)


def brightness_terms(x: Float[Array, "*star three"]) -> Float[Array, "*star term"]:
    """Cubic polynomials of a primary's scaled labels."""
    x = jnp.clip(x, -REACH, REACH)
    t, z, g = x[..., 0], x[..., 1], x[..., 2]
    one = jnp.ones_like(t)
    second = [t * t, t * z, t * g, z * z, z * g, g * g]
    third = [t**3, t * t * z, t * t * g, t * z * g, t * g * g, z * g * g, g**3]
    return jnp.stack([one, t, z, g, *second, *third], axis=-1)


class PairForward(ForwardModel):
    """The forward model of a pair: that of each star, and where companions lie."""

    ridge: CompanionRidge = field(kw_only=True)  # the main sequence
    held: Float[Array, ""] | None = None  # `companion` of all pairs; None where it is one of each pair's parameters

    @property
    def single(self) -> ForwardModel:
        """The forward model of each star."""
        return ForwardModel(**{f.name: getattr(self, f.name) for f in fields(ForwardModel)})

    @property
    def n_star_parameters(self) -> int:
        """A star's, and one more if the companion is not held."""
        return super().n_star_parameters + (self.held is None)

    @property
    def intrinsic_scale(self) -> Float[Array, " intrinsic"]:
        """What counts as one unit of every parameter but E and parallax."""
        own = super().intrinsic_scale
        return own if self.held is not None else jnp.append(own, jnp.ones(1, own.dtype))

    def primary(self, theta_log: Float[Array, "*star parameter"]) -> Float[Array, "*star less"]:
        """The primary's own parameters."""
        if self.held is not None:
            return theta_log
        return jnp.concatenate([theta_log[..., :-3], theta_log[..., -2:]], axis=-1)

    def companion(self, theta_log: Float[Array, " parameter"]) -> Float[Array, " less"]:
        """The companion's parameters as those of a single star: labels, xi, ln E; the parallax dims it below the ridge."""
        ridge, n = self.ridge, self.n_labels
        teff_at, feh_at, logg_at = ridge.at
        low, high = ridge.teff_range
        own = jnp.stack([theta_log[i] for i in ridge.at])
        way = jax.nn.sigmoid(brightness_terms((own - ridge.center) / ridge.scale) @ ridge.as_bright)
        as_bright = low + (high - low) * way
        z = theta_log[-3] if self.held is None else self.held
        teff = DARK + (as_bright - DARK) * jnp.exp(TEFF_EXPONENT * jax.scipy.special.log_ndtr(z))
        on_ridge = low + END_WIDTH * jax.nn.softplus((teff - low) / END_WIDTH)
        labels = theta_log[:n].at[teff_at].set(on_ridge)
        labels = labels.at[logg_at].set(ridge.logg_at(on_ridge, theta_log[feh_at]))
        dimmer = 0.5 * DIMMING * (teff - on_ridge)
        return jnp.concatenate([labels, self.primary(theta_log)[n:-1], theta_log[-1:] + dimmer])

    def ln_flux_ratio(self, theta_log: Float[Array, " parameter"]) -> Float[Array, ""]:
        """Ln of companion over primary in the mean of `ridge.band`."""
        one, two = self.primary(theta_log), self.companion(theta_log)
        n = self.n_labels
        difference = ln_absolute_flux(self.single, two[:n]) - ln_absolute_flux(self.single, one[:n])
        return difference @ self.ridge.band + 2.0 * (two[-1] - one[-1])


def pair_of(forward: ForwardModel, ridge: CompanionRidge, held: Array | None = None) -> PairForward:
    """The forward model of pairs of the stars that a model knows; `held` as in `PairForward`."""
    return PairForward(**{f.name: getattr(forward, f.name) for f in fields(ForwardModel)}, ridge=ridge, held=held)


class PairExpansion(NamedTuple):
    """ln f of a pair to second order in its parameters; see `FluxExpansion`."""

    value: Float[Array, " channel"]  # ln f
    slope: Float[Array, "parameter channel"]  # d ln f
    first: FluxExpansion  # of each star by its own parameters
    second: FluxExpansion
    share: Float[Array, " channel"]  # of the companion in f
    apart: Float[Array, "parameter channel"]  # d ln f_2 - d ln f_1
    to_second: Float[Array, "less parameter"]  # derivative of the companion's parameters by the pair's
    bend: Float[Array, "less parameter parameter"]  # their second derivative


def predict_flux(
    forward: ForwardModel, theta_log: Float[Array, " parameter"], ln_scale: Float[Array, ""] | float = 0.0
) -> Float[Array, " channel"]:
    """As `forward.predict_flux`, of a star or a pair."""
    if not isinstance(forward, PairForward):
        return predict_star_flux(forward, theta_log, ln_scale)
    one, two = forward.primary(theta_log), forward.companion(theta_log)
    return predict_star_flux(forward.single, one, ln_scale) + predict_star_flux(forward.single, two, ln_scale)


def expand_ln_flux(
    forward: ForwardModel, theta_log: Float[Array, " parameter"], ln_scale: Float[Array, ""] | float = 0.0
) -> FluxExpansion | PairExpansion:
    """As `forward.expand_ln_flux`, of a star or a pair."""
    if not isinstance(forward, PairForward):
        return expand_star(forward, theta_log, ln_scale)
    first = expand_star(forward.single, forward.primary(theta_log), ln_scale)
    second = expand_star(forward.single, forward.companion(theta_log), ln_scale)
    to_second = jax.jacfwd(forward.companion)(theta_log)
    bend = jax.jacfwd(jax.jacfwd(forward.companion))(theta_log)
    share = jax.nn.sigmoid(second.value - first.value)
    first_slope = first.slope
    if forward.held is None:
        first_slope = jnp.insert(first_slope, theta_log.size - 3, 0.0, axis=0)
    apart = to_second.T @ second.slope - first_slope
    value = jnp.logaddexp(first.value, second.value)
    return PairExpansion(value, first_slope + share * apart, first, second, share, apart, to_second, bend)


def weighted_hessian(
    forward: ForwardModel, at: FluxExpansion | PairExpansion, weight: Float[Array, " channel"]
) -> Float[Array, "parameter parameter"]:
    """Hessian of sum_c weight_c ln f_c by the parameters, of a star or a pair."""
    if isinstance(at, FluxExpansion):
        return star_hessian(forward, at, weight)
    assert isinstance(forward, PairForward)
    theirs = weight * at.share
    own = star_hessian(forward.single, at.first, weight - theirs)
    if forward.held is None:
        place = at.slope.shape[0] - 3
        own = jnp.insert(jnp.insert(own, place, 0.0, axis=0), place, 0.0, axis=1)
    other = at.to_second.T @ star_hessian(forward.single, at.second, theirs) @ at.to_second
    mixed = (at.apart * (theirs * (1.0 - at.share))) @ at.apart.T
    return own + other + jnp.einsum("k,kij->ij", at.second.slope @ theirs, at.bend) + mixed


def second_along(
    forward: ForwardModel, at: FluxExpansion | PairExpansion, step: Float[Array, " parameter"]
) -> Float[Array, " channel"]:
    """Second derivative of ln f along a step, of a star or a pair."""
    if isinstance(at, FluxExpansion):
        return star_along(forward, at, step)
    assert isinstance(forward, PairForward)
    own = star_along(forward.single, at.first, forward.primary(step))
    other = star_along(forward.single, at.second, at.to_second @ step)
    other = other + jnp.einsum("kij,i,j->k", at.bend, step, step) @ at.second.slope
    return own + at.share * (other - own) + at.share * (1.0 - at.share) * (step @ at.apart) ** 2
