"""Files that appear whole or not at all."""

from contextlib import suppress

import pytest

from xpbayes.errors import InputError
from xpbayes.files import whole_file


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
