"""A fit in memory says what the catalogue says, in the units that people use."""

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

from tests.conftest import QUICK
from xpbayes.api.model import Model
from xpbayes.errors import InputError
from xpbayes.production.table import catalogue_about, list_column, read_catalogue

SETTINGS = {
    name: getattr(QUICK, name) for name in ("n_nodes", "n_starts", "n_more_draws", "chunk_size", "max_iterations")
}


@pytest.fixture(scope="module")
def model(trained):
    return Model(**vars(trained))


@pytest.fixture(scope="module")
def fit(model, sample):
    """Sixty stars, one of which cannot be used."""
    stars = sample.take(np.arange(60))
    stars.flux[3] = np.nan
    return model.fit(stars, parallax=False, draws=QUICK.n_draws, **SETTINGS)


def test_values_are_those_of_the_catalogue(fit, model, sample):
    median = list_column(fit.catalogue, "stellar_params_median")
    solved = fit.status == "ok"
    assert solved.sum() == 59 and not solved[3]
    assert_allclose(fit.teff[solved], 1e3 * median[solved, 0])
    assert_allclose(fit.parallax[solved], median[solved, -1])
    assert np.isnan(fit.teff[3]) and np.isnan(fit.covariance[3]).all()
    assert_array_equal(fit.source_id, sample.source_id[:60])


def test_without_draws_the_mode_is_recommended_with_its_laplace_error(model, sample):
    fit = model.fit(sample.take(np.arange(20)), use_parallax=False, n_draws=0, **SETTINGS)
    assert_allclose(fit.logg, fit.logg_mode)
    assert_allclose(fit.logg_err, np.sqrt(fit.covariance[:, 2, 2]))
    assert_allclose(fit.logg_p84 - fit.logg_p16, 2 * fit.logg_err, rtol=1e-6)


def test_slices_masks_and_single_stars(fit):
    some = fit[5:9]
    assert len(some) == 4 and some.teff[0] == fit.teff[5]
    hot = fit[fit.teff > np.nanmedian(fit.teff)]
    assert len(hot) == 29 and (hot.teff > np.nanmedian(fit.teff)).all()
    assert_array_equal(hot.spectra.source_id, hot.source_id)
    star = fit[-1]
    assert star.teff == fit.teff[-1] and star.source_id == fit.source_id[-1]
    with pytest.raises(IndexError):
        fit[60]
    assert [s.source_id for s in some] == some.source_id.tolist()
    assert len(fit[np.ma.array([3, 4], mask=[1, 0])]) == 1
    with pytest.raises(InputError, match="picks no stars of a fit"):
        fit[np.array([[0, 1], [1, 2]])]
    with pytest.raises(InputError, match="picks no stars of a fit"):
        fit[0, 1]


def test_a_misspelt_column_is_answered_with_the_nearest(fit):
    with pytest.raises(AttributeError, match="tef_err.*did you mean 'teff_err'"):
        _ = fit.tef_err
    star = fit[0]
    with pytest.raises(AttributeError, match="a star has no 'tef' .did you mean 'teff'"):
        _ = star.tef
    for name in ("save", "to_pandas", "model", "about", "parameters", "catalogue"):
        with pytest.raises(AttributeError, match=f"has: star.row.{name}"):
            getattr(star, name)
    assert {"teff", "teff_err", "optima", "spectra"} <= set(dir(star)) and len(star.spectra) == 1


@pytest.mark.parametrize("index", [None, np.zeros((2, 2), int), "teff", 1.5, np.zeros(3, bool), np.array(1)])
def test_what_picks_no_stars_is_one_sentence(fit, index):
    with pytest.raises(InputError, match="picks no stars of a fit"):
        fit[index]


def test_a_fit_of_no_stars_is_shown_and_compared(fit):
    none = fit[[]]
    assert "Fit of 0 stars" in none._repr_html_() and none.covariance.shape == (0, 5, 5)
    assert fit == fit and fit != none and len({fit, none}) == 2


def test_tables_carry_units_and_descriptions(fit):
    table = fit.to_table()
    assert table["teff"].unit == u.K and table["parallax_err"].unit == u.mas and table["feh"].unit == u.dex
    assert all(table[name].description for name in table.colnames)
    frame = fit.to_pandas()
    assert isinstance(frame, pd.DataFrame) and list(frame.columns) == table.colnames
    assert frame.source_id.dtype == np.int64 and frame.attrs["units"]["teff"] == "K"


@pytest.mark.filterwarnings("ignore:.*dex")  # astropy does not take the unit from FITS and VOTable
@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".vot"])
def test_flat_files_read_back(fit, suffix, tmp_path):
    path = fit.save(tmp_path / f"stars{suffix}")
    again = Table.read(path)
    assert_array_equal(np.asarray(again["source_id"], np.int64), fit.source_id)
    assert_allclose(np.ma.filled(np.ma.asarray(again["teff"], float), np.nan), fit.teff, rtol=1e-6)


def test_parquet_is_a_catalogue(fit, tmp_path):
    catalogue = read_catalogue(fit.save(tmp_path / "stars.parquet"))
    about = catalogue_about(catalogue)
    assert catalogue.equals(fit.catalogue) and about["settings"]["use_parallax"] is False


def test_an_unknown_suffix_is_refused(fit, tmp_path):
    with pytest.raises(InputError, match=r"'\.xlsx' is no format"):
        fit.save(tmp_path / "stars.xlsx")


def test_flags_are_masks(fit):
    assert_array_equal(fit.flags.basic, fit.flags.value < 8)
    assert fit.flags.POOR_FIT[3]
    with pytest.raises(AttributeError, match="there is no flag"):
        _ = fit.flags.POOR


def test_a_notebook_shows_a_table_and_a_picture(fit):
    html = fit._repr_html_()
    assert "<table" in html and "data:image/png;base64," in html and "52 more rows" in html
    assert "<script" not in html and "&lt;Fit of 60 stars" in html


def test_a_star_knows_its_optima_and_draws_itself(fit):
    star = fit[0]
    values = [optimum.objective for optimum in star.optima]
    assert values == sorted(values) and len(values) >= 1
    figure = star.plot()
    assert len(figure.axes) >= 2


def test_a_notebook_draws_what_plot_returns(fit):
    """Without pyplot, whose formatter is registered only when it is first used."""
    assert fit.plot(0)._repr_png_().startswith(b"\x89PNG")
