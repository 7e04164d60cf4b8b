"""Settings of one run: each default once, unknown keys refused. Building one touches no disk, imports nothing heavy."""

import reprlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from xpbayes.errors import InputError, nearest

S = TypeVar("S", bound=BaseModel)
AtLeastOne = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NARROW, WIDE, WIDE_FROM = 32, 64, 10_000
"""Neurons of a hidden layer, and from how many training stars on the wider network is better (benchmarks/RESULTS.md)."""


def _power_of_two(value: int) -> int:
    if value and (value < 16 or value & (value - 1)):
        raise ValueError("draws are balanced in powers of two: 0, 16, 32, 64, ...")
    return value


PowerOfTwo = Annotated[int, Field(ge=0, le=65536), AfterValidator(_power_of_two)]


def _one_per_label(values: tuple[float, ...], n_labels: int) -> tuple[float, ...]:
    """As many values as there are labels; the last repeats."""
    return (*values[:n_labels], *((values[-1],) * (n_labels - len(values))))


class FrozenSettings(BaseModel):
    """A table of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # a misspelt key is never a default


class Phase(FrozenSettings):
    """One training phase: what moves, on which stars, how, for how long. The others stay where they are."""

    update: Literal["model", "stars", "both", "gauge", "weights", "curve_variation", "model_error", "self_cleaning"] = (
        Field(
            description="'model': network and R(lambda) by SVI with an AutoDelta guide; 'stars': every star's parameters; "
            "'both': the model, then the batch's stars, alternating inside each step; 'gauge': both, along what fluxes do "
            "not see, to where labels, parallaxes and reddening estimates want them; 'weights': nothing moves, how much "
            "every star counts from then on; 'curve_variation': how R changes with xi, by expectation-maximisation; "
            "'model_error': covariance of the model's own error, likewise; 'self_cleaning': nothing moves, outliers "
            "are marked"
        )
    )
    move_labels: bool = Field(
        True, description="gauge: labels too, a phase of the model must follow; if not, E by finer kinds of star"
    )
    stars: Literal["all", "high_quality", "survivors"] = Field(
        "all", description="which stars take part: 'high_quality' as in Eq. 15, 'survivors' of the last self-cleaning"
    )
    epochs: AtLeastOne = Field(1, description="passes over the stars (model, both), steps of each star, or iterations")
    optimizer: Literal["adam", "sgd", "newton"] | None = Field(
        None, description="default: adam for the model, newton - the second-order solver - for stars alone"
    )
    momentum: Fraction = Field(0.0, description="of SGD on the model; a star's SGD never has any")
    learning_rate: PositiveFloat = Field(
        1e-3,
        description=f"rate at the start: of the model, if its layers have {NARROW} neurons, and as much less as they have "
        "more, or of stars moved alone",
    )
    star_learning_rate: PositiveFloat = Field(1e-4, description="the stars' rate at the start where both move")
    schedule: Literal["cosine", "steps"] = Field(
        "cosine", description="'cosine': falls to final_rate of the start; 'steps': times step_factor each step_epochs"
    )
    final_rate: Factor = Field(0.05, description="share of the rate left at the end (cosine)")
    step_factor: Factor = Field(0.1, description="what each step multiplies the rate by (steps)")
    step_epochs: AtLeastOne = Field(32, description="epochs between steps of the rate (steps)")
    gradient_clip: NonNegativeFloat = Field(
        0.0, description="longest gradient, of all of the model or of each star site over its batch; 0: any"
    )
    robust_scale: NonNegativeFloat = Field(
        0.0, description="s > 0 replaces chi^2 by s asinh(chi^2/s) for the model (the ZGR23 authors: 660)"
    )
    max_parameter_pull: PositiveFloat = Field(
        4.0, description="self-cleaning drops stars whose labels or parallax moved by more sigma from their values"
    )
    max_flux_pull: NonNegativeFloat = Field(
        4.0, description="and those with a flux residual of more sigma in any channel; 0: any (the paper's rule)"
    )
    max_mean_square: NonNegativeFloat = Field(
        0.0, description="and those whose squared residuals average more; 0: any (the ZGR23 authors' code: 5)"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.optimizer == "newton" and self.update != "stars":
            raise ValueError("optimizer 'newton' is for phases that update stars alone")
        if self.update == "both" and self.optimizer == "adam":
            raise ValueError("optimizer 'adam' would move stars outside of the batch; a phase of both needs 'sgd'")
        return self

    @property
    def method(self) -> str:
        """The optimiser in use."""
        return self.optimizer or {"stars": "newton", "both": "sgd"}.get(self.update, "adam")

    def for_width(self, width: int) -> Self:
        """The same phase with the rate for a model whose widest hidden layer has so many neurons (Yang et al. 2021)."""
        if self.update not in ("model", "both") or width <= NARROW:
            return self
        return self.model_copy(update={"learning_rate": self.learning_rate * NARROW / width})

    def scaled(self, factor: float) -> Self:
        """The same phase with another number of gradient epochs; solver and EM iterations are left alone."""
        if factor == 1 or self.update not in ("model", "stars", "both") or self.method == "newton":
            return self
        shorter = {name: max(1, round(factor * getattr(self, name))) for name in ("epochs", "step_epochs")}
        return self.model_copy(update=shorter)


def _model(epochs: int, rate: float, final: float = 0.1) -> Phase:
    return Phase(update="model", epochs=epochs, learning_rate=rate, final_rate=final, robust_scale=660.0)


_STARS = Phase(update="stars", epochs=8)
_ERROR = (Phase(update="curve_variation", epochs=40), Phase(update="model_error", epochs=10))

_GAUGE = Phase(update="gauge")
_WEIGHTS = Phase(update="weights")

DEFAULT_PHASES = (
    _model(50, 4e-3, final=0.3),
    *(_STARS, _GAUGE),
    _model(30, 3e-3, final=0.5),
    *(_STARS, _WEIGHTS, _GAUGE, *_ERROR),
    _model(30, 3e-3, final=0.5),
    *(_STARS, _WEIGHTS, _GAUGE),
    _model(30, 3e-3, final=0.5),
    *(_STARS, _WEIGHTS, _GAUGE),
    _model(40, 3e-3),
    *(_STARS, _WEIGHTS, _GAUGE, *_ERROR),
    _model(60, 2e-3),
    *(_STARS, _WEIGHTS, _GAUGE),
    _model(120, 2e-3, final=0.005),
    *(_STARS, Phase(update="gauge", move_labels=False), *_ERROR),
)

_SGD: dict[str, Any] = {
    "epochs": 128, "optimizer": "sgd", "schedule": "steps", "step_factor": 0.1, "step_epochs": 32, "gradient_clip": 1000.0
}  # fmt: skip
_SGD_MODEL = _SGD | {"momentum": 0.5, "robust_scale": 660.0}

ZGR23_PHASES = (
    Phase(update="model", stars="high_quality", learning_rate=1e-3, **_SGD_MODEL),
    Phase(update="both", stars="high_quality", learning_rate=1e-5, star_learning_rate=1e-4, **_SGD_MODEL),
    Phase(update="stars", learning_rate=1e-4, **_SGD),
    Phase(update="self_cleaning"),
    Phase(update="both", stars="survivors", learning_rate=1e-7, star_learning_rate=1e-5, **_SGD_MODEL),
    Phase(
        update="stars", optimizer="adam", epochs=4096, learning_rate=1e-2,
        schedule="steps", step_factor=0.5, step_epochs=512,
    ),
)  # fmt: skip
"""ZGR23 Table 1 and Section 3.2, phase by phase. Robust loss and clipping are from the authors' code."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "zgr23": {
        "hidden": (32, 32, 32),
        "phases": ZGR23_PHASES,
        "model_error": False,
        "second_stage": False,
        "batch_size": 512,
        "calibration_fraction": 0.0,
        "ks_over_j": 0.0,
        "w2_over_j": 0.0,
    },
}
"""What a preset changes; settings given beside it win."""


