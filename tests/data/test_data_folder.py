"""Folders: layouts, splits, and what is said about pictures and classes that are not as they should be."""

import os

import pytest
import torch
from data_cases import write_folder, write_pictures

from excite.data import load_data
from excite.errors import UserError


def load(root, **ask):
    return load_data(f"folder:{root}", image_size=8, **ask)


def named(split):
    return dict(zip(split.paths, split.labels.tolist(), strict=True))


def files(root, folder):
    return {p.relative_to(root).as_posix() for p in (root / folder).rglob("*.png")}


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "Test"])
def test_train_and_val_folders(tmp_path, val):
    write_folder(tmp_path, {"train/b": 3, "train/a": 2, f"{val}/a": 1, f"{val}/b": 2})
    data = load(tmp_path)
    assert data.classes == ("a", "b")
    assert named(data.train) == {p: int("/b/" in p) for p in files(tmp_path, "train")}
    assert named(data.val) == {p: int("/b/" in p) for p in files(tmp_path, val)}
    assert data.notes == (f"validation is on {val}/",)
    assert (data.name, data.in_channels, data.image_size) == (tmp_path.name, 3, 8)
    assert data.augmentation == "resized-crop-flip" and data.unreadable == ()
    assert not data.train.in_memory


def test_val_comes_before_test(tmp_path):
    write_folder(tmp_path, {f"{part}/{name}": 2 for part in ("train", "val", "test") for name in "ab"})
    data = load(tmp_path)
    assert named(data.val).keys() == files(tmp_path, "val")
    assert "not used: test" in data.notes


def test_size_is_224_unless_asked(tmp_path):
    assert load_data(f"folder:{write_folder(tmp_path, {'a': 2, 'b': 2})}").image_size == 224


def test_split_is_a_fifth_of_each_class(tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 21, "c": 2})
    data = load(tmp_path)
    assert torch.bincount(data.train.labels).tolist() == [8, 17, 1]
    assert torch.bincount(data.val.labels).tolist() == [2, 4, 1]
    assert sorted(data.train.paths + data.val.paths) == sorted(files(tmp_path, "."))
    assert any("20% of each class are kept for validation (split seed 0)" in note for note in data.notes)


def test_split_is_fixed_by_its_seed(tmp_path):
    write_folder(tmp_path, {"a": 30, "b": 30})
    first = load(tmp_path).val.paths
    assert load(tmp_path).val.paths == first
    assert load(tmp_path, seed=1).val.paths != first


def test_a_new_picture_leaves_the_others_where_they_were(tmp_path):
    write_folder(tmp_path, {"a": 30, "b": 30})
    before = set(load(tmp_path).val.paths)
    (tmp_path / "a" / "new.png").write_bytes((tmp_path / "a" / "000.png").read_bytes())
    assert len(before ^ set(load(tmp_path).val.paths)) <= 2


def test_train_alone_is_split(tmp_path):
    write_folder(tmp_path, {"train/a": 5, "train/b": 5})
    assert load(tmp_path).classes == ("a", "b")


def test_train_and_test_may_be_classes(tmp_path):
    write_folder(tmp_path, {"train": 5, "test": 5, "bicycle": 5})
    assert load(tmp_path).classes == ("bicycle", "test", "train")


def test_nested_hidden_linked_and_other_files(tmp_path):
    root = tmp_path / "set"
    write_folder(root, {"a": 3, "a/deep/deeper": 2, "b": 3, "a/.cache": 4, ".git/objects": 1, "__MACOSX/a": 1})
    (root / "a" / "._000.png").write_bytes(b"left by a Mac")
    (root / "a" / "notes.txt").write_text("x")
    (root / "b" / "notes.TXT").write_text("x")
    (root / "b" / "README").write_text("x")
    (root / "labels.csv").write_text("x")
    write_pictures(tmp_path / "elsewhere", 2, seed=9)
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "b" / "linked.png").symlink_to(tmp_path / "elsewhere" / "000.png")
    (root / "b" / "loop").symlink_to(root / "b", target_is_directory=True)
    (root / "b" / "itself").symlink_to("itself")
    data = load(root)
    names = set(data.train.paths + data.val.paths)
    assert {n for n in names if n.startswith("a/")} == {
        *(f"a/00{k}.png" for k in range(3)),
        *(f"a/deep/deeper/00{k}.png" for k in range(2)),
    }
    assert {n for n in names if n.startswith("b/")} == {
        *(f"b/00{k}.png" for k in range(3)),
        "b/linked/000.png",
        "b/linked/001.png",
        "b/linked.png",
    }
    said = "files passed over because they are not pictures: 2 without suffix, 2 .txt, 1 outside the class folders"
    assert said in data.notes


def test_upper_case_suffixes_are_pictures(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 3})
    os.rename(tmp_path / "a" / "000.png", tmp_path / "a" / "000.PNG")
    data = load(tmp_path)
    assert len(data.train) + len(data.val) == 6


