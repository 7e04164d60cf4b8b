"""Engines call a function with every item, whoever dies on the way."""

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from xpbayes.errors import InputError
from xpbayes.production import engine
from xpbayes.production.engine import CORES, check_engine, parse_shard, run_dask, run_local, slots


def square(item: int) -> int:
    return item * item


def which_process(item: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def die_twice(folder: str, item: int) -> int:
    """Kill the process that does item 3, the first two times."""
    for attempt in range(2):
        mark = Path(folder) / f"death-{attempt}"
        if item == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def always_die(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse(item: int) -> int:
    if item == 2:
        raise InputError("item 2: cannot be used; leave it out")
    return item


def my_cores(item: int) -> str:
    return f"{os.environ.get(CORES)} {sorted(os.sched_getaffinity(0))}"


SQUARES = {i: i * i for i in range(6)}


@pytest.mark.parametrize("processes", [1, 2])
def test_every_item_gets_its_result(processes):
    assert dict(run_local(square, range(6), processes)) == SQUARES


def test_the_work_is_spread_over_processes():
    found = {result for _, result in run_local(which_process, range(6), 2)}
    assert len(found) == 2 and os.getpid() not in found


def test_one_process_is_this_one():
    assert {result for _, result in run_local(which_process, range(2), 1)} == {os.getpid()}


def test_a_killed_workers_item_is_done_again(tmp_path, said):
    assert dict(run_local(partial(die_twice, str(tmp_path)), range(6), 2)) == SQUARES
    assert (
        len(list(tmp_path.iterdir())) == 2
        and said
        and set(said) == {"a worker process died; what it was doing is done again"}
    )


def test_workers_that_always_die_are_one_sentence():
    with pytest.raises(InputError, match=r"5 worker processes died one after the other .*--processes"):
        list(run_local(always_die, range(4), 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_users_mistake_comes_through(processes):
    with pytest.raises(InputError, match="item 2: cannot be used"):
        list(run_local(refuse, range(4), processes))


def test_orphans_end_by_themselves():
    """A parent that is killed cannot end its workers."""
    code = (
        "from tests.production.test_engine import which_process\nfrom xpbayes.production.engine import run_local\n"
        "if __name__ == '__main__':\n"
        "    for _, pid in run_local(which_process, range(10_000), 2):\n        print(pid, flush=True)\n"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pids = {int(parent.stdout.readline()) for _ in range(12)}
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
        time.sleep(0.1)
    alive = [pid for pid in pids if Path(f"/proc/{pid}/stat").exists()]
    assert len(pids) == 2 and not alive


class TestSlots:
    def test_cores_are_shared_out(self, monkeypatch):
        monkeypatch.setattr("xpbayes.production.engine.visible_gpus", list)
        monkeypatch.setattr("xpbayes.production.engine._cores", lambda: [0, 1, 2, 3, 4])
        assert [s[CORES] for s in slots(2)] == ["0,1", "2,3,4"]
        assert [s[CORES] for s in slots(7)] == ["0", "0", "1", "2", "2", "3", "4"]

    def test_memory_limits_the_processes(self, monkeypatch):
        monkeypatch.setattr("xpbayes.production.engine.visible_gpus", list)
        monkeypatch.setattr("xpbayes.production.engine._cores", lambda: list(range(64)))
        monkeypatch.setattr("xpbayes.production.engine._available_memory", lambda: 4e9)
        assert len(slots()) == 2
        monkeypatch.setattr("xpbayes.production.engine._available_memory", lambda: 1e8)
        assert len(slots()) == 1

    def test_one_process_a_gpu(self, monkeypatch):
        monkeypatch.setattr("xpbayes.production.engine.visible_gpus", lambda: ["0", "3"])
        assert [s["CUDA_VISIBLE_DEVICES"] for s in slots()] == ["0", "3"]
        assert len(slots(5)) == 2

    def test_no_process_is_refused(self):
        with pytest.raises(InputError, match="at least 1"):
            slots(0)

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no processes to cores")
    def test_workers_are_bound_to_their_cores(self):
        expected = {f"{s[CORES]} {sorted(int(c) for c in s[CORES].split(','))}" for s in slots(2)}
        assert {result for _, result in run_local(my_cores, range(4), 2)} <= expected


class TestDask:
    @pytest.fixture(autouse=True)
    def _distributed(self):
        pytest.importorskip("distributed", reason="the extra dist is not installed")

    @pytest.mark.thorough
    def test_a_worker_killed_twice(self, tmp_path, said):
        found = dict(run_dask(partial(die_twice, str(tmp_path)), range(6), processes=3))
        assert found == SQUARES and len(list(tmp_path.iterdir())) == 2
        assert said[0].startswith("dask: 3 workers")

    def test_a_users_mistake_comes_through_whoever_has_the_dashboards_port(self):
        with socket.socket() as other:
            with contextlib.suppress(OSError):  # taken already, which does as well
                other.bind(("", 8787))
                other.listen()
            with pytest.raises(InputError, match="item 2: cannot be used"):
                list(run_dask(refuse, range(4), processes=1))


def test_a_scheduler_that_is_not_there_is_one_sentence(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="the extra dist is not installed")

    def fail(*_, **__):
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", fail)
    with pytest.raises(InputError, match="no Dask scheduler answers there"):
        list(run_dask(square, range(2), scheduler="tcp://127.0.0.1:9"))


@pytest.mark.parametrize("text", ["3", "3/3", "-1/4", "a/b", "1/", "/2", "", "²/3", "1/³", "٣/4", "1/1" + "0" * 5000])
def test_bad_shards_are_one_sentence(text):
    with pytest.raises(InputError, match="0 <= i < n"):
        parse_shard(text)


def test_shards():
    assert parse_shard("3/16") == (3, 16)


def test_unknown_engine_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'dask'"):
        check_engine("dsk")


def test_an_engine_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"xpbayes\[dist\]"):
        check_engine("dask")


def test_memory_is_given_back_after_long_compilations(monkeypatch):
    """JAX's own event, and the one it names after compiling a program."""
    import jax
    import jax.monitoring

    engine.spare_memory()
    calls, heard = [], []
    monkeypatch.setattr(engine, "give_memory_back", lambda: calls.append(1))
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 60.0)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 0.01)
    assert len(calls) == 1
    jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: heard.append(event))
    jax.jit(lambda x: x * 7 + 3)(1.5).block_until_ready()
    assert any(event.endswith("backend_compile_duration") for event in heard)


def test_large_arrays_leave_with_their_pages():
    """A process of its own; freed arrays of 20 MiB would teach the C library to keep the next one's pages."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    script = """if True:
        from pathlib import Path
        from resource import getpagesize

        import numpy as np

        from xpbayes.production.engine import spare_memory

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize() / 2**20

        spare_memory()
        for _ in range(3):
            before, large, small = resident(), np.ones(20 * 2**17), None
            held, small = resident(), [bytearray(1000) for _ in range(200)]  # above it on a heap: it could not shrink
            del large
            print(held - before, held - resident())
        """
    lines = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    taken, returned = np.array([line.split() for line in lines], float).T
    assert (taken > 19).all()
    assert (returned > 19).all()


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_command_and_workers_with_one_sentence(number, status, word):
    code = (
        "from tests.production.test_engine import which_process\nimport xpbayes.cli\n"
        "from xpbayes.production.engine import run_local\n"
        "def work(arguments):\n"
        "    for _, pid in run_local(which_process, range(10_000), 2):\n        print(pid, flush=True)\n"
        "if __name__ == '__main__':\n    xpbayes.cli.app = work\n    xpbayes.cli.main([])\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        pids = {int(parent.stdout.readline()) for _ in range(12)}
        parent.send_signal(number)
        try:
            _, error = parent.communicate(timeout=60)
        finally:
            parent.kill()  # one that hangs is a failure of this test, not of the whole run
    assert parent.returncode == status
    assert error.strip().splitlines() == [f"xpbayes: {word}; nothing half-written is left under a final name"]
    assert not [pid for pid in pids if Path(f"/proc/{pid}/stat").exists()]
