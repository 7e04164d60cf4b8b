"""A survey drawn from a trained model, written in the formats of the real one, the truth beside it.

Stars are drawn from the model's label prior and put at distances and behind dust by a sky (`stars`), observed with Gaia-like
errors (`spectra`) and the noise of the likelihood (`noise`), and written as bulk XP_CONTINUOUS csv.gz, Gaia source table,
2MASS and unWISE matches, LAMOST and Hot Payne labels, reddening (`files`) and a survey.toml that ties them together.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.channels import XP_GRID_NM
from xpbayes.config import Recipe
from xpbayes.data.parquet import fixed_list, write_parquet
from xpbayes.errors import InputError
from xpbayes.files import make_folder, refuse_overwriting, write_text
from xpbayes.production.model_file import TrainedModel, load_model
from xpbayes.release import DEFAULT_RELEASE
from xpbayes.simulation.files import (
    GAIA_FILE,
    LABEL_FILES,
    REDDENING_FILE,
    TWO_MASS_FILE,
    UNWISE_FILE,
    write_bands,
    write_bulk,
    write_gaia,
    write_labels,
    write_reddening,
)
from xpbayes.simulation.noise import Noise, NoiseSource, draw_band_errors
from xpbayes.simulation.spectra import ObservedXp, errors_like, observe, typical_errors
from xpbayes.simulation.stars import N_XP, SimulatedStars, Sky, draw_stars, smooth_disc

log = logging.getLogger(__name__)

DEFAULT = Recipe()
TRUTH = "truth.parquet"
"""Beside the survey: what was drawn."""


def simulate(
    model: TrainedModel | Path, n_stars: int, out: Path, recipe: Recipe = DEFAULT, sky: Sky = smooth_disc
) -> list[Path]:
    """Write a survey drawn from a trained model.

    Args:
        model: the model, or its folder.
        n_stars: how many stars.
        out: folder for the files; must not hold a survey yet.
        recipe: how realistic.
        sky: gives positions, extinctions and parallaxes of the stars.

    Returns:
        the files written, survey.toml first, truth.parquet second.

    Raises:
        InputError: not a model, a model without the 61 XP samples, or a folder that is in use.
    """
    if n_stars < 1:
        raise InputError(f"cannot simulate {n_stars} stars; ask for at least one")
    trained = model if isinstance(model, TrainedModel) else load_model(model)
    xp = trained.channels.wavelengths[: trained.channels.n_xp]
    if trained.channels.n_xp != N_XP or not np.allclose(xp, XP_GRID_NM):
        raise InputError(
            f"the model has {trained.channels.n_xp} XP samples, not the 61 on 392-992 nm; use another model"
        )
    if out.exists() and (not out.is_dir() or (out / "survey.toml").exists()):
        raise InputError(f"{out}: is in use; choose another folder")
    real = [] if recipe.like is None else [recipe.like]
    for name in (TWO_MASS_FILE, UNWISE_FILE, GAIA_FILE, REDDENING_FILE, *LABEL_FILES.values(), TRUTH):
        refuse_overwriting(out / name, real)
    make_folder(out / "xp", out)
    errors = typical_errors() if recipe.like is None else errors_like(recipe.like)
    rng = np.random.default_rng(recipe.seed)
    stars = draw_stars(trained, n_stars, recipe, sky, rng)
    source, band_errors = NoiseSource(trained), draw_band_errors(stars, trained.channels, recipe, rng)
    observed = np.zeros((n_stars, len(trained.channels)))
    noise = Noise(np.ones(n_stars), np.zeros_like(observed))

    def spectra(at: NDArray[np.int64]) -> Iterator[ObservedXp]:
        for block, coefficients, flux, drawn in observe(stars, at, errors, source, band_errors, rng):
            observed[block, :N_XP] = flux
            noise.amplitude[block], noise.model_error[block] = drawn.amplitude, drawn.model_error
            yield coefficients

    files: list[Path] = []
    for number, start in enumerate(range(0, n_stars, recipe.stars_per_file)):
        at = np.arange(start, min(start + recipe.stars_per_file, n_stars))
        bulk = out / "xp" / f"XpContinuousMeanSpectrum_{number:04d}.csv.gz"
        refuse_overwriting(bulk, real)
        files.append(write_bulk(bulk, spectra(at)))
        log.info(f"{files[-1].name}: {len(at)} spectra")
    bands, observed[:, N_XP:] = write_bands(stars, trained.channels, band_errors, noise, rng, out)
    files += [*bands, write_gaia(stars, rng, out), *write_labels(stars, trained.labels, recipe, rng, out)]
    files.append(write_reddening(stars, rng, out))
    truth = _write_truth(stars, trained, observed, noise, out / TRUTH)
    survey = write_text(out / "survey.toml", _survey_toml(trained, {f.name for f in files}))
    log.info(f"wrote {survey}: xpbayes prepare {survey} --out stars/")
    return [survey, truth, *files]


def _write_truth(
    stars: SimulatedStars, model: TrainedModel, observed: NDArray[np.float64], noise: Noise, path: Path
) -> Path:
    """The truth: parameters, noiseless and observed flux (NaN where a band is bad), what is odd, amplitude of noise."""
    values = np.concatenate([stars.parameters[:, :-2], np.exp(stars.parameters[:, -2:])], axis=1)
    kind = pa.list_(pa.float64(), len(model.channels))
    columns: dict[str, Any] = {name: getattr(stars, name) for name in ("source_id", "ra", "dec")}
    columns |= dict(zip((*model.labels, "extinction", "parallax"), values.T, strict=True)) | {"xi": stars.xi}
    columns |= {"flux": fixed_list(stars.flux, kind), "flux_observed": fixed_list(observed, kind)}
    columns |= {name: getattr(stars, name) for name in ("has_bp", "has_rp", "crowded", "binary", "outlier", "g")}
    write_parquet(pa.table(columns | {"amplitude": noise.amplitude}), path)
    return path


def _survey_toml(model: TrainedModel, files: set[str]) -> str:
    tables = {GAIA_FILE: "[gaia]", TWO_MASS_FILE: "[two_mass]", UNWISE_FILE: "[unwise]"}
    tables[REDDENING_FILE] = '[reddening]\nsource = "columns"'
    labels, errors = (", ".join(f'{n} = ["{n}{end}"]' for n in model.labels) for end in ("", "_err"))
    columns = f'snr = ["snrg", "snrr", "snri"]\nlabels = {{ {labels} }}\nerrors = {{ {errors} }}'
    text = [
        "# A simulated survey; the truth is in truth.parquet.",
        f"bands = {json.dumps(model.channels.band_names)}",
        f"label_names = {json.dumps(model.labels)}",
        'select = "all"',
        '\n[xp]\nfiles = ["xp/*.csv.gz"]',
        *(f'\n{table}\nfiles = ["{file}"]' for file, table in tables.items() if file in files),
    ]
    for survey, file in LABEL_FILES.items():
        if file in files:
            text += [f'\n[[labels]]\nsurvey = "{survey}"', f'files = ["{file}"]', f"epoch = {DEFAULT_RELEASE.epoch}"]
            text += ["[labels.columns]", columns]
    return "\n".join(text) + "\n"
