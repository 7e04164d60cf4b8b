"""Weights of training stars: odd stars lose theirs, odd kinds keep theirs."""

import numpy as np

from xpbayes.training.weights import kinds_of_star, weights_from

RNG = np.random.default_rng(21)
N = 2000


def ordinary() -> dict[str, np.ndarray]:
    return {
        "place": RNG.normal(size=(N, 4)),
        "chi2": RNG.chisquare(61, N),
        "pulls2": RNG.chisquare(5, N),
        "n_measured": np.full(N, 5),
    }


def test_ordinary_stars_count_fully():
    weight = weights_from(**ordinary())
    assert np.median(weight) > 0.95 and np.mean(weight < 0.5) < 0.02 and weight.max() <= np.hypot(1, 0.5)


def test_a_star_that_fits_worse_than_its_like_loses_weight():
    stars = ordinary()
    stars["chi2"][:50] *= 20
    weight = weights_from(**stars)
    assert np.all(weight[:50] < 0.2) and np.median(weight[50:]) > 0.95


def test_a_kind_that_the_model_does_not_describe_keeps_its_weight():
    stars = ordinary()
    kind = np.arange(N) < 150
    stars["place"][kind] += 12.0
    stars["chi2"][kind] *= 30
    stars["pulls2"][kind] *= 20
    assert np.median(weights_from(**stars)[kind]) > 0.9


def test_a_star_far_from_its_measurements_loses_weight():
    stars = ordinary()
    stars["pulls2"][:50] = 100.0
    weight = weights_from(**stars)
    assert np.all(weight[:50] < 1.3 * 9 / 104)  # the neighbours have somewhat more than the expected pulls


def test_fewer_stars_than_neighbours():
    stars = {name: value[:10] for name, value in ordinary().items()}
    assert weights_from(**stars).shape == (10,)


def test_kinds_cover_all_stars_and_need_teff_and_logg():
    labels = np.array(
        [[4.0, -1.5, 1.0], [5.0, 0.0, 2.5], [4.5, 0.0, 4.6], [5.8, 0.0, 4.4], [7.0, 0.0, 4.2], [9.5, 0.0, 4.1]]
    )
    kinds = kinds_of_star(labels)
    assert np.all(np.sum([kinds[k] for k in kinds if k not in ("all", "metal-poor stars")], axis=0) == 1)
    assert kinds["metal-poor stars"].tolist() == [True] + 5 * [False]
    assert list(kinds_of_star(labels, ("teff", "feh"))) == ["all"]
