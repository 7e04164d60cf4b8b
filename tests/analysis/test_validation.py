from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK, with_columns
from xpbayes.analysis.validation import (
    Comparison,
    accuracy,
    compare,
    has_posteriors,
    robust_scatter,
)
from xpbayes.errors import InputError
from xpbayes.runs.infer import infer

RNG = np.random.default_rng(0)


def _comparison(n=20_000, scale=1.0, bias=0.0):
    label = np.stack([RNG.uniform(3.5, 7, n), RNG.normal(0, 0.3, n), RNG.uniform(1, 5, n)], axis=1)
    error = np.tile([0.1, 0.1, 0.2], (n, 1))
    label_error = np.tile([0.02, 0.03, 0.05], (n, 1))
    noise = RNG.normal(size=(n, 3)) * np.hypot(error, label_error) * scale + bias
    return Comparison(
        np.arange(n), ("teff", "feh", "logg"), label + noise, error, label, label_error, np.arange(n)
    )  # fmt: skip


def test_scatter_of_a_gaussian_is_sigma():
    values = RNG.normal(3, 0.7, 50_000)
    assert abs(robust_scatter(values) - 0.7) < 5 * 0.7 * 1.17 / np.sqrt(50_000)  # MAD's efficiency is 37 %
    assert robust_scatter(np.append(values, [1e9] * 100)) < 0.72  # and outliers do not move it


def test_honest_errors_cover_as_they_should():
    for row in accuracy(_comparison()):
        assert abs(row.coverage68 - 0.6827) < 5 * np.sqrt(0.68 * 0.32 / row.n)
        assert abs(row.coverage95 - 0.95) < 5 * np.sqrt(0.95 * 0.05 / row.n)
        assert abs(row.bias) < 5 * 1.25 * row.scatter / np.sqrt(row.n)


def test_dishonest_errors_are_seen():
    """The must-fail case: true scatter twice the stated one, or a bias of one sigma."""
    assert all(row.coverage68 < 0.45 for row in accuracy(_comparison(scale=2)))
    assert all(row.bias > 0.09 for row in accuracy(_comparison(bias=0.1)))


def test_each_coverage_has_its_own_width():
    """A Student t: half of its 68 % interval for the one, its standard deviation for the other."""
    gaussian = _comparison()
    error, half = np.full((20_000, 3), 0.2), np.full((20_000, 3), 0.1)
    both = replace(gaussian, error=error, half=half, estimate=gaussian.label + 0.15, label_error=0 * error)
    assert all((row.coverage68, row.coverage95) == (0, 1) for row in accuracy(both))


def test_giants_and_dwarfs_partition_the_stars():
    rows = {(r.label, r.group): r.n for r in accuracy(_comparison(1000))}
    assert rows["teff", "giants"] + rows["teff", "dwarfs"] == rows["teff", "all"] == 1000


class TestCompare:
    @pytest.fixture(scope="class")
    def catalogue(self, trained, sample):
        return infer(trained, sample.take(np.arange(100)), config=QUICK)

    def test_stars_are_matched_by_source_id(self, catalogue, sample):
        shuffled = sample.take(RNG.permutation(len(sample)))
        result = compare(catalogue, shuffled, ("teff", "feh", "logg"))
        assert np.array_equal(shuffled.source_id[result.row], result.source_id)
        assert_allclose(result.label[:, 0], shuffled.column("teff")[result.row])

    def test_unlabelled_stars_are_left_out(self, catalogue, sample):
        expected = np.isfinite(sample.labels(("teff", "feh", "logg"))[0][:100]).all(axis=1).sum()
        assert len(compare(catalogue, sample, ("teff", "feh", "logg")).source_id) == expected

    def test_error_floor_is_in_quadrature(self, catalogue, sample):
        plain, floored = (compare(catalogue, sample, ("teff",), f) for f in ((), (0.02,)))
        assert_allclose(floored.label_error, np.hypot(plain.label_error, 0.02))

    def test_posterior_and_mode_are_the_catalogue_s_columns(self, catalogue, sample):
        names = ("teff", "feh", "logg")
        posterior, mode = (compare(catalogue, sample, names, (), answer) for answer in ("posterior", "mode"))
        row = np.flatnonzero(catalogue["source_id"].to_numpy() == posterior.source_id[3])[0]
        star = catalogue.slice(row, 1).to_pylist()[0]
        assert_allclose(posterior.estimate[3], star["stellar_params_median"][:3])
        assert_allclose(posterior.error[3], star["stellar_params_std"][:3])
        width = np.subtract(star["stellar_params_p84"], star["stellar_params_p16"])[:3]
        assert_allclose(posterior.half[3], 0.5 * width)
        assert_allclose(posterior.pull[3], posterior.difference[3] / np.hypot(0.5 * width, posterior.label_error[3]))
        assert_allclose(mode.estimate[3], star["stellar_params_est"][:3])
        assert_allclose(mode.half[3], star["stellar_params_err"][:3])
        assert compare(catalogue, sample, names).estimate.tolist() == posterior.estimate.tolist()

    def test_medians_of_a_catalogue_without_draws_are_one_sentence(self, catalogue, sample):
        i = catalogue.column_names.index("stellar_params_median")
        nothing = pa.array([[None] * 5] * len(catalogue), catalogue.schema.field(i).type)
        bare = catalogue.set_column(i, catalogue.schema.field(i), nothing)
        assert has_posteriors(catalogue) and not has_posteriors(bare)
        with pytest.raises(InputError, match="no posterior medians"):
            compare(bare, sample, ("teff",))
        assert len(compare(bare, sample, ("teff",), (), "mode").row) > 50

    def test_no_common_star_is_one_sentence(self, catalogue, sample):
        with pytest.raises(InputError, match="no solved star of the catalogue has labels"):
            compare(catalogue, sample.take(np.arange(200, 300)), ("teff",))
        unlabelled = with_columns(sample, teff=np.full(len(sample), np.nan))
        with pytest.raises(InputError, match="no solved star"):
            compare(catalogue, unlabelled, ("teff",))
