"""Models, stars and catalogues of two data releases: each meeting is refused, or warned of, as designed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import xpbayes
from tests.conftest import QUICK
from tests.instrument.stub import stub
from xpbayes.analysis.run_inputs import open_run, open_stars
from xpbayes.channels import xp_channels
from xpbayes.data.spectra import join_star_tables
from xpbayes.data.spectra_file import read_star_table, write_star_table
from xpbayes.errors import InputError
from xpbayes.instrument.bases import registered
from xpbayes.instrument.instrument import DEFAULT_ID
from xpbayes.instrument.transfer import TERMS, Transfer
from xpbayes.production.inputs import lay_out, read_task
from xpbayes.production.meeting import stars_for
from xpbayes.production.model_file import load_model, save_model
from xpbayes.production.table import catalogue_about, describe, read_catalogue, write_catalogue
from xpbayes.runs.confidence import confidence
from xpbayes.runs.infer import about_model, infer
from xpbayes.runs.inputs import stream_tables

DR4_LIKE = Path(__file__).resolve().parents[2] / "../shared/data/dr4_like"
DR3_ID, DR4_ID = DEFAULT_ID, stub().about
OTHER_DR3 = replace(DR3_ID, basis_ids=(60, 61))
N = 24


def transfer_between(source, target, ratio: float = 1.0) -> Transfer:
    """One that multiplies all fluxes."""
    n = len(TERMS)
    coefficients = np.zeros((n, 61))
    coefficients[0] = ratio
    reach = np.array([[-99.0, -99.0], [99.0, 99.0]])
    return Transfer(source, target, np.zeros(2), np.ones(2), reach, coefficients, np.zeros((n * 61, n * 61)), 1.0, 500)


@pytest.fixture(scope="module")
def stars(sample):
    return sample.take(np.arange(N))


def of(table, instrument):
    return table.replace(instrument=instrument)


def model_of(trained, instrument, transfer=None):
    return replace(trained, card={**trained.card, "instrument": instrument.to_json()}, transfer=transfer)


def test_tables_of_other_bands_are_brought_to_the_models(trained, stars, tmp_path, said):
    """J and W1 in the table, J, H, Ks in the model: at every door as if H and Ks had not been measured."""
    other = xp_channels(("W1", "J"))
    flux = np.concatenate([stars.flux[:, :61], np.full((N, 1), 7, np.float32), stars.flux[:, 61:62]], axis=1)
    inverse = np.stack([np.ones(N, np.float32), stars.band_inverse_error[:, 0]], axis=1)
    given = stars.replace(channels=other, flux=flux, band_inverse_error=inverse)
    path = write_star_table(given, tmp_path / "stars.parquet")
    found = [stars_for(trained, given, "stars"), next(stream_tables(path, None, trained.channels)[0])]
    assert said == ["stars.parquet: the model does not use W1; H, Ks count as missing"]
    layout = lay_out([path], trained.channels, 100)
    found += [batch.table for batch in read_task(layout, layout.tasks[0], (), trained.channels)]
    found += list(open_stars(path).seen_by(trained, "stars").batches())
    for table in found:
        assert table.channels == trained.channels
        assert_array_equal(table.flux[:, :62], stars.flux[:, :62])
        assert_array_equal(table.band_inverse_error, stars.band_inverse_error * [1, 0, 0])
    moved = replace(other, wavelength_nm=(*other.wavelength_nm[:-1], 1250.0))
    with pytest.raises(InputError, match="channels and the model has 64"):
        stars_for(trained, given.replace(channels=moved), "stars")


REFUSED = [
    ("a DR3 model, DR4 stars", DR3_ID, None, DR4_ID, "is of Gaia DR4 and the model of Gaia DR3.*xpbayes transfer"),
    ("a DR4 model, DR3 stars", DR4_ID, None, DR3_ID, "is of Gaia DR3 and the model of Gaia DR4"),
    ("the same release, other bases", DR3_ID, None, OTHER_DR3, "of Gaia DR3 with different basis functions"),
    ("a transfer from elsewhere", DR3_ID, (OTHER_DR3, DR3_ID), DR4_ID, "is of Gaia DR4 and the model of Gaia DR3"),
]
VERBS = {
    "infer": lambda model, stars, tmp, catalogue: infer(model, stars, config=QUICK),
    "infer_parts": lambda model, stars, tmp, catalogue: xpbayes.infer_parts(
        save_model(model, tmp / "m"), write_star_table(stars, tmp / "s.parquet"), tmp / "c", QUICK
    ),
    "fit": lambda model, stars, tmp, catalogue: xpbayes.fit(model, stars, stars.source_id[:1].tolist()),
    "sample": lambda model, stars, tmp, catalogue: xpbayes.sample(model, stars, n_random=2),
    "compare": lambda model, stars, tmp, catalogue: xpbayes.compare(model, stars, n_random=2),
    "check": lambda model, stars, tmp, catalogue: xpbayes.check(model, stars),
    "uncertainty": lambda model, stars, tmp, catalogue: xpbayes.uncertainty(model, stars),
    "confidence": lambda model, stars, tmp, catalogue: xpbayes.confidence(model, catalogue, stars),
    "report": lambda model, stars, tmp, catalogue: xpbayes.report(model, catalogue, stars, tmp / "report.html"),
    "analyse": lambda model, stars, tmp, catalogue: xpbayes.analyse(
        None, tmp / "f", {"model": save_model(model, tmp / "m"), "stars": write_star_table(stars, tmp / "s.parquet")}
    ),
}
"""All that take a model and stars; a catalogue, where one is needed, is of the stars' release."""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("model", "transfer", "instrument", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_stars_that_a_model_cannot_take_are_refused_by_every_verb(
    trained, stars, catalogues, tmp_path, verb, model, transfer, instrument, words
):
    made = model_of(trained, model, transfer and transfer_between(*transfer))
    if transfer:
        made.card["transfer"] = {}
    with pytest.raises(InputError, match=f"^[^\n]*{words}[^\n]*$"):
        VERBS[verb](made, of(stars, instrument), tmp_path, catalogues[instrument.release])


