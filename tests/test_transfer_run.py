"""`xpbayes transfer`: pairs from star tables of two releases, by equal identifiers or by a crosswalk."""

from dataclasses import replace

import numpy as np
import pytest

import xpbayes
from tests.command_line import refused, run
from tests.instrument.stub import stub
from xpbayes.channels import XP_GRID_NM
from xpbayes.data.spectra_file import write_star_table
from xpbayes.errors import InputError
from xpbayes.production.meeting import moved_by
from xpbayes.production.model_file import load_model, save_model

N = 120
SHIFT = 10**12


@pytest.fixture(scope="module")
def both(sample):
    """The same stars in two releases, whose fluxes differ by a smooth ratio."""
    stars = sample.take(sample.channel_present()[:, :61].all(axis=1) & (sample.snr > 30)).take(slice(0, N))
    ratio = 1.0 + 0.03 * np.sin((XP_GRID_NM - 400.0) / 150.0)
    flux = np.concatenate([stars.flux[:, :61] / ratio, stars.flux[:, 61:]], axis=1).astype(np.float32)
    packed = stars.xp_whitening * np.concatenate([ratio[: i + 1] for i in range(61)])
    other = stars.replace(flux=flux, xp_whitening=packed.astype(np.float32), instrument=stub().about)
    return stars, other


def test_pairs_by_equal_identifiers_bring_the_stars_back(both, trained, tmp_path, said):
    stars, other = both
    folder = save_model(trained, tmp_path / "model")
    a, b = write_star_table(stars, tmp_path / "a.parquet"), write_star_table(other, tmp_path / "b.parquet")
    assert run("transfer", folder, a, b, "-q").stdout.strip() == str(folder)
    model = load_model(folder)
    assert model.transfer.n_pairs == N and model.transfer.source == other.instrument
    assert model.card["transfer"]["noise"] == model.transfer.noise == 1.0
    moved, n_outside = moved_by(model.transfer, other)
    assert n_outside == 0
    pull = (moved.flux - stars.flux)[:, :61] / stars.flux_error()[:, :61]
    assert np.sqrt(np.mean(pull**2)) < 0.05
    assert (moved.flux_error()[:, :61] >= 0.999 * stars.flux_error()[:, :61]).all()


def test_pairs_by_a_crosswalk_that_must_be_one_to_one(both, trained, tmp_path, said):
    stars, other = both
    other = other.replace(source_id=other.source_id + SHIFT)
    lines = [f"{s + SHIFT},{s}" for s in stars.source_id.tolist()]
    lines.append(f"{stars.source_id[0] + SHIFT},{stars.source_id[1]}")  # one of DR4 has two neighbours
    lines.append(f"{stars.source_id[2] + 7},{stars.source_id[2]}")  # a neighbour that no table has
    (tmp_path / "x.csv").write_text("\n".join(["source_id,dr3_source_id", *lines]) + "\n")
    with pytest.raises(InputError, match="0 pairs of stars can be used"):
        xpbayes.transfer(trained, [stars, other])
    model = xpbayes.transfer(trained, [stars, other], crosswalk=tmp_path / "x.csv")
    assert model.transfer.n_pairs == N - 3
    assert any("117 stars are in both" in line for line in said)


def test_what_is_no_pair_of_releases_is_refused_in_one_sentence(both, trained, tmp_path):
    stars, other = both
    third = other.replace(instrument=replace(other.instrument, basis_ids=(9, 9)))
    for given in ([stars], [other], [stars, other, third]):
        with pytest.raises(InputError, match="^[^\n]*a transfer needs stars of the model's instrument[^\n]*$"):
            xpbayes.transfer(trained, given)
    folder = save_model(trained, tmp_path / "model")
    assert "no such file" in refused("transfer", folder, tmp_path / "none.parquet")
