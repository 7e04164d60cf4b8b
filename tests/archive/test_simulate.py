"""A simulated survey comes back through the doors as it went out."""

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive.prepare import prepare
from xpbayes.archive.simulate import Recipe, simulate
from xpbayes.archive.star_table import read_star_table
from xpbayes.calibration.whitening import unpack
from xpbayes.channels import XP_GRID_NM, xp_channels
from xpbayes.errors import InputError
from xpbayes.modelfile import TrainedModel
from xpbayes.models.forward import initial_model
from xpbayes.models.prior import LabelPrior


def small_model(bands: tuple[str, ...] = ("J", "H", "Ks", "W1", "W2"), error: float | None = 0.01) -> TrainedModel:
    """An untrained network around a solar spectrum: smooth, positive, dependent on every label."""
    channels = xp_channels(bands)
    wave = channels.wavelengths
    planck = (wave / 600.0) ** -5 / np.expm1(14388.0 / (wave * 1e-3) / 5772.0)
    labels = np.random.default_rng(0).normal([5.5, -0.3, 4.0], [0.7, 0.3, 0.6], (500, 3))
    forward = initial_model(jax.random.key(1), labels, np.log(planck / planck[30] * 150.0), np.log(1200.0 / wave + 0.1))
    prior = LabelPrior(
        ln_weight=np.log(np.array([0.6, 0.4], np.float32)),
        mean=np.array([[5.5, -0.2, 4.4], [4.8, -0.4, 2.5]], np.float32),
        whitening=np.stack([np.diag([2.0, 4.0, 4.0]), np.diag([4.0, 4.0, 2.0])]).astype(np.float32),
        ln_threshold=np.float32(-9.0),
    )
    factor = None if error is None else np.eye(len(channels), 3, dtype=np.float32) * error
    return TrainedModel(forward, jax.tree.map(jax.numpy.asarray, prior), factor, channels, ("teff", "feh", "logg"), {})


def prepared(folder, model, n, recipe):
    survey, truth, *_ = simulate(model, n, folder / "sim", recipe)
    tables = [read_star_table(p) for p in prepare(survey, folder / "stars")]
    return tables, pq.read_table(truth)


@pytest.mark.parametrize("bands", [("J", "H", "Ks", "W1", "W2"), ("J", "H", "Ks"), ()])
def test_fluxes_come_back_to_float32(tmp_path, bands):
    tables, truth = prepared(tmp_path, small_model(bands), 40, Recipe(seed=2, stars_per_file=15))
    assert [len(t) for t in tables] == [15, 15, 10]
    assert_array_equal(np.concatenate([t.source_id for t in tables]), truth["source_id"].to_numpy())
    observed = np.stack(truth["flux_observed"].to_pylist())
    flux = np.concatenate([t.flux for t in tables])
    assert flux.shape == (40, 61 + len(bands))
    assert_allclose(flux, observed, rtol=3e-7, atol=1e-6 * np.abs(observed).max(axis=1).min())
    assert all(t.channel_present().all() and (t.problems() == "ok").all() for t in tables)


def test_the_noise_is_the_one_that_the_weights_promise(tmp_path):
    n = 400
    tables, truth = prepared(tmp_path, small_model(error=None), n, Recipe(seed=3))
    (table,) = tables
    residual = table.flux - np.stack(truth["flux"].to_pylist())
    white = np.einsum("nij,nj->ni", unpack(table.xp_whitening, table.band_inverse_error, 61), residual)
    # 400 stars x 66 channels of unit variance: chi^2 / (n dof) = 1 +- sqrt(2 / (400 * 66)) = 1 +- 0.009. Eq. 2 takes
    # the observed flux for the true one, which is good to a few per mil.
    assert_allclose((white**2).mean(), 1.0, atol=0.04)
    assert np.abs(white.mean(axis=0)).max() < 5 / np.sqrt(n)
    parallax = (table.column("parallax") - truth["parallax"].to_numpy()) / table.column("parallax_error")
    assert_allclose(np.std(parallax), 1.0, atol=0.15)
    for name in ("teff", "feh", "logg"):
        pull = (table.column(name) - truth[name].to_numpy()) / table.column(f"{name}_error")
        assert_allclose(np.std(pull), 1.0, atol=0.15)
    reddening = (table.column("reddening") - truth["extinction"].to_numpy()) / table.column("reddening_error")
    assert_allclose(np.std(reddening), 1.0, atol=0.15)


