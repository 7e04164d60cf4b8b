"""What a GPU is worth: accuracy and speed of every stage, on its own, within eight minutes, by one command.

    python benchmarks/gpu.py prepare [--model MODEL] [--stars STARS.parquet]     where all of xpbayes is installed
    python benchmarks/gpu.py [--small] [--minutes 8] [--parts facts,precision]   beside the GPU

`prepare` writes a model and 5,000 real stars with their float64 answers into build/gpu (under 60 MB), to be taken along;
without that folder a model and stars are made up on the spot. Beside the GPU the script needs JAX, NumPyro, equinox, optax,
scikit-learn and safetensors, and no other package of astronomy or of settings. More stars than there are at hand are the
same ones again and again: a star's work does not depend on its neighbours.

Parts, in order of worth: device facts; float32 against float64; starts, solver and Fisher matrices with the stars on the
device; with Laplace's; with draws; epochs of training; NUTS; a profile of the search and of the draws. Each has a time limit
of its own, and one that runs over it, dies or runs out of memory is reported, and the next goes on. What was measured
until then stands. Every figure is one line in words and one in JSON on stdout; all are in $OUT/gpu.json where OUT is set.
On CPUs, --small takes less than three minutes.
"""

import argparse
import gc
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PREPARED = ROOT / "build" / "gpu"
STARS, REFERENCE, MODEL, MODEL_ARRAYS = "stars.safetensors", "float64.safetensors", "model", "model.safetensors"
N_CARRIED, N_COMPARED = 5000, 2000
ABSENT = (
    "astropy",
    "astropy_healpix",
    "gaiaxpy",
    "arviz",
    "polars",
    "pydantic",
    "dust_extinction",
    "fastavro",
    "xarray",
)
"""Packages that are not beside the GPU: importing one fails here too, wherever this runs."""
LIMITS = {
    "facts": 60, "precision": 150, "search": 130, "laplace": 60, "draws": 100, "training": 100, "nuts": 90, "profile": 60
}  # fmt: skip
"""[s] for every part, compilation included, where all have eight minutes; they grow with these."""
STARTING = 60
"""[s] until a process says what it begins with."""
MARGIN = 4.0
"""[s] before its limit a part begins nothing more."""
CLOSE = 0.01
"""In sigma: float32 is as good as float64."""
GIGA = 1e9


class Sizes(NamedTuple):
    """How much is worked on: on a GPU, or on two cores.

    Attributes:
        compared: stars of float32 against float64.
        resident: stars on the device for the search, one run after the other.
        chunks: stars that are solved together, each tried with the first of `resident`.
        laplace, drawn: stars of these parts.
        drawn_chunks: stars whose draws are made together, each tried.
        trained: stars of an epoch, one after the other.
        batches: stars of a training step, each tried with the first of `trained`.
        chains: stars of NUTS.
        matrix: rows of the matrices that are multiplied to see how fast and how exactly.
    """

    compared: int
    resident: tuple[int, ...]
    chunks: tuple[int, ...]
    laplace: int
    drawn: int
    drawn_chunks: tuple[int, ...]
    trained: tuple[int, ...]
    batches: tuple[int, ...]
    chains: int
    matrix: int


LARGE = Sizes(
    2000, (131_072, 1_000_000), (32_768, 131_072), 131_072, 32_768, (2048, 8192), (40_000, 2_000_000), (256, 4096), 256, 8192
)  # fmt: skip
SMALL = Sizes(256, (1024, 2048), (1024,), 1024, 512, (512,), (2048,), (256,), 16, 512)


class Problem(NamedTuple):
    """A trained model, stars as measured, and what float64 says of the first of them.

    Attributes:
        model: the trained model, a `StarModel`.
        stars: as inference may see them, and labels for training.
        reference: by name, arrays over the first stars; empty if there is none.
        origin: in words.
    """

    model: Any
    stars: Any
    reference: dict[str, NDArray[np.float64]]
    origin: str


def settings(**changed: Any) -> Any:
    """Settings of inference, as `config.InferenceConfig` has them, whose package is not beside the GPU."""
    default = {
        "use_parallax": True,
        "n_nodes": 1024,
        "n_starts": 6,
        "max_iterations": 200,
        "n_draws": 512,
        "n_more_draws": 256,
        "chunk_size": None,
        "one_program": True,
    }
    return SimpleNamespace(**default | changed)


# --------------------------------------------------------------------------------------------------------------- data


def prepare(model_folder: str | None, star_table: str | None, folder: Path) -> None:
    """Write the model, real stars and their float64 answers; trains a model on the bundled sample if none is given."""
    import shutil

    from safetensors.numpy import save_file

    import xpbayes

    folder.mkdir(parents=True, exist_ok=True)
    table = xpbayes.read_star_table(star_table) if star_table else xpbayes.bundled_stars()
    if model_folder is None:
        model = xpbayes.train(table, folder / MODEL)
    else:
        shutil.copytree(model_folder, folder / MODEL, dirs_exist_ok=True)
        model = xpbayes.load_model(folder / MODEL)
    save_file(model_arrays(model.star_model), folder / MODEL_ARRAYS)  # the model's own folder is read with pydantic
    table = table.take(np.linspace(0, len(table) - 1, min(len(table), N_CARRIED)).astype(int))
    stars = table.stars(model.labels)
    arrays = {name: np.asarray(value) for name, value in vars(stars).items() if value is not None}
    row, column = np.tril_indices(arrays["flux"].shape[1])
    if np.any(np.triu(arrays["whitening"], 1)):
        sys.exit("whitening factors are not lower triangles any more; they must be packed in another way")
    arrays["whitening"] = arrays["whitening"][:, row, column]
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / STARS)
    stars = stars.take(slice(0, N_COMPARED))
    problem = Problem(model.star_model, stars, {}, "")
    save_file(answers(problem, stars, exact=True), folder / REFERENCE)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {len(table)} stars and a model, {size / 1e6:.1f} MB")


