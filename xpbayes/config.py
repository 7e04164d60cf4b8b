"""Settings of one run: each default once, unknown keys refused. Building one touches no disk, imports nothing heavy."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xpbayes.errors import InputError, nearest

S = TypeVar("S", bound=BaseModel)


class FrozenSettings(BaseModel):
    """A table of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")  # a misspelt key is an error, never a default


class Phase(FrozenSettings):
    """One training phase: what moves, how, for how long. The others stay where they are."""

    update: Literal["model", "stars", "model_error"] = Field(
        description="'model': network and R(lambda) by SVI with an AutoDelta guide; 'stars': every star's parameters by "
        "the second-order solver; 'model_error': covariance of the model's own error by expectation-maximisation"
    )
    epochs: int = Field(1, ge=1, description="passes over the stars (model), or iterations (stars, model_error)")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's rate at the start of a model phase")
    final_rate: float = Field(0.05, gt=0, le=1, description="share of the rate left at the end (cosine decay)")
    robust_scale: float = Field(
        0.0, ge=0, description="s > 0 replaces chi^2 by s asinh(chi^2/s) in a model phase (the ZGR23 authors: 660)"
    )


def _model(epochs: int, rate: float, final: float = 0.1) -> Phase:
    return Phase(update="model", epochs=epochs, learning_rate=rate, final_rate=final, robust_scale=660.0)


_STARS = Phase(update="stars", epochs=8)
_ERROR = Phase(update="model_error", epochs=20)

DEFAULT_PHASES = (
    _model(50, 4e-3),
    _STARS,
    _model(40, 3e-3),
    _STARS,
    _ERROR,
    _model(60, 2e-3),
    _STARS,
    _ERROR,
    _model(90, 2e-3, final=0.005),
    _STARS,
    _ERROR,
)


class TrainingConfig(FrozenSettings):
    """How `xpbayes train` learns a model."""

    labels: tuple[str, ...] = Field(("teff", "feh", "logg"), min_length=1, description="label columns, Teff first")
    hidden: tuple[int, ...] = Field((32, 32, 32), min_length=1, description="neurons per hidden layer")
    validation_fraction: float = Field(0.2, ge=0, lt=1, description="share of source_ids held out")
    split_seed: int = Field(0, ge=0, description="which split by source_id")
    seed: int = Field(0, ge=0, description="of the initial weights and the batches")
    batch_size: int = Field(256, ge=1, description="stars per step of a model phase")
    teff_max: float = Field(8.5, gt=0, description="training stars are cooler than this [kK]")
    label_error_floor: tuple[float, ...] = Field(
        (0.02, 0.02, 0.02), description="added to label errors in quadrature [kK, dex, dex]; the last repeats"
    )
    prior_components: int = Field(16, ge=1, description="Gaussians in the label prior")
    model_error: bool = Field(True, description="learn a covariance of the model's own error; false is the paper")
    phases: tuple[Phase, ...] = Field(DEFAULT_PHASES, min_length=1, description="alternating phases, in order")

    def floor_for(self, n_labels: int) -> tuple[float, ...]:
        """Label error floor, one per label."""
        floor = self.label_error_floor
        return (*floor[:n_labels], *((floor[-1],) * (n_labels - len(floor))))


class InferenceConfig(FrozenSettings):
    """How `xpbayes infer` solves stars."""

    use_parallax: bool = Field(True, description="use the stars' measured parallaxes")
    n_nodes: int = Field(1024, ge=32, description="label nodes of the start search")
    n_starts: int = Field(3, ge=1, le=16, description="starts refined per star")
    max_iterations: int = Field(25, ge=1, description="solver iterations in the first pass")
    max_iterations_second: int = Field(200, ge=1, description="and in the second, for stars that did not converge")
    chunk_size: int = Field(2048, ge=1, description="stars solved together")


class Settings(FrozenSettings):
    """A whole run, as a TOML file: tables [training] and [inference]."""

    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()

    @classmethod
    def read(cls, path: str | Path | None, **overrides: dict[str, Any]) -> Self:
        """Read a TOML file and put command-line values on top.

        Args:
            path: the file, or None for defaults.
            overrides: per table, the values that were given as flags; None means not given.

        Raises:
            InputError: no such file, not TOML, an unknown key, a value out of range.
        """
        data: dict[str, Any] = {}
        if path is not None:
            try:
                data = tomllib.loads(Path(path).read_text())
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
            except tomllib.TOMLDecodeError as error:
                raise InputError(f"{path}: is not valid TOML ({error})") from error
        for table, values in overrides.items():
            given = {k: v for k, v in values.items() if v is not None}
            if given:
                section = data.get(table, {})
                data[table] = {**section, **given} if isinstance(section, dict) else section
        return parse_settings(cls, data, str(path) if path is not None else "settings")


def parse_settings(kind: type[S], data: dict[str, Any], where: str) -> S:
    """Validate settings; InputError names the first bad key and, for an unknown one, the nearest known one."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields_at(kind, first["loc"][:-1])
            text = f"unknown setting '{at}'{nearest(str(first['loc'][-1]), known)}; known are {', '.join(known)}"
        else:
            text = f"setting '{at}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{where}: {text}{more}") from error


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the settings that the table at a location knows."""
    for part in location:
        if isinstance(part, int) or part not in kind.model_fields:
            continue  # an index into a list of tables: its kind was found with the list's name
        annotation = kind.model_fields[part].annotation
        for candidate in (annotation, *get_args(annotation)):  # the table itself, or the element of a tuple of tables
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                kind = candidate
                break
    return list(kind.model_fields)