def test_every_oddity_can_be_asked_for_and_is_in_the_truth(tmp_path):
    recipe = Recipe(seed=4, missing_band=0.2, missing_side=0.2, crowded=0.2, binaries=0.5, outliers=0.2, labelled=0.5)
    (table,), truth = prepared(tmp_path, small_model(), 300, recipe)
    present = table.channel_present()
    has_bp, has_rp = truth["has_bp"].to_numpy(), truth["has_rp"].to_numpy()
    assert 10 < (~has_bp).sum() < 60 and 10 < (~has_rp).sum() < 60
    assert_array_equal(present[:, :61][:, XP_GRID_NM < 640].all(axis=1), has_bp)
    assert_array_equal(present[:, :61][:, XP_GRID_NM > 640].all(axis=1), has_rp)
    crowded = truth["crowded"].to_numpy()
    assert not present[crowded, 61:].any()
    assert 0.7 < present[~crowded, 61:].mean() < 0.9
    assert 100 < np.isfinite(table.column("teff")).sum() < 200
    for name in ("binary", "outlier"):
        assert truth[name].to_numpy().sum() > 20
    assert (table.problems() == "ok").all()


def test_the_same_seed_writes_the_same_spectra(tmp_path):
    model = small_model()
    texts = []
    for name in ("a", "b", "c"):
        _, truth, *_ = simulate(model, 5, tmp_path / name, Recipe(seed=0 if name != "c" else 1))
        texts.append(pq.read_table(truth)["flux_observed"].to_pylist())
    assert texts[0] == texts[1] != texts[2]


def test_errors_may_be_taken_from_a_real_file(tmp_path):
    (
        survey,
        *_,
    ) = simulate(small_model(), 6, tmp_path / "a", Recipe(seed=1))
    bulk = tmp_path / "a" / "xp" / "XpContinuousMeanSpectrum_0000.csv.gz"
    tables, truth = prepared(tmp_path / "b", small_model(), 8, Recipe(seed=2, like=bulk))
    assert_allclose(tables[0].flux, np.stack(truth["flux_observed"].to_pylist()), rtol=1e-6, atol=1e-4)
    with pytest.raises(InputError, match="neither bp_coefficients"):
        simulate(small_model(), 1, tmp_path / "c", Recipe(like=tmp_path / "a" / "reddening.csv"))


def test_gaiaxpy_reads_the_bulk_files(tmp_path):
    import gzip

    from gaiaxpy import calibrate

    simulate(small_model(), 3, tmp_path / "a", Recipe(seed=1))
    bulk = tmp_path / "a" / "xp" / "XpContinuousMeanSpectrum_0000.csv.gz"
    text = [line for line in gzip.decompress(bulk.read_bytes()).decode().splitlines() if not line.startswith("#")]
    (tmp_path / "x.csv").write_text("\n".join(text) + "\n")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spectra, _ = calibrate(str(tmp_path / "x.csv"), sampling=XP_GRID_NM, save_file=False)
    observed = np.stack(pq.read_table(tmp_path / "a" / "truth.parquet")["flux_observed"].to_pylist())[:, :61]
    assert_allclose(np.stack(spectra["flux"].to_list()) / 1e-18, observed, rtol=1e-9)


@pytest.mark.parametrize(
    ("n", "recipe", "sentence"),
    [
        (0, Recipe(), "at least one"),
        (5, Recipe(outliers=1.5), "between 0 and 1"),
        (5, Recipe(stars_per_file=0), "at least 1"),
    ],
)
def test_impossible_requests_are_refused(tmp_path, n, recipe, sentence):
    with pytest.raises(InputError, match=sentence):
        simulate(small_model(), n, tmp_path / "x", recipe)
    assert not (tmp_path / "x").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    simulate(small_model(), 1, tmp_path / "x")
    with pytest.raises(InputError, match="in use"):
        simulate(small_model(), 1, tmp_path / "x")
