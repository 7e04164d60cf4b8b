"""What this installation can do: versions, instruments, data releases, and what is missing for each."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from xpbayes.errors import InputError
from xpbayes.instrument.bases import available, instrument_of
from xpbayes.instrument.gaiaxpy import contract, gaiaxpy_models
from xpbayes.release import RELEASES, ZERO_POINT_PACKAGE, Release

PACKAGES = ("xpbayes", "jax", "jaxlib", "numpyro", "numpy", "pyarrow", "gaiaxpy", "pyvo", ZERO_POINT_PACKAGE)
NONE = "not installed"


@dataclass(frozen=True)
class Examined:
    """What was found; printed, it is a page.

    Attributes:
        versions: of Python and the packages that results depend on.
        instruments: one line for each that spectra can be calibrated with.
        models: of the installed GaiaXPy, "bp NAME" and "rp NAME", and their numbers of coefficients.
        missing: per data release, what stands in the way of using it.
        changed: what of GaiaXPy is not as xpbayes expects.
    """

    versions: dict[str, str]
    instruments: tuple[str, ...]
    models: dict[str, int]
    missing: dict[str, tuple[str, ...]]
    changed: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """GaiaXPy is as expected, and the releases that it has can be used."""
        return not self.changed and bool(self.instruments)

    def __str__(self) -> str:
        lines = ["versions", *(f"  {name} {number}" for name, number in self.versions.items())]
        lines += ["instruments", *(f"  {line}" for line in self.instruments or ("none",))]
        models = ", ".join(f"{name} ({count})" for name, count in self.models.items())
        lines += [f"models of GaiaXPy: {models or 'none'}"]
        for name, missing in self.missing.items():
            lines.append(f"{RELEASES[name].title} ({name}):{'' if missing else ' nothing is missing'}")
            lines += [f"  {line}" for line in missing]
        lines.append("GaiaXPy has changed" if self.changed else "GaiaXPy is as expected")
        lines += [f"  {c}" for c in self.changed]
        return "\n".join(lines)


def doctor() -> Examined:
    """Look at the installation; nothing is asked of the network.

    Example:
        >>> print(xpbayes.doctor())  # doctest: +SKIP
    """
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    try:
        models = {f"{side} {name}": count for side, found in gaiaxpy_models().items() for name, count in found.items()}
    except (ImportError, OSError, ValueError, StopIteration):  # `contract` says what is wrong
        models = {}
    instruments = []
    for instrument in available():
        about = instrument.about
        ids = "/".join("?" if i is None else str(i) for i in about.basis_ids)
        instruments.append(
            f"{about.title}: BP {about.models[0]} ({about.counts[0]}), RP {about.models[1]} ({about.counts[1]}), basis "
            f"functions {ids}"
        )
    return Examined(
        versions, tuple(instruments), models, {r.name: _missing(r) for r in RELEASES.values()}, tuple(contract())
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NONE


def _missing(release: Release) -> tuple[str, ...]:
    """What stands in the way of using a release's data, most important first."""
    lines = []
    try:
        instrument_of(release.name)
    except InputError as error:
        lines.append(f"instrument model: {error}")
    if find_spec("pyvo") is None or find_spec("requests") is None:
        lines.append("fetch: needs pyvo and requests; pip install 'xpbayes[archive]'")
    if find_spec("zero_point") is None:
        other = f" where a table has no {release.parallax_bias}" if release.parallax_bias else ""
        lines.append(f"parallax zero point: needs {ZERO_POINT_PACKAGE}{other}; pip install 'xpbayes[archive]'")
    if "sampled" not in release.products:
        lines.append("sampled spectra: not known whether the archive will have them")
    if not release.spurious_table:
        lines.append("fidelity_v2 and norm_dg: no table of this release is known; cuts and confidences do without")
    if not release.summary_is_known:
        lines.append("bp_chi_squared and rp_chi_squared: taken where the archive has an xp_summary of this release")
    if release.crosswalk:
        lines.append(
            f"source_ids may differ from those before: {release.schema}.{release.crosswalk} leads from one to the other"
        )
    return tuple(lines)
