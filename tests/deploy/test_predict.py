"""`excite predict` and `excite export`: checkpoints and files name the same classes; bad pictures are named."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_cases import CLASSES, PREPROCESSING, images, lively, save_tiny, tiny
from PIL import Image

from excite import export
from excite.checkpoint import read_checkpoint
from excite.cli import main
from excite.data import normalise
from excite.data.pictures import load_image
from excite.deploy.export_checkpoint import ExportConfig, export_checkpoint
from excite.deploy.predict import PredictConfig, open_predictor, predict
from excite.deploy.runtimes import RUNTIMES

TRUST = ["--trust", "true"]


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run") / "last.safetensors")


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The checkpoint as a file of each quick format, one of them fused."""
    folder = tmp_path_factory.mktemp("exported")
    common = {"checkpoint": str(checkpoint), "trust": True}
    return {
        name: export_checkpoint(
            ExportConfig(format=name, fuse=name == "onnx", out=str(folder / f"x{RUNTIMES[name].suffix}"), **common)
        ).path
        for name in ("onnx", "torch")
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with pictures of several kinds, one of them in a folder below, and files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)

    def picture(width, height, mode="RGB"):
        pixels = torch.randint(0, 256, (height // 4, width // 4, 3), dtype=torch.uint8, generator=generator)
        return Image.fromarray(pixels.numpy()).resize((width, height)).convert(mode)

    picture(64, 48).save(folder / "a.jpg")
    picture(40, 90, "L").save(folder / "b.png")
    (folder / "below").mkdir()
    picture(32, 32).save(folder / "below" / "c, d.png")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    os.mkfifo(folder / "pipe.png")
    return folder


def good(photos):
    return [photos / "a.jpg", photos / "b.png", photos / "below" / "c, d.png"]


@pytest.fixture(scope="module")
def expected(checkpoint, photos):
    """Probabilities of the three pictures, worked out by hand."""
    network = read_checkpoint(checkpoint).load(trust=True)
    pixels = torch.stack([load_image(path, PREPROCESSING) for path in good(photos)])
    with torch.no_grad():
        logits = network(normalise(pixels, tuple(PREPROCESSING["mean"]), tuple(PREPROCESSING["std"])))
    return logits.softmax(1)


# --- predictions ---


@pytest.mark.parametrize("source", ["checkpoint", "onnx", "torch"])
def test_checkpoints_and_files_name_the_same_classes(source, checkpoint, exported, photos, expected):
    model = checkpoint if source == "checkpoint" else exported[source]
    config = PredictConfig(model=str(model), images=(str(photos),), top=3, batch_size=2, accelerator="cpu", trust=True)
    found = predict(config)
    assert [image for image, _ in found.images] == [str(path) for path in good(photos)]
    assert found.skipped == ((str(photos / "broken.jpg"), found.skipped[0][1]),)
    for (_, guesses), row in zip(found.images, expected, strict=True):
        values, places = row.topk(3)
        assert [guess.name for guess in guesses] == [CLASSES[place] for place in places]
        assert [guess.probability for guess in guesses] == pytest.approx(values.tolist(), abs=1e-5)


def test_csv_json_and_text_say_the_same(capsys, exported, photos, tmp_path):
    asked = ["predict", exported["onnx"], *good(photos), "--top", 2]
    code, text, err = run(capsys, *asked)
    assert (code, err) == (0, "") and len(text.splitlines()) == 3
    code, table, _ = run(capsys, *asked, "--format", "csv")
    rows = list(csv.reader(table.splitlines()))
    assert (code, rows[0], len(rows)) == (0, ["image", "rank", "class", "probability"], 1 + 3 * 2)
    code, out, _ = run(capsys, *asked, "--out", tmp_path / "new" / "p.json")
    assert (code, out) == (0, f"{tmp_path}/new/p.json: 3 pictures\n")
    held = json.loads((tmp_path / "new" / "p.json").read_text())
    assert held["skipped"] == [] and held["tool"].startswith("ONNX Runtime 1.")
    flat = [(p["image"], i + 1, t) for p in held["images"] for i, t in enumerate(p["top"])]
    for (image, rank, guess), row in zip(flat, rows[1:], strict=True):
        assert [image, str(rank), guess["class"], f"{guess['probability']:.6f}"] == row
        (line,) = (line for line in text.splitlines() if line.startswith(image))
        assert f"{guess['class']} {100 * guess['probability']:.1f} %" in line


def test_bad_pictures_are_named_and_skipped_and_the_exit_code_says_so(capsys, exported, photos):
    code, out, err = run(capsys, "predict", exported["onnx"], photos)
    assert code == 1 and len(out.splitlines()) == 3
    assert err.startswith(f"skipped {photos}/broken.jpg: ") and err.count("\n") == 1 and err.count("broken.jpg") == 1
    code, out, err = run(capsys, "predict", exported["onnx"], photos / "broken.jpg", "--format", "json")
    assert code == 1 and json.loads(out)["images"] == [] and len(json.loads(out)["skipped"]) == 1


def test_pictures_that_are_named_twice_are_looked_at_once(exported, photos):
    config = PredictConfig(model=str(exported["onnx"]), images=(str(photos / "b.png"), str(photos)), top=9)
    found = predict(config)
    assert [image for image, _ in found.images] == [
        str(photos / "b.png"),
        *(str(p) for p in good(photos) if p.name != "b.png"),
    ]
    assert all(len(guesses) == 4 for _, guesses in found.images)


def test_files_that_can_run_code_want_trust(capsys, checkpoint, exported, photos):
    for model, message in ((exported["torch"], "can run code that is in it"), (checkpoint, "trust the file")):
        code, out, err = run(capsys, "predict", model, photos)
        assert (code, out) == (2, "") and message in err and "--trust true" in err
    assert open_predictor(str(exported["onnx"])).classes == CLASSES


def test_class_names_from_a_file(capsys, photos, tmp_path):
    nameless = save_tiny(tmp_path / "nameless.safetensors", classes=())
    code, _, err = run(capsys, "predict", nameless, photos, *TRUST)
    assert code == 2 and "names no classes: give them with --classes FILE" in err
    code, _, err = run(capsys, "export", nameless, "--format", "torch", *TRUST)
    assert code == 2 and "names no classes: give them with --classes FILE" in err
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\nvier\n\n")
    code, out, _ = run(capsys, "predict", nameless, photos / "a.jpg", *TRUST, "--classes", tmp_path / "names.txt")
    assert code == 0 and "vier" in out
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    code, _, err = run(capsys, "predict", nameless, photos / "a.jpg", *TRUST, "--classes", tmp_path / "names.txt")
    assert code == 2 and "gives outputs (1, 4) for 2 class names" in err


# --- excite export ---


def test_export_prints_what_it_compared(capsys, checkpoint, tmp_path):
    out = tmp_path / "x.pt2"
    code, text, err = run(capsys, "export", checkpoint, "--format", "torch", "--fuse", "--out", out, *TRUST)
    assert (code, err) == (0, "") and out.exists()
    lines = text.splitlines()
    assert lines[0].startswith(f"{out}: 0.") and lines[0].endswith(" MB, torch")
    assert lines[1].startswith("batch: any; images: ")
    assert "pictures, 3 x 3 x 24 x 24" in text and lines[-1].startswith("largest difference ")
    manifest = RUNTIMES["torch"].load(out).entries
    assert json.loads(manifest["network"])["name"] == "export_cases:tiny" and json.loads(manifest["network"])["fused"]
    code, text, _ = run(capsys, "export", checkpoint, "--format", "torch", "--json", "--out", out, *TRUST)
    held = json.loads(text)
    assert (
        code == 0
        and held["path"] == str(out)
        and held["difference"] == max(c["difference"] for c in held["comparisons"])
    )


ENDED = """
import signal, sys
import excite.deploy.export as module
from excite.cli import main

def end(*given):
    print(*sorted(path.name for path in __import__("pathlib").Path(sys.argv[1]).iterdir()))
    signal.raise_signal(signal.SIGTERM)

module.compare_outputs = end
sys.exit(main(sys.argv[2:]))
"""


def test_sigterm_leaves_no_part_of_a_file(checkpoint, tmp_path):
    command = ["export", checkpoint, "--format", "torch", "--out", tmp_path / "x.pt2", *TRUST]
    done = subprocess.run(
        [sys.executable, "-c", ENDED, tmp_path, *command], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 143 and done.stderr == "", done.stderr
    assert re.fullmatch(r"\.x\.pt2\.\w+\.tmp\n", done.stdout), "it was being written"
    assert list(tmp_path.iterdir()) == []


def test_the_file_lies_beside_the_checkpoint(capsys, tmp_path):
    save_tiny(tmp_path / "run" / "last.safetensors")
    code, text, _ = run(capsys, "export", tmp_path / "run", "--format", "torch", *TRUST)
    assert code == 0 and (tmp_path / "run" / "last.pt2").exists() and text.startswith(f"{tmp_path}/run/last.pt2")


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("export", ["{run}", "--format", "tensorrt"], "unknown format 'tensorrt'"),
        ("export", ["{run}", "--out", "x.pt2"], "files that end in .onnx, or format 'torch' or 'aoti' for this one"),
        ("export", ["{run}", "--format", "torch"], "trust the file"),
        ("export", ["{run}", "--tolerance", "0"], "tolerance=0.0: give more than 0"),
        ("export", ["missing"], "missing: no such file"),
        ("predict", ["{run}"], "name at least one picture or folder"),
        ("predict", ["{run}", "{here}/nothing"], "images: there is no"),
        ("predict", ["{run}", "{here}"], "holds no pictures"),
        ("predict", ["{here}/x.onnx", "{photo}"], "model: there is no"),
        ("predict", ["{run}", "{photo}", "--top", "0"], "top=0"),
        ("predict", ["{run}", "{photo}", "--out", "x.txt"], "ends in .csv or .json"),
        ("predict", ["{run}", "{photo}", "--out", "{photo}/x.csv"], "a.jpg/x.csv' cannot be written: "),
        ("predict", ["{run}", "{photo}", "--classes", "{here}/no.txt"], "classes: cannot read"),
    ],
)
def test_mistakes_are_one_line(capsys, checkpoint, photos, tmp_path, verb, arguments, message):
    places = {"run": checkpoint, "here": tmp_path, "photo": photos / "a.jpg"}
    code, out, err = run(capsys, verb, *(a.format(**places) for a in arguments))
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err, err


def test_preprocessing_that_says_too_little(capsys, photos, tmp_path):
    half = save_tiny(tmp_path / "half.safetensors", mean=None)
    for verb in (["predict", half, photos], ["export", half]):
        code, _, err = run(capsys, *verb, *TRUST)
        assert code == 2 and "does not say how images are prepared: its preprocessing lacks 'mean'" in err
    bare = export(lively(tiny()), images(), tmp_path / "bare.pt2", format="torch")
    code, _, err = run(capsys, "predict", bare, photos, *TRUST)
    assert code == 2 and "names no classes" in err


def test_a_file_of_somebody_else(capsys, photos, tmp_path):
    program = torch.export.export(tiny().eval(), (torch.zeros(1, 3, 24, 24),))
    torch.export.save(program, tmp_path / "theirs.pt2")
    code, _, err = run(capsys, "predict", tmp_path / "theirs.pt2", photos, *TRUST)
    assert code == 2 and "has no 'excite' entry" in err
