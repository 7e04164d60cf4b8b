"""Who does the work: processes of this machine, one of many batch jobs, or a Dask cluster.

In: a picklable function and the items it is to be called with. Out: the results, as they come. Engines know nothing of
stars: the order in which items are done, where, and how often after a worker died changes nothing that the function
writes, and that is the function's duty. One process drives one device; on CPUs that is one core, because a second
thread makes the solver little faster while a second process doubles the work done.
"""

import contextlib
import ctypes
import importlib.util
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from xpbayes.device import prepare_device, visible_gpus
from xpbayes.errors import InputError, nearest

log = logging.getLogger(__name__)

ENGINES = ("local", "dask")
MEMORY_PER_PROCESS = 1.5e9
"""[bytes] that one process may need on CPUs; measured 1.3e9 with draws."""
LONG_COMPILATION = 0.5
"""[s] from which on a compilation leaves enough behind to be given back."""
LARGE_ARRAY = 2**24
"""[bytes] from which on an array gets pages of its own, which the system has back when it is freed. Left to itself the C
library raises this to 32 MiB, and its heap grows for hours; from 1 MiB on, new pages cost a sixth of all speed."""
M_MMAP_THRESHOLD = -3
"""glibc's number for that setting of mallopt."""
MOST_DEATHS = 5
"""Workers that may die one after the other without anything being finished in between."""
CORES, WATCH_SECONDS = "XPBAYES_CORES", 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")


def parse_shard(text: str) -> tuple[int, int]:
    """Read "i/n": this is job i of n, the first is 0; InputError if it is not of that form."""
    first, _, second = text.partition("/")
    plain = text.isascii() and first.isdecimal() and second.isdecimal() and len(text) < 20  # "²" is a digit, no number
    if not plain or int(first) >= int(second):
        raise InputError(f"--shard {text} is not understood; give i/n with 0 <= i < n, such as 3/16")
    return int(first), int(second)


def check_engine(name: str) -> None:
    """Raise InputError for an unknown engine, or one that is not installed."""
    if name not in ENGINES:
        raise InputError(f"'{name}' is no engine{nearest(name, ENGINES)}; use {' or '.join(ENGINES)}")
    if name == "dask" and importlib.util.find_spec("distributed") is None:
        raise InputError("the engine dask needs dask.distributed; pip install 'xpbayes[dist]'")


# ------------------------------------------------------------------------------------------------------------ devices


