"""Tables and states; a state that is not whole is never read as one, and a whole one is always there."""

import os

import pytest
import torch
from training_cases import tiny_data

from excite.errors import UserError
from excite.training.files import append_rows, read_state, write_rows, write_state
from excite.training.folder import RunFolder
from excite.training.result import describe_data, versions


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


@pytest.mark.parametrize("moves", range(4))
@pytest.mark.parametrize("damaged", [False, True])
def test_a_crash_at_any_move_of_a_save_loses_no_whole_state(tmp_path, monkeypatch, moves, damaged):
    """Also in the first save of a run that goes on from the previous state because the last one is damaged."""
    folder, data = RunFolder(tmp_path), tiny_data()

    def save(epochs):
        about = {"data": describe_data(data), "rows": list(range(epochs)), "versions": versions()}
        write_state(folder.state, {"excite": about}, folder.previous_state)

    save(1)
    save(2)
    if damaged:
        folder.state.write_bytes(folder.state.read_bytes()[:-100])
    left, replace = [moves], os.replace

    def crashing(source, target):
        if not left[0]:
            raise OSError("crash")
        left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", crashing)
    with pytest.raises(OSError, match="crash"):
        save(2 if damaged else 3)
        raise OSError("crash")  # after the last move
    state = folder.resume_point(data)
    assert state is not None
    expected = (1 if damaged else 2) + (moves > 0)
    assert len(read_state(state)["excite"]["rows"]) == expected


class Stopping:
    """A file that ctrl-C comes to in its third write."""

    def __init__(self, file):
        self.file, self.calls = file, 0

    def write(self, content):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return self.file.write(content)


def test_ctrl_c_in_the_middle_of_a_save_is_ctrl_c(tmp_path, monkeypatch):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state, Stopping(file)))
    with pytest.raises(KeyboardInterrupt):
        write_state(tmp_path / "last.ckpt", state(), tmp_path / "previous.ckpt")
    assert os.listdir(tmp_path) == []


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