def test_a_few_unreadable_pictures_are_skipped_and_named(tmp_path):
    write_folder(tmp_path, {"a": 60, "b": 60}, side=4)
    broken = tmp_path / "a" / "030.png"
    broken.write_bytes(broken.read_bytes()[:50])
    data = load(tmp_path)
    assert len(data.train) + len(data.val) == 119
    assert "a/030.png" not in data.train.paths + data.val.paths
    (said,) = data.unreadable
    assert said.startswith(f"{broken}: ") and len(said) > len(f"{broken}: ")
    assert "1 of 120 pictures cannot be read and are skipped" in data.notes
    # Labels still belong to their pictures.
    assert all(label == int(path.startswith("b/")) for path, label in named(data.train).items())


def test_more_unreadable_pictures_than_allowed(tmp_path):
    write_folder(tmp_path, {"a": 60, "b": 40}, side=4)
    for k in range(7):
        (tmp_path / "a" / f"{k:03d}.png").write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    said = str(caught.value)
    assert "7 of 100 pictures cannot be read, more than the limit of 1.00%" in said
    assert [f"{k:03d}.png: " in said for k in range(7)] == [True] * 5 + [False] * 2
    assert said.endswith("; ...") and "bad_image_limit=0.01" in said and "\n" not in said
    assert len(load(tmp_path, bad_image_limit=0.07).unreadable) == 7
    with pytest.raises(UserError, match="more than the limit of 6.00%"):
        load(tmp_path, bad_image_limit=0.06)


def test_unreadable_pictures_of_val_count_too(tmp_path):
    write_folder(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2}, side=4)
    (tmp_path / "val" / "a" / "001.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 12 pictures"):
        load(tmp_path)
    data = load(tmp_path, bad_image_limit=0.1)
    assert len(data.val) == 3 and len(data.train) == 8


WRONG = {
    "single class": ({"a": 5}, r"has a single class, 'a'; a classifier needs at least 2"),
    "single class of train": ({"train/a": 5, "val/a": 5}, "has a single class, 'a'"),
    "no class": ({}, "has no class subfolders"),
    "no class in train": ({"train": 3, "val": 3}, "has no class subfolders"),
    "empty class": ({"a": 5, "b": 0, "c": 5}, "class 'b' has no pictures to train on; add some or remove its folder"),
    "empty class of train": ({"train/a": 5, "train/b": 0, "val/a": 1, "val/b": 1}, "class 'b' has no pictures"),
    "class of val alone": (
        {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dogs": 1},
        "unknown class in val 'dogs': did you mean 'dog'",
    ),
    "no val pictures": ({"train/a": 2, "train/b": 2, "val/a": 0, "val/b": 0}, "no validation pictures in any class"),
    "too few to split": ({"a": 5, "b": 1}, "class 'b' has 1 readable picture; a split needs at least 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_on_is_named(tmp_path, case):
    counts, said = WRONG[case]
    with pytest.raises(UserError, match=said):
        load(write_folder(tmp_path, counts))


def test_a_class_without_readable_pictures(tmp_path):
    write_folder(tmp_path, {"a": 5, "b": 1}, side=4)
    (tmp_path / "b" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match="class 'b' has no readable pictures to train on"):
        load(tmp_path, bad_image_limit=0.5)


def test_a_class_that_val_lacks_is_noted(tmp_path):
    write_folder(tmp_path, {"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 1, "val/b": 0})
    assert "classes without validation pictures: b, c" in load(tmp_path).notes


def test_a_path_that_does_not_exist_gets_the_nearest_names(tmp_path):
    write_folder(tmp_path / "flowers", {"a": 2, "b": 2})
    with pytest.raises(UserError, match=r"there is no '.*flower'; did you mean '.*flowers'\?"):
        load(tmp_path / "flower")
    with pytest.raises(UserError, match=r"there is no '.*flower/train'; did you mean '.*flowers'\?"):
        load(tmp_path / "flower" / "train")
    with pytest.raises(UserError, match="is a file; give the folder"):
        load(tmp_path / "flowers" / "a" / "000.png")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "mine", {"a": 2, "b": 2})
    assert load_data("folder:~/mine", image_size=8).name == "mine"


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 2, "b": 2})
    # Not chmod: the suite may run as root, who may read everything.
    real = os.listdir

    def listdir(folder):
        if folder == tmp_path / "b":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(UserError, match="b cannot be listed: Permission denied"):
        load(tmp_path)


def test_some_pictures_drawn_at_random(tmp_path):
    write_folder(tmp_path, {f"train/{name}": 20 for name in "ab"} | {"val/a": 1, "val/b": 1})
    data = load(tmp_path)
    places = data.train.drawn(12, seed=0)
    assert places.tolist() == sorted(set(places.tolist())) and len(places) == 12
    part = data.train.taken(places)
    assert set(part.labels.tolist()) == {0, 1}, "not one class after the other"
    assert part.paths == tuple(data.train.paths[i] for i in places.tolist())
    assert part.root == data.train.root and part.labels.tolist() == data.train.labels[places].tolist()
    assert not torch.equal(places, data.train.drawn(12, seed=1)) and torch.equal(places, data.train.drawn(12, seed=0))
    assert torch.equal(data.train.drawn(None, seed=0), torch.arange(40))
    assert torch.equal(data.train.drawn(99, seed=0), torch.arange(40))
