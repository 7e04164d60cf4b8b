"""Stars in files: what is put in comes out, by rows, and a full disk is one sentence."""

import errno
import os

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from xpbayes.data import stars as starfiles
from xpbayes.data.stars import are_in_files, in_memory, make_star_files, pieces, scratch_copy, write_rows
from xpbayes.errors import InputError


@pytest.fixture
def batch(sample):
    return sample.take(slice(0, 50)).stars()


@pytest.fixture
def filed(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(starfiles, "PIECE", 16)
    stars = make_star_files(tmp_path, 50, batch.flux.shape[1], batch.labels.shape[1])
    for rows in pieces(50):
        write_rows(stars, rows, batch.take(rows))
    return stars


def test_what_is_put_in_comes_out(batch, filed):
    assert are_in_files(filed) and not are_in_files(batch) and len(filed) == 50
    rows = np.array([49, 3, 17])
    for got, put_in in zip(jax.tree.leaves(in_memory(filed, rows)), jax.tree.leaves(batch.take(rows)), strict=True):
        assert_array_equal(np.asarray(got), np.asarray(put_in))


def test_a_second_whitening_leaves_the_first_alone(batch, filed):
    other = scratch_copy(filed)
    rows = slice(10, 20)
    write_rows(other, rows, jax.tree.map(lambda leaf: leaf, batch.take(slice(20, 30))))
    assert_array_equal(np.asarray(filed.whitening), np.asarray(batch.whitening))
    assert_array_equal(np.asarray(other.whitening[rows]), np.asarray(batch.whitening[20:30]))


def test_pieces_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr(starfiles, "PIECE", 16)
    assert np.concatenate([np.arange(50)[rows] for rows in pieces(50)]).tolist() == list(range(50))


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=r"no room for 0.0 GB of 10 training stars \(No space left on device\); make room"
    ):
        make_star_files(tmp_path, 10, 66, 3)
    assert not list(tmp_path.iterdir())
