"""Models, star tables and catalogues that version 0.1.0 wrote, made by its own code, are read as they were meant."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import xpbayes
from xpbayes.production.table import catalogue_about, list_column

OLD = Path(__file__).resolve().parents[1] / "data" / "v0.1.0"


@pytest.fixture(scope="module")
def catalogue():
    return xpbayes.read_catalogue(OLD / "catalogue.parquet")


def test_a_model_predicts_and_infers(catalogue):
    model = xpbayes.load(OLD / "model")
    assert model.labels == ("teff", "feh", "logg") and len(model.channels) == 64 and model.support is not None
    assert float(model.model_error.inv_dof[0]) > 0
    fit = model.fit(xpbayes.Spectra.read(OLD / "stars.parquet"), parallax=False, draws=0, n_nodes=64, n_starts=2)
    before = list_column(catalogue, "stellar_params_est")
    error = list_column(catalogue, "stellar_params_err")
    apart = np.abs(list_column(fit.catalogue, "stellar_params_est") - before) / error
    # The same nodes and starts: another processor rounds differently, no more.
    assert np.median(apart) < 0.01, apart


def test_catalogues_are_read_under_the_old_column_names(catalogue):
    rows = catalogue
    assert catalogue_about(rows)["labels"] == ["teff", "feh", "logg"] and len(rows) == 8
    assert np.isfinite(rows["e_unbounded"].to_numpy()).all()


def test_a_catalogue_in_parts_is_whole(catalogue):
    rows = xpbayes.read_catalogue(OLD / "parts")
    assert_allclose(list_column(rows, "stellar_params_est"), list_column(catalogue, "stellar_params_est"), rtol=1e-5)
