"""A second stage of the sample's rough model: made, kept on disk, applied to real stars, switched off."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from safetensors.numpy import load_file, save_file

from tests.conftest import QUICK, with_columns
from xpbayes.api.model import Model
from xpbayes.config import RefinementConfig
from xpbayes.data.json_file import read_json
from xpbayes.errors import InputError
from xpbayes.files import file_checksum
from xpbayes.inference.fit import Inferred, fit_stars
from xpbayes.production.beside import SECOND_STAGE
from xpbayes.production.model_file import CARD, load_model, save_model
from xpbayes.production.table import catalogue_about, list_column, read_catalogue
from xpbayes.refinement import stage
from xpbayes.refinement.features import feature_names, flux_only
from xpbayes.refinement.refined import refine_labels
from xpbayes.runs.infer import infer
from xpbayes.schema import columns_of

SMALL = RefinementConfig(members=2, hidden=(16,), epochs=4, batch_size=128, min_stars=200)
BLIND = QUICK.model_copy(update={"n_draws": 0})
FLUXES = QUICK.model_copy(update={"use_parallax": False})
PARALLAX = QUICK.model_copy(update={"use_parallax": True})


@pytest.fixture(scope="module")
def refined_model(trained, sample, made_once):
    """The rough model with a second stage of 600 stars, calibrated on 200 others."""

    def make(path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "BLIND", BLIND)
            labelled = sample.stars(trained.labels, label_error_floor=(0.02,) * 3)
            second = stage.learn_second_stage(trained.star_model, labelled.take(slice(0, 600)), 61, SMALL)
            assert second is not None
            aside = labelled.take(slice(600, 800))
            found = fit_stars(trained.star_model, aside, BLIND)
            case = Inferred(aside, found, found, use_parallax=False)
            second = stage.calibrate_second_stage(second, trained.star_model, [case])
        save_model(replace(trained, second_stage=second), path)

    return load_model(made_once("refined-model", make))


@pytest.fixture(scope="module")
def few(sample):
    return sample.take(np.arange(900, 960))


@pytest.fixture(scope="module")
def catalogue(refined_model, few):
    return infer(refined_model, few, config=FLUXES)


def test_columns_are_those_that_the_schema_lists(catalogue, tmp_path, refined_model, few):
    infer(refined_model, few, tmp_path / "catalogue.parquet", FLUXES)
    again = read_catalogue(tmp_path / "catalogue.parquet")
    about = catalogue_about(again)
    names = [c.name for c in columns_of(about)]
    assert {"refined_median", "refined_cov_triu", "refined_share"} < set(names) <= {*again.column_names, "source_id"}
    for name in ("refined_median", "refined_p16", "refined_p84", "refined_std", "refined_cov_triu", "refined_move"):
        np.testing.assert_array_equal(list_column(again, name), list_column(catalogue, name))


def test_refined_labels_are_in_order_and_their_covariances_positive(catalogue):
    low, median, high, std = (list_column(catalogue, f"refined_{n}") for n in ("p16", "median", "p84", "std"))
    assert np.all((low < median) & (median < high) & (std > 0))
    packed = list_column(catalogue, "refined_cov_triu")
    np.testing.assert_allclose(np.sqrt(packed[:, [0, 3, 5]]), std, rtol=1e-5)
    full = np.zeros((len(packed), 3, 3))
    row, column = np.triu_indices(3)
    full[:, row, column] = full[:, column, row] = packed
    assert np.linalg.eigvalsh(full).min() > 0


def test_how_far_labels_moved_is_told_in_units_of_the_forward_interval(catalogue):
    median, p16, p84 = (list_column(catalogue, f"stellar_params_{n}")[:, :3] for n in ("median", "p16", "p84"))
    expected = (list_column(catalogue, "refined_median") - median) / (0.5 * (p84 - p16))
    np.testing.assert_allclose(list_column(catalogue, "refined_move"), expected, rtol=1e-3, atol=1e-3)


def test_a_fit_recommends_refined_labels_and_keeps_the_others(refined_model, few, tmp_path):
    model = Model(**vars(refined_model))
    fit = model.fit(few[:5], parallax=False, **QUICK.model_dump(exclude={"use_parallax", "n_draws"}), draws=64)
    np.testing.assert_allclose(fit.teff, 1e3 * list_column(fit.catalogue, "refined_median")[:, 0], rtol=1e-6)
    forward = list_column(fit.catalogue, "stellar_params_median")
    np.testing.assert_allclose(fit.teff_forward, 1e3 * forward[:, 0], rtol=1e-6)
    np.testing.assert_allclose(fit.parallax, forward[:, -1], rtol=1e-6)
    frame = fit.to_pandas()
    assert np.all((frame.logg_p16 < frame.logg) & (frame.logg < frame.logg_p84))
    written = Table.read(fit.save(tmp_path / "fit.ecsv"), format="ascii.ecsv")
    assert {"feh_forward", "feh_forward_err", "refined_share"} < set(written.colnames)
    assert str(written["teff_forward"].unit) == "K"


def test_switched_off_it_leaves_everything_else_as_it_was(catalogue, refined_model, few):
    without = infer(refined_model, few, config=FLUXES.model_copy(update={"second_stage": False}))
    assert not [name for name in without.column_names if name.startswith("refined")]
    for name in without.column_names:
        assert without[name].equals(catalogue[name])


def test_a_star_is_refined_alike_in_any_company(catalogue, refined_model, few):
    alone = infer(refined_model, few.take(np.array([7, 3])), config=FLUXES)
    np.testing.assert_allclose(
        list_column(alone, "refined_median"), list_column(catalogue, "refined_median")[[7, 3]], rtol=1e-5
    )


def test_a_star_without_a_solution_has_no_refined_labels(refined_model, few):
    broken = few.take(np.arange(4))
    broken = broken.replace(flux=np.where(np.arange(4)[:, None] == 2, np.nan, broken.flux).astype(np.float32))
    rows = infer(refined_model, broken, config=FLUXES)
    assert rows["refined_share"].null_count == 1
    np.testing.assert_array_equal(np.isnan(list_column(rows, "refined_median")).any(axis=1), [0, 0, 1, 0])


def test_a_precise_parallax_narrows_log_g(refined_model, few):
    """By the forward model's relation of log g and luminosity, though the networks never saw a parallax."""
    known = few.column("spectroscopic_parallax")
    close = with_columns(few, parallax=known.astype(np.float32), parallax_error=(0.02 * known).astype(np.float32))
    with_it, without = (
        infer(refined_model, close, config=how.model_copy(update={"calibrate": False})) for how in (PARALLAX, FLUXES)
    )
    narrow, wide = (list_column(rows, "refined_std")[:, 2] for rows in (with_it, without))
    assert np.median(narrow / wide) < 0.9
    truth = few.column("logg")
    errors = [np.median(np.abs(list_column(rows, "refined_median")[:, 2] - truth)) for rows in (with_it, without)]
    assert errors[0] < 1.1 * errors[1]


