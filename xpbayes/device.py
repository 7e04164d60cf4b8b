"""How JAX compiles and runs here; asked for where a computation begins, never by an import."""

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ONE_THREAD: dict[str, bool | int] = {"xla_cpu_multi_thread_eigen": False}
LEVEL = "xla_backend_optimization_level"
FEW_STARS = 1000
"""Up to so many stars, programs that are ready in a third of the time and four times slower are done sooner."""
ALIGNMENT = 64
"""[bytes]"""

_hasty: ContextVar[bool] = ContextVar("hasty", default=False)
_few_left = [FEW_STARS]
"""Stars that this process still solves with hasty programs."""
_users_level = [False]
"""Whether the user's own XLA_FLAGS say how programs are to be compiled."""


def _frugal() -> dict[str, bool | int]:
    """XLA's options for programs on CPUs: as fast as by default, and ready in half of the time.

    Newer emitters write each of a program's many small loops as a module of its own, which is all that takes so long; the
    flag that has the older ones back is known to jax 0.10 alone, and an unknown flag ends the process.
    """
    older = {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}
    return {LEVEL: 1, "xla_cpu_parallel_codegen_split_count": 1, **older}


@cache
def prepare_device() -> None:
    """Let every program on the CPU run in the thread that calls it, on one core, compiled frugally.

    XLA's pool of threads made our programs hardly faster, and on a machine of two cores it now and then stood still for
    ever inside a loop of matrix products. Many cores are used by many processes instead (`production.engine`). A user's
    own XLA_FLAGS stay.

    JAX reads all settings when it first makes an array or compiles: later they change nothing.
    """
    import jax

    given = os.environ.get("XLA_FLAGS", "")
    _users_level[0] = LEVEL in given
    wanted = ONE_THREAD if _users_level[0] or visible_gpus() else ONE_THREAD | _frugal()
    flags = [f"--{name}={str(value).lower()}" for name, value in wanted.items() if name not in given]
    if flags:
        os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def visible_gpus() -> list[str]:
    """Names of the GPUs that JAX may use, found without starting JAX, which would take their memory."""
    allowed = os.environ.get("JAX_PLATFORMS", "")
    if allowed and not {"cuda", "gpu"} & set(allowed.split(",")):
        return []
    if not any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [v.strip() for v in visible.split(",") if v.strip() not in ("", "-1")]
    return [p.name.removeprefix("nvidia") for p in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that a program on a CPU reads where they are: what begins elsewhere than at a whole 64 bytes it copies."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


# ------------------------------------------------------------------------------------------------------ few or many stars


def program(function: Callable[..., Any], *, static_argnames: str | tuple[str, ...] = ()) -> Callable[..., Any]:
    """`jax.jit` for what works on stars: compiled hastily while there are few (`hasty_programs`), on CPUs.

    Both kinds are the same to rounding.
    """

    @cache
    def compiled(hasty: bool) -> Callable[..., Any]:
        import jax

        options: Any = _frugal() | {LEVEL: 0} if hasty else None
        return jax.jit(function, static_argnames=static_argnames, compiler_options=options)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled(_hasty.get() and not is_traced((args, kwargs)))(*args, **kwargs)

    return call


def is_traced(arguments: Any) -> bool:
    """Called within another program, of which this one then is a part."""
    import jax

    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))


@contextmanager
def hasty_programs(hasty: bool) -> Iterator[None]:
    """Compile programs hastily within, or not; not where a user's XLA_FLAGS say how, nor for accelerators."""
    import jax

    prepare_device()
    before = _hasty.set(hasty and not _users_level[0] and jax.default_backend() == "cpu")
    try:
        yield
    finally:
        _hasty.reset(before)


def is_hasty() -> bool:
    """Whether programs are compiled hastily here: fewer of them are then worth some work for nothing."""
    return _hasty.get()


def suited_programs(n_stars: int, *, slow: bool = False) -> AbstractContextManager[None]:
    """`hasty_programs` while these stars and all that this process has solved before are `FEW_STARS` at most.

    Not where what is done with each of them is slow, and worth fast programs.
    """
    _few_left[0] -= n_stars
    return hasty_programs(_few_left[0] >= 0 and not slow)