class HighQuality(FrozenSettings):
    """Which stars are of high quality (ZGR23 Eq. 15)."""

    max_label_error: tuple[float, ...] = Field(
        (0.2, 0.2, 0.2), min_length=1, description="errors stay below [kK, dex, dex]; the last repeats"
    )
    min_parallax_over_error: float = Field(10.0, description="parallax over its error exceeds this")
    max_reddening_error: PositiveFloat = Field(0.1, description="the error of E stays below this [mag]")

    def errors_for(self, n_labels: int) -> tuple[float, ...]:
        """Largest label error, one per label."""
        return _one_per_label(self.max_label_error, n_labels)


class RefinementConfig(FrozenSettings):
    """How the second stage is trained, which refines labels by what the forward model's residuals still tell."""

    members: AtLeastOne = Field(4, description="networks, each from its own start, whose answers are mixed")
    hidden: tuple[int, ...] = Field((192, 192, 192), min_length=1, description="neurons per hidden layer of each")
    epochs: AtLeastOne = Field(24, description="passes over the training stars and their copies")
    batch_size: AtLeastOne = Field(512, description="stars per step")
    learning_rate: PositiveFloat = Field(2e-3, description="of AdamW at the start; it falls to 0 as a cosine")
    weight_decay: NonNegativeFloat = Field(0.01, description="of AdamW")
    dropout: Fraction = Field(0.1, description="share of every hidden layer's outputs dropped while training")
    rows: AtLeastOne = Field(
        30_000, description="stars and copies that few stars are brought to; each has one copy at least, at most eight"
    )
    min_stars: int = Field(3000, ge=200, description="fewer training stars get no second stage")
    max_stars: int = Field(200_000, ge=200, description="it learns from so many training stars at most")
    seed: NonNegativeInt = Field(0, description="of networks, copies and batches")

    def copies_for(self, n_stars: int) -> int:
        """Copies of each training star, noisier or redder: the fewer stars, the more."""
        return min(max(1, round(self.rows / n_stars) - 1), 8)