def slots(processes: int | None = None) -> list[dict[str, str]]:
    """Environments of worker processes on this machine, each with the device or the cores that it may use.

    Without a number, one a GPU, else one a core as far as memory goes; InputError for fewer than one.
    """
    if processes is not None and processes < 1:
        raise InputError(f"--processes {processes} is not possible; use at least 1")
    cores = _cores()
    gpus = visible_gpus()
    if gpus:
        count = min(processes or len(gpus), len(gpus))
        environments = [{"CUDA_VISIBLE_DEVICES": gpus[i]} for i in range(count)]
    else:
        count = processes or max(1, min(len(cores), int(_available_memory() / MEMORY_PER_PROCESS)))
        environments = [{} for _ in range(count)]
    for i, environment in enumerate(environments):
        mine = cores[i * len(cores) // count : (i + 1) * len(cores) // count] or [cores[i * len(cores) // count]]
        environment[CORES] = ",".join(map(str, mine))
    return environments


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _available_memory() -> float:
    """Memory that can be had without swapping [bytes]; that of the control group if it has less."""
    found = [float("inf")]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(OSError, ValueError):
        found.append(float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found)


def begin_worker(environment: dict[str, str]) -> None:
    """Bind this process to its device and cores. Must run before JAX starts: it counts its threads only once."""
    os.environ.update(environment)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    cores = environment.get(CORES, "")
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a container may forbid it; the work is the same
            os.sched_setaffinity(0, [int(c) for c in cores.split(",")])


# -------------------------------------------------------------------------------------------------- this machine


def run_local(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Call a picklable function with every item, on processes of this machine; a dead worker's item is done again.

    Without a number, `slots` chooses; with one process, this very one does the work. Item and result come in the order
    in which they are finished; InputError is the function's own, or workers die again and again.
    """
    environments = slots(processes)[: max(1, len(items))]
    if len(environments) == 1:
        spare_memory()
        for item in items:
            yield item, work(item)
            give_memory_back()
        return
    left = dict(enumerate(items))
    deaths = 0
    while left:
        before = len(left)
        try:
            for number, result in _pool(work, left, environments):
                item = left.pop(number)
                yield item, result
        except BrokenProcessPool as error:
            deaths = deaths + 1 if len(left) == before else 1
            if deaths >= MOST_DEATHS:
                raise InputError(
                    f"{deaths} worker processes died one after the other (out of memory?); use fewer with --processes, "
                    f"and go on with --resume"
                ) from error
            log.info("a worker process died; what it was doing is done again")


def _pool(
    work: Callable[[Item], Result], items: dict[int, Item], environments: Sequence[dict[str, str]]
) -> Iterator[tuple[int, Result]]:
    """One pool of processes until all is done or a process dies."""
    context = multiprocessing.get_context("spawn")  # a forked JAX deadlocks
    queue, stop = context.Queue(), context.Event()
    for environment in environments:
        queue.put(environment)
    shipped = pickle.dumps(work)
    pool = ProcessPoolExecutor(len(environments), context, _begin_pooled, (queue, stop, os.getpid()))
    waiting: dict[Future[Any], int] = {}
    try:
        # Not `wait`: it takes the locks of all futures one by one, and a signal in between leaves them taken for ever.
        finished: SimpleQueue[Future[Any]] = SimpleQueue()
        for number, item in items.items():
            future = pool.submit(_call, shipped, item)
            waiting[future] = number
            future.add_done_callback(finished.put)
        while waiting:
            future = finished.get()
            yield waiting[future], future.result()
            del waiting[future]
    finally:
        if waiting:  # something went wrong: what the others are doing is lost, and was going to be in vain
            stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        queue.close()
        queue.cancel_join_thread()


def _begin_pooled(queue: Any, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and says what there is to say
    begin_worker(queue.get())

    def watch() -> None:
        """A killed parent cannot end its workers: they must notice."""
        while os.getppid() == parent and not stop.is_set():
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(shipped: bytes, item: Any) -> Any:
    """Call a function that was pickled: what it imports, JAX above all, is imported after the worker was bound."""
    prepare_device()
    work = _unpickled(shipped)
    spare_memory()
    try:
        return work(item)
    finally:
        give_memory_back()


def give_memory_back() -> None:
    """Let the system have what the C library keeps for later: after compilation, half of a worker's memory."""
    with contextlib.suppress(OSError, AttributeError):  # not every system's C library is glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@cache
def spare_memory() -> None:
    """Keep this process small from now on: large arrays leave with their pages, long compilations with what they needed.

    Else the next program's compilation would come on top of the last one's.
    """
    import jax.monitoring

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration") and duration_secs > LONG_COMPILATION:
            give_memory_back()

    jax.monitoring.register_event_duration_secs_listener(heard)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, LARGE_ARRAY)


_unpickled = lru_cache(maxsize=1)(pickle.loads)
"""The same object for the same bytes, so that whatever it keeps between calls is kept."""


# --------------------------------------------------------------------------------------------------------------- Dask


def run_dask(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    scheduler: str | None = None,
    processes: int | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Do as `run_local` on a Dask cluster: a running scheduler's, whose workers must see the same files, or one here.

    InputError also where the scheduler cannot be reached.
    """
    import dask
    from distributed import Client, as_completed
    from distributed.scheduler import KilledWorker

    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": MOST_DEATHS}))
        cluster = stack.enter_context(local_cluster(slots(processes))) if scheduler is None else None
        try:
            client = stack.enter_context(Client(cluster if scheduler is None else scheduler, timeout="30s"))
        except (OSError, ValueError) as error:
            raise InputError(f"{scheduler}: no Dask scheduler answers there ({error}); check the address") from error
        log.info(f"dask: {len(client.scheduler_info()['workers'])} workers at {client.scheduler.address}")
        shipped = pickle.dumps(work)
        tasks = {client.submit(_call_on_dask, shipped, item, pure=False): item for item in items}
        deaths = 0
        waiting = as_completed(tasks)
        for future in waiting:
            item = tasks.pop(future)
            try:
                result = future.result()
            except KilledWorker as error:
                deaths += 1
                if deaths >= MOST_DEATHS:
                    raise InputError(
                        "Dask workers die again and again (out of memory?); use fewer or larger ones, and go on with "
                        "--resume"
                    ) from error
                log.info("Dask gave an item up because its workers died; it is done again")
                again = client.submit(_call_on_dask, shipped, item, pure=False)
                tasks[again] = item
                waiting.add(again)
                continue
            if isinstance(result, InputError):
                raise result
            yield item, result


def local_cluster(environments: Sequence[dict[str, str]]) -> Any:
    """A scheduler here and one worker process per device, each with its own environment and a nanny to restart it."""
    from distributed import Nanny, Scheduler, SpecCluster

    silent = logging.CRITICAL  # a worker that was killed is the engine's business, and it says so
    workers = {
        i: {"cls": Nanny, "options": {"nthreads": 1, "env": environment, "memory_limit": 0, "silence_logs": silent}}
        for i, environment in enumerate(environments)
    }
    here = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}  # two runs at once
    return SpecCluster(workers, {"cls": Scheduler, "options": here}, name="xpbayes", silence_logs=silent)


def _call_on_dask(shipped: bytes, item: Any) -> Any:
    begin_worker({k: v for k, v in os.environ.items() if k == CORES})
    try:
        return _call(shipped, item)
    except InputError as error:  # returned, because Dask would print what a task raises with its whole traceback
        return error
