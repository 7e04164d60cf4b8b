"""`infer --model-uncertainty`: errors that contain what training leaves unknown of the model, in one file and in parts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.command_line import refused, run
from tests.conftest import QUICK, inference_toml
from xpbayes.analysis.pages.confidence import own_errors
from xpbayes.data.spectra import OK
from xpbayes.data.spectra_file import write_star_table
from xpbayes.errors import InputError
from xpbayes.inference.linear_algebra import from_upper_triangle
from xpbayes.instrument.instrument import DEFAULT_ID
from xpbayes.models.reliability import feature_names, initial_nets
from xpbayes.production.beside import save_weight_factor
from xpbayes.production.manifest import model_checksums
from xpbayes.production.model_file import save_model
from xpbayes.production.table import DRAWS, WIDENED, catalogue_about, list_column, read_catalogue, text_column
from xpbayes.runs.infer import infer
from xpbayes.runs.infer_parts import infer_parts
from xpbayes.runs.verify import verify
from xpbayes.schema import catalogue_columns, columns_of
from xpbayes.training.network_uncertainty import NetworkCovariance, trained_vector

N = 40
WIDE = QUICK.model_copy(update={"model_uncertainty": True})
CHANGED = {
    "stellar_params_err", "stellar_params_icov_triu", "stellar_params_cov_triu", "laplace_cov_triu", "stellar_params_std",
    "stellar_params_p16", "stellar_params_p84", "method",
}  # fmt: skip


@pytest.fixture(scope="module")
def stars(sample):
    """The first cannot be used."""
    part = sample.take(np.arange(N))
    flux = part.flux.copy()
    flux[0, 20] = np.nan
    return replace(part, flux=flux)


@pytest.fixture(scope="module")
def factor(trained):
    """Some per mille of every weight, in three directions."""
    size = trained_vector(trained.forward).size
    columns = 3e-3 * np.random.default_rng(0).normal(size=(size, 3))
    return NetworkCovariance(columns.astype(np.float32), 0.97, 500)


@pytest.fixture(scope="module")
def folder(trained, factor, tmp_path_factory):
    """The model with its factor."""
    path = save_model(trained, tmp_path_factory.mktemp("model") / "model")
    save_weight_factor(factor, path, trained.card["arrays_checksum"])
    return path


@pytest.fixture(scope="module")
def catalogues(folder, stars):
    """Without and with what is unknown of the model."""
    return infer(folder, stars, config=QUICK), infer(folder, stars, config=WIDE)


def test_two_columns_more_and_no_other_schema_without(catalogues):
    plain, wide = catalogues
    assert plain.column_names == [c.name for c in catalogue_columns()]
    assert set(wide.column_names) - set(plain.column_names) == {"stellar_params_model_err", "model_cov_triu"}
    described = {c.name: c.field() for c in catalogue_columns(model_uncertainty=True)}
    assert all(field.metadata == described[field.name].metadata for field in wide.schema)
    about = {"labels": ["teff", "feh", "logg"], "instrument": DEFAULT_ID.to_json()}
    assert columns_of(about) == catalogue_columns()
    assert columns_of(about | {"settings": {"model_uncertainty": True}}) == catalogue_columns(model_uncertainty=True)


def test_covariances_are_sums(catalogues):
    plain, wide = catalogues
    added = from_upper_triangle(list_column(wide, "model_cov_triu"))
    solved = text_column(wide, "status") == OK
    assert solved.sum() == N - 1 and np.isnan(added[~solved]).all()
    error = list_column(wide, "stellar_params_model_err")[solved]
    assert np.all(error > 0)
    assert_allclose(error, np.sqrt(np.diagonal(added[solved], axis1=1, axis2=2)), rtol=1e-5)
    for name in ("stellar_params_cov_triu", "laplace_cov_triu"):
        own, total = (from_upper_triangle(list_column(c, name))[solved] for c in catalogues)
        unit = np.sqrt(np.diagonal(total, axis1=1, axis2=2))
        scale = unit[:, :, None] * unit[:, None, :]
        assert_allclose(total / scale, (own + added[solved]) / scale, atol=1e-5)
        assert np.median(np.diagonal(total, axis1=1, axis2=2) / np.diagonal(own, axis1=1, axis2=2)) > 1.001
    covariance, fisher = (
        from_upper_triangle(list_column(wide, f"stellar_params_{name}_triu"))[solved] for name in ("cov", "icov")
    )
    assert np.median(np.abs(covariance @ fisher - np.eye(5))) < 1e-3


def test_summaries_are_stretched_about_their_medians(catalogues):
    def of(name, which):
        return list_column(catalogues[which], f"stellar_params_{name}")[1:]

    added = of("model_err", 1)
    assert_allclose(of("std", 1), np.hypot(of("std", 0), added), rtol=1e-5)
    median = of("median", 0)
    assert_allclose(of("p84", 1), median + np.hypot(of("p84", 0) - median, added), rtol=1e-5, atol=1e-6)
    low = median - np.hypot(median - of("p16", 0), added)
    low[:, 3:] = np.maximum(low[:, 3:], 0)
    assert_allclose(of("p16", 1), low, rtol=1e-5, atol=1e-6)


def test_nothing_else_changes_and_method_and_metadata_say_so(catalogues, factor):
    plain, wide = catalogues
    changed = {n for n in plain.column_names if plain[n].combine_chunks() != wide[n].combine_chunks()}
    assert changed == CHANGED
    assert text_column(plain, "method").tolist() == ["none"] + [DRAWS] * (N - 1)
    assert text_column(wide, "method").tolist() == ["none"] + [DRAWS + WIDENED] * (N - 1)


def test_nothing_unknown_adds_nothing(trained, stars, factor, catalogues):
    wide = infer(trained, stars, config=WIDE, factor=factor._replace(columns=0 * factor.columns))
    assert_array_equal(list_column(wide, "stellar_params_model_err")[1:], 0)
    assert wide["stellar_params_std"].combine_chunks() == catalogues[0]["stellar_params_std"].combine_chunks()


def test_confidences_and_flags_know_the_stars_own_errors(trained, stars, factor, catalogues):
    """Classifiers are learned from them: what they say of a star must not change with the option."""
    assert_allclose(own_errors(catalogues[1]), list_column(catalogues[0], "stellar_params_err"), rtol=1e-4)
    names = feature_names(trained.labels, trained.channels.names)
    n = len(names)
    nets = initial_nets(jax.random.key(0), jnp.zeros(n), 0.1 * jnp.ones(n), jnp.ones(n), ("teff", "logg"), names)
    about = {"targets": ["teff", "logg"], "features": list(names), "features_present": dict.fromkeys(names, 1.0)}
    model = replace(trained, confidence=nets, card=trained.card | {"confidence": about})
    plain, wide = infer(model, stars, config=QUICK), infer(model, stars, config=WIDE, factor=factor)
    assert plain["teff_confidence"].null_count == 1
    for name in ("teff_confidence", "logg_confidence", "quality_flags"):
        assert plain[name].combine_chunks() == wide[name].combine_chunks()


def test_parts_do_not_depend_on_how_they_are_cut(folder, stars, catalogues, tmp_path):
    path = write_star_table(stars, tmp_path / "stars.parquet")
    found = []
    for per_part in (15, N):
        out = infer_parts(folder, path, tmp_path / str(per_part), WIDE, processes=1, stars_per_part=per_part)
        verify(out)
        table = read_catalogue(out)
        about = catalogue_about(table)
        found.append(table)
        assert about["settings"]["model_uncertainty"] and about["model"]["uncertainty"]["directions"] == 3
    for name in found[0].column_names:
        assert found[0][name].combine_chunks() == found[1][name].combine_chunks(), name
    one = list_column(catalogues[1], "stellar_params_model_err")
    assert_allclose(list_column(found[0], "stellar_params_model_err")[1:], one[1:], rtol=0.02)


def test_a_model_whose_unknowns_were_not_worked_out_is_refused(model_folder, trained, star_file, tmp_path):
    for out in ("c.parquet", "c"):
        said = refused("infer", model_folder, star_file, "--model-uncertainty", "--out", tmp_path / out)
        assert f"run 'xpbayes uncertainty {model_folder} STARS'" in said
    with pytest.raises(InputError, match="give the factor that"):
        infer(trained, star_file, config=WIDE)
    with pytest.raises(InputError, match="the factor is of 7 trained numbers"):
        infer(trained, star_file, config=WIDE, factor=NetworkCovariance(np.zeros((7, 1), np.float32), 1.0, 1))


def test_the_flag_is_the_setting(folder, stars, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text(inference_toml(QUICK).replace("model_uncertainty = false\n", ""))
    path = write_star_table(stars, tmp_path / "stars.parquet")
    out = tmp_path / "c.parquet"
    result = run("infer", folder, path, "--model-uncertainty", "--settings", settings, "--out", out)
    assert result.returncode == 0, result.stderr
    catalogue = read_catalogue(out)
    about = catalogue_about(catalogue)
    assert about["settings"]["model_uncertainty"] and "stellar_params_model_err" in catalogue.column_names


def test_only_a_run_that_uses_it_belongs_to_what_is_unknown(folder):
    """So a catalogue without the option goes on where `xpbayes uncertainty` was run in between."""
    without, with_it = (model_checksums(folder, uncertainty=used) for used in (False, True))
    assert set(with_it) - set(without) == {"weight_factor.safetensors"}
    assert with_it.items() >= without.items()
