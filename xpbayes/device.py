"""How JAX runs here; asked for where a computation begins, never by an import."""

import os
from functools import cache

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


@cache
def prepare_device() -> None:
    """Let every program on the CPU run in the thread that calls it, and on one core; a user's own XLA_FLAGS stay.

    XLA's pool of threads made our programs hardly faster, and on a machine of two cores it now and then stood still for
    ever inside a loop of matrix products. Many cores are used by many processes instead (`production.engine`).

    JAX reads both settings when it first makes an array or compiles: later they change nothing.
    """
    import jax

    if ONE_THREAD.split("=", maxsplit=1)[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
