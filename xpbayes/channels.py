"""The channel set: which wavelengths a flux vector holds, in which order. Data, not code.

A flux vector is `n_xp` samples of the XP spectrum, whose errors are correlated, followed by broad bands, whose errors
are independent. The same model runs on any set; every file names its own in its metadata.
Not here: fluxes, covariances (`calibration`), star batches (`stars.py`).
"""

import json
from dataclasses import dataclass

import numpy as np

from xpbayes.errors import InputError

FLUX_UNIT = "1e-18 W m-2 nm-1"
XP_GRID_NM = np.arange(392.0, 993.0, 10.0)
"""The 61 XP samples [nm] of ZGR23, Section 2.1."""

BP_RP_BOUNDARY_NM = 640.0
"""Bluer samples are BP, redder ones RP [nm]: GaiaXPy merges the 642 nm sample from 1/8 BP and 7/8 RP."""


@dataclass(frozen=True)
class Band:
    """A broad photometric band: effective wavelength [nm], and Delta m in ZGR23 Eq. 5 [mag]."""

    name: str
    wavelength_nm: float
    vega_to_ab: float


BANDS = {
    band.name: band
    for band in (
        Band("J", 1235.0, 0.91),
        Band("H", 1662.0, 1.39),
        Band("Ks", 2159.0, 1.85),
        Band("W1", 3352.6, 2.699),
        Band("W2", 4602.8, 3.339),
    )
}
"""ZGR23 Eq. 5: effective wavelengths and Vega-to-AB offsets of 2MASS and unWISE."""


@dataclass(frozen=True)
class Channels:
    """An ordered channel set: `n_xp` leading channels are XP samples (0 for pure broad-band sets).

    Every channel has a short unique name, e.g. ``xp392`` or ``J``, and a wavelength [nm].
    """

    names: tuple[str, ...]
    wavelength_nm: tuple[float, ...]
    n_xp: int

    def __post_init__(self) -> None:
        if len(self.names) != len(self.wavelength_nm) or len(set(self.names)) != len(self.names):
            raise InputError("a channel set needs one wavelength and one unique name per channel")
        if not 0 <= self.n_xp <= len(self.names):
            raise InputError(f"a channel set of {len(self.names)} channels cannot hold {self.n_xp} XP samples")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def wavelengths(self) -> np.ndarray:
        """(channel,) wavelengths [nm], float64."""
        return np.asarray(self.wavelength_nm, dtype=np.float64)

    @property
    def n_bands(self) -> int:
        """How many trailing channels are broad bands with independent errors."""
        return len(self.names) - self.n_xp

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the broad bands, in order."""
        return self.names[self.n_xp :]

    @property
    def n_packed(self) -> int:
        """Length of the packed lower triangle of the XP whitening factor."""
        return self.n_xp * (self.n_xp + 1) // 2

    def to_json(self) -> str:
        """Serialise for a file's metadata."""
        return json.dumps({"names": self.names, "wavelength_nm": self.wavelength_nm, "n_xp": self.n_xp})

    @classmethod
    def from_json(cls, text: str) -> "Channels":
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        return cls(tuple(raw["names"]), tuple(float(w) for w in raw["wavelength_nm"]), int(raw["n_xp"]))

    def require_same(self, other: "Channels", mine: str, theirs: str) -> None:
        """Raise InputError unless both sets agree, naming the first difference, and what each set belongs to."""
        if self == other:
            return
        if self.names != other.names:
            missing = [n for n in self.names if n not in other.names]
            extra = [n for n in other.names if n not in self.names]
            odd = [(names, how) for names, how in ((missing, "missing"), (extra, "unknown")) if names]
            what = ", ".join(f"{len(names)} {how} (first: {names[0]})" for names, how in odd)
            detail = what or "the same names in another order"
        else:
            detail = "the same names at other wavelengths"
        bands = json.dumps(list(self.band_names))
        raise InputError(
            f"{theirs} has {len(other)} channels and {mine} has {len(self)}: {detail}; "
            f"use stars prepared with the channels that the model was trained on (bands = {bands} in survey.toml)"
        )

    def require_same_spectra(self, other: "Channels", mine: str, theirs: str) -> None:
        """Raise InputError, as `require_same`, unless both sets have the same samples and no band at two wavelengths."""
        here, there = (dict(zip(of.names, of.wavelength_nm, strict=True)) for of in (self, other))
        shared = here.keys() & there.keys()
        if self.names[: self.n_xp] != other.names[: other.n_xp] or any(here[name] != there[name] for name in shared):
            self.require_same(other, mine, theirs)


def xp_channels(bands: tuple[str, ...] = ("J", "H", "Ks", "W1", "W2")) -> Channels:
    """Build the paper's channel set: 61 XP samples and the named bands (66 channels by default)."""
    unknown = [b for b in bands if b not in BANDS]
    if unknown:
        raise InputError(f"unknown band {unknown[0]}: known bands are {', '.join(BANDS)}")
    return Channels(
        tuple(f"xp{w:.0f}" for w in XP_GRID_NM) + tuple(bands),
        tuple(XP_GRID_NM.tolist()) + tuple(BANDS[b].wavelength_nm for b in bands),
        XP_GRID_NM.size,
    )
