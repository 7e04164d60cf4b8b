"""Stars drawn from the posterior's own model: inside their windows, from the right prior, with the right noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from xpbayes.checks.prior_predictive import (
    COLOUR,
    LEVEL,
    MAX_EXTINCTION,
    MIN_DOF,
    Window,
    in_window,
    simulate,
    with_realistic_noise,
)
from xpbayes.checks.sbc import chi2_shares, draw_shares, judge
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.likelihood import n_observed
from xpbayes.models.prior import draw_labels


@pytest.fixture(scope="module")
def simulated(trained, sample):
    stars = sample.take(np.arange(0, 2000, 40)).stars(trained.labels)
    folded = fold_in_model_error(trained.star_model, jax.tree.map(jnp.asarray, stars.blind()))
    templates = with_realistic_noise(folded, np.full(len(folded), 70.0))
    return simulate(trained.star_model.without_error, templates, trained.channels.n_xp, 600, 3, 0.05), templates


def test_every_star_looks_like_its_template(trained, simulated):
    found, _ = simulated
    sampled = np.concatenate([found.truth[:, :-2], np.log(found.truth[:, -2:])], axis=1)
    look = jax.jit(jax.vmap(lambda w, u: in_window(trained.forward, w, u, trained.channels.n_xp)))
    inside = look(Window(found.window.level, found.window.colour), jnp.asarray(sampled, jnp.float32))
    assert np.mean(inside) > 0.995  # float32 at the very edge
    assert found.truth[:, -2].max() <= MAX_EXTINCTION and found.truth[:, -2].min() > 0
    far = Window(found.window.level + 3 * LEVEL, found.window.colour + 3 * COLOUR)
    assert not np.any(look(far, jnp.asarray(sampled, jnp.float32)))


@pytest.mark.thorough
def test_truths_follow_the_prior_within_the_window(trained, simulated):
    """Against rejection: labels from the mixture, E and parallax flat, and what looks otherwise thrown away."""
    _, templates = simulated
    n_xp = trained.channels.n_xp
    one = simulate(trained.star_model.without_error, templates.take(jnp.array([3])), n_xp, 600, 5, 0.05)
    random = np.random.default_rng(6)
    look = jax.jit(jax.vmap(lambda w, u: in_window(trained.forward, w, u, n_xp), (None, 0)))
    window = Window(one.window.level[0], one.window.colour[0])
    largest, accepted = 1.5 * one.truth[:, -1].max(), []
    for key in jax.random.split(jax.random.key(6), 20):
        labels = np.asarray(draw_labels(trained.prior, key, 100_000))
        linear = np.column_stack([labels, MAX_EXTINCTION * random.random(100_000), largest * random.random(100_000)])
        sampled = np.concatenate([labels, np.log(linear[:, -2:])], axis=1)
        accepted.append(linear[np.asarray(look(window, jnp.asarray(sampled, jnp.float32)))])
    reference = np.concatenate(accepted)
    assert len(reference) > 2000 and reference[:, -1].max() < 0.9 * largest  # nothing of the window is cut off
    # 600 against thousands: a law as good as this gives less than 1e-4 in one of ten thousand tests.
    assert all(stats.ks_2samp(one.truth[:, i], reference[:, i]).pvalue > 1e-4 for i in range(one.truth.shape[1]))


def test_hardly_a_truth_comes_twice(simulated):
    found, _ = simulated
    assert len(np.unique(found.truth[:, 0])) > 0.97 * len(found.truth)


def test_stars_may_be_simulated_without_dust(trained, simulated):
    n_xp = trained.channels.n_xp
    free = simulate(trained.star_model.without_error, simulated[1], n_xp, 100, 3, 0.05, max_extinction=1e-6)
    assert np.all((free.truth[:, 3] > 0) & (free.truth[:, 3] <= 1e-6)) and len(free.stars) > 50
    assert np.median(simulated[0].truth[:, 3]) > 0.1


def test_noise_follows_its_own_law(simulated):
    """chi^2 at the truth is what the Student t says; a noise larger by a fifth is noticed."""
    found, templates = simulated
    assert float(found.stars.inv_dof.max()) <= 1 / MIN_DOF
    assert judge(chi2_shares(found)).uniform
    from dataclasses import replace

    assert not judge(chi2_shares(replace(found, chi2_truth=1.44 * found.chi2_truth))).uniform


def test_amplitude_of_the_noise_is_the_templates_own(trained, sample):
    """A template that fits better than most lends less noise: whitened residuals become larger."""
    stars = sample.take(np.arange(4)).stars(trained.labels)
    folded = fold_in_model_error(trained.star_model, jax.tree.map(jnp.asarray, stars.blind()))
    good, bad = (with_realistic_noise(folded, np.full(4, chi2)) for chi2 in (10.0, 1000.0))
    heavy = np.asarray(folded.inv_dof) > 0
    assert heavy.any()
    ratio = np.asarray(good.whitening[:, 0, 0] / bad.whitening[:, 0, 0])
    assert np.all(ratio[heavy] > 1)
    inv_dof, n = np.asarray(folded.inv_dof), np.asarray(n_observed(folded.whitening))
    assert_allclose(ratio[heavy], np.sqrt((1 + inv_dof * 1000) / (1 + inv_dof * 10))[heavy], rtol=1e-4)
    assert n.min() > 60


def test_prior_draws_are_calibrated_against_themselves(trained, simulated):
    """The prior as everyone's posterior: shares of labels among draws from the same restricted prior are uniform.

    Truths and draws are picked by the same code here, so what is tested is that shares and windows work together.
    """
    found, templates = simulated
    again = simulate(trained.star_model.without_error, templates, trained.channels.n_xp, 600, 4, 0.05)
    order, other = np.argsort(found.template, kind="stable"), np.argsort(again.template, kind="stable")
    draws = np.stack([again.truth[other][again.template[other] == t][:10] for t in found.template[order]])
    window = Window(found.window.level[order], found.window.colour[order])
    shares = draw_shares(trained.forward, window, found.truth[order], draws, trained.channels.n_xp)
    # Ten draws make eleven ranks; spread within a rank they are uniform.
    spread = (10 * shares + np.random.default_rng(0).random(shares.shape)) / 11
    assert all(judge(spread[:, i]).distance < 0.12 for i in (0, 1, 2))
