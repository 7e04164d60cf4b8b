"""A simulated survey comes back through the doors as it went out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from typer.testing import CliRunner

from xpbayes.archive.prepare import prepare
from xpbayes.channels import XP_GRID_NM, xp_channels
from xpbayes.cli import app
from xpbayes.config import Recipe
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.instrument.whitening import unpack
from xpbayes.models.forward import initial_model, predict_ln_flux
from xpbayes.models.model_error import ModelError
from xpbayes.models.prior import LabelPrior
from xpbayes.models.star_model import StarModel
from xpbayes.production.model_file import TrainedModel
from xpbayes.simulation.noise import MAX_AMPLITUDE, draw_amplitude
from xpbayes.simulation.stars import BRIGHT_G, FAINT_G, Placement
from xpbayes.simulation.survey import simulate


def two_kinds(forward, n_channels: int, error: float, inv_dof: float) -> ModelError:
    """A kind of red stars, by dust or by nature, that the model describes three times worse than the blue ones."""
    shape = np.linspace(-1.0, 1.0, n_channels) / np.linalg.norm(np.linspace(-1.0, 1.0, n_channels))
    dust = np.log([0.02, 0.1, 0.5])
    ln_flux = np.stack([predict_ln_flux(forward, np.array([5.2, -0.3, 4.0, e, 0.0], np.float32)) for e in dust])
    feature = np.asarray(ln_flux, np.float64) @ shape
    covariance = np.stack([f**2 * np.diag(np.arange(n_channels) % 3 > 0) for f in (error, 3 * error)])
    return ModelError(
        shapes=jnp.asarray(shape[:, None], jnp.float32),
        feature_center=jnp.asarray([feature[1], 0.0], jnp.float32),
        feature_scale=jnp.asarray([feature[2] - feature[1], 100.0], jnp.float32),
        kinds=jnp.asarray([[0.0, 0.0], [2.0, 0.0]]),
        width=jnp.asarray(0.5),
        covariance=jnp.asarray(covariance, jnp.float32),
        inv_dof=jnp.full(2, inv_dof),
        share=jnp.full(2, 0.5),
    )


def small_model(
    bands: tuple[str, ...] = ("J", "H", "Ks", "W1", "W2"), error: float | None = 0.01, inv_dof: float = 0.1
) -> TrainedModel:
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
    own = None if error is None else two_kinds(forward, len(channels), error, inv_dof)
    return TrainedModel(
        StarModel(forward, jax.tree.map(jnp.asarray, prior), own), channels, ("teff", "feh", "logg"), {}
    )


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


def whitened(table, truth, model):
    """(star, channel) residuals from the noiseless flux, whitened as inference does, and their 1 / tail."""
    stars = fold_in_model_error(model.star_model, jax.tree.map(jnp.asarray, table.stars(model.labels)))
    flux = np.stack(truth["flux"].to_pylist()) / np.exp(np.asarray(stars.ln_scale, np.float64))[:, None]
    whitening = np.asarray(stars.whitening, np.float64)
    residual = np.where(whitening.any(axis=1), np.asarray(stars.flux, np.float64) - flux, 0.0)
    return np.einsum("nij,nj->ni", whitening, residual), 1.0 / np.asarray(stars.inv_dof)


def test_with_a_model_error_the_noise_is_the_likelihoods_own(tmp_path):
    """Divided by the amplitude: unit variance in every channel. With it: chi^2 / n follows F(n, nu)."""
    from scipy.stats import f as fisher
    from scipy.stats import kstest

    n, model = 600, small_model(inv_dof=0.1)
    (table,), truth = prepared(tmp_path, model, n, Recipe(seed=5, missing_band=0.1, missing_side=0.1))
    white, nu = whitened(table, truth, model)
    amplitude = truth["amplitude"].to_numpy()
    present = table.channel_present().sum(axis=1)
    unit = white / amplitude[:, None]
    # 600 x about 63 numbers: 1 +- 0.007. Inference takes errors of the observed flux, relative ones of up to 3 %.
    assert_allclose((unit**2).sum() / present.sum(), 1.0, atol=0.04)
    assert np.abs(unit.mean(axis=0)).max() < 5 / np.sqrt(n)
    statistic = fisher.cdf((white**2).sum(axis=1) / present, present, nu)
    assert kstest(statistic, "uniform").pvalue > 1e-3
    # Must fail: were every star's amplitude one, chi^2 would not scatter enough.
    assert kstest(fisher.cdf((unit**2).sum(axis=1) / present, present, nu), "uniform").pvalue < 1e-6


def test_a_kind_that_is_described_worse_is_simulated_worse(tmp_path):
    n, model = 600, small_model(error=0.05, inv_dof=0.01)
    _, truth, *_ = simulate(model, n, tmp_path / "sim", Recipe(seed=6))
    columns = pq.read_table(truth)
    flux, observed = (np.stack(columns[name].to_pylist()) for name in ("flux", "flux_observed"))
    relative = (observed / flux - 1.0)[:, np.arange(flux.shape[1]) % 3 > 0]
    own = model.model_error
    colour = (np.log(flux) @ np.asarray(own.shapes[:, 0]) - float(own.feature_center[0])) / float(own.feature_scale[0])
    assert (colour < 0).sum() > 20 and (colour > 2).sum() > 20  # stars on the far sides of both kinds
    blue, red = (np.median(np.abs(relative[part])) / 0.6745 for part in (colour < 0, colour > 2))
    assert_allclose([blue, red], [0.05, 0.15], rtol=0.25)  # noise of the measurement comes on top


def test_amplitudes_are_those_of_a_student_t():
    from scipy.stats import gamma, kstest

    rng = np.random.default_rng(0)
    for nu in (30.0, 4.0, 0.3):
        drawn = draw_amplitude(np.full(4000, 1.0 / nu), rng)
        free = drawn < MAX_AMPLITUDE
        law = gamma(0.5 * nu, scale=2.0 / nu)
        assert drawn.max() <= MAX_AMPLITUDE * (1 + 1e-12)
        # Amplitudes that reach the cap are as many as the law has beyond it; those below follow it.
        beyond = law.cdf(MAX_AMPLITUDE**-2)
        assert abs((~free).mean() - beyond) < 4 * np.sqrt(beyond / 4000) + 1e-9
        below = (law.cdf(drawn[free] ** -2.0) - beyond) / (1.0 - beyond)
        assert kstest(below, "uniform").pvalue > 1e-3
    assert_array_equal(draw_amplitude(np.zeros(3), rng), 1.0)


def test_no_amplitude_breaks_a_file(tmp_path):
    """Half a degree of freedom: some stars are nothing but noise, and are still read."""
    (table,), truth = prepared(tmp_path, small_model(error=0.1, inv_dof=2.0), 100, Recipe(seed=7))
    assert (truth["amplitude"].to_numpy() > 9).any()
    assert np.isfinite(table.flux).all() and (table.flux[:, 61:] > 0).all() and (table.problems() == "ok").all()


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


def test_no_stars_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least one"):
        simulate(small_model(), 0, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("option", "value", "sentence"), [("--outliers", "1.5", "'outliers'.* 1$"), ("--seed", "-1", "'seed'.* 0$")]
)
def test_impossible_shares_are_refused(tmp_path, option, value, sentence):
    run = CliRunner().invoke(app, ["simulate", "m", "--stars", "5", "--out", str(tmp_path / "x"), option, value])
    assert isinstance(run.exception, InputError)
    assert re.search(sentence, str(run.exception))
    assert not (tmp_path / "x").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    simulate(small_model(), 1, tmp_path / "x")
    with pytest.raises(InputError, match="in use"):
        simulate(small_model(), 1, tmp_path / "x")


def test_another_sky_can_be_put_in_its_place(tmp_path):
    """The seam of positions, extinction and parallax: what a sky returns is what the truth and the files hold."""
    seen = {}

    def wall_of_dust(n, magnitude, rng):
        ra, dec, distance = np.full(n, 30.0), np.linspace(-5.0, 5.0, n), np.linspace(0.2, 2.0, n)
        extinction = np.where(distance > 1.0, 0.5, 0.01)
        seen["g"] = magnitude(extinction, 1.0 / distance)
        return Placement(ra, dec, extinction, 1.0 / distance)

    _, truth, *_ = simulate(small_model(), 10, tmp_path / "a", Recipe(seed=1), sky=wall_of_dust)
    table = pq.read_table(truth)
    assert_allclose(table["extinction"].to_numpy(), np.where(np.linspace(0.2, 2.0, 10) > 1.0, 0.5, 0.01))
    assert_allclose(table["parallax"].to_numpy(), 1.0 / np.linspace(0.2, 2.0, 10))
    assert_allclose(table["dec"].to_numpy(), np.linspace(-5.0, 5.0, 10))
    assert_allclose(table["g"].to_numpy(), seen["g"])


def test_stars_of_the_default_sky_are_as_bright_as_the_survey_is_deep(tmp_path):
    _, truth, *_ = simulate(small_model(error=None), 200, tmp_path / "a", Recipe(seed=6))
    table = pq.read_table(truth)
    g = table["g"].to_numpy()
    assert g.min() > BRIGHT_G - 1e-3 and g.max() < FAINT_G + 1e-3
    assert abs(np.sin(np.radians(table["dec"].to_numpy())).mean()) < 4 / np.sqrt(3 * 200)  # uniform over the sphere
    assert_array_equal(table["source_id"].to_numpy() >> 35, _level_12(table["ra"].to_numpy(), table["dec"].to_numpy()))


def _level_12(ra, dec):
    import astropy.units as u
    from astropy_healpix import HEALPix

    return HEALPix(nside=4096, order="nested").lonlat_to_healpix(ra * u.deg, dec * u.deg)