class TrainingConfig(FrozenSettings):
    """How `xpbayes train` learns a model."""

    preset: Literal["default", "zgr23"] = Field("default", description="'zgr23': the paper's own six training phases")
    labels: tuple[str, ...] = Field(("teff", "feh", "logg"), min_length=1, description="label columns, Teff first")
    hidden: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description=f"neurons per hidden layer; by default three layers of {WIDE}, or of {NARROW} where fewer than "
        f"{WIDE_FROM} stars train them",
    )
    validation_fraction: Fraction = Field(0.2, description="share of source_ids held out")
    split_seed: NonNegativeInt = Field(0, description="which split by source_id")
    seed: NonNegativeInt = Field(0, description="of the initial weights and the batches")
    batch_size: AtLeastOne = Field(256, description="stars per step of a model phase")
    teff_max: PositiveFloat | None = Field(None, description="training stars are cooler than this [kK]; any by default")
    min_channels: AtLeastOne | None = Field(
        None, description="channels that a training star has at least; by default bands alone may be missing"
    )
    ks_over_j: Fraction = Field(
        0.40,
        description="R(Ks) / R(J), which fixes the grey part of R where no training star has a measured parallax (0.41: "
        "Cardelli et al. 1989, 0.39: Gordon et al. 2023); 0: free",
    )
    w2_over_j: Fraction | None = Field(
        None,
        description="R(W2) / R(J), which fixes it where stars have measured parallaxes; by default what published laws that "
        "fall off from band to band as R does have (0.116 for a typical one; they scatter by 0.02); 0: free",
    )
    label_error_floor: tuple[float, ...] = Field(
        (0.02, 0.02, 0.02), description="added to label errors in quadrature [kK, dex, dex]; the last repeats"
    )
    prior_components: AtLeastOne = Field(16, description="Gaussians in the label prior")
    model_error: bool = Field(True, description="learn a covariance of the model's own error; false is the paper")
    curve_variation: bool = Field(False, description="learn how the extinction curve varies, and a xi for every star")
    phases: tuple[Phase, ...] = Field(DEFAULT_PHASES, min_length=1, description="alternating phases, in order")
    epochs_scale: PositiveFloat = Field(1.0, description="multiplies the epochs of every gradient phase; for trials")
    high_quality: HighQuality = HighQuality()
    calibration_fraction: float = Field(
        0.15, ge=0, le=0.5, description="share of training source_ids kept aside to calibrate posteriors on; 0: none"
    )
    calibration_stars: NonNegativeInt = Field(
        8000,
        description="so many stars are inferred to calibrate posteriors on, at most: those kept aside and, where these are "
        "fewer, training stars beside them; 0: no calibration",
    )
    second_stage: bool = Field(True, description="learn to refine labels by what residuals tell; false is the paper")
    refinement: RefinementConfig = RefinementConfig()
    stars_in_memory: NonNegativeInt = Field(
        60_000, description="larger training tables are worked on in files beside the model, 35 kB of disk a star"
    )
    held_out_stars: NonNegativeInt = Field(1000, description="held-out stars inferred for the card's accuracy; 0: none")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return PRESETS.get(str(data.get("preset", "default")), {}) | data
        return data

    @property
    def curve_varies(self) -> bool:
        """Whether a phase learns how the extinction curve varies, and stars have a xi."""
        return self.curve_variation and any(phase.update == "curve_variation" for phase in self.phases)

    def hidden_for(self, n_stars: int) -> tuple[int, ...]:
        """Neurons per hidden layer of a model that so many stars train."""
        return self.hidden or (WIDE if n_stars >= WIDE_FROM else NARROW,) * 3

    def floor_for(self, n_labels: int) -> tuple[float, ...]:
        """Label error floor, one per label."""
        return _one_per_label(self.label_error_floor, n_labels)