def test_a_model_s_training_stars_are_not_of_another_release_with_or_without_a_transfer(trained, stars):
    both = model_of(trained, DR3_ID, transfer_between(DR4_ID, DR3_ID))
    with pytest.raises(InputError, match="is of Gaia DR4 and the model of Gaia DR3"):
        xpbayes.uncertainty(both, of(stars, DR4_ID))


def test_stars_of_the_model_s_own_instrument_need_no_words(trained, stars, said):
    assert stars_for(trained, stars, "x") is stars
    both = model_of(trained, DR3_ID, transfer_between(DR4_ID, DR3_ID, 2.0))
    assert_array_equal(stars_for(both, stars, "x").flux, stars.flux)
    assert said == []


def test_stars_of_a_transfer_s_source_are_brought_over_with_a_warning(trained, stars, said):
    both = model_of(trained, DR3_ID, transfer_between(DR4_ID, DR3_ID, 2.0))
    moved = stars_for(both, of(stars, DR4_ID), "x")
    assert moved.instrument == DR3_ID
    assert_allclose(moved.flux[:, :61], 2.0 * stars.flux[:, :61], rtol=1e-6)
    assert_array_equal(moved.flux[:, 61:], stars.flux[:, 61:])  # other instruments' bands are as they were
    assert_allclose(moved.flux_error()[:, :61], 2.0 * stars.flux_error()[:, :61], rtol=1e-3)
    assert len(said) == 1 and "a transfer learned from 500 pairs" in said[0]


