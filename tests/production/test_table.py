"""Catalogue rows: Table 2's columns, every flag bit, one row a star whatever happened to it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.conftest import QUICK, with_columns
from xpbayes.data.spectra import OK
from xpbayes.errors import InputError
from xpbayes.inference.linear_algebra import from_upper_triangle
from xpbayes.production.flat import flat_table
from xpbayes.production.table import catalogue_about, list_column, read_catalogue, write_catalogue
from xpbayes.runs import infer as infer_run
from xpbayes.runs.infer import infer
from xpbayes.schema import QualityFlag, catalogue_columns

SIMPLE = QUICK.model_copy(update={"use_parallax": True})


@pytest.fixture(scope="module")
def table(sample):
    """200 stars with measured parallaxes for half of them, and three spoilt rows."""
    part = sample.take(np.arange(200))
    parallax = np.where(np.arange(200) % 2, part.column("spectroscopic_parallax"), np.nan)
    part = with_columns(part, parallax=parallax, parallax_error=np.full(200, 0.05))
    flux = part.flux.copy()
    flux[7, 20] = np.nan
    weights, bands = part.xp_whitening.copy(), part.band_inverse_error.copy()
    weights[8], bands[8] = 0, 0
    bands[9, 0] = -1
    return replace(part, flux=flux, xp_whitening=weights, band_inverse_error=bands)


@pytest.fixture(scope="module")
def catalogue(trained, table):
    return infer(trained, table, config=SIMPLE)


def test_columns_types_units_and_descriptions(catalogue):
    for column, field in zip(catalogue_columns(), catalogue.schema, strict=True):
        assert (field.name, field.type) == (column.name, column.type)
        assert field.metadata[b"description"] and b"unit" in field.metadata and b"ucd" in field.metadata


def test_rows_in_are_rows_out_in_order(catalogue, table):
    assert_array_equal(catalogue["gdr3_source_id"].to_numpy(), table.source_id)
    assert_allclose(catalogue["ra"].to_numpy(), table.column("ra"))


def test_a_bad_star_has_a_row_with_a_reason(catalogue):
    status = catalogue["status"].to_pylist()
    assert status[7:10] == ["flux is not finite", "no channel was measured", "flux error is negative"]
    assert status.count(OK) == 197
    assert np.isnan(list_column(catalogue, "stellar_params_est")[7:10]).all()
    assert all(f & QualityFlag.POOR_FIT for f in catalogue["quality_flags"].to_pylist()[7:10])
    assert catalogue["chi2_opt"].to_pylist()[7] is None


def test_a_star_without_a_solution_has_null_parameters(trained, table, monkeypatch):
    fit = infer_run.fit_stars

    def fail_for_some(*arguments, **options):
        found = fit(*arguments, **options)
        covariance, estimate, laplace = (np.array(of) for of in (found.covariance, found.estimate, found.laplace))
        covariance[2], estimate[4, 0], laplace[5, -1, -1], estimate[6, -2] = np.nan, np.inf, 0.0, 1e37
        return replace(found, covariance=covariance, estimate=estimate, laplace=laplace)

    monkeypatch.setattr(infer_run, "fit_stars", fail_for_some)
    few = table.take(np.arange(7))
    catalogue = infer(trained, few, config=SIMPLE)
    lost = [2, 4, 5, 6]
    reasons = ["solver met a non-finite value"] * 2 + [
        "an error of its parameters is 0 or not finite",
        "the fluxes bound neither extinction nor parallax",
    ]
    assert [catalogue["status"][i].as_py() for i in lost] == reasons
    for field in catalogue.schema:
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
            assert np.isnan(list_column(catalogue, field.name)[lost]).all(), field.name
    for name in (
        "chi2_opt",
        "ln_prior",
        "k_hat",
        "runner_up_delta",
        "extrapolation",
        "n_effective",
    ):
        assert all(np.isnan(np.asarray(catalogue[name].to_numpy(zero_copy_only=False), float)[lost])), name
    assert all(catalogue["quality_flags"][i].as_py() & QualityFlag.POOR_FIT for i in lost)
    assert [catalogue["method"][i].as_py() for i in lost] == ["none"] * 4
    assert_array_equal(catalogue["gdr3_source_id"].to_numpy(), few.source_id)
    assert np.isfinite(list_column(catalogue, "stellar_params_est")[[0, 1, 3]]).all()


def test_stars_of_which_none_can_be_solved_end_in_a_sentence(trained, table):
    few = table.take(np.arange(2))
    with pytest.raises(InputError, match="none of its 2 stars can be used"):
        infer(trained, replace(few, band_inverse_error=few.band_inverse_error * 1e30), config=SIMPLE)


def test_no_inputs_end_in_a_sentence(trained):
    with pytest.raises(InputError, match="no input was named"):
        infer(trained, sorted([]))


def test_where_draws_say_of_no_error_the_mode_is_recommended(catalogue):
    """All weight may lie on one draw, and float32 holds no error of a parallax of 1e6 mas."""
    at = catalogue.column_names.index("stellar_params_p16")
    catalogue = catalogue.set_column(at, catalogue.schema.field(at), catalogue["stellar_params_p84"])
    flat, solved = flat_table(catalogue, catalogue_about(catalogue)), np.array(catalogue["status"].to_pylist()) == OK
    assert_array_equal(flat["parallax"].to_numpy(), flat["parallax_mode"].to_numpy())
    assert (flat["parallax_err"].to_numpy()[solved] > 0).all()


def test_errors_belong_to_covariances_and_covariances_to_fisher_matrices(catalogue):
    solved = np.array(catalogue["status"].to_pylist()) == OK
    covariance = from_upper_triangle(list_column(catalogue, "stellar_params_cov_triu")[solved])
    fisher = from_upper_triangle(list_column(catalogue, "stellar_params_icov_triu")[solved])
    error = list_column(catalogue, "stellar_params_err")[solved]
    assert_allclose(error, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), rtol=1e-5)
    identity = covariance @ fisher
    assert np.median(np.abs(identity - np.eye(5))) < 1e-3


def test_degrees_of_freedom_count_bands_and_parallax(catalogue, table):
    assert catalogue["n_obs"].to_pylist()[0] == 64
    assert catalogue["dof"].to_pylist()[0] == 64 - 5  # no parallax
    assert catalogue["dof"].to_pylist()[1] == 64 + 1 - 5


def test_a_parallax_sharpens_log_g(catalogue):
    error = list_column(catalogue, "stellar_params_err")[:, 2]
    assert np.nanmedian(error[1::2]) < np.nanmedian(error[0::2])


def test_confidence_is_null_until_it_exists(catalogue):
    assert catalogue["teff_confidence"].null_count == len(catalogue)


def test_file_round_trip(catalogue, tmp_path):
    path = write_catalogue(catalogue, tmp_path / "c.parquet")
    back = read_catalogue(path)
    metadata = catalogue_about(back)
    assert back.equals(catalogue)
    assert metadata["labels"] == ["teff", "feh", "logg"] and metadata["n_with_parallax"] == 100


def test_a_star_table_is_not_a_catalogue(star_file):
    with pytest.raises(InputError, match="holds a star table, not a catalogue"):
        read_catalogue(star_file)


def test_a_lost_column_is_named(catalogue, tmp_path):
    path = write_catalogue(catalogue.drop_columns(["chi2_opt"]), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"1 columns are missing \(first: chi2_opt\)"):
        read_catalogue(path)


def test_arrow_types_stay_narrow(catalogue):
    assert catalogue.schema.field("quality_flags").type == pa.uint8()
    assert catalogue.schema.field("gdr3_source_id").type == pa.int64()
