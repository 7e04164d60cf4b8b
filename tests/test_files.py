"""Files that appear whole or not at all."""

from contextlib import suppress

import numpy as np
import pytest

from xpbayes.errors import InputError
from xpbayes.files import first_difference, load_arrays, save_arrays, whole_file


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