def test_star_tables_of_two_instruments_are_not_joined(stars, tmp_path):
    halves = [stars.take(slice(0, 10)), of(stars.take(slice(10, 20)), DR4_ID)]
    with pytest.raises(InputError, match="b is of Gaia DR4 and a of Gaia DR3"):
        join_star_tables(halves, ["a", "b"])
    files = [write_star_table(half, tmp_path / f"{i}.parquet") for i, half in enumerate(halves)]
    with pytest.raises(InputError, match="is of Gaia DR4 and 0.parquet of Gaia DR3"):
        open_stars(tmp_path)
    assert [read_star_table(f).instrument for f in files] == [DR3_ID, DR4_ID]


def test_inputs_of_two_instruments_make_no_catalogue(trained, stars, tmp_path):
    both = model_of(trained, DR3_ID, transfer_between(DR4_ID, DR3_ID))
    both.card["transfer"] = {}
    a = write_star_table(stars.take(slice(0, 10)), tmp_path / "a.parquet")
    b = write_star_table(of(stars.take(slice(10, 20)), DR4_ID), tmp_path / "b.parquet")
    folder = save_model(both, tmp_path / "model")
    with pytest.raises(InputError, match="is of Gaia DR4"):
        infer(folder, [a, b], config=QUICK)
    with pytest.raises(InputError, match="b.parquet is of Gaia DR4 and .*a.parquet of Gaia DR3"):
        xpbayes.infer_parts(folder, [a, b], tmp_path / "c", QUICK)


@pytest.fixture(scope="module")
def dr4_catalogue(trained, stars, tmp_path_factory):
    """Of a model and stars of the stub, in one file."""
    path = tmp_path_factory.mktemp("dr4") / "catalogue.parquet"
    infer(model_of(trained, DR4_ID), of(stars, DR4_ID), path, QUICK)
    return path


@pytest.fixture(scope="module")
def catalogues(dr4_catalogue, trained, stars):
    """By release."""
    path = dr4_catalogue.with_name("dr3.parquet")
    infer(trained, stars, path, QUICK)
    return {"dr3": path, "dr4": dr4_catalogue}


def test_a_catalogue_says_which_release_its_identifiers_are_of(dr4_catalogue, trained, stars):
    rows = read_catalogue(dr4_catalogue)
    about = catalogue_about(rows)
    assert about["instrument"] == {
        **DR4_ID.to_json(),
        "models": list(DR4_ID.models),
        "counts": [51, 55],
        "basis_ids": [0, 0],
    }
    assert set(rows["release"].to_pylist()) == {"dr4"} and "gdr3_source_id" not in rows.column_names
    assert_array_equal(rows["source_id"].to_numpy(), stars.source_id)
    dr3 = infer(trained, stars, config=QUICK)
    assert dr3["gdr3_source_id"].equals(dr3["source_id"]) and set(dr3["release"].to_pylist()) == {"dr3"}


def test_a_catalogue_does_not_meet_stars_of_another_release(dr4_catalogue, trained, stars, tmp_path):
    table = write_star_table(stars, tmp_path / "stars.parquet")
    with pytest.raises(InputError, match=r"catalogue.parquet is of Gaia DR4 and .*stars.parquet of Gaia DR3"):
        open_run({"catalogue": dr4_catalogue, "stars": table})
    with pytest.raises(InputError, match="is of Gaia DR4 and .*stars.parquet of Gaia DR3, whose source_ids are not"):
        confidence(trained, dr4_catalogue, table)
    with pytest.raises(InputError, match="is of Gaia DR4 and the star table of Gaia DR3, whose source_ids are not"):
        xpbayes.report(trained, dr4_catalogue, table, tmp_path / "report.html")
    same = open_run(
        {"catalogue": dr4_catalogue, "stars": write_star_table(of(stars, DR4_ID), tmp_path / "own.parquet")}
    )
    assert same.stars.instrument == DR4_ID


