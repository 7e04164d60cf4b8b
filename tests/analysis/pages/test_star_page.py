"""`xpbayes fit`: numbers, page and figure of single stars."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK
from xpbayes.analysis.pages.star_page import print_star, star_figure
from xpbayes.data.spectra_file import write_star_table
from xpbayes.errors import InputError
from xpbayes.runs.fit import fit
from xpbayes.runs.infer import infer


@pytest.fixture(scope="module")
def table(sample):
    part = sample.take(np.arange(8))
    flux = part.flux.copy()
    flux[5] = np.nan
    return replace(part, flux=flux)


@pytest.fixture(scope="module")
def run(trained, table, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "out"
    wanted = table.source_id[[6, 5, 2]].tolist()
    return fit(trained, table, wanted, out, QUICK), wanted, out


def test_stars_come_in_the_order_asked_for(run):
    fits, wanted, _ = run
    assert [f.source_id for f in fits] == wanted


def test_estimates_are_the_catalogue_s(trained, table, run):
    catalogue = infer(trained, table.take(np.array([6, 2])), config=QUICK)
    for row, star in zip(catalogue.to_pylist(), (run[0][0], run[0][2]), strict=True):
        assert_allclose(star.estimate, row["stellar_params_est"], rtol=1e-4, atol=1e-4)
        assert_allclose(star.chi2, row["chi2_opt"], rtol=1e-3)


def test_json_is_in_displayed_units(run):
    fits, wanted, out = run
    rows = json.loads((out / "fit.json").read_text())
    assert [row["source_id"] for row in rows] == wanted
    assert_allclose(rows[0]["estimate"]["teff"], 1e3 * fits[0].estimate[0], rtol=1e-6)
    assert rows[0]["units"] == {"teff": "K", "feh": "dex", "logg": "dex", "extinction": "mag", "parallax": "mas"}
    assert rows[0]["modes"][0]["delta_l"] == 0 and rows[0]["n_starts"] == 64


def test_a_star_that_cannot_be_fitted_says_why(run, capsys):
    fits, wanted, out = run
    assert fits[1].status == "flux is not finite" and not (out / f"{wanted[1]}.png").exists()
    print_star(fits[1])
    assert "no solution: flux is not finite" in capsys.readouterr().out
    with pytest.raises(InputError, match="has no solution to draw"):
        star_figure(fits[1])


def test_page_has_parameters_optima_and_flags(run, capsys):
    fits, wanted, _ = run
    print_star(fits[0])
    text = capsys.readouterr().out
    for part in (str(wanted[0]), "log g", "ΔL", "from 64 starts", "not measured", "quality_flags"):
        assert part in text


def test_figure_shows_data_model_and_residuals_in_sigma(run):
    star = run[0][0]
    figure = star_figure(star)
    top, bottom = figure.axes
    drawn = {line.get_label(): line for line in top.get_lines()}
    assert_allclose(drawn["model at the mode"].get_ydata(), star.spectrum.predicted)
    residual = next(line for line in bottom.get_lines() if len(line.get_ydata()) == len(star.wavelength_nm))
    assert_allclose(residual.get_ydata(), (star.spectrum.observed - star.spectrum.predicted) / star.spectrum.error)
    assert (run[2] / f"{star.source_id}.png").stat().st_size > 20_000


def test_a_better_optimum_elsewhere_is_mentioned(run, capsys):
    star = run[0][0]
    best = star.modes.modes[0]
    moved = replace(star, estimate=best.estimate + best.error)
    assert star.agrees and not moved.agrees
    print_star(moved)
    assert "many starts found a better optimum" in capsys.readouterr().out


def test_an_unknown_source_id_is_one_sentence(trained, table, run):
    with pytest.raises(InputError, match=r"1 of 2 source_ids are not there \(first: 12345\)"):
        fit(trained, table, [int(table.source_id[0]), 12345])


def test_a_folder_of_tables_works(trained, table, run, tmp_path):
    write_star_table(table.take(np.arange(4)), tmp_path / "a.parquet")
    write_star_table(table.take(np.arange(4, 8)), tmp_path / "b.parquet")
    again = fit(trained, tmp_path, run[1], config=QUICK)
    assert_allclose(again[0].estimate, run[0][0].estimate, rtol=1e-5)
