import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import QUICK
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.modes import find_modes
from xpbayes.models.objective import objective
from xpbayes.models.theta import to_log


@pytest.fixture(scope="module")
def stars(trained, sample):
    """Five real stars; the last two as if they were a hundred times noisier, so that stars of several kinds fit."""
    five = sample.take(np.array([3, 40, 77, 300, 512])).stars(trained.labels)
    noise = np.array([1, 1, 1, 100, 100], np.float32)
    return replace(five, whitening=five.whitening / noise[:, None, None])


@pytest.fixture(scope="module")
def found(trained, stars):
    return find_modes(trained.star_model, stars, QUICK)


@pytest.fixture(scope="module")
def as_solved(trained, stars, found):
    """The stars with the model error as each one's optima were found with it."""
    blind = jax.tree.map(jnp.asarray, stars.blind(parallax=False))
    reference = jnp.asarray(np.stack([modes.reference for modes in found]))
    return fold_in_model_error(trained.star_model, blind, reference)


def test_the_best_optimum_is_no_worse_than_the_catalogue_s(trained, stars, found, as_solved):
    """L of both under the same errors: the catalogue's optimum may have been found with slightly other ones."""
    result = fit_stars(trained.star_model, stars, QUICK)
    u = to_log(jnp.asarray(result.estimate))
    values = jax.jit(jax.vmap(lambda star, v: objective(trained.star_model.without_error, star, v)))(as_solved, u)
    for modes, value in zip(found, np.asarray(values), strict=True):
        assert modes.modes[0].objective < value + 0.01


def test_optima_are_minima_in_every_direction(trained, found, as_solved):
    """A step of half a sigma, in 200 random directions, never finds a lower L; the objective alone is the judge."""
    random = np.random.default_rng(0)
    at = jax.jit(
        jax.vmap(lambda star, u: objective(trained.star_model.without_error, star, u), (None, 0)), static_argnums=()
    )
    for i, modes in enumerate(found):
        for mode in modes.modes:
            centre = np.concatenate([mode.estimate[:3], np.log(mode.estimate[3:])])
            scale = np.concatenate([mode.error[:3], mode.error[3:] / mode.estimate[3:]])
            scale = np.minimum(scale, 0.05) * 0.5  # near the optimum, where it is a bowl
            steps = random.normal(size=(200, 5)) * scale
            star = jax.tree.map(lambda leaf, i=i: leaf[i], as_solved)
            values = np.asarray(at(star, jnp.asarray(np.vstack([centre, centre + steps]), jnp.float32)))
            assert values[1:].min() > values[0] - 0.01


def test_optima_are_ordered_and_counted(found):
    for modes in found:
        values = [mode.objective for mode in modes.modes]
        assert values == sorted(values)
        assert sum(mode.n_starts for mode in modes.modes) + modes.n_unconverged == modes.n_starts


def test_optima_are_distinct(trained, found, as_solved):
    """L rises between any two optima: on the straight line from one to the other it is higher than at either end."""
    at = jax.jit(jax.vmap(lambda star, u: objective(trained.star_model.without_error, star, u), (None, 0)))
    compared = 0
    for i, modes in enumerate(found):
        star = jax.tree.map(lambda leaf, i=i: leaf[i], as_solved)
        for a, b in itertools.combinations(modes.modes, 2):
            ends = to_log(jnp.asarray(np.stack([a.estimate, b.estimate]), jnp.float32))
            share = jnp.linspace(0, 1, 101)[:, None]
            values = np.asarray(at(star, (1 - share) * ends[0] + share * ends[1]))
            assert values.max() > max(values[0], values[-1]) + 1e-3
            compared += 1
    assert compared


def test_a_second_optimum_is_found_where_two_kinds_of_star_fit(found):
    """Without a parallax, and with much noise, dwarf and giant are both optima."""
    assert max(len(modes.modes) for modes in found) > 1


def test_a_star_s_optima_do_not_depend_on_its_neighbours(trained, stars, found):
    alone = find_modes(trained.star_model, stars.take(slice(2, 3)), QUICK)[0]
    assert [m.objective for m in alone.modes] == [m.objective for m in found[2].modes]
