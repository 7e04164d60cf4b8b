"""Inference of a batch: what it must not look at, what it must not depend on, and how optima are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.conftest import QUICK, as_double
from xpbayes.inference.errors import laplace_covariance
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.optima import best_of, choose_optima, promising, refine, search
from xpbayes.inference.search.solver import Solution, StarChunk, solve
from xpbayes.inference.search.starts import find_starts, make_grid
from xpbayes.models.objective import objective
from xpbayes.models.theta import to_log


@pytest.fixture(scope="module")
def stars(trained, sample):
    return sample.take(np.arange(150)).stars(trained.labels)


@pytest.fixture(scope="module")
def inferred(trained, stars):
    return fit_stars(trained.star_model, stars, QUICK)


def test_every_star_has_a_finite_answer_with_a_positive_covariance(inferred):
    assert inferred.estimate.shape == (150, 5) and np.isfinite(inferred.estimate).all()
    assert np.all(np.linalg.eigvalsh(inferred.covariance) > 0)
    assert np.all(np.linalg.eigvalsh(inferred.laplace) > 0)
    assert inferred.converged.mean() > 0.97 and inferred.hessian_positive.mean() > 0.97


def test_summaries_and_runners_up_are_there_where_they_should_be(inferred):
    for name in ("mean", "std", "median", "low", "high"):
        assert getattr(inferred, name).shape == (150, 5) and np.isfinite(getattr(inferred, name)).all()
    assert np.all(inferred.low <= inferred.median) and np.all(inferred.median <= inferred.high)
    several = inferred.n_modes > 1
    assert several.any() and not several.all()
    assert_array_equal(np.isfinite(inferred.runner_up).all(axis=1), several)
    assert_array_equal(np.isfinite(inferred.runner_up_delta), several)
    assert np.all(inferred.runner_up_delta[several] >= 0)


def test_no_draws_no_summaries(trained, stars):
    found = fit_stars(
        trained.star_model, stars.take(slice(0, 20)),
        QUICK.model_copy(update={"n_draws": 0}),
    )  # fmt: skip
    for name in ("mean", "std", "median", "low", "high", "k_hat", "n_effective"):
        assert np.isnan(getattr(found, name)).all()
    assert np.isfinite(found.estimate).all()


def test_no_stars_no_results(trained, stars, inferred):
    found = fit_stars(trained.star_model, stars.take(slice(0, 0)), QUICK)
    assert found.curve is None
    for name, value in vars(inferred).items():
        if value is None:
            continue
        empty = getattr(found, name)
        assert empty.shape == (0, *value.shape[1:]) and empty.dtype == value.dtype, name


def test_labels_have_no_influence(trained, stars, inferred):
    """A held-out star's labels, reddening and (label-derived) parallax must not leak into its inference."""
    from dataclasses import replace

    spoilt = replace(
        stars, labels=stars.labels + 3, label_inv_error=stars.label_inv_error * 100, reddening=stars.reddening + 5,
        reddening_inv_error=stars.reddening_inv_error + 50, parallax=stars.parallax + 9,
        parallax_inv_error=stars.parallax_inv_error + 100,
    )  # fmt: skip
    again = fit_stars(trained.star_model, spoilt, QUICK)
    assert_array_equal(again.estimate, inferred.estimate)


def test_chunks_do_not_matter(trained, stars, inferred):
    small = fit_stars(trained.star_model, stars, QUICK.model_copy(update={"chunk_size": 64}))
    # The same arithmetic in another chunk: identical up to float32 rounding of the batched search.
    same = np.isclose(small.objective, inferred.objective, atol=0.02)
    assert same.mean() > 0.98
    # A star's seed goes with its row, whatever its chunk: the draws are the same ones.
    steady = same & (small.n_modes == inferred.n_modes) & (inferred.k_hat < 0.5)
    assert steady.mean() > 0.4
    shift = np.abs(small.mean - inferred.mean)[steady] / inferred.std[steady]
    assert np.mean(shift < 0.05) > 0.95


def test_it_recovers_labels_far_better_than_chance(trained, sample, inferred):
    """Rough model, 150 stars: the robust scatter in Teff is under a third of the sample's own spread."""
    truth = sample.column("teff")[:150]
    scatter = 1.4826 * np.median(np.abs(inferred.estimate[:, 0] - truth))
    assert scatter < 0.33 * np.std(truth)


def test_a_measured_parallax_is_used_when_asked(trained, stars):
    from dataclasses import replace

    with_parallax = replace(
        stars, parallax=np.full(150, 1.0, np.float32), parallax_inv_error=np.full(150, 100.0, np.float32)
    )
    result = fit_stars(
        trained.star_model,
        with_parallax,
        QUICK.model_copy(update={"use_parallax": True}),
    )
    assert np.median(np.abs(result.estimate[:, -1] - 1.0)) < 0.05