def test_the_posterior_given_the_fluxes_is_found_again_beside_a_parallax(trained, few):
    """Solved without its parallax from where the fit with it ended, a star is where the fit without it ends.

    To a fifth of its error: the model's error is of the flux where the fit with the parallax ended.
    """
    known = few.column("spectroscopic_parallax")
    close = with_columns(few, parallax=known.astype(np.float32), parallax_error=(0.1 * known).astype(np.float32))
    stars = close.stars(trained.labels)
    with_it = fit_stars(trained.star_model, stars, BLIND.model_copy(update={"use_parallax": True}))
    alone = fit_stars(trained.star_model, stars, BLIND)
    fit = flux_only(trained.star_model, stars, with_it, use_parallax=True)
    sigma = np.sqrt(np.diagonal(alone.laplace, axis1=1, axis2=2))
    apart = np.max(np.abs(fit.mode - alone.estimate) / sigma, axis=1)
    single = (alone.n_modes == 1) & (with_it.n_modes == 1)
    assert np.mean(apart[single] < 0.2) > 0.9  # the others were led to another optimum by their parallax
    again = flux_only(trained.star_model, stars, alone, use_parallax=False)
    np.testing.assert_array_equal(again.mode, alone.estimate)


def test_a_spectrum_like_no_other_keeps_its_forward_posterior(refined_model, few):
    """Residuals with a sawtooth of 40 %, which no training star has."""
    sawtooth = np.where(np.arange(few.flux.shape[1]) % 2, 1.4, 0.7)
    rows = infer(refined_model, few.replace(flux=(few.flux * sawtooth).astype(np.float32)), config=FLUXES)
    solved = rows["refined_share"].is_valid().to_numpy(zero_copy_only=False)
    share = rows["refined_share"].to_numpy()[solved]
    assert np.median(share) == 0.0
    move = list_column(rows, "refined_move")[solved][share == 0]
    np.testing.assert_allclose(move, 0.0, atol=1e-3)


