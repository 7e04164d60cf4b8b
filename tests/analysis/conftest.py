"""A finished run on disk, shared by the tests of all analyses."""

import numpy as np
import pytest

from xpbayes.archive.star_table import write_star_table
from xpbayes.config import InferenceConfig
from xpbayes.pipeline import infer


@pytest.fixture(scope="session")
def analysed(trained, model_folder, sample, tmp_path_factory):
    """A folder with a model, 400 stars and what was inferred for them, as `xpbayes demo` leaves it."""
    folder = tmp_path_factory.mktemp("analysed")
    (folder / "model").symlink_to(model_folder)
    stars = sample.take(np.arange(0, 2000, 5))
    write_star_table(stars, folder / "stars.parquet")
    infer(trained, stars, folder / "catalogue.parquet", InferenceConfig(n_nodes=256, n_starts=1, use_parallax=False))
    return folder
