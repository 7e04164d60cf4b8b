"""Files of draws: what ArviZ makes of them, and the likelihood channel by channel."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.analysis.posterior_file import (
    import_arviz,
    posterior_groups,
    read_posterior,
    to_arviz,
    write_posterior,
)
from xpbayes.checks.prior_predictive import channel_ln_likelihood, predict_draws
from xpbayes.errors import InputError
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.sampling.convergence import diagnose
from xpbayes.inference.sampling.nuts import Draws
from xpbayes.models.likelihood import half_log_det_precision
from xpbayes.models.posterior import WhitenedStudent

RNG = np.random.default_rng(0)
N_STARS, N_CHAINS, N_DRAWS = 3, 4, 50


@pytest.mark.parametrize("inv_dof", [0.0, 0.3])
def test_channels_multiply_to_the_joint_density(inv_dof):
    """The product over channels is the multivariate density, missing channels left out; Student and Gaussian."""
    n = 9
    whitening = np.tril(RNG.normal(size=(n, n))) + 3 * np.eye(n)
    whitening[:, 4], whitening[4] = 0, 0
    flux, predicted = RNG.normal(size=(2, n))
    whitening, flux, predicted = (jnp.asarray(v, jnp.float32) for v in (whitening, flux, predicted))
    joint = WhitenedStudent(predicted, whitening, inv_dof).log_prob(flux)
    each = channel_ln_likelihood(whitening @ (predicted - flux), whitening, jnp.asarray(inv_dof))
    assert each[4] == 0
    assert_allclose(jnp.sum(each) + half_log_det_precision(whitening), joint, rtol=2e-5)


@pytest.fixture(scope="module")
def groups(trained, sample):
    """Draws that scatter about three stars' labels: a file needs no chain."""
    table = sample.take(np.arange(N_STARS))
    stars = fold_in_model_error(
        trained.star_model, jax.tree.map(jnp.asarray, table.stars(trained.labels).blind(parallax=False))
    )
    center = np.column_stack([table.labels(trained.labels)[0], np.full(N_STARS, 0.1), np.ones(N_STARS)])
    noise = RNG.normal(size=(N_STARS, N_CHAINS, N_DRAWS, 5)) * 0.02
    shape = noise.shape[:3]
    draws = Draws(
        theta=(center[:, None, None] + noise).astype(np.float32),
        ln_posterior=np.zeros(shape, np.float32),
        diverging=np.zeros(shape, bool),
        accept_prob=np.ones(shape, np.float32),
        n_steps=np.full(shape, 3, np.int32),
        jumped=np.ones(shape, bool),
        step_size=np.ones(shape[:2], np.float32),
        n_transitions=np.full(N_STARS, N_DRAWS, np.int32),
        n_made=np.full(N_STARS, N_DRAWS, np.int32),
        k_hat=np.zeros(N_STARS, np.float32),
    )
    found = diagnose(draws.theta, draws.diverging)
    seeds = np.arange(N_STARS, dtype=np.uint32)
    made = posterior_groups(trained, table.source_id, stars, draws, found, seeds, {"model": "a test"}, True)
    return made, draws, stars, table


def test_a_file_comes_back_as_it_was(groups, tmp_path):
    made, draws, _, table = groups
    data = read_posterior(write_posterior(made, tmp_path / "posterior.nc"))
    posterior = data["posterior"]
    assert_array_equal(posterior["teff"], np.moveaxis(draws.theta[..., 0], 0, 2))
    assert_array_equal(posterior["source_id"], table.source_id)
    assert posterior["teff"].attrs["units"] == "kK" and posterior["parallax"].attrs["units"] == "mas"
    assert posterior.attrs["model"] == "a test"
    assert list(tmp_path.iterdir()) == [tmp_path / "posterior.nc"]


def test_arviz_can_work_with_it(groups):
    data = to_arviz(groups[0])
    table = import_arviz().summary(data)
    assert len(table) == 5 * N_STARS
    assert_allclose(table.filter(like="extinction", axis=0)["mean"].astype(float), 0.1, atol=0.02)


ANOTHER_PROCESS_IS_QUICKER = """
import pathlib, sys
own_replace, others = pathlib.Path.replace, 2

def replace(self, target):
    global others
    if self.name.endswith(".tmp") and others:
        others -= 1
        own_replace(self, target)  # as another process with the same temporary name would
        if others:
            pathlib.Path(target).write_text("")  # and a third one has begun to write
    return own_replace(self, target)

pathlib.Path.replace = replace
if sys.argv[1] == "plain":
    import arviz
else:
    from xpbayes.analysis.posterior_file import import_arviz
    arviz = import_arviz()
print(arviz.__version__, others)
"""


def test_arviz_can_be_imported_by_many_processes_at_once(tmp_path):
    def run(how: str, cache: str) -> subprocess.CompletedProcess:
        own = {"HOME": str(tmp_path / cache), "XDG_CACHE_HOME": str(tmp_path / cache)}
        env = {**os.environ, **own, "MPLCONFIGDIR": matplotlib.get_cachedir()}
        return subprocess.run(
            [sys.executable, "-c", ANOTHER_PROCESS_IS_QUICKER, how],
            check=False, capture_output=True, text=True, env=env,
        )  # fmt: skip

    plain = run("plain", "a")
    if plain.returncode == 0 and plain.stdout.endswith(" 2\n"):
        pytest.skip("this ArviZ writes no file when imported")
    assert "FileNotFoundError" in plain.stderr
    ours = run("ours", "b")
    assert ours.returncode == 0 and "Warning" not in ours.stderr, ours.stderr
    assert ours.stdout.endswith(" 0\n")


def test_predicted_spectra_have_the_flux_and_the_noise_of_the_likelihood(trained, groups):
    """Whitened residuals of predicted spectra about the star's own prediction have mean 0; their channels agree."""
    _, draws, stars, _ = groups
    same = jnp.tile(jnp.asarray(draws.theta[0, 0, :1]), (4000, 1))
    star = stars.take(jnp.asarray(0))
    ln_likelihood, again, white = predict_draws(trained.forward, star, same, jnp.asarray(5, jnp.uint32))
    assert_allclose(np.ptp(np.asarray(ln_likelihood), axis=0), 0, atol=1e-3)
    assert_allclose(white[0], star.whitening @ again[0], rtol=1e-3, atol=1e-2)
    scatter = np.diff(np.quantile(np.asarray(white), [0.16, 0.84], axis=0), axis=0)[0]
    assert_allclose(scatter / np.median(scatter), 1, atol=0.2)  # one amplitude for all channels of a spectrum


def test_what_is_no_file_of_draws_is_refused(tmp_path):
    (tmp_path / "text.nc").write_text("no draws")
    with pytest.raises(InputError, match="sample again"):
        read_posterior(tmp_path / "text.nc")
    with pytest.raises(InputError, match="xpbayes sample"):
        read_posterior(tmp_path / "missing.nc")