class InferenceConfig(FrozenSettings):
    """How `xpbayes infer` solves stars."""

    use_parallax: bool = Field(True, description="use the stars' measured parallaxes")
    n_nodes: int = Field(1024, ge=32, description="label nodes of the start search")
    n_starts: int = Field(6, ge=1, le=16, description="starts refined per star")
    max_iterations: int = Field(200, ge=10, description="solver iterations at most; few stars need more than ten")
    n_draws: PowerOfTwo = Field(512, description="importance draws per star, a power of two; 0: no means and quantiles")
    n_more_draws: PowerOfTwo = Field(
        256,
        description="four times as many more where the first do not suffice (k_hat of 0.2 or more), in three rounds that "
        "follow the posterior's arms, a power of two; 0 for none",
    )
    refine: bool = Field(
        False, description="sample stars with NUTS whose importance draws cannot be trusted or whose optima compete"
    )
    doubt_parallax: bool = Field(
        True,
        description="take parallaxes for spurious, with far larger errors, as fidelity_v2, RUWE and fluxes make it likely",
    )
    calibrate: bool = Field(True, description="use the calibration on stars kept aside, if the model has one")
    second_stage: bool = Field(True, description="refine the labels, if the model has a second stage")
    model_uncertainty: bool = Field(
        False, description="add what training leaves unknown of the model to errors; 'xpbayes uncertainty' first"
    )
    binaries: bool | Literal["suspicious"] = Field(
        False, description="compare stars with unresolved pairs of stars; 'suspicious': those whose single fit is"
    )
    chunk_size: AtLeastOne | None = Field(
        None, description="stars solved together on each device; on CPUs 2048, else what memory takes, if not given"
    )
    one_program: bool | None = Field(
        None, description="search for optima in one program, without the host; on accelerators alone, if not given"
    )

    @model_validator(mode="after")
    def _has_what_it_refines(self) -> Self:
        if self.refine and not self.n_draws:
            raise ValueError("refine climbs from importance draws; n_draws must not be 0")
        return self