def test_too_few_stars_get_none(trained, sample, said):
    labelled = sample.take(np.arange(50)).stars(trained.labels)
    assert stage.learn_second_stage(trained.star_model, labelled, 61, SMALL) is None
    assert "no second stage: 50 training stars are fewer than 200" in said[-1]


def test_every_feature_has_a_name(refined_model):
    names = feature_names(refined_model.labels, refined_model.channels.names, refined_model.channels.n_xp)
    assert len(names) == len(set(names)) == refined_model.second_stage.nets.center.shape[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.pop("unit"), "unit is missing"),
        (lambda a: a.update(center=a["center"][:-1]), "center has the shape"),
        (lambda a: a.update({"weights.0": a["weights.0"] * np.float32("nan")}), "weights.0 has numbers"),
        (lambda a: a.update({"flux_only.stretch": a["flux_only.stretch"][:, :2]}), "flux_only.stretch has the shape"),
        (lambda a: a.update({"support.labels": a["support.labels"][:, :2]}), "support.labels has the shape"),
    ],
)
def test_damaged_arrays_are_one_sentence(refined_model, tmp_path, change, sentence):
    folder = save_model(refined_model, tmp_path / "model")
    arrays = load_file(folder / SECOND_STAGE)
    change(arrays)
    save_file(arrays, folder / SECOND_STAGE)
    card = read_json(folder / CARD, dict, "")
    card["second_stage"]["arrays_checksum"] = file_checksum(folder / SECOND_STAGE)
    (folder / CARD).write_text(__import__("json").dumps(card))
    with pytest.raises(InputError, match=sentence):
        load_model(folder)


def test_what_stars_kept_aside_said_is_read_as_it_was_written(refined_model, tmp_path):
    """Of stars with parallaxes and without; a model that forgets one would refine as if nobody had been asked."""
    second = refined_model.second_stage
    said = second.flux_only._replace(weight=0.5 * second.flux_only.weight)
    folder = save_model(replace(refined_model, second_stage=replace(second, with_parallax=said)), tmp_path / "model")
    again = load_model(folder).second_stage
    for mine, theirs in ((again.flux_only, second.flux_only), (again.with_parallax, said)):
        for values, expected in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(values, expected)


def test_with_no_weight_labels_are_the_forward_posteriors(refined_model, few):
    """What stars kept aside did not bear out is not done, whatever the networks say."""
    second = refined_model.second_stage
    silent = second.flux_only._replace(
        weight=0.0 * second.flux_only.weight, stretch=1.0 + 0.0 * second.flux_only.stretch
    )
    rows = infer(replace(refined_model, second_stage=replace(second, flux_only=silent)), few, config=FLUXES)
    median, p16, p84 = (list_column(rows, f"stellar_params_{n}")[:, :3] for n in ("median", "p16", "p84"))
    np.testing.assert_allclose(list_column(rows, "refined_median"), median, rtol=1e-5)
    low, high = (list_column(rows, f"refined_{n}") for n in ("p16", "p84"))
    np.testing.assert_allclose(high - low, p84 - p16, rtol=1e-4)


def test_a_missing_or_another_file_is_noticed(refined_model, tmp_path):
    folder = save_model(refined_model, tmp_path / "model")
    path = folder / SECOND_STAGE
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match="is not the file that the card describes"):
        load_model(folder)
    path.unlink()
    with pytest.raises(InputError, match="is missing, though the card describes it"):
        load_model(folder)


def test_a_model_without_one_leaves_none_behind(refined_model, trained, tmp_path):
    folder = save_model(refined_model, tmp_path / "model")
    save_model(trained, folder)
    assert not (folder / SECOND_STAGE).exists()
    assert load_model(folder).second_stage is None


def test_refining_nothing_is_nothing(refined_model, few):
    none = few.take(np.arange(0)).stars(refined_model.labels)
    found = fit_stars(refined_model.star_model, none, BLIND)
    second = refined_model.second_stage
    refined = refine_labels(second, refined_model.star_model, Inferred(none, found, found, use_parallax=False))
    assert refined.median.shape == (0, 3)