# ------------------------------------------------------------------------------------------------ several starts


@pytest.fixture(scope="module")
def refined(trained, stars):
    some = jax.tree.map(jnp.asarray, stars.take(slice(0, 64)).blind(parallax=False))
    some = fold_in_model_error(trained.star_model, some)
    starts = find_starts(trained.star_model.without_error, make_grid(trained.star_model.without_error, 256), some, 2)
    return some, starts, refine(trained.star_model.without_error, StarChunk.of(some), starts, QUICK.max_iterations)


def test_refining_in_stages_finds_what_one_long_run_finds(trained, refined):
    """Every start alone to the end, against starts that are gathered, merged and given up on the way."""
    some, starts, staged = refined
    long = [solve(trained.star_model.without_error, some, starts[:, k], 300) for k in range(2)]
    best = np.min([np.where(s.converged, s.objective, np.inf) for s in long], axis=0)
    assert staged.objective.shape == (64, 2) and staged.theta_log.shape == (64, 2, 5)
    found = staged.objective.min(axis=1)
    assert np.mean(found <= best + 0.02) > 0.96


def test_given_up_starts_are_never_the_answer(refined):
    """Infinite L and unconverged; at least one start of every star is left."""
    staged = refined[2]
    lost = ~np.isfinite(staged.objective)
    assert lost.any() and not staged.converged[lost].any()
    assert np.all(~lost.all(axis=1))


def test_of_starts_that_met_the_lowest_goes_on(trained):
    """Whichever came first; one too far above goes, and a star without any finite L keeps what it has."""
    place = np.zeros((3, 4, 5), np.float32)
    place[:, 2:] = np.arange(2, dtype=np.float32)[:, None] + 1.0
    value = np.array([[5.0, 4.0, 6.0, 30.0], [4.0, 5.0, 6.0, 18.0], [np.inf, np.inf, np.nan, np.inf]], np.float32)
    assert np.flatnonzero(promising(place, value, trained.forward)).tolist() == [1, 2, 4, 6, 7, 8, 10, 11]


def test_all_starts_compete_under_the_last_objective(trained, stars):
    """The L of the solution is that of the stars that are returned, not of the whitening that the search began with."""
    some = jax.tree.map(jnp.asarray, stars.take(slice(0, 64)).blind(parallax=False))
    grid = make_grid(trained.star_model.without_error, 256)
    found = search(trained.star_model, grid, some, QUICK)
    assert found.starts.shape == (64, QUICK.n_starts, 5)
    finite = np.isfinite(np.asarray(found.solution.objective))
    assert finite.any(axis=1).all()
    under = jax.jit(
        lambda stars: jax.vmap(
            lambda star, many: jax.vmap(lambda u: objective(trained.star_model.without_error, star, u))(many)
        )(stars, found.solution.theta_log)
    )
    value = np.asarray(found.solution.objective)
    off = np.abs(np.asarray(under(found.stars)) - value)[finite]
    assert np.quantile(off, 0.95) < 0.05
    assert np.median(np.abs(np.asarray(under(fold_in_model_error(trained.star_model, some))) - value)[finite]) > 0.05


def _solution(objective, parameters, converged=None):
    """One star from hand-made solutions of several starts."""
    value = np.array([objective], np.float32)
    converged = np.ones(value.shape, bool) if converged is None else np.array([converged])
    number = np.arange(value.size, dtype=np.int32)[None]
    return Solution(np.array([parameters], np.float32), value, np.zeros_like(value), converged, number)


def _optima(solution, hessian):
    return choose_optima(solution, np.asarray(hessian(jnp.asarray(best_of(solution).theta_log))))


def _isotropic(parameters):
    """Hessian 2 I: L = |u|^2 around the mode, so that distances are in sigmas of L / 2."""
    return 2.0 * jnp.tile(jnp.eye(parameters.shape[1]), (parameters.shape[0], 1, 1))


