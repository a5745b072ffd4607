"""Files are whole or not there, and what cannot be written is known before the work."""

import os
from pathlib import Path

import pytest

from excite.errors import UserError
from excite.files import check_writable, expanded, replacing, write_atomic


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "old")
    assert write_atomic(str(path), b"new") == path
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_atomic(tmp_path / "a.txt", "old")

    def fails(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomic(path, fails)
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_kill_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(SystemExit), replacing(path) as part:
        part.write_text("half")
        assert part.parent == tmp_path and part.name.startswith(".a.txt.")
        raise SystemExit(143)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_is_known_without_trying(tmp_path, monkeypatch):
    file = write_atomic(tmp_path / "a.txt", "old")
    for good in (file, tmp_path / "b.txt", tmp_path / "deep" / "er" / "b.txt"):
        check_writable(good, "out")
    with pytest.raises(UserError, match=f"^out='{tmp_path}' cannot be written: it is a folder; name another file$"):
        check_writable(tmp_path, "out")
    with pytest.raises(UserError, match=r"a.txt/deep/b.txt' cannot be written: \S+a.txt is a file"):
        check_writable(file / "deep" / "b.txt", "out")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"nothing may be written in {tmp_path};"):
        check_writable(tmp_path / "b.txt", "out")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_home_folders():
    assert expanded("~/x") == Path.home() / "x" and expanded("a~/x") == Path("a~/x")
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


def test_what_is_no_ordinary_file_is_not_written():
    with pytest.raises(ValueError, match="out='/dev/null' cannot be written: it is no ordinary file"):
        check_writable(Path("/dev/null"), "out")
