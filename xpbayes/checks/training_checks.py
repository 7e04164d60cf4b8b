"""Named checks of a training run: does what was learned look like stars?

A model learns whatever it is given: a parallax in the wrong unit shifts its luminosities, exchanged label columns rename
its axes, a wrong zero point bends its spectra, and none of that makes the fit worse. So each check holds the result
against something that no training table can change: blackbodies, gravity, the span of real labels, held-out stars.
In: a trained model, its training labels, its card. Out: one `Check` each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.constants import c, h, k

from xpbayes.archive.spectroscopic_parallax import (
    DWARF_MASS_EXPONENT,
    GIANT_LOGG,
    GIANT_MASS,
    PARSEC_M,
    SOLAR_LOGG,
    SOLAR_RADIUS_M,
    SOLAR_TEFF_KK,
)
from xpbayes.channels import Channels
from xpbayes.models.forward import ForwardModel, ln_absolute_flux, ln_absolute_fluxes

PHYSICAL_RANGE = {"teff": (2.0, 60.0), "feh": (-6.0, 1.2), "logg": (-1.0, 6.5), "alpha_m": (-1.0, 1.2)}
"""Where labels of stars lie [kK, dex, dex, dex]."""
MAX_OUT_OF_RANGE = 0.01
MIN_SHARE = 0.8
"""Share of training stars around which the model must behave physically."""
MAX_PARALLAX_OFFSET_DEX = 0.2
"""Masses, brightness temperatures and dust leave 0.1 dex; another unit is three dex."""
SUN = (SOLAR_TEFF_KK, 0.0, SOLAR_LOGG)
SUN_LIKE_WITHIN = (0.6, 0.5, 0.5)
"""How near to the Sun a training star must be for its whole spectrum to follow a blackbody [kK, dex, dex]."""
MAX_ZERO_POINT_MAG = 0.4
"""Real Sun-like spectra stay within 0.3 mag of a blackbody longwards of 400 nm; Vega taken for AB is 0.9 to 3.3."""
MAX_COOL_ZERO_POINT_MAG, COOL_FROM_NM = 0.7, 600.0
"""Other stars: molecular bands and H- opacity leave more, and only redwards is it a continuum."""
MAX_CHANNEL_RESIDUAL = 0.05
MAX_SCALE_MOVE, MAX_EXTINCTION_MOVE, MAX_LN_PARALLAX_MOVE = 0.01, 0.02, 0.1
"""What the last move along the directions that fluxes do not see may still be: E's scale, E [mag], ln parallax."""
MIN_KEPT = 0.5
"""Share of a kind of star that must still count in training."""
MIN_SKILL = 0.25


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    passed: bool | None  # None if it could not be made
    measured: str  # what was found, in words; why the check could not be made, if so
    demand: str = ""  # what was demanded
    question: str = ""  # what to look at first if it failed

    @property
    def verdict(self) -> str:
        """'passed', 'FAILED' or 'not made'."""
        return {True: "passed", False: "FAILED", None: "not made"}[self.passed]

    @property
    def line(self) -> str:
        """The check as one line."""
        texts = (self.measured, self.demand, self.question if self.passed is False else "")
        return f"check {self.name}: {self.verdict}: " + "; ".join(text for text in texts if text)


def label_ranges(names: Sequence[str], labels: NDArray[np.floating]) -> Check:
    """(star, label) of training stars [kK, dex, ...] lie where stars' do: catches units and most exchanged columns."""
    shares = {
        name: float(np.mean((labels[:, i] < low) | (labels[:, i] > high)))
        for i, name in enumerate(names)
        if name in PHYSICAL_RANGE
        for low, high in [PHYSICAL_RANGE[name]]
    }
    if not shares:
        return Check("label_ranges", None, "none of the labels is known")
    worst = max(shares, key=lambda name: shares[name])
    low, high = PHYSICAL_RANGE[worst]
    return Check(
        "label_ranges",
        shares[worst] <= MAX_OUT_OF_RANGE,
        f"{shares[worst]:.1%} of {worst} labels lie outside of {low:g} to {high:g}",
        f"at most {MAX_OUT_OF_RANGE:.0%} may",
        "are units right and columns not exchanged?",
    )


