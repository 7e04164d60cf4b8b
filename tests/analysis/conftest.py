"""Finished runs on disk, and what is made of them, shared by the tests of all analyses."""

import numpy as np
import pytest

from tests.conftest import QUICK
from xpbayes.analysis.pages.requested_stars import typical_stars
from xpbayes.data.spectra_file import write_star_table
from xpbayes.production.model_file import save_model
from xpbayes.production.table import read_catalogue
from xpbayes.runs.analyse import analyse
from xpbayes.runs.infer import infer
from xpbayes.runs.report import report


@pytest.fixture(scope="session")
def analysed(trained, sample, made_once):
    """A folder with a model, 400 stars and what was inferred for them, as `xpbayes demo` leaves it."""

    def make(folder):
        save_model(trained, folder / "model")
        stars = sample.take(np.arange(0, 2000, 5))
        write_star_table(stars, folder / "stars.parquet")
        infer(trained, stars, folder / "catalogue.parquet", QUICK.model_copy(update={"n_draws": 256}))

    return made_once("analysed", make)


@pytest.fixture(scope="session")
def figure_folder(analysed, made_once):
    """All figures of that run with the page that shows them."""
    return made_once("figures", lambda folder: analyse(analysed, folder))


@pytest.fixture(scope="session")
def report_page(analysed, trained, made_once):
    """The report of that run, with a section for each of the typical stars."""

    def make(folder):
        stars = typical_stars(read_catalogue(analysed / "catalogue.parquet"), trained)
        inputs = (analysed / "model", analysed / "catalogue.parquet", analysed / "stars.parquet")
        report(*inputs, folder / "report.html", source_ids=stars)

    return made_once("report", make) / "report.html"
