"""What neighbours' xi do not share is found by kind of star; what all kinds have alike is not counted."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.training.unshared_xi import excess_by_kind, with_unshared_xi

N_CLOUDS, PER_CLOUD, N_KINDS = 400, 6, 4


def _sky(own_noise, random_dust=0.0):
    """Stars of four kinds behind clouds, six each; xi with stated errors of 0.3 and kinds' own noise beyond."""
    random = np.random.default_rng(0)
    n = N_CLOUDS * PER_CLOUD
    kind, cloud = random.integers(0, N_KINDS, n), np.repeat(np.arange(N_CLOUDS), PER_CLOUD)
    variance = np.full(n, 0.09)
    xi = random.standard_normal(N_CLOUDS)[cloud] + random_dust * random.standard_normal(n)
    xi += np.sqrt(variance + np.asarray(own_noise)[kind] ** 2) * random.standard_normal(n)
    one, two = np.triu_indices(PER_CLOUD, 1)
    pairs = (np.arange(N_CLOUDS)[:, None, None] * PER_CLOUD + np.stack([one, two], axis=1)).reshape(-1, 2)
    return xi, variance, np.eye(N_KINDS + 1)[kind], pairs  # the last kind has no star


def test_a_kind_that_differs_from_its_neighbours_is_found():
    excess = excess_by_kind(*_sky([0.0, 0.0, 0.0, 0.7]))
    assert_allclose(excess[3], 0.49, atol=0.1)
    assert excess[:3].max() < 0.05 and excess[4] == 0.0


def test_dust_that_varies_from_star_to_star_is_no_kinds_error():
    assert excess_by_kind(*_sky([0.0] * 4, random_dust=0.8)).max() < 0.15


def test_few_pairs_tell_nothing():
    xi, variance, weight, pairs = _sky([0.0, 0.0, 0.0, 0.7])
    assert not excess_by_kind(xi, variance, weight, pairs[:40]).any()


@pytest.mark.parametrize("where", [np.nan, 0.0])
def test_without_neighbours_behind_dust_the_error_stays(trained, where):
    forward = replace(trained.forward, curve_variation=0.0 * trained.forward.ln_curve)
    model = replace(trained.star_model, forward=forward)
    theta_log = np.tile([5.0, 0.0, 2.0, 0.0, -np.log(10.0) if where == 0.0 else 0.0, 0.0], (300, 1))
    position = np.full(300, where)
    error, excess = with_unshared_xi(model, None, theta_log, position, position)  # no star is looked at
    assert error is model.error and not excess.any()
