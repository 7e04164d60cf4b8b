"""Known dust, spectra, files, inference, map: the chain as a user runs it, small."""

from dataclasses import replace

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from benchmarks.dust_map_truth import compare, true_means
from tests.conftest import QUICK
from xpbayes.config import DustMapConfig, Recipe
from xpbayes.runs.dust_map import dust_map
from xpbayes.runs.infer import infer
from xpbayes.simulation.sky import Dust, simulate_sky


@pytest.fixture(scope="module")
def simulated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sky")
    # Without an error of its own the model is exact: what is tested is the chain, not the network.
    exact = replace(trained, star_model=trained.star_model.without_error)
    files = simulate_sky(exact, 400, folder / "survey", Recipe(seed=2), "80,0,2")
    how = QUICK.model_copy(update={"use_parallax": True})
    infer(exact, files[0], folder / "catalogue.parquet", how)
    return folder


@pytest.mark.thorough
def test_the_map_finds_the_dust_that_was_put_in(simulated):
    """400 stars in a cone of 2 deg, four bins: E rises with distance as it does in truth."""
    config = DustMapConfig(
        nsides=(32, 16), min_stars=5, max_extinction_error=0.15, sky_edges=(0.0, 1.0, 2.0, 4.0),
        sky_max_parallax_error=0.3, profile_bins=6,
    )  # fmt: skip
    maps = dust_map(simulated / "catalogue.parquet", simulated / "map", config)
    assert maps.tally.rows == 400 and maps.tally.kept > 100
    truth = Dust.read(simulated / "survey" / "sky.json")
    compared = compare(maps.sky, true_means(maps.sky, truth.extinction))
    assert len(compared.bin) >= 3
    # A pixel is larger than the cone, and its stars fill only some of it: E is known to a few hundredths of a mag.
    assert np.abs(np.median(compared.mean - compared.mean_true)) < 0.1
    centre = SkyCoord(l=80 * u.deg, b=0 * u.deg, frame="galactic")
    near, far = (maps.sky.extinction(centre, r * u.kpc)[0] for r in (0.7, 2.5))
    assert 0 < near < far
