"""The verbs of a model in memory, each against the run or the density that it stands for."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.table import Column
from astropy.utils.masked import Masked
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density

import xpbayes
from xpbayes.api.model import Model
from xpbayes.errors import InputError
from xpbayes.models.posterior import star_sites

AT = np.array([4.8, -0.1, 2.5, -2.0, 0.0], np.float32)


@pytest.fixture(scope="module")
def model(trained):
    return Model(**vars(trained))


def test_what_is_saved_is_loaded(model, tmp_path):
    again = xpbayes.load(model.save(tmp_path / "model"))
    assert isinstance(again, Model) and again.labels == model.labels
    assert repr(again).startswith("<xpbayes model of teff, feh, logg: 64 channels (61 XP samples, J, H, Ks)")


def test_a_model_says_how_good_it_is(model):
    row = {"group": "all", "label": "logg", "scatter": 0.2164}
    told = replace(model, card={**model.card, "held_out": {"accuracy": [row, {**row, "group": "dwarfs"}]}})
    assert repr(told).endswith("; held-out scatter logg 0.216>")


def test_log_posterior_is_numpyros_up_to_a_constant(model, sample):
    one = sample.take(np.arange(1))
    ln_posterior = model.log_posterior(one)
    of_sites = model.numpyro(one)

    def by_numpyro(theta_log):
        return log_density(of_sites, (), {}, star_sites(theta_log[None]))[0]

    other = AT + np.array([0.1, 0.05, -0.2, 0.3, 0.1], np.float32)
    (ours, slope), (theirs, expected) = (
        jax.jit(jax.vmap(jax.value_and_grad(of)))(np.stack([AT, other])) for of in (ln_posterior, by_numpyro)
    )
    assert_allclose(ours[0] - ours[1], theirs[0] - theirs[1], rtol=1e-4)
    assert_allclose(slope, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("verb", ["fit", "sample"])
def test_a_table_without_stars_is_refused(model, sample, verb):
    with pytest.raises(InputError, match="has no stars; nothing to do"):
        getattr(model, verb)(sample[:0])


def test_log_posterior_is_of_one_star(model, sample):
    with pytest.raises(InputError, match="2 were given"):
        model.log_posterior(sample.take(np.arange(2)))
    of_one = model.log_posterior(sample.take(np.arange(1)))
    for size in (4, 6):
        with pytest.raises(InputError, match=r"of 5 numbers, teff \[kK\], feh, logg, ln E, ln parallax; .* \(\d,\)"):
            of_one(np.zeros(size))


def test_predictions_follow_the_inverse_square_law_and_the_curve(model):
    near = model.predict(teff=[5000.0, 6000.0], feh=0.0, logg=4.4, parallax=2.0)
    far = model.predict(teff=[5000.0, 6000.0], feh=0.0, logg=4.4, parallax=1.0)
    assert near.flux.dims == ("star", "channel") and near.flux.shape == (2, 64)
    assert_allclose(near.flux, 4.0 * far.flux)
    dusty = model.predict(teff=[5000.0, 6000.0], feh=0.0, logg=4.4, parallax=1.0, extinction=0.5)
    curve = np.exp(np.asarray(model.forward.ln_curve, np.float64))
    assert_allclose(np.log(far.flux / dusty.flux), np.broadcast_to(0.5 * curve, (2, 64)), rtol=1e-5)
    assert_allclose(near.wavelength, model.channels.wavelengths)
    assert near.teff.values.tolist() == [5000.0, 6000.0] and near.flux.attrs["units"] == "1e-18 W m-2 nm-1"


def test_dataarrays_span_a_grid(model):
    teff = xr.DataArray([5000.0, 5500.0, 6000.0], dims="teff")
    feh = xr.DataArray([-1.0, 0.0], dims="feh")
    grid = model.predict(teff=teff, feh=feh, logg=4.4)
    assert dict(grid.flux.sizes) == {"teff": 3, "feh": 2, "channel": 64}
    one = model.predict(teff=5500.0, feh=-1.0, logg=4.4)
    assert one.flux.dims == ("channel",)
    assert_allclose(grid.flux[1, 0], one.flux, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"teff": 5.8, "feh": 0, "logg": 4.4}, "it is in kelvin"),
        ({"teff": 5800, "feh": 0}, "the label 'logg' is missing"),
        ({"teff": 5800, "feh": 0, "logg": 4.4, "extinction": -0.1}, "must not be negative"),
        ({"teff": 5800, "feh": [0, np.nan], "logg": 4.4}, "finite"),
        ({"teff": [5800, 5900], "feh": [0, 0, 0], "logg": 4.4}, "broadcast"),
        ({"teff": 5800, "feh": 0, "lgg": 4.4}, "no label 'lgg'"),
        ({"teff": 5800 * u.deg_C, "feh": 0, "logg": 4.4}, "teff is in deg_C, which is no K"),
        ({"teff": [5800 * u.K, 5900 * u.K], "feh": 0, "logg": 4.4}, "teff is not an array of numbers"),
        ({"teff": 5800, "feh": 0, "logg": 4.4, "parallax": 100 * u.pc}, "parallax is in pc, which is no mas"),
        ({"teff": 5800, "feh": 0, "logg": 4.4, "parallax": xr.DataArray(2, attrs={"units": "pc"})}, "is in pc"),
        ({"teff": np.ma.array([5800, 4000], mask=[0, 1]), "feh": 0, "logg": 4.4}, "1 of 2 values of teff are masked"),
        ({"teff": Masked([5800, 4000] * u.K, mask=[0, 1]), "feh": 0, "logg": 4.4}, r"masked \(first: number 1\)"),
    ],
)
def test_impossible_predictions_are_refused(model, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        model.predict(**arguments)


def test_quantities_and_columns_are_converted(model):
    plain = model.predict(teff=[5800.0, 4000.0], feh=0.1, logg=4.4, parallax=10.0, extinction=0.3)
    given = {
        "teff": Column([5.8, 4.0], unit="kK"),
        "feh": 0.1 * u.one,
        "logg": 2.4 * u.dex(u.m / u.s**2),
        "parallax": Masked(0.01 * u.arcsec),
        "extinction": xr.DataArray(300.0, attrs={"units": "mmag"}),
    }
    assert_allclose(model.predict(**given).flux, plain.flux, rtol=1e-6)
    one = xpbayes.predict_flux(model, **given | {"teff": 5.8 * u.kK, "extinction": 300 * u.mmag})
    assert_allclose(one.flux, plain.flux[0], rtol=1e-6)
    assert one.parameters == pytest.approx({"teff": 5800, "feh": 0.1, "logg": 4.4, "extinction": 0.3, "parallax": 10})
    again = model.predict(**{n: plain[n] for n in ("teff", "feh", "logg", "parallax", "extinction")})
    assert_allclose(again.flux, plain.flux)


def test_unknown_settings_are_refused(model, sample):
    with pytest.raises(InputError, match="unknown setting 'n_stars'"):
        model.fit(sample.take(np.arange(3)), n_stars=3)
    with pytest.raises(InputError, match="unknown setting 'sed'"):
        xpbayes.train(sample, sed=1)
    for twice in ({"parallax": False, "use_parallax": True}, {"draws": 64, "n_draws": 0}):
        with pytest.raises(InputError, match="is given under two names"):
            model.fit(sample.take(np.arange(3)), **twice)


@pytest.mark.parametrize("verb", ["fit", "sample", "compare", "log_posterior", "numpyro"])
@pytest.mark.parametrize("given", ["stars.parquet", [1, 2], None])
def test_what_holds_no_spectra_is_one_sentence(model, verb, given):
    with pytest.raises(InputError, match=f"a {type(given).__name__} is no Spectra; xpbayes.Spectra.read"):
        getattr(model, verb)(given)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: xpbayes.load(None),
        lambda m: xpbayes.infer(m, [1, 2]),
        lambda m: xpbayes.infer(m, {}),
        lambda m: xpbayes.train({}),
        lambda m: xpbayes.adapt(m, None),
    ],
)
def test_what_is_no_path_is_one_sentence(model, ask):
    with pytest.raises(InputError, match="is neither spectra nor a file|is named by its folder"):
        ask(model)


def test_models_are_equal_to_themselves_alone(model):
    assert model == model and model != replace(model) and len({model, replace(model)}) == 2
