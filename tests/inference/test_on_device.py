"""The search as one program against the search round by round, on one device and on two."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.conftest import QUICK
from xpbayes.inference import on_device
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.on_device import in_turns, packed, stars_that_fit, unpacked

WORK = """
import sys
import jax, numpy as np
from xpbayes.config import InferenceConfig
from xpbayes.data.spectra_file import read_star_table
from xpbayes.inference import on_device
from xpbayes.inference.fit import fit_stars
from xpbayes.production.model_file import load_model
model, stars = load_model(sys.argv[1]), read_star_table(sys.argv[2])
stars = stars.take(np.arange(60)).stars(model.labels, doubt_parallax=True)
config = InferenceConfig.model_validate_json(sys.argv[3])
devices = jax.local_devices()
assert len(devices) == 2
for name, n in (("one", 1), ("two", 2)):
    on_device.devices_to_use = lambda n=n: devices[:n]
    found = fit_stars(model.star_model, stars, config)
    np.savez(f"{sys.argv[4]}/{name}.npz", **{k: v for k, v in vars(found).items() if v is not None})
"""


@pytest.fixture(scope="module")
def answers(trained, sample, model_folder, star_file, tmp_path_factory):
    """Of the same stars: round by round; by one program on one device, and on two, each of which compiles its own."""
    folder = tmp_path_factory.mktemp("answers")
    config = QUICK.model_copy(update={"chunk_size": 16, "use_parallax": True, "one_program": True})
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    # As many threads as devices: XLA on CPUs waits for ever where several programs share fewer.
    environment = os.environ | {"XLA_FLAGS": flags, "NPROC": "8"}
    command = [sys.executable, "-c", WORK, model_folder, star_file, config.model_dump_json(), folder]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    stars = sample.take(np.arange(60)).stars(trained.labels, doubt_parallax=True)
    host = fit_stars(trained.star_model, stars, QUICK.model_copy(update={"use_parallax": True, "one_program": False}))
    return {"host": vars(host), **{name: np.load(folder / f"{name}.npz") for name in ("one", "two")}}


@pytest.mark.thorough
def test_one_program_finds_what_rounds_find(answers):
    host, one = answers["host"], answers["one"]
    done = host["converged"] & one["converged"]
    assert done.mean() > 0.95 and (host["converged"] == one["converged"]).mean() > 0.95
    for errors in ("covariance", "laplace"):
        sigma = np.sqrt(np.diagonal(host[errors], axis1=1, axis2=2))
        assert np.all((np.abs(one["estimate"] - host["estimate"]) / sigma)[done] < 0.01)
        change = np.abs(np.sqrt(np.diagonal(one[errors], axis1=1, axis2=2)) / sigma - 1.0).max(axis=1)[done]
        assert np.quantile(change, 0.95) < 0.01
        # Rounding leaves the least eigenvalue of a float32 Hessian uncertain by eps / 2 of the largest, and sigma by half.
        rounding = 0.25 * np.finfo(np.float32).eps * np.linalg.cond(host[errors][done].astype(float))
        assert np.all(change < np.maximum(0.01, rounding))
    assert (one["n_modes"] == host["n_modes"])[done].mean() > 0.95


@pytest.mark.thorough
def test_draws_of_one_program_say_the_same(answers):
    """The same draws, from terms that differ by rounding."""
    host, one = answers["host"], answers["one"]
    steady = host["converged"] & one["converged"] & (host["n_modes"] == one["n_modes"]) & (host["k_hat"] < 0.5)
    assert steady.mean() > 0.3
    assert np.quantile((np.abs(one["median"] - host["median"]) / host["std"])[steady], 0.95) < 0.05


@pytest.mark.thorough
def test_two_devices_give_the_same_bytes_as_one(answers):
    for name, value in answers["one"].items():
        assert value.tobytes() == answers["two"][name].tobytes(), name


def test_triangles_are_the_whole_of_a_whitening_factor(sample, trained):
    stars = jax.tree.map(jnp.asarray, sample.take(np.arange(3)).stars(trained.labels))
    again = unpacked(packed(stars))
    assert_array_equal(again.whitening, stars.whitening)
    assert_array_equal(again.flux, stars.flux)


@pytest.mark.parametrize("n_pending", [0, 1, 3, 4, 9, 10])
def test_every_pending_row_has_one_turn(n_pending):
    pending = jnp.asarray(np.random.default_rng(0).permutation(10) < n_pending)
    done, left = in_turns(pending, 4, lambda rows, counts: counts.at[rows].add(1, mode="drop"), jnp.zeros(10, int))
    assert_array_equal(done, np.asarray(pending).astype(int))
    assert not left.any()


def test_chunks_are_cut_by_the_device_s_memory(monkeypatch):
    class Device:
        def __init__(self, memory):
            self.memory_stats = lambda: memory

    for memory, expected in ((None, 512), ({}, 512), ({"bytes_limit": 1e9}, 256), ({"bytes_limit": 1e15}, 4096)):
        monkeypatch.setattr(on_device, "devices_to_use", lambda memory=memory: [Device(memory)])
        assert stars_that_fit(1e6, 4096, 512) == expected