class SamplingConfig(FrozenSettings):
    """How `xpbayes sample` draws from posteriors."""

    chains: int = Field(4, ge=2, description="chains per star; the first two begin at the star's optima")
    draws: int = Field(500, ge=100, multiple_of=50, description="draws kept per chain")
    warmup: int = Field(
        150,
        ge=150,
        multiple_of=50,
        description="draws per chain that adapt step size and jumps; a fifth have a NUTS step",
    )
    max_rounds: AtLeastOne = Field(
        8, description="a star that has not settled begins again, up to so many times, for longer"
    )


class ConfidenceConfig(FrozenSettings):
    """How `xpbayes confidence` trains; the defaults are Appendix B's, the batch as far as the sample allows."""

    seed: NonNegativeInt = Field(0, description="of the initial weights, the batches and the dropout")
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="share of the label stars held out, by source_id")
    batch_size: AtLeastOne = Field(4096, description="stars per step")
    min_batches: AtLeastOne = Field(64, description="batches per epoch at least: smaller samples get smaller batches")
    learning_rate: PositiveFloat = Field(1e-3, description="Adam's rate at the start")
    l2: NonNegativeFloat = Field(1e-3, description="penalty on the squared weights of the hidden layers")
    plateau: AtLeastOne = Field(
        256, description="epochs without a lower validation loss before the rate is divided by 10"
    )
    patience: AtLeastOne = Field(1024, description="epochs without a lower validation loss before training stops")
    full_sample: AtLeastOne = Field(
        65_536, description="below so many stars, plateau and patience shrink in proportion, to 1/16 at least"
    )
    max_epochs: AtLeastOne = Field(20_000, description="stop here in any case")
    balance: Share = Field(
        0.0, description="0: stars weigh the same; 1: good and bad together; the shift of odds is undone"
    )

    def schedule_for(self, n_stars: int) -> tuple[int, int]:
        """Plateau and patience [epochs] for a sample: a small one is overfitted long before Appendix B's 256 epochs."""
        share = min(1.0, max(n_stars / self.full_sample, 1 / 16))
        return max(1, round(share * self.plateau)), max(1, round(share * self.patience))


class Recipe(FrozenSettings):
    """How realistic the survey of `xpbayes simulate` is: the shares of everything that can be odd about a star.

    Beyond these shares every star has the noise that the model's likelihood assumes: a Student t, that is stated errors
    and model error times one amplitude a star, recorded in the truth, of at most 10.
    """

    seed: NonNegativeInt = Field(0, description="of all random numbers")
    like: Path | None = Field(
        None,
        description="real continuous spectra with correlations, whose error profiles and correlations are used, scaled "
        "to each star's brightness; none: profiles of the median DR3 source, made-up correlations",
    )
    missing_band: Share = Field(0.0, description="share of 2MASS and unWISE measurements absent or of poor quality")
    missing_side: Share = Field(0.0, description="share of stars without BP (half of them) or RP")
    crowded: Share = Field(
        0.0, description="share of stars with a neighbour: norm_dg above both limits, and bands that hold its light too"
    )
    binaries: Share = Field(0.0, description="share of stars with an unresolved companion from the same prior")
    outliers: Share = Field(0.0, description="share of stars with a stretch of ten samples that is wrong by 30 %")
    labelled: Share = Field(1.0, description="share of stars with labels")
    stars_per_file: AtLeastOne = Field(5000, description="rows per bulk file")