def label_directions(forward: ForwardModel, channels: Channels, names: Sequence[str], labels: NDArray[Any]) -> Check:
    """Hotter stars are bluer, and of two equally hot stars the denser is fainter: catches exchanged columns."""
    if not {"teff", "logg"} <= set(names):
        return Check("label_directions", None, "needs the labels teff and logg")
    some = np.asarray(labels[:: max(1, len(labels) // 1000)], np.float32)
    slope = np.asarray(_slopes(forward, some))
    wavelength = channels.wavelengths
    # Optical channels only: they respond most, and every channel set has some.
    optical = np.flatnonzero(wavelength < max(1000.0, np.median(wavelength)))
    blue, red = optical[wavelength[optical].argmin()], optical[wavelength[optical].argmax()]
    third = np.sort(wavelength[optical])
    blues = optical[wavelength[optical] <= third[len(third) // 3]]
    reds = optical[wavelength[optical] >= third[-(len(third) // 3) - 1]]
    teff, logg = names.index("teff"), names.index("logg")
    bluer = slope[:, blues, teff].mean(axis=1) > slope[:, reds, teff].mean(axis=1)
    fainter = slope[:, optical, logg].mean(axis=1) < 0
    return Check(
        "label_directions",
        bool(bluer.mean() >= MIN_SHARE and fainter.mean() >= MIN_SHARE),
        f"the model gets bluer with teff ({wavelength[blue]:.0f} against {wavelength[red]:.0f} nm) around "
        f"{bluer.mean():.0%} of the training stars and fainter with logg around {fainter.mean():.0%}",
        f"both must hold around {MIN_SHARE:.0%}",
        "are label columns exchanged?",
    )


_slopes = jax.jit(jax.vmap(jax.jacfwd(ln_absolute_flux, argnums=1), (None, 0)))


def _ln_absolute_fluxes(forward: ForwardModel, labels: NDArray[Any]) -> NDArray[np.float64]:
    """(star, channel) ln f_abs."""
    return np.asarray(ln_absolute_fluxes(forward, np.asarray(labels, np.float32)), np.float64)


def _ln_planck(wavelength_nm: NDArray[Any], teff_kk: NDArray[Any]) -> NDArray[Any]:
    """Ln of a blackbody's surface flux [1e-18 W m^-2 nm^-1]."""
    x = wavelength_nm * 1e-9
    return np.log(np.pi * 2 * h * c**2 / x**5 / np.expm1(h * c / (x * k * 1e3 * teff_kk)) * 1e9)


def parallax_scale(forward: ForwardModel, channels: Channels, names: Sequence[str], labels: NDArray[Any]) -> Check:
    """The luminosities that the parallaxes taught are those of stars of these labels: catches a wrong parallax unit.

    At 1 kpc a star of known log g and a plausible mass has a known radius, and as a blackbody a known flux.
    """
    if not {"teff", "logg"} <= set(names):
        return Check("parallax_scale", None, "needs the labels teff and logg")
    some = np.asarray(labels[:: max(1, len(labels) // 1000)], np.float64)
    teff, gravity = some[:, names.index("teff")], some[:, names.index("logg")]
    # The reddest channel short of the infrared bands' dust and molecules is closest to a blackbody.
    wavelength = channels.wavelengths
    usable = np.flatnonzero(wavelength < 2500.0)
    if not usable.size:
        return Check("parallax_scale", None, "needs a channel shortwards of 2500 nm")
    channel = usable[wavelength[usable].argmax()]
    with np.errstate(invalid="ignore"):
        mass = np.where(gravity < GIANT_LOGG, GIANT_MASS, (teff / SOLAR_TEFF_KK) ** DWARF_MASS_EXPONENT)
        radius_m = SOLAR_RADIUS_M * np.sqrt(mass * 10.0 ** (SOLAR_LOGG - gravity))
        expected = _ln_planck(wavelength[channel], teff) + 2.0 * np.log(radius_m / (1e3 * PARSEC_M))
    learned = _ln_absolute_fluxes(forward, some)[:, channel]
    # f = f_abs parallax^2: a parallax that is too large makes f_abs too small.
    offset = float(-0.5 * np.nanmedian(learned - expected) / np.log(10.0))
    return Check(
        "parallax_scale",
        abs(offset) <= MAX_PARALLAX_OFFSET_DEX,
        f"parallaxes are {10**offset:.3g} times what the labels imply (blackbody at {wavelength[channel]:.0f} nm)",
        f"at most a factor of {10**MAX_PARALLAX_OFFSET_DEX:.2g} either way",
        "are they in mas?",
    )


def channel_zero_points(forward: ForwardModel, channels: Channels, names: Sequence[str], labels: NDArray[Any]) -> Check:
    """The learned spectrum of the most Sun-like training star follows a blackbody: catches a wrong zero point."""
    name = "channel_zero_points"
    if not {"teff", "feh", "logg"} <= set(names):
        return Check(name, None, "needs the labels teff, feh and logg")
    at = [names.index(n) for n in ("teff", "feh", "logg")]
    distance = np.abs(labels[:, at] - np.asarray(SUN)) / np.asarray(SUN_LIKE_WITHIN)
    nearest = int(np.argmin(np.sum(distance**2, axis=1)))
    star = labels[nearest]
    is_sun_like = bool((distance[nearest] < 1).all())
    limit, from_nm = (MAX_ZERO_POINT_MAG, 400.0) if is_sun_like else (MAX_COOL_ZERO_POINT_MAG, COOL_FROM_NM)
    use = np.flatnonzero(channels.wavelengths >= from_nm)
    if use.size < 3:
        return Check(name, None, f"needs three channels longwards of {from_nm:.0f} nm")
    flux = _ln_absolute_fluxes(forward, star[None])[0, use]
    wavelength = channels.wavelengths[use]
    difference = -(flux - _ln_planck(wavelength, np.maximum(star[at[0]], 0.5))) * 2.5 / np.log(10.0)
    difference -= np.median(difference)
    worst = int(np.argmax(np.abs(difference)))
    return Check(
        name,
        bool(np.abs(difference[worst]) <= limit),
        f"channel {channels.names[use[worst]]} is {difference[worst]:+.2f} mag off a blackbody of {1e3 * star[at[0]]:.0f} K",
        f"at most {limit:g} mag for {'a Sun-like' if is_sun_like else 'this'} star",
        "is its zero point right?",
    )


def channel_residuals(channels: Channels, residual: Sequence[float]) -> Check:
    """Held-out stars show the model's median flux in every channel: residuals, observed over predicted minus one."""
    if not len(residual):
        return Check("channel_residuals", None, "no held-out stars were inferred")
    worst = int(np.argmax(np.abs(residual)))
    return Check(
        "channel_residuals",
        bool(abs(residual[worst]) <= MAX_CHANNEL_RESIDUAL),
        f"channel {channels.names[worst]} has a median residual of {residual[worst]:+.2%} on held-out stars",
        f"at most {MAX_CHANNEL_RESIDUAL:.0%}",
        "do all stars share one calibration?",
    )


def held_out_skill(skill: Mapping[str, float]) -> Check:
    """Inference knows more about held-out stars than the spread of the labels: catches labels of other stars.

    Skill is 1 - (scatter / spread)^2 of each label.
    """
    if not skill:
        return Check("held_out_skill", None, "no held-out stars were inferred")
    worst = min(skill, key=lambda name: skill[name])
    return Check(
        "held_out_skill",
        skill[worst] >= MIN_SKILL,
        f"{worst} is explained to {skill[worst]:.0%} (1 - scatter^2 / spread^2 of held-out stars)",
        f"at least {MIN_SKILL:.0%}",
        "do labels and spectra belong to the same stars?",
    )


def gauge_at_rest(phases: Sequence[Mapping[str, Any]]) -> Check:
    """The last move along what fluxes do not see was small for every kind of star: training has reached its optimum."""
    moves = [phase for phase in phases if phase.get("update") == "gauge"]
    if not moves:
        return Check("gauge_at_rest", None, "training had no phase that moves E's scale and luminosities as a whole")
    scale, by_kind = moves[-1]["scale_of_E"] - 1.0, moves[-1]["moves"]
    extinction = max(by_kind, key=lambda kind: abs(by_kind[kind][-2]))
    parallax = max(by_kind, key=lambda kind: abs(by_kind[kind][-1]))
    return Check(
        "gauge_at_rest",
        abs(scale) <= MAX_SCALE_MOVE
        and abs(by_kind[extinction][-2]) <= MAX_EXTINCTION_MOVE
        and abs(by_kind[parallax][-1]) <= MAX_LN_PARALLAX_MOVE,
        f"the last move changed the scale of E by {scale:+.2%}, E of {extinction} by {by_kind[extinction][-2]:+.4f} mag "
        f"and ln parallax of {parallax} by {by_kind[parallax][-1]:+.4f}",
        f"at most {MAX_SCALE_MOVE:.0%}, {MAX_EXTINCTION_MOVE} mag, {MAX_LN_PARALLAX_MOVE}",
        "are there enough phases of 'model', 'stars' and 'gauge', and do reddening estimates and parallaxes share one unit?",
    )


def kinds_kept(phases: Sequence[Mapping[str, Any]]) -> Check:
    """No kind of star lost its say to weights or to self-cleaning: what is dropped are stars, not classes."""
    kept = [phase["kept_by_kind"] for phase in phases if "kept_by_kind" in phase]
    if not kept:
        return Check("kinds_kept", None, "training had no phase of weights or self-cleaning")
    worst = min(kept[-1], key=lambda kind: kept[-1][kind])
    return Check(
        "kinds_kept",
        kept[-1][worst] >= MIN_KEPT,
        f"{worst} count {kept[-1][worst]:.0%}, all stars {kept[-1]['all']:.0%}",
        f"every kind at least {MIN_KEPT:.0%}",
        "does the model describe these stars, and are their label errors those of the survey?",
    )


def check_training(
    forward: ForwardModel,
    channels: Channels,
    names: Sequence[str],
    labels: NDArray[Any],
    held_out: Mapping[str, Any],
    phases: Sequence[Mapping[str, Any]] = (),
) -> list[Check]:
    """Make every check.

    Args:
        forward: the forward model.
        channels: its channels.
        names: labels in order.
        labels: (star, label) of the training stars [kK, dex, ...].
        held_out: the card's entry of that name: keys 'skill' and 'channel_residual'; empty if not assessed.
        phases: the card's training phases.
    """
    names = tuple(names)
    return [
        label_ranges(names, labels),
        label_directions(forward, channels, names, labels),
        parallax_scale(forward, channels, names, labels),
        channel_zero_points(forward, channels, names, labels),
        channel_residuals(channels, held_out.get("channel_residual", [])),
        held_out_skill(held_out.get("skill", {})),
        gauge_at_rest(phases),
        kinds_kept(phases),
    ]