@pytest.mark.parametrize(
    ("objective", "places", "converged", "n_modes", "runner_up", "delta"),
    [
        pytest.param([1.0, 1.0, 1.1], [0.0, 0.1, -0.2], None, 1, None, np.inf, id="thrice the same"),
        pytest.param([5.0, 3.0, 5.1], [4.0, 0.0, 4.1], None, 2, 4.0, 2.0, id="the second found twice"),
        pytest.param([5.0, 3.0, 4.0], [4.0, 0.0, -4.0], None, 3, -4.0, 1.0, id="three, the nearest in L is second"),
        pytest.param([3.0, 4.0, 5.0], [0.0, 4.0, 8.0], [True, False, True], 2, 8.0, 2.0, id="not converged"),
        pytest.param([3.0, 12.5, 5.0], [0.0, 4.0, 0.1], None, 1, None, np.inf, id="too far above"),
        pytest.param([3.0, 11.9, np.inf], [0.0, 4.0, 9.0], None, 2, 4.0, 8.9, id="just near enough"),
        pytest.param([np.nan, 2.0, 2.5], [7.0, 0.0, 3.0], None, 2, 3.0, 0.5, id="a start of NaN"),
        pytest.param([2.0, 2.1, 2.2], [0.0, 0.45, 0.9], None, 2, 0.9, 0.2, id="near ones are one, the next is not"),
    ],
)
def test_distinct_optima_are_counted(objective, places, converged, n_modes, runner_up, delta):
    parameters = [[0.0, x, 0.0] for x in places]
    found = _optima(_solution(objective, parameters, converged), _isotropic)
    assert found.n_modes.tolist() == [n_modes]
    winner = int(np.nanargmin(objective))
    assert_array_equal(found.best.theta_log[0], np.array(parameters[winner], np.float32))
    assert found.best.objective[0] == np.float32(objective[winner]) and found.best.n_iterations[0] == winner
    assert_allclose(found.runner_up[0, 1], places[winner] if runner_up is None else runner_up, rtol=1e-6)
    assert_allclose(found.delta[0], delta, rtol=1e-5)


def test_distance_is_in_the_best_optimum_s_sigmas():
    """The same step is another optimum where the posterior is sharp, and the same one where it is wide."""
    solution = _solution([1.0, 1.5], [[0.0, 0.0], [0.3, 0.3]])
    for curvature, expected in ((0.1, 1), (10.0, 2)):
        found = _optima(solution, lambda u, c=curvature: c * jnp.eye(2)[None])
        assert found.n_modes.tolist() == [expected]


@pytest.mark.parametrize("place", [np.inf, np.nan, 1e38])
def test_a_star_whose_every_start_failed_has_one_optimum_and_no_warning(place):
    bad = _solution([np.inf, np.nan], [[0.0, place], [place, -place]], [False, False])
    good = _solution([1.0, 1.5], [[0.0, 0.0], [3.0, 3.0]])
    both = Solution(*(np.concatenate(leaves) for leaves in zip(good, bad, strict=True)))
    found = _optima(both, lambda u: jnp.where(jnp.isfinite(u).all(axis=1)[:, None, None], 2.0 * jnp.eye(2), jnp.inf))
    assert found.n_modes.tolist() == [2, 1] and found.delta.tolist() == [0.5, np.inf]


def test_stars_are_counted_apart():
    """Several stars at once equal one after the other."""
    random = np.random.default_rng(0)
    parts = [
        _solution(random.uniform(0, 12, 4), random.choice([0.0, 0.1, 3.0], (4, 3)), random.random(4) < 0.8)
        for _ in range(40)
    ]
    together = _optima(Solution(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True))), _isotropic)
    alone = [_optima(part, _isotropic) for part in parts]
    assert_array_equal(together.n_modes, np.concatenate([a.n_modes for a in alone]))
    assert_array_equal(together.runner_up, np.concatenate([a.runner_up for a in alone]))
    assert set(together.n_modes) == {1, 2, 3} or len(set(together.n_modes)) > 1


@pytest.fixture(scope="module")
def folded(trained, stars, inferred):
    """Eight stars whose model error is in already, and their inference."""
    some = jax.tree.map(jnp.asarray, stars.take(slice(0, 8)).blind(parallax=False))
    some = fold_in_model_error(trained.star_model, some, to_log(jnp.asarray(inferred.estimate[:8])))
    return some, fit_stars(trained.star_model.without_error, some, QUICK)


def test_laplace_covariance_is_the_inverse_hessian_of_ln_p(trained, folded, x64):
    """In (labels, E, parallax): D (-d2 ln p / du2)^-1 D, by automatic differentiation at the mode."""
    folded, inferred = folded
    model, batch = as_double((trained.star_model.without_error, folded))
    linear = np.asarray(inferred.estimate[:8], float)
    u = np.concatenate([linear[:, :3], np.log(linear[:, 3:])], axis=1)
    hessian = np.asarray(
        jax.jit(jax.vmap(lambda s, v: jax.hessian(lambda x: objective(model, s, x))(v)))(batch, jnp.asarray(u))
    )
    scale = np.ones((8, 5))
    scale[:, 3:] = linear[:, 3:]
    expected = np.linalg.inv(0.5 * hessian) * scale[:, :, None] * scale[:, None, :]
    assert_allclose(laplace_covariance(hessian, u), expected, rtol=1e-6)
    error = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
    positive = inferred.hessian_positive[:8] & (np.linalg.eigvalsh(hessian)[:, 0] > 0)
    found = np.sqrt(np.diagonal(inferred.laplace[:8], axis1=1, axis2=2))
    assert positive.sum() >= 6
    assert np.mean(np.abs(found / error - 1)[positive] < 0.05) > 0.9
