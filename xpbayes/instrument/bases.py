"""The XP bases: how a sampled spectrum depends on Gaia's coefficients, and what that implies for its correlations.

Out: the instrument of a release or of a file's coefficients; D (sample, coefficient), so that flux = D c and
covariance = D C_c D^T (METHOD 2); the correlation that the bases imply for a spectrum that was published without one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from xpbayes.errors import InputError
from xpbayes.instrument.gaiaxpy import MODELS_VARIABLE, gaiaxpy_version, of_gaiaxpy
from xpbayes.instrument.instrument import Instrument, fits
from xpbayes.release import DEFAULT_RELEASE, RELEASES, Release, release_named

_REGISTERED: list[Instrument] = []


@contextmanager
def registered(instrument: Instrument) -> Iterator[Instrument]:
    """Let spectra of an instrument that xpbayes does not know be calibrated, as long as a with-statement lasts."""
    _REGISTERED.append(instrument)
    try:
        yield instrument
    finally:
        _REGISTERED.remove(instrument)


def available() -> list[Instrument]:
    """All instruments that spectra can be calibrated with: registered ones first, then those of GaiaXPy."""
    own = (of_gaiaxpy(release) for release in RELEASES.values())
    return [*_REGISTERED[::-1], *(instrument for instrument in own if instrument is not None)]


def instrument_of(release: str = DEFAULT_RELEASE.name) -> Instrument:
    """The instrument of a release; InputError with what to install if there is none."""
    profile = release_named(release)
    for instrument in available():
        if instrument.about.release == release:
            return instrument
    raise missing_instrument("", profile.counts, profile)


def instrument_for(counts: tuple[int, int], basis_ids: tuple[int | None, int | None]) -> Instrument | None:
    """The instrument with these numbers of coefficients, and if possible these basis functions; None if there is none."""
    candidates = [i for i in available() if fits(i.about.counts, counts)]
    for instrument in candidates:
        pairs = zip(instrument.about.basis_ids, basis_ids, strict=True)
        if all(own is None or found is None or own == found for own, found in pairs):
            return instrument
    return candidates[0] if candidates else None


def missing_instrument(where: str, counts: tuple[int, int], release: Release | None) -> InputError:
    """What to say of spectra without an instrument: one sentence with what to install."""
    found = f"has {counts[0]} BP and {counts[1]} RP coefficients"
    whose = f"as {release.title}" if release is not None else "as no release that xpbayes knows"
    say = f"{where}: {found}, {whose}" if where else f"spectra of {release.title if release else 'that release'}"
    name = release.name if release is not None else "dr4"
    return InputError(
        f"{say}, for which GaiaXPy {gaiaxpy_version()} has no instrument model; install one that has it (pip install "
        f"--upgrade gaiaxpy xpbayes), or name its models in {MODELS_VARIABLE.format(name.upper())}=BP,RP"
    )


def design_matrices(instrument: Instrument | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """BP's and RP's (sample, coefficient) D with the merge weights applied: flux = D_bp c_bp + D_rp c_rp.

    float64 [W m^-2 nm^-1 per coefficient unit]; of DR3's instrument if None.
    """
    bp, rp = (matrix * weight[:, None] for matrix, weight in (instrument or instrument_of()).sides())
    return bp, rp


def design_matrix(instrument: Instrument | None = None) -> NDArray[np.float64]:
    """(sample, BP and RP coefficients) D; see `design_matrices`, which also says where BP ends."""
    return np.hstack(design_matrices(instrument))


def implied_correlation(instrument: Instrument | None = None) -> NDArray[np.float64]:
    """Compute the correlation of sampled fluxes for independent coefficients with typical errors.

    For XP spectra published with errors only (METHOD 2): neighbouring samples are anti-correlated, -0.35 on average.

    Returns:
        (sample, sample) float64, unit diagonal, positive semi-definite; by the bases of DR3 if `instrument` is None.
    """
    instrument = instrument or instrument_of()
    scaled = design_matrix(instrument) * np.exp(np.concatenate(instrument.ln_errors()))
    covariance = scaled @ scaled.T
    sigma = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(sigma, sigma)
    np.fill_diagonal(correlation, 1.0)
    return correlation
