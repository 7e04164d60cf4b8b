"""Which instrument spectra are of: the bases of GaiaXPy, a stub for the release to come, and what is said without one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.instrument.stub import stub
from xpbayes.archive.columns import ReadOptions
from xpbayes.archive.xp import read_xp
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.channels import XP_GRID_NM
from xpbayes.errors import InputError
from xpbayes.instrument import gaiaxpy
from xpbayes.instrument.bases import instrument_for, instrument_of, registered
from xpbayes.instrument.instrument import DEFAULT_ID, InstrumentId
from xpbayes.instrument.xp_covariance import sample_spectra

DR4_LIKE = Path(__file__).resolve().parents[2] / "../shared/data/dr4_like"
needs_data = pytest.mark.skipif(
    not DR4_LIKE.is_dir(), reason="the records of the next release are not beside the project"
)
FILES = {"sources.avro": ((51, 55), 30), "regular_single_source.avro": ((48, 44), 1)}


def test_gaiaxpy_keeps_its_private_parts():
    assert gaiaxpy.contract() == []


def test_a_changed_gaiaxpy_is_told_in_one_line_a_part(monkeypatch):
    monkeypatch.setattr(gaiaxpy, "BUILDER", "__elsewhere")
    monkeypatch.setattr(gaiaxpy, "gaiaxpy_basis_ids", lambda: (60, 61))
    lines = gaiaxpy.contract()
    assert len(lines) == 3 and all("\n" not in line for line in lines)
    assert "__elsewhere" in lines[0] and "(60, 61) found" in lines[2]


def test_dr3_is_what_gaiaxpy_has_and_dr4_is_not_yet():
    assert gaiaxpy.gaiaxpy_models()["bp"]["v375wi"] == 55
    assert instrument_of().about == DEFAULT_ID == instrument_for((55, 0), (56, None)).about
    assert instrument_for((51, 55), (None, None)) is None
    with pytest.raises(InputError, match=r"^spectra of Gaia DR4, .* install one that has it"):
        instrument_of("dr4")


def test_models_of_a_new_gaiaxpy_can_be_named(monkeypatch):
    monkeypatch.setenv("XPBAYES_DR4_MODELS", "v375wi, v142r")
    found = instrument_of("dr4")
    assert found.about.models == ("v375wi", "v142r")
    with pytest.raises(InputError, match="BP instrument model of Gaia DR4 has 55 basis functions where 51"):
        found.sides()
    monkeypatch.setenv("XPBAYES_DR4_MODELS", "v375wi")
    with pytest.raises(InputError, match="not two names"):
        instrument_of("dr4")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"release": "dr4"}, "theirs is of Gaia DR4 and mine of Gaia DR3"),
        ({"models": ("a", "b")}, "different instrument models"),
        ({"counts": (51, 55)}, r"different numbers of coefficients \(\(51, 55\) and \(55, 55\)\)"),
        ({"basis_ids": (1, 2)}, "different basis functions"),
    ],
)
def test_instruments_that_differ_say_in_what(changed, words):
    DEFAULT_ID.require_same(InstrumentId(**DEFAULT_ID.to_json()), "mine", "theirs")
    with pytest.raises(InputError, match=words):
        DEFAULT_ID.require_same(replace(DEFAULT_ID, **changed), "mine", "theirs")


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_records_of_the_next_release_are_read(name):
    counts, n = FILES[name]
    batches = list(read_xp_continuous(DR4_LIKE / name))
    assert sum(map(len, batches)) == n and all(b.counts == counts and b.rejected == () for b in batches)
    assert all(b.later and (b.bp.basis_id == 0).all() for b in batches)


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_without_an_instrument_they_are_refused_with_what_to_install(name):
    bp, rp = FILES[name][0]
    with pytest.raises(
        InputError, match=rf"^[^\n]*has {bp} BP and {rp} RP[^\n]*GaiaXPy [\d.]+ has no[^\n]*install[^\n]*$"
    ):
        list(read_xp(DR4_LIKE / name))


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_with_an_instrument_they_are_calibrated_positive_definite(name):
    counts, n = FILES[name]
    with registered(stub(counts)) as instrument:
        rows = list(read_xp(DR4_LIKE / name))
    assert sum(map(len, rows)) == n and all(r.rejected == () and r.instrument == instrument.about for r in rows)
    for batch, calibrated in zip(read_xp_continuous(DR4_LIKE / name), rows, strict=True):
        flux, covariance, present = sample_spectra(batch.bp, batch.rp, instrument=instrument)
        least, *_, most = np.linalg.eigvalsh(covariance).T
        rounding = len(XP_GRID_NM) * np.finfo(float).eps * most  # some correlations are singular to that precision
        assert present.all() and (least > -rounding).all()
        assert_allclose(calibrated.xp.flux, flux, rtol=1e-6)
        assert not calibrated.xp.floored.any()  # with the errors of Eq. 2 all have a Cholesky factor
        diagonal = np.cumsum(np.arange(1, len(XP_GRID_NM) + 1)) - 1
        assert (calibrated.xp.whitening[:, diagonal] > 0).all()


@needs_data
def test_other_basis_functions_than_the_instruments_are_quarantined():
    with registered(stub(basis_ids=(7, None))):
        (rows,) = read_xp(DR4_LIKE / "sources.avro")
    assert len(rows) == 0 and len(rows.rejected) == 30
    assert rows.rejected[0].reason == "BP basis functions 0 where the instrument model of Gaia DR4 has 7"


@needs_data
def test_a_file_is_not_of_a_release_that_the_user_names_wrongly():
    (rows,) = read_xp(DR4_LIKE / "sources.avro", options=ReadOptions(release="dr3"))
    assert len(rows) == 0 and rows.rejected[0].reason == "51 BP coefficients where the instrument model has 55"
