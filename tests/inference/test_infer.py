import numpy as np
import pytest
from numpy.testing import assert_array_equal

from xpbayes.config import InferenceConfig
from xpbayes.inference.infer import infer

SIMPLE = InferenceConfig(use_parallax=False, n_nodes=256, n_starts=2)


@pytest.fixture(scope="module")
def stars(trained, sample):
    return sample.take(np.arange(150)).stars(trained.labels)


@pytest.fixture(scope="module")
def inferred(trained, stars):
    return infer(trained.forward, trained.prior, trained.model_error, stars, SIMPLE)


def test_every_star_has_a_finite_answer_with_a_positive_covariance(inferred):
    assert inferred.estimate.shape == (150, 5) and np.isfinite(inferred.estimate).all()
    assert np.all(np.linalg.eigvalsh(inferred.covariance) > 0)
    assert inferred.converged.mean() > 0.97 and inferred.hessian_positive.mean() > 0.97


def test_labels_have_no_influence(trained, stars, inferred):
    """A held-out star's labels, reddening and (label-derived) parallax must not leak into its inference."""
    from dataclasses import replace

    spoilt = replace(
        stars, labels=stars.labels + 3, label_inv_error=stars.label_inv_error * 100, reddening=stars.reddening + 5,
        reddening_inv_error=stars.reddening_inv_error + 50, parallax=stars.parallax + 9,
        parallax_inv_error=stars.parallax_inv_error + 100,
    )  # fmt: skip
    again = infer(trained.forward, trained.prior, trained.model_error, spoilt, SIMPLE)
    assert_array_equal(again.estimate, inferred.estimate)


def test_chunks_do_not_matter(trained, stars, inferred):
    small = infer(
        trained.forward, trained.prior, trained.model_error, stars, SIMPLE.model_copy(update={"chunk_size": 64})
    )
    # The same arithmetic in another chunk: identical up to float32 rounding of the batched search.
    same = np.isclose(small.objective, inferred.objective, atol=0.02)
    assert same.mean() > 0.98


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
    result = infer(
        trained.forward, trained.prior, trained.model_error, with_parallax, SIMPLE.model_copy(update={"use_parallax": True})
    )
    assert np.median(np.abs(result.estimate[:, -1] - 1.0)) < 0.05