class DustMapConfig(FrozenSettings):
    """How `xpbayes dustmap` makes a map: the stars, pixels, distance bins and mean; defaults are ZGR23 Section 5.4's."""

    method: Literal["bins", "joint"] = Field(
        "bins",
        description="'bins': the paper's inverse-variance mean of the stars whose 1/parallax falls in a bin; 'joint': "
        "every star is shared between bins by its full (E, parallax) covariance",
    )
    remove_prior: bool = Field(
        True,
        description="undo the pull of the flat priors on E and parallax on the mode (+1 sigma for a dust-free star); "
        "false: the catalogue's values as they are, which is what the paper averaged",
    )
    nsides: tuple[int, ...] = Field((256, 128, 64), description="HEALPix resolutions, finest first")
    min_stars: int = Field(10, ge=2, description="stars that a pixel needs at a resolution")
    sky_edges: tuple[float, ...] = Field(
        (0.0, 0.5, 1.0, 2.0, 5.0), description="distance bins of the sky maps [kpc]; the paper does not print its four"
    )
    profile_bins: int = Field(40, ge=2, description="sinh-spaced bins of the profile and the bird's-eye view")
    profile_reach: PositiveFloat = Field(5.0, description="far end of the last of them [kpc]")
    max_reduced_chi2: PositiveFloat = Field(5.0, description="greatest chi2_opt / dof")
    max_extinction: PositiveFloat = Field(10.0, description="greatest E [mag]")
    max_extinction_error: PositiveFloat = Field(0.04, description="greatest error of E [mag]")
    sky_max_parallax_error: PositiveFloat = Field(0.1, description="greatest sigma_plx / plx for the sky maps")
    profile_max_parallax_error: PositiveFloat = Field(0.33, description="the same for the profile and bird's-eye view")
    max_height: PositiveFloat = Field(0.4, description="the bird's-eye view integrates |z| up to this [kpc]")
    curve: bool = Field(False, description="map xi and R(V) of the extinction curve, too")
    max_curve_error: PositiveFloat = Field(
        0.3, description="greatest error of a voxel's xi by its stars' own: above it, a coarser resolution or none"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.nsides or any(n < 1 or n & (n - 1) for n in self.nsides):
            raise ValueError("nsides must be powers of two")
        if list(self.nsides) != sorted(set(self.nsides), reverse=True) or self.nsides[0] > 4096:
            raise ValueError("nsides must fall from the finest, at most 4096, to the coarsest")
        edges = self.sky_edges
        if len(edges) < 2 or edges[0] < 0 or any(b <= a for a, b in zip(edges, edges[1:], strict=False)):
            raise ValueError("sky_edges must rise from a distance of 0 or more")
        return self


class Settings(FrozenSettings):
    """A whole run, as a TOML file: tables [training], [inference] and [sampling]."""

    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    sampling: SamplingConfig = SamplingConfig()

    @classmethod
    def read(cls, path: str | Path | None, **overrides: dict[str, Any]) -> Self:
        """Read a TOML file, if any, and put command-line values on top, by table; None means not given.

        Raises:
            InputError: no such file, not TOML, an unknown key, a value out of range.
        """
        data: dict[str, Any] = {} if path is None else read_toml(path)
        for table, values in overrides.items():
            given = {k: v for k, v in values.items() if v is not None}
            if given:
                section = data.get(table, {})
                data[table] = {**section, **given} if isinstance(section, dict) else section
        return parse_settings(cls, data, str(path) if path is not None else "settings")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file, UTF-8 wherever it is read; InputError if there is none, or it is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except RecursionError as error:
        raise InputError(f"{path}: is not valid TOML (its brackets are nested too deeply)") from error
    except ValueError as error:  # of TOML, of its encoding, or a number of thousands of digits
        raise InputError(f"{path}: is not valid TOML ({str(error).splitlines()[0]})") from error


def parse_settings(kind: type[S], data: dict[str, Any], where: str) -> S:
    """Validate settings; InputError names the first bad key and, for an unknown one, the nearest known one."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = " ".join(".".join(str(part) for part in first["loc"][:8]).split())
        if first["type"] == "extra_forbidden":
            known = _fields_at(kind, first["loc"][:-1])
            text = f"unknown setting '{at}'{nearest(str(first['loc'][-1]), known)}; known are {', '.join(known)}"
        elif first["type"] == "missing":
            text = f"setting '{at}' is missing"
        elif first["type"] == "value_error":  # settings that do not fit together: the sentence names them
            text = (f"setting '{at}': " if at else "") + first["msg"].removeprefix("Value error, ")
        else:
            text = f"setting '{at}' is {reprlib.repr(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"
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
