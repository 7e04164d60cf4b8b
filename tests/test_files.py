"""Files that appear whole or not at all."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from xpbayes.errors import InputError
from xpbayes.files import (
    first_difference,
    load_arrays,
    locked,
    refuse_overwriting,
    refuse_repeated,
    save_arrays,
    whole_file,
)


def test_it_appears_at_the_end_and_in_a_folder_of_its_own(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it" and list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_if_anything_goes_wrong(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with suppress(KeyError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"a.txt: cannot be written \(.*\); make room"
    with pytest.raises(InputError, match=message), whole_file(tmp_path / "file" / "a.txt", "make room"):
        pass


@pytest.mark.parametrize("how", ["symlink", "hard link", "copy", "folder link"])
def test_one_file_under_two_names_is_refused(tmp_path, how):
    first, other = tmp_path / "d" / "a.csv", tmp_path / "b.csv"
    first.parent.mkdir()
    first.write_text("source_id,x\n1,2\n")
    if how == "symlink":
        other.symlink_to(first)
    elif how == "hard link":
        other.hardlink_to(first)
    elif how == "copy":
        other.write_bytes(first.read_bytes())
    else:
        (tmp_path / "e").symlink_to(first.parent)
        other = tmp_path / "e" / "a.csv"
    with pytest.raises(InputError, match=f"{other.name}: is the same file as .*a.csv, or a copy of it; name every"):
        refuse_repeated([first, tmp_path / "d" / "a.csv", other])
    (tmp_path / "c.csv").write_text("source_id,x\n2,2\n")
    refuse_repeated([first, tmp_path / "c.csv"])


def test_headers_without_rows_may_be_alike(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("# nothing here\nsource_id,x\n")
    refuse_repeated([tmp_path / "a", tmp_path / "b"])


def test_arrays_come_back_with_their_words(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
    back, about = load_arrays(save_arrays(tmp_path / "new" / "x.safetensors", arrays, {"of": "stars"}))
    assert about == {"of": "stars"} and all(np.array_equal(back[k], v) for k, v in arrays.items())
    (tmp_path / "cut").write_bytes((tmp_path / "new" / "x.safetensors").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"."):
        load_arrays(tmp_path / "cut")


@pytest.mark.parametrize(
    ("new", "found"),
    [
        ({"a": 1, "b": [1, {"c": 2}]}, None),
        ({"a": 1, "b": [1, {"c": 3}]}, ("b[1].c", 2, 3)),
        ({"a": 1, "b": [1]}, ("b", [1, {"c": 2}], [1])),
        ({"a": 1}, ("b", [1, {"c": 2}], None)),
    ],
)
def test_the_first_difference_is_named(new, found):
    assert first_difference({"a": 1, "b": [1, {"c": 2}]}, new) == found


def test_what_has_a_name_goes_by_it():
    old, new = ([{"name": "a.parquet", "n_rows": n}] for n in (1, 2))
    assert first_difference({"files": old}, {"files": new}) == ("files[a.parquet].n_rows", 1, 2)


def test_an_output_that_is_an_input_is_refused_by_any_name(tmp_path):
    (tmp_path / "stars").mkdir()
    table = tmp_path / "stars" / "a.parquet"
    table.write_text("rows")
    (tmp_path / "link").symlink_to(table)
    os.link(table, tmp_path / "hard")
    for out in (table, tmp_path / "link", tmp_path / "hard", tmp_path / "stars" / ".." / "stars" / "a.parquet"):
        for given in (table, tmp_path / "stars"):
            with pytest.raises(InputError, match="is an input of this run"):
                refuse_overwriting(out, [given])
    refuse_overwriting(tmp_path / "new", [table])
    refuse_overwriting(tmp_path / "stars" / "new.parquet", [tmp_path / "stars"])


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="no file"), whole_file(path) as temporary:
            temporary.write_text("x")
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


HOLD = """
import sys, time
from pathlib import Path
from xpbayes.files import locked
with locked(Path(sys.argv[1]), "busy", shared=len(sys.argv) > 2):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("shared", [(), ("shared",)])
def test_a_lock_is_held_by_the_living_alone(tmp_path, shared):
    path = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path, *shared], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="^busy$"), locked(path, "busy"):
            pass
        if shared:
            with locked(path, "busy", shared=True):
                pass
            assert path.exists()
        other.kill()
        other.wait()
    with locked(path, "busy"):
        assert path.exists()
    assert not path.exists()
