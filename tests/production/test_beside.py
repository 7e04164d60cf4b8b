"""The factor of the model's covariance on disk: it comes back as it was, and belongs to one model."""

import numpy as np
import pytest

from xpbayes.errors import InputError
from xpbayes.production.beside import WEIGHT_FACTOR, load_weight_factor, save_weight_factor
from xpbayes.training.network_uncertainty import NetworkCovariance

FACTOR = NetworkCovariance(np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), 0.97, 500)


def test_a_factor_comes_back_as_it_was(tmp_path):
    save_weight_factor(FACTOR, tmp_path, "sha256:abc")
    back = load_weight_factor(tmp_path, "sha256:abc")
    assert np.array_equal(back.columns, FACTOR.columns)
    assert (back.captured, back.n_stars) == (0.97, 500)


def test_another_models_a_missing_and_a_damaged_factor_are_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        load_weight_factor(tmp_path, "sha256:abc")
    path = save_weight_factor(FACTOR, tmp_path, "sha256:abc")
    with pytest.raises(InputError, match="another model"):
        load_weight_factor(tmp_path, "sha256:def")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="is damaged"):
        load_weight_factor(tmp_path, "sha256:abc")
    assert path.name == WEIGHT_FACTOR
    with pytest.raises(InputError, match="cannot be written"):
        save_weight_factor(FACTOR, tmp_path / "nowhere", "sha256:abc")