def test_a_catalogue_of_transferred_stars_keeps_their_release(trained, stars, tmp_path, said):
    both = model_of(trained, DR3_ID, transfer_between(DR4_ID, DR3_ID, 2.0))
    both.card["transfer"] = {}
    folder = save_model(both, tmp_path / "model")
    half = of(stars.replace(flux=np.concatenate([0.5 * stars.flux[:, :61], stars.flux[:, 61:]], axis=1).astype(np.float32),
                            xp_whitening=2.0 * stars.xp_whitening), DR4_ID)  # fmt: skip
    catalogue = infer(folder, half, tmp_path / "c.parquet", QUICK)
    assert sum("a transfer learned from" in line for line in said) == 1
    assert set(catalogue["release"].to_pylist()) == {"dr4"}
    assert "transfer_checksum" in catalogue_about(read_catalogue(tmp_path / "c.parquet"))["model"]
    expected = infer(trained, stars, config=QUICK)
    found, wanted = (np.array(c["chi2_opt"].to_pylist(), float) for c in (catalogue, expected))
    assert np.median(np.abs(found / wanted - 1)) < 1e-3


def test_a_transfer_is_kept_with_the_model(trained, tmp_path):
    transfer = transfer_between(DR4_ID, DR3_ID, 1.01)
    both = replace(trained, transfer=transfer, card={**trained.card, "transfer": {"created": "today"}})
    folder = save_model(both, tmp_path / "model")
    back = load_model(folder)
    assert back.card["transfer"]["created"] == "today" and back.transfer.source == DR4_ID
    assert_array_equal(back.transfer.ratio, transfer.ratio)
    (folder / "transfer.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="transfer.safetensors: is not the file that the card describes"):
        load_model(folder)
    assert not (save_model(trained, folder) / "transfer.safetensors").exists() and load_model(folder).transfer is None


@pytest.mark.skipif(not DR4_LIKE.is_dir(), reason="the records of the next release are not beside the project")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # by made-up bases a third of these are no spectra
def test_records_of_the_next_release_are_inferred_by_a_model_of_its_instrument(trained, tmp_path):
    with registered(stub()) as instrument:
        spectra = xpbayes.Spectra.read(DR4_LIKE / "sources.avro")
        assert len(spectra) == 30 and spectra.instrument == instrument.about
        assert spectra.provenance["xp_correlation"] == "published"
    table = write_star_table(spectra.on(trained.channels), tmp_path / "stars.parquet")
    assert pq.read_schema(table).metadata
    rows = infer(model_of(trained, instrument.about), table, config=QUICK)
    assert set(rows["release"].to_pylist()) == {"dr4"} and len(rows) == 30
    of_solver = {"ok", "solver met a non-finite value", "the fluxes bound neither extinction nor parallax"}
    assert "ok" in rows["status"].to_pylist() and set(rows["status"].to_pylist()) <= of_solver
    with pytest.raises(InputError, match="is of Gaia DR4 and the model of Gaia DR3"):
        infer(trained, table, config=QUICK)


def test_classifiers_of_another_release_are_told(trained, stars, said):
    class Nets:
        pass

    from xpbayes.production.meeting import warn_of_transfer

    learned = replace(
        model_of(trained, DR4_ID),
        confidence=Nets(),
        card={**trained.card, "confidence": {"instrument": DR3_ID.to_json()}},
    )
    warn_of_transfer(learned, DR4_ID, "the stars")
    assert len(said) == 1 and "classifiers were learned on stars of Gaia DR3; train them again" in said[0]


def test_old_catalogues_and_models_are_of_dr3(trained, stars, tmp_path):
    card = {k: v for k, v in trained.card.items() if k != "instrument"}
    assert replace(trained, card=card).instrument == DR3_ID
    rows = infer(trained, stars, config=QUICK)
    old = rows.drop_columns(["source_id", "release"])
    about = {k: v for k, v in about_model(trained).items() if k != "instrument"}
    back = read_catalogue(write_catalogue(describe(old, about), tmp_path / "old.parquet"))
    assert_array_equal(back["source_id"].to_numpy(), stars.source_id)
    table = write_star_table(stars, tmp_path / "stars.parquet")
    assert open_run({"catalogue": tmp_path / "old.parquet", "stars": table}).stars.instrument == DR3_ID
