"""Files are whole or not there; a state that is not whole is never read as one."""

import os

import pytest
import torch

from excite.errors import UserError
from excite.training.files import append_rows, read_state, write_atomic, write_rows, write_state


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def fails(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomic(path, fails)
    assert path.read_text() == "old"


def test_rows_are_written_and_added(tmp_path):
    path = tmp_path / "a.csv"
    write_rows(path, ("x", "y"), [(1, None)])
    append_rows(path, [(2, 0.5)])
    assert path.read_text() == "x,y\n1,\n2,0.5\n"


def state(n=2000):
    return {"tensor": torch.arange(n), "rows": [{"loss": 0.5}]}


def test_a_state_comes_back_and_the_one_before_is_kept(tmp_path):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    write_state(last, state(1), previous)
    assert not previous.exists()
    write_state(last, state(2), previous)
    write_state(last, state(3), previous)
    assert len(read_state(last)["tensor"]) == 3 and len(read_state(previous)["tensor"]) == 2
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


def test_a_truncated_state_is_refused_at_any_length(tmp_path):
    whole = tmp_path / "last.ckpt"
    write_state(whole, state(), tmp_path / "previous.ckpt")
    content = whole.read_bytes()
    cut = tmp_path / "cut.ckpt"
    for length in {0, 1, 3, 100, len(content) // 2, len(content) - 200, len(content) - 1}:
        cut.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut.ckpt is damaged"):
            read_state(cut)


def test_a_single_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "last.ckpt"
    write_state(path, state(), tmp_path / "previous.ckpt")
    content = bytearray(path.read_bytes())
    middle = content.find(torch.arange(2000).numpy().tobytes()[:4000]) + 2000
    content[middle] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged.*(checksum|CRC)"):
        read_state(path)


class Attack:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_state_that_would_run_code_is_refused(tmp_path):
    path, victim = tmp_path / "last.ckpt", tmp_path / "owned"
    torch.save({"x": Attack(victim)}, path)
    with pytest.raises(UserError, match="no training state"):
        read_state(path)
    assert not victim.exists()
