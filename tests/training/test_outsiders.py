"""Sources made to be refused: they look like what they are, and are seen with a real star's errors."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from xpbayes.training.outsiders import BALMER, _black_body, _metal_poor, _quasar, _seen, _white_dwarf

WAVELENGTH = np.linspace(392.0, 992.0, 61)


def test_black_bodies_follow_wien_and_planck():
    fine = np.linspace(100.0, 3000.0, 29001)
    peaks = fine[np.argmax(_black_body(fine, np.array([[2.0], [5.772], [20.0]])), axis=1)]
    assert_allclose(peaks * [2.0, 5.772, 20.0], 2897.77, rtol=1e-3)
    assert np.isfinite(_black_body(WAVELENGTH, np.array([[0.5]]))).all()


def test_white_dwarfs_have_lines_and_quasars_have_them_anywhere():
    random = np.random.default_rng(0)
    shapes = _white_dwarf(np.array([*BALMER, 560.0]), 200, random)
    assert np.isfinite(shapes).all()
    some = _quasar(WAVELENGTH, 200, random)
    bump = some - 0.5 * (np.roll(some, 5, axis=1) + np.roll(some, -5, axis=1))
    assert np.ptp(np.argmax(bump[:, 5:-5], axis=1)) > 20


def test_a_source_has_its_template_s_brightness_and_errors():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class One:
        flux: np.ndarray
        whitening: np.ndarray

    n, random = 500, np.random.default_rng(1)
    whitening = np.tile(np.diag(np.full(61, 50.0)), (n, 1, 1))
    whitening[:, 7] = 0.0
    of = One(np.full((n, 61), 2.0), whitening)
    seen = np.asarray(_seen(np.tile(np.log(WAVELENGTH), (n, 1)), of, random).flux)
    there = np.delete(np.arange(61), 7)
    assert (seen[:, 7] == 0).all()
    assert_allclose(seen[:, there].std(axis=0), 1 / 50, rtol=0.15)
    assert_allclose(np.median(seen[:, there]), 2.0, rtol=0.02)
    assert_allclose(seen[:, there].mean(axis=0) / WAVELENGTH[there], 2.0 / np.median(WAVELENGTH), rtol=0.01)
    assert jnp.asarray(seen).dtype == jnp.float32


def test_metal_poor_stars_have_fewer_metals_than_any_and_most_are_giants(monkeypatch):
    random = np.random.default_rng(2)
    known = np.column_stack(
        [random.normal(5.5, 0.5, 900), random.normal(-0.2, 0.3, 900), random.uniform(1.0, 5.0, 900)]
    )
    seen = []
    monkeypatch.setattr("xpbayes.training.outsiders._shapes", lambda forward, labels: seen.append(labels))
    _metal_poor(None, SimpleNamespace(labels=known), (1, 2), 400, random)
    (labels,) = seen
    assert (labels[:, 1] < np.quantile(known[:, 1], 0.005)).all()
    assert 0.75 <= np.mean(labels[:, 2] < 3.3) < 1.0