def double(tree: Any) -> Any:
    """The same in float64; call with 64 bits enabled."""
    import jax

    def one(leaf: Any) -> Any:
        array = np.asarray(leaf)
        return array.astype(np.float64) if array.dtype == np.float32 else array

    return jax.tree.map(one, tree)


def model_arrays(model: Any) -> dict[str, np.ndarray]:
    """The arrays of a `StarModel`, by name."""
    arrays = {f"weights.{i}": w for i, w in enumerate(model.forward.weights)}
    arrays |= {f"biases.{i}": b for i, b in enumerate(model.forward.biases)}
    of_forward = ("ln_curve", "label_center", "label_scale", "curve_variation")
    arrays |= {name: value for name in of_forward if (value := getattr(model.forward, name)) is not None}
    for kind, part in (("prior", model.prior), ("error", model.error)):
        if part is not None:
            arrays |= {f"{kind}.{name}": value for name, value in vars(part).items()}
    return {name: np.array(value, order="C") for name, value in arrays.items()}


def model_of(arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `model_arrays`."""
    import jax.numpy as jnp

    from xpbayes.models.forward import ForwardModel
    from xpbayes.models.model_error import ModelError
    from xpbayes.models.prior import LabelPrior
    from xpbayes.models.star_model import StarModel

    def part(kind: str) -> dict[str, Any]:
        return {n.removeprefix(f"{kind}."): jnp.asarray(a) for n, a in arrays.items() if n.startswith(f"{kind}.")}

    layers = range(len(part("weights")))
    forward = ForwardModel(
        weights=tuple(part("weights")[str(i)] for i in layers),
        biases=tuple(part("biases")[str(i)] for i in layers),
        ln_curve=jnp.asarray(arrays["ln_curve"]),
        label_center=jnp.asarray(arrays["label_center"]),
        label_scale=jnp.asarray(arrays["label_scale"]),
        curve_variation=jnp.asarray(arrays["curve_variation"]) if "curve_variation" in arrays else None,
    )
    error = part("error")
    return StarModel(forward, LabelPrior(**part("prior")), ModelError(**error) if error else None)


def load(folder: Path) -> Problem:
    """Read what `prepare` wrote, or make it up."""
    from safetensors.numpy import load_file

    from xpbayes.data.stars import Stars

    if not (folder / STARS).is_file():
        return made_up()
    arrays = load_file(folder / STARS)
    n, n_channels = arrays["flux"].shape
    whitening = np.zeros((n, n_channels, n_channels), np.float32)
    row, column = np.tril_indices(n_channels)
    whitening[:, row, column] = arrays["whitening"]
    model = model_of(load_file(folder / MODEL_ARRAYS))
    reference = load_file(folder / REFERENCE)
    stars = Stars(**arrays | {"whitening": whitening})
    return Problem(model, stars, reference, f"{n} real stars, a trained model")


def made_up(n_stars: int = N_CARRIED, seed: int = 0) -> Problem:
    """A model and stars of realistic size and shape, from laws of thumb: black bodies with lines, and what it predicts."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp

    from xpbayes.models.forward import ForwardModel, initial_model, predict_flux
    from xpbayes.models.star_model import StarModel
    from xpbayes.training.learn import fit_label_prior

    rng = np.random.default_rng(seed)
    wavelength = np.append(np.arange(392.0, 993.0, 10.0), [1235.0, 1662.0, 2159.0, 3352.6, 4602.8])  # nm
    labels = plausible_labels(rng, 20_000)
    curve = 2.8 * (550.0 / wavelength) ** 1.5
    ln_flux = ln_black_body(labels, wavelength) + lines(labels, wavelength, rng)
    model = initial_model(jax.random.key(seed), labels, ln_flux.mean(axis=0), np.log(curve))
    hidden = jnp.asarray((labels - np.asarray(model.label_center)) / np.asarray(model.label_scale), jnp.float32)
    for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
        hidden = jnp.tanh(hidden @ (2.0 * weight) + bias)
    design = np.append(np.asarray(hidden, np.float64), np.ones((len(labels), 1)), axis=1)
    last = np.linalg.lstsq(design, ln_flux, rcond=1e-6)[0]
    model = ForwardModel(
        weights=(*(2.0 * w for w in model.weights[:-1]), jnp.asarray(last[:-1], jnp.float32)),
        biases=(*model.biases[:-1], jnp.asarray(last[-1], jnp.float32)),
        ln_curve=model.ln_curve,
        label_center=model.label_center,
        label_scale=model.label_scale,
    )
    prior = fit_label_prior(labels, 16, seed)
    own = plausible_labels(rng, n_stars)
    extinction, distance = rng.exponential(0.2, n_stars) + 1e-3, np.exp(rng.normal(0.0, 0.7, n_stars))  # mag, kpc
    parameters = np.column_stack([own, np.log(extinction), -np.log(distance)]).astype(np.float32)
    flux = np.asarray(jax.vmap(predict_flux, (None, 0, None))(model, jnp.asarray(parameters), 0.0), np.float64)
    scale = flux.max(axis=1, keepdims=True)
    stars = noisy_stars(flux / scale, np.log(scale[:, 0]), parameters, rng)
    error = made_up_error(model, stars, rng)
    return Problem(StarModel(model, prior, error), replace(stars), {}, f"{n_stars} made-up stars and a made-up model")


def plausible_labels(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """(star, 3) Teff [kK], [Fe/H], log g along the main sequence and the giant branch."""
    giant = rng.random(n) < 0.4
    feh = np.clip(rng.normal(-0.2, 0.35, n), -2.0, 0.5)
    hot = rng.uniform(3500.0, 7500.0, n)
    dwarf = np.where(hot < 5000.0, 4.6, np.maximum(4.6 - 5e-4 * (hot - 5000.0), 3.95))
    logg = rng.uniform(1.0, 3.9, n)
    cool = np.where(logg < 3.65, 5200.0 - 441.86 * (3.65 - logg), 5900.0 - 1400.0 * (4.15 - logg))
    teff = np.where(giant, cool - 250.0 * feh, hot) + rng.normal(0.0, 60.0, n)
    return np.column_stack([teff / 1e3, feh, np.where(giant, logg, dwarf) + rng.normal(0.0, 0.08, n)])


def ln_black_body(labels: NDArray[np.float64], wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """(star, channel) ln of a black body's flux density at 1 kpc [1e-18 W m^-2 nm^-1], of one solar mass."""
    radius2 = 6.674e-11 * 1.989e30 / (10.0 ** labels[:, 2:] * 1e-2) / 3.0857e19**2  # (R / kpc)^2, log g in cgs
    lam = wavelength * 1e-9
    exponent = 1.4388e-2 / (lam * labels[:, :1] * 1e3)
    return np.log(np.pi * 1.191e-16 / lam**5 / np.expm1(exponent) * radius2 * 1e-9 * 1e18)


def lines(
    labels: NDArray[np.float64], wavelength: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(star, channel) depths of thirty lines in ln flux, deeper in cool and metal-rich stars, and with gravity."""
    total = np.zeros((len(labels), len(wavelength)))
    for _ in range(30):
        center, width, by = rng.uniform(390.0, 900.0), rng.uniform(8.0, 30.0), rng.normal(0.0, 1.0, 3)
        depth = 0.06 * np.exp(
            0.5 * by[0] * (5.0 - labels[:, 0]) + 0.8 * abs(by[1]) * labels[:, 1] + 0.3 * by[2] * (labels[:, 2] - 4.0)
        )
        total -= np.minimum(depth, 1.0)[:, None] * np.exp(-0.5 * ((wavelength - center) / width) ** 2)
    return total


def noisy_stars(
    flux: NDArray[np.float64], ln_scale: NDArray[np.float64], parameters: NDArray[np.float32], rng: np.random.Generator
) -> Any:
    """Measure fluxes, labels, reddenings and parallaxes with errors like a survey's."""
    from xpbayes.data.stars import Stars

    n, n_channels = flux.shape
    relative = np.exp(rng.uniform(np.log(0.002), np.log(0.03), (n, 1)))
    covariance = 0.005**2 * flux[:, :, None] * flux[:, None, :]
    covariance[:, np.arange(n_channels), np.arange(n_channels)] += (relative * (0.3 + 0.7 * flux)) ** 2 + (
        0.005 * flux
    ) ** 2
    factor = np.linalg.cholesky(covariance)
    measured = flux + np.einsum("nij,nj->ni", factor, rng.normal(size=flux.shape))
    parallax_error, label_error = np.full(n, 0.05), np.array([0.08, 0.08, 0.1])
    extinction, parallax = np.exp(parameters[:, -2]), np.exp(parameters[:, -1])
    arrays = {
        "flux": measured,
        "whitening": np.linalg.inv(factor),
        "ln_scale": ln_scale,
        "parallax": parallax + parallax_error * rng.normal(size=n),
        "parallax_inv_error": 1.0 / parallax_error,
        "labels": parameters[:, :-2] + label_error * rng.normal(size=(n, 3)),
        "label_inv_error": np.tile(1.0 / label_error, (n, 1)),
        "reddening": extinction + 0.03 * rng.normal(size=n),
        "reddening_inv_error": np.full(n, 1.0 / 0.03),
        "inv_dof": np.zeros(n),
    }
    return Stars(**{name: np.asarray(value, np.float32) for name, value in arrays.items()})


def made_up_error(model: Any, stars: Any, rng: np.random.Generator, n_kinds: int = 16) -> Any:
    """A relative error of 1.5 % with smooth correlations, by kinds of star."""
    import jax
    import jax.numpy as jnp

    from xpbayes.models.model_error import ModelError, raw_features
    from xpbayes.training.model_error import allowed_directions

    n_channels = stars.flux.shape[1]
    channel = np.arange(n_channels)
    shapes = np.stack([np.cos(np.pi * k * (channel + 0.5) / n_channels) for k in (1, 2, 3)], axis=1) / np.sqrt(
        n_channels / 2
    )
    features = np.asarray(jax.vmap(partial(raw_features, jnp.asarray(shapes, jnp.float32)))(stars), np.float64)
    center, scale = features.mean(axis=0), features.std(axis=0)
    allowed = np.asarray(allowed_directions(model.ln_curve), np.float64)
    smooth = np.exp(-np.abs(channel[:, None] - channel[None, :]) / 5.0)
    covariance = 0.015**2 * allowed @ (allowed.T @ smooth @ allowed) @ allowed.T
    picked = rng.choice(len(features), n_kinds, replace=False)
    size = np.exp(rng.normal(0.0, 0.3, n_kinds))
    arrays = {
        "shapes": shapes,
        "feature_center": center,
        "feature_scale": scale,
        "kinds": (features[picked] - center) / scale,
        "width": np.array(1.0),
        "covariance": size[:, None, None] * covariance,
        "inv_dof": np.full(n_kinds, 1.0 / 30.0),
        "share": np.full(n_kinds, 1.0 / n_kinds),
    }
    return ModelError(**{name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()})


def on_device(stars: Any, n: int) -> Any:
    """So many stars in the device's memory: the same ones again and again."""
    import jax
    import jax.numpy as jnp

    rows = jnp.arange(n) % len(stars)
    return jax.block_until_ready(jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], stars))


# -------------------------------------------------------------------------------------------------------------- timing


class Clock:
    """Wall time by stage, and how much of it went into compiling."""

    def __init__(self) -> None:
        import jax.monitoring

        self.stages: Counter[str] = Counter()
        self.compiled, self.programs = 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            self.compiled += duration_secs
            self.programs += 1

    def restart(self) -> None:
        """Forget everything so far."""
        self.stages.clear()
        self.compiled, self.programs = 0.0, 0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time inside to a stage."""
        begun = time.perf_counter()
        yield
        self.stages[stage] += time.perf_counter() - begun

    def shares(self) -> dict[str, float]:
        """Share of every stage in the time of all."""
        total = sum(self.stages.values()) or 1.0
        return {stage: round(seconds / total, 3) for stage, seconds in self.stages.items()}


class Bench(NamedTuple):
    """What a part works with.

    Attributes:
        at: the problem.
        sizes: how much.
        clock: of this process.
        say: receives a line in words and the figures.
        until: gives the time [s] that is left.
    """

    at: Problem
    sizes: Sizes
    clock: Clock
    say: Callable[..., None]
    left: Callable[[], float]


class Stretch(NamedTuple):
    """Chunks of stars that were worked on one after the other.

    Attributes:
        done: stars.
        first: [s] of the first chunk, compilation included.
        rate: stars/s of the others; of the first again where there was only one.
        results: of every chunk.
    """

    done: int
    first: float
    rate: float
    results: list[Any]


def in_chunks(bench: Bench, stars: Any, size: int, work: Callable[[Any], Any], left: float) -> Stretch:
    """Work on stars chunk by chunk, the first one twice, as long as time is left; the clock runs without the first."""
    begun = time.perf_counter()
    work(stars.take(slice(0, size)))
    first = time.perf_counter() - begun
    bench.clock.restart()
    begun, done, results = time.perf_counter(), 0, []
    while done < len(stars) and (not results or time.perf_counter() - begun < left - first):
        # All chunks have one size: the last reaches back.
        start = min(done, max(len(stars) - size, 0))
        results.append(work(stars.take(slice(start, start + size))))
        done += min(size, len(stars))
    return Stretch(done, first, done / (time.perf_counter() - begun), results)


def again(clock: Clock) -> str:
    return f"of it {clock.programs} programs compiled again, {clock.compiled:.1f} s"


def share(condition: Any) -> float:
    return float(np.mean(np.asarray(condition)))


def gigabytes() -> float | None:
    """Most memory of the device that this process has had in use; of the process itself on a CPU."""
    import resource

    import jax

    used = jax.local_devices()[0].memory_stats()
    if used and "peak_bytes_in_use" in used:
        return round(used["peak_bytes_in_use"] / GIGA, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA, 2)


# --------------------------------------------------------------------------------------------------------------- parts


def facts(bench: Bench) -> None:
    """The device, its driver, and how fast and how exactly it multiplies matrices."""
    import platform
    from importlib.metadata import version

    import jax
    import jax.numpy as jnp

    device = jax.local_devices()[0]
    memory = device.memory_stats() or {}
    packages = {
        name: version(name) for name in ("jax", "jaxlib", "numpyro", "equinox", "optax", "numpy", "scikit-learn")
    }
    bench.say(
        f"{len(jax.local_devices())} x {device.device_kind} ({device.platform}), {driver()}; "
        f"{memory.get('bytes_limit', 0) / GIGA:.1f} GB for JAX, {len(os.sched_getaffinity(0))} cores, "
        f"Python {platform.python_version()}, jax {packages['jax']}",
        device=device.device_kind,
        platform=device.platform,
        devices=len(jax.local_devices()),
        driver=driver(),
        memory_limit_gb=memory.get("bytes_limit", 0) / GIGA,
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        packages=packages,
        default_matmul_precision=str(jax.config.jax_default_matmul_precision),
    )
    n = bench.sizes.matrix
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, n)).astype(np.float32) for _ in range(2))
    exact = a[:64].astype(np.float64) @ b.astype(np.float64)
    on = jnp.asarray(a), jnp.asarray(b)
    for precision in ("highest", "default"):
        multiply = jax.jit(partial(jnp.matmul, precision=precision))
        wrong = np.abs(np.asarray(multiply(*on)[:64], np.float64) - exact).max() / np.sqrt(n)
        seconds = repeated(partial(multiply, *on))
        bench.say(
            f"float32 matrix products, precision {precision}: {2e-12 * n**3 / seconds:.2f} TFLOP/s, "
            f"largest error {wrong:.1e}",
            precision=precision,
            tflops=2e-12 * n**3 / seconds,
            largest_error=float(wrong),
        )
    table = jnp.zeros(n * n * 4, jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    seconds = repeated(lambda: add(table))
    bandwidth = 2 * table.nbytes / seconds / GIGA
    down = repeated(lambda: np.array(table + 0.0), 1)
    bench.say(
        f"memory {bandwidth:.0f} GB/s; device to host {table.nbytes / down / GIGA:.1f} GB/s",
        memory_gb_per_s=bandwidth,
        device_to_host_gb_per_s=table.nbytes / down / GIGA,
    )


def driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "no nvidia-smi"


def repeated(work: Callable[[], Any], times: int = 5) -> float:
    """Seconds of one call, the first not counted."""
    import jax

    jax.block_until_ready(work())
    begun = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(work())
    return (time.perf_counter() - begun) / times


def precision(bench: Bench) -> None:
    """float32 on this device against float64: of the machine where the data were prepared, and on this device."""
    at = bench.at
    bench.say(f"worked on are {at.origin}", data=at.origin)
    stars = at.stars.take(slice(0, bench.sizes.compared))
    single = answers(at, stars, exact=False)
    if at.reference:
        compare(bench, "float32 here against float64 of the CPU", single, at.reference)
    exact = answers(at, stars, exact=True)
    compare(bench, "float32 against float64, both here", single, exact)
    if at.reference:
        compare(bench, "float64 here against float64 of the CPU", exact, at.reference)


def answers(at: Problem, stars: Any, *, exact: bool) -> dict[str, NDArray[np.float64]]:
    """What is compared, in float32 or in float64, from the same nodes: drawn in float64 they would be others."""
    import jax

    from xpbayes.inference.errors import laplace_covariance
    from xpbayes.inference.search.starts import make_grid
    from xpbayes.models.theta import to_log

    config, stars = settings(n_draws=0), stars.blind()
    grid = make_grid(at.model.without_error, config.n_nodes)
    with jax.enable_x64(exact):
        if exact:
            model, stars, grid = double((at.model, stars, grid))
            at = at._replace(model=model)
        found = solve_chunk(at, Clock(), grid, config, stars)
        laplace = laplace_covariance(found.hessian, np.asarray(to_log(found.estimate)))
    return {
        "estimate": np.asarray(found.estimate, np.float64),
        "fisher_sigma": np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2)),
        "laplace_sigma": np.sqrt(np.diagonal(laplace, axis1=1, axis2=2)),
        "chi2": np.asarray(found.chi2, np.float64),
    }


def compare(bench: Bench, what: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    figures = agreement(one, other)
    bench.say(
        f"{what}, {figures['stars']} stars: {figures['within_fisher']:.2%} within 1 % of their Fisher sigma, "
        f"{figures['within_laplace']:.2%} of Laplace's, {figures['other_optimum']:.2%} at another optimum; chi^2 differs by "
        f"{figures['chi2_median']:.1e} in the median, {figures['chi2_99']:.1e} at 99 %",
        comparison=what,
        **figures,
    )


def agreement(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How far two answers are apart, over the stars that both have; the other's sigma counts."""
    n = min(len(one["estimate"]), len(other["estimate"]))
    step = np.abs(one["estimate"][:n] - other["estimate"][:n])
    fisher, laplace = (np.max(step / other[f"{name}_sigma"][:n], axis=1) for name in ("fisher", "laplace"))
    chi2 = np.abs(one["chi2"][:n] - other["chi2"][:n])
    return {
        "stars": n,
        "within_fisher": share(fisher < CLOSE),
        "within_laplace": share(laplace < CLOSE),
        "other_optimum": share(laplace > 1.0),
        "chi2_median": float(np.median(chi2)),
        "chi2_99": float(np.quantile(chi2, 0.99)),
        "chi2_largest": float(chi2.max()),
    }


class Solved(NamedTuple):
    """What the search and the Fisher matrices give for a chunk, in the host's memory."""

    estimate: NDArray[np.floating]
    covariance: NDArray[np.float64]
    hessian: NDArray[np.floating]
    chi2: NDArray[np.floating]
    converged: NDArray[np.bool_]
    definite: NDArray[np.bool_]


def solve_chunk(at: Problem, clock: Clock, grid: Any, config: Any, measured: Any) -> Solved:
    """Starts, solver, optima and Fisher matrices of one chunk by the one program of accelerators, on the clock."""
    import jax

    from xpbayes.inference.linear_algebra import are_positive_definite, invert_positive
    from xpbayes.inference.on_device import find
    from xpbayes.models.theta import to_linear

    with clock("the program"):
        found = jax.block_until_ready(find(at.model, grid, measured, config.n_starts, config.max_iterations))
    with clock("to the host"):
        best, there = jax.tree.map(np.asarray, (found.optima.best, found.at))
    with clock("inverses on the host"):
        covariance, definite = invert_positive(there.fisher), are_positive_definite(there.hessian)
    return Solved(
        np.asarray(to_linear(best.theta_log)), covariance, there.hessian, there.chi2, best.converged, definite
    )


def search_part(bench: Bench) -> None:
    """Starts, solver and Fisher matrices with the stars on the device."""
    from xpbayes.inference.search.starts import make_grid

    at, sizes = bench.at, bench.sizes
    config = settings(n_draws=0)
    grid = make_grid(at.model.without_error, config.n_nodes)
    work = partial(solve_chunk, at, bench.clock, grid, config)
    best_size, best_rate = sizes.chunks[0], 0.0
    plan = [(sizes.resident[0], size) for size in sizes.chunks] + [(n, 0) for n in sizes.resident[1:]]
    for number, (n, size) in enumerate(plan):
        if bench.left() < MARGIN:
            return
        size = size or best_size
        measured = on_device(at.stars, n).blind()
        stretch = in_chunks(bench, measured, size, work, bench.left() / (len(plan) - number))
        if stretch.rate > best_rate:
            best_size, best_rate = size, stretch.rate
        say_solved(bench, n, size, stretch)
        del measured


def say_solved(bench: Bench, n: int, size: int, stretch: Stretch) -> None:
    converged = share(np.concatenate([r.converged for r in stretch.results]))
    definite = share(np.concatenate([r.definite for r in stretch.results]))
    figures: dict[str, Any] = {}
    if bench.at.reference:
        reference = {name: value[:size] for name, value in bench.at.reference.items()}
        first = stretch.results[0]
        figures = agreement({"estimate": first.estimate, "chi2": first.chi2}, reference)
    close = f"; {figures['within_laplace']:.2%} within 1 % of sigma of float64" if figures else ""
    clock = bench.clock
    bench.say(
        f"starts, solver and Fisher, {n:,} stars on the device, {size:,} at once: {stretch.rate:,.0f} stars/s over "
        f"{stretch.done:,} ({again(clock)}); first chunk "
        f"{stretch.first:.1f} s; {converged:.2%} converged, Hessian positive for {definite:.2%}{close}; "
        + ", ".join(f"{stage} {part:.0%}" for stage, part in clock.shares().items()),
        resident=n,
        chunk=size,
        done=stretch.done,
        stars_per_s=stretch.rate,
        first_chunk_s=stretch.first,
        compiled_again=clock.programs,
        compiled_again_s=clock.compiled,
        converged=converged,
        positive=definite,
        stages=clock.shares(),
        **{f"reference_{name}": value for name, value in figures.items()},
    )


def infer_part(bench: Bench, n: int, size: int, left: float, **changed: Any) -> tuple[Stretch, Callable[[str], Any]]:
    """All of `infer`, chunk by chunk: what was measured, and a function that gives a column of all stars."""
    from xpbayes.inference.fit import fit_stars

    at = bench.at
    config = settings(chunk_size=size, **changed)
    stretch = in_chunks(bench, on_device(at.stars, n), size, lambda stars: fit_stars(at.model, stars, config), left)
    return stretch, lambda name: np.concatenate([getattr(found, name) for found in stretch.results])


def laplace(bench: Bench) -> None:
    """The whole engine without draws: both covariances."""
    n, size = bench.sizes.laplace, bench.sizes.chunks[0]
    stretch, column = infer_part(bench, n, size, bench.left(), n_draws=0)
    finite = share(np.isfinite(column("laplace")).all(axis=(1, 2)))
    bench.say(
        f"with Laplace covariances, {size:,} at once: {stretch.rate:,.0f} stars/s over {stretch.done:,} "
        f"({again(bench.clock)}); first chunk {stretch.first:.1f} s; "
        f"{share(column('converged')):.2%} converged, {finite:.2%} with a finite covariance",
        chunk=size,
        done=stretch.done,
        stars_per_s=stretch.rate,
        first_chunk_s=stretch.first,
        compiled_again=bench.clock.programs,
        compiled_again_s=bench.clock.compiled,
        converged=share(column("converged")),
        finite=finite,
    )


def draws(bench: Bench) -> None:
    """The whole engine as by default: importance draws in four rounds."""
    sizes = bench.sizes.drawn_chunks
    for number, size in enumerate(sizes):
        if bench.left() < MARGIN:
            return
        stretch, column = infer_part(bench, bench.sizes.drawn, size, bench.left() / (len(sizes) - number))
        trusted, effective = share(column("k_hat") < 0.7), float(np.nanmedian(column("n_effective")))
        bench.say(
            f"with 512 + 4 x 256 draws, {size:,} at once: {stretch.rate:,.0f} stars/s over {stretch.done:,} "
            f"({again(bench.clock)}); first chunk {stretch.first:.1f} s; "
            f"k_hat below 0.7 for {trusted:.2%}, {effective:.0f} effective draws in the median",
            chunk=size,
            done=stretch.done,
            stars_per_s=stretch.rate,
            first_chunk_s=stretch.first,
            compiled_again=bench.clock.programs,
            compiled_again_s=bench.clock.compiled,
            k_hat_below_0_7=trusted,
            n_effective=effective,
        )


def training(bench: Bench) -> None:
    """Epochs of a model phase and of a star phase, from labels as measured."""
    import jax

    from xpbayes.inference.model_error import fold_in_model_error
    from xpbayes.training.learn import initial_theta, run_star_phase
    from xpbayes.training.phases import run_gradient_phase

    at, sizes = bench.at, bench.sizes
    few = on_device(at.stars, len(at.stars))
    begin = initial_theta(few)
    few = fold_in_model_error(at.model, few, begin)
    per_star = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(few.take(slice(0, 1))))
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", np.inf)
    plan = [(sizes.trained[0], batch) for batch in sizes.batches] + [(n, sizes.batches[-1]) for n in sizes.trained[1:]]
    for wanted, batch in plan:
        if bench.left() < MARGIN:
            return
        n = int(min(wanted, 0.9 * limit / per_star - 2 * len(few)))
        stars = on_device(few, n)
        parameters = on_device(begin, n)
        phase = SimpleNamespace(
            update="model", method="adam", epochs=1, learning_rate=1e-4, star_learning_rate=1e-4, schedule="cosine",
            final_rate=0.1, momentum=0.0, gradient_clip=0.0, robust_scale=660.0,
        )  # fmt: skip
        took = []
        for seed in (0, 1):
            begun = time.perf_counter()
            model, _, losses = run_gradient_phase(
                at.model.forward, stars, parameters, phase, batch, jax.random.key(seed)
            )
            jax.block_until_ready(model)
            took.append(time.perf_counter() - begun)
            if bench.left() < took[0]:
                break
        extrapolated = "" if n == wanted else f", extrapolated from {n:,}, more did not fit"
        seconds = took[-1] * wanted / n
        bench.say(
            f"an epoch of {wanted:,} stars in batches of {batch:,}: {seconds:.2f} s{extrapolated} "
            f"({'compiled before' if len(took) > 1 else 'compilation included'}; the first {took[0]:.1f} s), "
            f"{1e6 * took[-1] / (n // batch):.0f} microseconds a step; loss per star {losses[-1]:.1f}",
            stars=wanted,
            worked_on=n,
            batch=batch,
            epoch_s=seconds,
            first_s=took[0],
            compiled_before=len(took) > 1,
            loss=losses[-1],
        )
        del stars, parameters
    if bench.left() < MARGIN:
        return
    n = sizes.trained[0]
    stars, parameters = on_device(few, n), on_device(begin, n)
    took = []
    for _ in range(2):
        begun = time.perf_counter()
        _, converged, _ = run_star_phase(at.model.forward, stars, parameters, SimpleNamespace(epochs=8))
        took.append(time.perf_counter() - begun)
        if bench.left() < took[0]:
            break
    bench.say(
        f"a star phase of {n:,} stars, 8 Newton steps: {took[-1]:.2f} s (the first {took[0]:.1f} s), "
        f"{converged:.2%} converged",
        stars=n,
        star_phase_s=took[-1],
        first_s=took[0],
        converged=converged,
    )


def nuts(bench: Bench) -> None:
    """Chains of NUTS and independent points, four a star, one round."""
    from xpbayes.inference.fit import fit_stars
    from xpbayes.inference.model_error import fold_in_model_error
    from xpbayes.inference.sampling.nuts import Schedule, sample_inferred
    from xpbayes.models.theta import to_log

    at, n = bench.at, bench.sizes.chains
    stars = on_device(at.stars, n).blind()
    found = fit_stars(at.model, stars, settings(n_draws=0, chunk_size=n))
    stars = fold_in_model_error(at.model, stars, to_log(found.estimate))
    schedule = Schedule(4, 150, 500 if n > 16 else 50, 1)

    def run() -> Any:
        seed = np.arange(n, dtype=np.uint32)
        return sample_inferred(at.model, 1024, stars, found.estimate, found.runner_up, seed, schedule)

    begun = time.perf_counter()
    drawn, known = run()
    first = time.perf_counter() - begun
    seconds, warm = first, bench.left() > first
    if warm:
        begun = time.perf_counter()
        drawn, known = run()
        seconds = time.perf_counter() - begun
    rate = schedule.n_chains * int(drawn.n_made.sum()) / 400 / seconds
    bench.say(
        f"NUTS, {n} stars, {schedule.n_chains} chains of {schedule.n_draws}: {rate:.1f} stars/s per 400 draws "
        f"({'compiled before' if warm else 'compilation included'}; the first run {first:.1f} s); R-hat below 1.01 for "
        f"{share(known.r_hat.max(axis=1) < 1.01):.1%}, bulk ESS {np.median(known.ess_bulk.min(axis=1)):.0f} in the median, "
        f"{share(drawn.diverging):.4%} divergent",
        stars=n,
        stars_per_s=rate,
        first_s=first,
        compiled_before=warm,
        settled=share(known.settled),
        r_hat_largest=float(known.r_hat.max()),
        ess_bulk_median=float(np.median(known.ess_bulk.min(axis=1))),
        divergent=share(drawn.diverging),
    )


def profile(bench: Bench) -> None:
    """Where the search's and the draws' time goes: on the device by program and kernel, on the host by function."""
    from xpbayes.inference.fit import fit_stars
    from xpbayes.inference.search.starts import make_grid

    at, sizes = bench.at, bench.sizes
    grid = make_grid(at.model.without_error, 1024)
    solver = settings(n_draws=0)
    size, few = sizes.chunks[0], sizes.drawn_chunks[0]
    measured, drawn = on_device(at.stars, size).blind(), on_device(at.stars, few)
    config = settings(chunk_size=few)
    for name, work in (
        ("search", lambda: solve_chunk(at, bench.clock, grid, solver, measured)),
        ("draws", lambda: fit_stars(at.model, drawn, config)),
    ):
        if bench.left() < MARGIN:
            return
        work()  # compiles
        wall, host = host_functions(work)
        bench.say(
            f"{name}, {size if name == 'search' else few:,} stars, {wall:.2f} s on the host: " + "; ".join(host),
            profiled=name,
            wall_s=wall,
            host=host,
        )
        wall, on_it = device_events(work)
        bench.say(f"{name} on the device, {wall:.2f} s: " + "; ".join(on_it), profiled=name, wall_s=wall, device=on_it)


def host_functions(work: Callable[[], Any], most: int = 12) -> tuple[float, list[str]]:
    """Wall time of a call and its functions by their own time."""
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    begun = time.perf_counter()
    profiler.runcall(work)
    wall = time.perf_counter() - begun
    entries = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    ordered = sorted(entries.items(), key=lambda item: -item[1][2])[:most]
    return wall, [f"{Path(at[0]).name}:{at[2]} {own:.2f} s in {calls}" for at, (_, calls, own, _, _) in ordered]


def device_events(work: Callable[[], Any], most: int = 12) -> tuple[float, list[str]]:
    """Wall time of a call and the device's events, by total time; of XLA's threads where the device is the CPU."""
    import jax
    from jax.profiler import ProfileData

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        wall = time.perf_counter() - begun
        files = list(Path(folder).rglob("*.xplane.pb"))
        if not files:
            return wall, ["no trace was written"]
        planes = list(ProfileData.from_file(str(files[0])).planes)
    chosen = [p for p in planes if "/device:" in p.name and "CUSTOM" not in p.name.upper()]
    chosen = chosen or [p for p in planes if p.name == "/host:CPU"]
    found = []
    for plane in chosen:
        for line in plane.lines:
            if line.name == "python":
                continue
            total: Counter[str] = Counter()
            times: Counter[str] = Counter()
            for event in line.events:
                total[event.name[:60]] += event.duration_ns / 1e9
                times[event.name[:60]] += 1
            busy = sum(total.values())
            if busy > 0.02 * wall:
                top = ", ".join(f"{name} {s:.2f} s in {times[name]}" for name, s in total.most_common(most))
                found.append(f"[{line.name}: {busy:.2f} s] {top}")
    return wall, found or ["no events"]


PARTS: dict[str, Callable[[Bench], None]] = {
    "facts": facts,
    "precision": precision,
    "search": search_part,
    "laplace": laplace,
    "draws": draws,
    "training": training,
    "nuts": nuts,
    "profile": profile,
}


# ----------------------------------------------------------------------------------------- the process that does the work


def limit(part: str, minutes: float) -> float:
    """[s] that a part may take."""
    return LIMITS[part] * minutes / 8.0


class Absent:
    """Makes packages impossible to import that are not beside the GPU."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse them; leave all others to those who come after."""
        if name.split(".", maxsplit=1)[0] in ABSENT:
            raise ImportError(f"{name} is not beside the GPU")


def work(parts: list[str], sizes: Sizes, folder: Path, minutes: float, end: float) -> None:
    """Do parts one after the other; every line of stdout is JSON for the parent."""
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    tell = sys.stdout

    def send(**what: Any) -> None:
        print(json.dumps(what), file=tell, flush=True)

    send(part=parts[0], begins=True)
    import xpbayes.data.stars  # noqa: F401  it sets XLA's flags, which are read once

    clock, at = Clock(), None
    for part in parts:
        send(part=part, begins=True)
        until = min(time.time() + limit(part, minutes), end) - MARGIN

        def say(text: str, part: str = part, **figures: Any) -> None:
            send(part=part, text=text, memory_gb=gigabytes(), **figures)

        try:
            if part != "facts" and at is None:
                at = load(folder)
            PARTS[part](Bench(at, sizes, clock, say, lambda until=until: until - time.time()))  # type: ignore[misc]
        except Exception as error:
            short = f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
            out = "out of memory: " if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError) else ""
            send(part=part, text=f"FAILED, {out}{short}", failed=short, trace=traceback.format_exc()[-2000:])
        send(part=part, ends=True)
        gc.collect()


def supervise(parts: list[str], arguments: argparse.Namespace, end: float) -> list[dict[str, Any]]:
    """Have parts done by another process; begin a new one after each that does not end or dies."""
    results: list[dict[str, Any]] = []

    def keep(entry: dict[str, Any]) -> None:
        results.append(entry)
        print(f"{entry['part']}: {entry['text']}\n{json.dumps(entry)}", flush=True)
        if os.environ.get("OUT"):
            Path(os.environ["OUT"], "gpu.json").write_text(json.dumps(results, indent=1) + "\n")

    left = list(parts)
    while left and time.time() < end - MARGIN:
        command = [sys.executable, __file__, "--worker", "--parts", ",".join(left), "--end", str(end)]
        command += ["--minutes", str(arguments.minutes)]
        command += ["--data", str(arguments.data)] + ["--small"] * arguments.small
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()
        until, begun = min(time.time() + STARTING, end), time.time()
        while True:
            try:
                line = lines.get(timeout=max(until - time.time(), 0.0))
            except queue.Empty:
                process.kill()
                keep(
                    {"part": left[0], "text": f"STOPPED after {time.time() - begun:.0f} s, its limit", "failed": "time"}
                )
                left.pop(0)
                break
            if line is None:
                if process.wait() != 0 or left:
                    keep({"part": left[0], "text": f"DIED with status {process.returncode}", "failed": "died"})
                    left.pop(0)
                break
            entry = json.loads(line)
            if entry.pop("begins", False):
                begun = time.time()
                until = min(begun + limit(entry["part"], arguments.minutes), end)
            elif entry.pop("ends", False):
                left.pop(0)
                until = min(time.time() + STARTING, end)
            else:
                keep(entry)
        process.wait()
    for part in left:
        keep({"part": part, "text": "NOT BEGUN, no time was left", "failed": "time"})
    peaks: dict[str, float] = {}
    for entry in results:
        peaks[entry["part"]] = max(peaks.get(entry["part"], 0.0), entry.get("memory_gb") or 0.0)
    said = ", ".join(f"{part} {peak:.1f}" for part, peak in peaks.items())
    keep({"part": "memory", "text": f"peak until the end of each part [GB]: {said}", "peaks_gb": peaks})
    return results


def pump(stream: Any, lines: "queue.Queue[str | None]") -> None:
    """Lines of JSON into a queue, others to stderr, and None in the end."""
    for line in stream:
        if line.startswith("{"):
            lines.put(line)
        else:
            sys.stderr.write(line)
    lines.put(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["run", "prepare"], default="run")
    parser.add_argument("--small", action="store_true", help="few stars, for CPUs")
    parser.add_argument("--minutes", type=float, default=8.0, help="all parts together")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in this order")
    parser.add_argument("--data", type=Path, default=PREPARED, help="folder that 'prepare' writes")
    parser.add_argument("--model", help="prepare: this model instead of one trained now")
    parser.add_argument("--stars", help="prepare: this star table instead of the bundled sample")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"'{unknown[0]}' is no part; there are {', '.join(PARTS)}")
    if arguments.action == "prepare":
        prepare(arguments.model, arguments.stars, arguments.data)
    elif arguments.worker:
        work(parts, SMALL if arguments.small else LARGE, arguments.data, arguments.minutes, arguments.end)
    else:
        supervise(parts, arguments, time.time() + 60.0 * arguments.minutes - MARGIN)


if __name__ == "__main__":
    main()
