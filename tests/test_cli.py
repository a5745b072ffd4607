"""The command line: what each mistake is answered with, and what a whole session prints and leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from excite.cli import VERBS, main, parse
from excite.experiment import CompareConfig
from excite.training.config import EvalConfig, TrainConfig
from excite.training.folder import RunFolder
from excite.training.trained import checkpoint_file


def answer(capsys, *arguments):
    """Exit code, and what went to stdout and stderr."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


MISTAKES = [
    (["trian"], "unknown verb 'trian': did you mean 'train'?"),
    (["--verbos"], "unknown option '--verbos'"),
    (["train", "--lrr", "1"], "unknown option of `excite train` '--lrr': did you mean '--lr'"),
    (["train", "--batchsize=3"], "unknown option of `excite train` '--batchsize': did you mean '--batch_size'"),
    (["train", "--lr", "abc"], "lr='abc': give a number"),
    (["train", "--lr"], "--lr needs a value"),
    (["train", "--epochs", "2.5"], "epochs='2.5': give a whole number"),
    (["train", "--epochs", "0"], "epochs=0: give at least 1"),
    (["train", "--optimizer", "sdg"], "unknown optimizer 'sdg': did you mean 'sgd'?"),
    (["train", "--devices", "two"], "devices='two': give a whole number or 'auto'"),
    (["train", "se"], "unexpected argument 'se': options are written --name value"),
    (["train", "--model", "resnet21"], "unknown model 'resnet21': did you mean"),
    (["train", "--model", "timm:resnet_51"], "unknown model of timm 'resnet_51': did you mean"),
    (["train", "--gate", "sse"], "unknown gate 'sse': did you mean 'se'"),
    (["train", "--gate", "se(redution=8)"], "'redution': did you mean 'reduction'"),
    (
        ["train", "--data", "fashion-mnist-min"],
        "unknown data set 'fashion-mnist-min': did you mean 'fashion-mnist-mini'",
    ),
    (["train", "--data", "folder:/no/such/folder"], "/no/such/folder"),
    (["train", "--config", "/no/such.yaml"], "cannot read the config file '/no/such.yaml': No such file or directory"),
    (["train", "--config"], "--config needs a value"),
    (["eval", "/no/such.safetensors"], "/no/such.safetensors: no such file"),
    (["eval"], "the following arguments are required: checkpoint"),
    (["eval", "a", "b"], "unexpected argument 'b'"),
    (["compare", "--gates", "none,sse"], "unknown gate 'sse'"),
    (["compare", "--gate", "se"], "unknown option of `excite compare` '--gate': did you mean '--gates'"),
    (["models", "resnetx*"], "unknown model 'resnetx*'"),
    (["gates", "x"], "unknown gate 'x'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = answer(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("excite: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown setting 'epoch': did you mean 'epochs'"),
        ("epochs: three", "epochs='three': give a whole number"),
        ("[1", "is not YAML"),
        ("3", "must hold lines of `name: value`"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(capsys, tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    code, _, err = answer(capsys, "train", "--config", str(file))
    assert code == 2 and err.count("\n") == 1
    assert str(file) in err and message in err


def test_options_win_over_files_and_later_files_over_earlier_ones(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nepochs: 7\nbatch_size: 32\n")
    (tmp_path / "b.yaml").write_text("epochs: 8\n")
    files = ["--config", f"{tmp_path}/a.yaml", f"--config={tmp_path}/b.yaml"]
    config = parse("train", ["--batch_size", "64", *files])
    assert config == TrainConfig(lr=1e-3, epochs=8, batch_size=64)


def test_a_saved_config_is_the_config_again(tmp_path):
    config = TrainConfig(gate="se(reduction=8)", stages=(1, 2), options={"shortcut": "B"}, ema=0.99, augment=False)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert parse("train", ["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--batch-size", "64", "--weight-decay=1e-4"], {"batch_size": 64, "weight_decay": 1e-4}),
        (["--stages", "1,2"], {"stages": (1, 2)}),
        (["--stages=[3]"], {"stages": (3,)}),
        (["--stages", "null"], {"stages": None}),
        (["--schedule", "step", "--step_epochs", "2,4"], {"schedule": "step", "step_epochs": (2.0, 4.0)}),
        (["--download", "--augment", "false"], {"download": True, "augment": False}),
        (["--gate", "se(reduction=8,bias=false)"], {"gate": "se(reduction=8,bias=false)"}),
        (["--options.shortcut", "B"], {"options": {"shortcut": "B"}}),
        (["--options", "{shortcut: B}"], {"options": {"shortcut": "B"}}),
        (["--ema", "0.99", "--ema", "null"], {"ema": None}),
        (["--data", "folder:/with-dashes/in-it"], {"data": "folder:/with-dashes/in-it"}),
    ],
    ids=str,
)
def test_options_are_read(arguments, settings):
    assert parse("train", arguments) == TrainConfig(**settings)


@pytest.mark.parametrize(
    ("arguments", "sites"),
    [
        (["--sites", "layer4.*"], ("layer4.*",)),
        (["--sites=layer4.*,*.1"], ("layer4.*", "*.1")),
        (["--sites", "[layer3.0, layer3.1]"], ("layer3.0", "layer3.1")),
        (["--sites", "1"], ("1",)),
    ],
    ids=str,
)
def test_lists_of_texts_are_read_with_and_without_brackets(arguments, sites):
    assert parse("explain", ["run", *arguments]).sites == sites


def test_eval_takes_its_checkpoint_without_a_name():
    assert parse("eval", ["--json", "--data", "d", "c"]) == EvalConfig(checkpoint="c", data="d", json=True)


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option(capsys, verb):
    code, out, err = answer(capsys, verb, "--help")
    assert code == 0 and err == ""
    assert f"usage: excite {verb}" in out
    assert "None" not in re.sub(r"\s+", " ", out), "defaults are written as they are typed"


def test_the_overview_names_every_verb(capsys):
    code, out, _ = answer(capsys, "--help")
    assert code == 0 and all(f"  {verb}" in out for verb in VERBS)
    code, out, err = answer(capsys)
    assert code == 2 and out == "" and "usage: excite VERB" in err


def test_the_version_is_printed(capsys):
    code, out, _ = answer(capsys, "--version")
    assert code == 0 and re.fullmatch(r"excite \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize("arguments", ["['--help']", "['--version']", "['train', '--help']", "['train', '--lr', 'x']"])
def test_neither_help_nor_mistakes_load_torch(arguments):
    code = f"import sys; from excite.cli import main; main({arguments}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_models_and_gates_are_listed(capsys):
    _, out, _ = answer(capsys, "models", "se_resnet*")
    assert "se_resnet50" in out.split() and "resnet50" not in out.split()
    _, out, _ = answer(capsys, "gates")
    assert "Squeeze-and-Excitation" in out and "reduction=16" in out and "eca" in out


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("excite.models.list_models", lambda pattern: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_sigterm_is_an_exception_while_a_verb_runs(monkeypatch):
    def ended(pattern):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("excite.models.list_models", ended)
    heard = []
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda *_: heard.append("mine") or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["models"])  # what the caller does on SIGTERM stays
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit) as end:
            main(["models"])
        assert end.value.code == 143 and heard == ["mine"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("written", [["--out", "~"], ["--out=~"], ["--out", "~/runs"], ["--out=~/runs"]])
def test_the_home_folder_is_not_null(written, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse("train", written)
    assert config.out == str(tmp_path / "runs" if "runs" in written[-1] else tmp_path)
    assert parse("train", ["--out", "null"]).out is None


def test_the_home_folder_is_known_in_files_and_from_python(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.of(TrainConfig(out="~/runs")).path == tmp_path / "runs"
    assert CompareConfig(out="~/runs").folder() == tmp_path / "runs"
    assert checkpoint_file("~/last.safetensors") == tmp_path / "last.safetensors"


def test_a_missing_package_is_named_with_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    code, _, err = answer(capsys, "train")
    assert code == 2 and err == "excite: `excite train` needs jsonargparse: install excite[train]\n"


TINY = ["--epochs", "1", "--batch_size", "32", "--image_size", "8", "--data", "folder:pictures"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of 3 x 20 small pictures, in the working directory."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("blue", "green", "red")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for k in range(20):
            colour = tuple(250 - 3 * k if 2 - c == i else 3 * k for c in range(3))
            Image.new("RGB", (12, 10), colour).save(folder / f"{k}.png")
    return tmp_path


def test_a_session_from_training_to_evaluation(capsys, caplog, pictures):
    code, out, err = answer(capsys, "train", *TINY, "--gate", "se", "--out", "run", "--workers", "0")
    assert code == 0, err
    assert re.search(r"epoch +1 +train loss [\d.]+ +val loss [\d.]+ +top-1 +[\d.]+ %", out)
    assert "run/last.safetensors" in out
    top1 = json.loads(Path("run/result.json").read_text())["final"]["val_top1"]
    code, out, err = answer(capsys, "eval", "run", "--json", "--workers", "0")
    assert code == 0, err
    assert json.loads(out)["top1"] == top1
    code, out, _ = answer(capsys, "eval", "run", "--workers", "0")
    assert code == 0 and all(name in out for name in ("blue", "green", "red", "recall", "confused"))
    Path("pictures/red/0.png").write_bytes(b"no picture")
    code, out, err = answer(capsys, "eval", "run", "--json", "--workers", "0", "--bad_image_limit", "0.1")
    assert code == 0 and "1 of 60 pictures cannot be read and are skipped" in caplog.text, err
    assert re.search(r"skipped \S*pictures/red/0.png: .", caplog.text)
    assert [line.partition(": ")[0][-9:] for line in json.loads(out)["skipped"]] == ["red/0.png"]
    code, out, err = answer(capsys, "train", *TINY, "--gate", "eca", "--out", "run")
    assert code == 2 and "holds a run with other settings (gate: 'se' there, 'eca' now)" in err


def signalled(command, number):
    """Exit code and stderr of a run that gets a signal when it has finished another epoch."""
    state = Path("run/last.ckpt")
    before = state.stat().st_mtime_ns if state.exists() else 0
    # A suite that a script started in the background ignores ctrl-C, and so would its children.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    signal.signal(signal.SIGINT, inherited)
    deadline = time.monotonic() + 120
    while not state.exists() or state.stat().st_mtime_ns == before:
        assert process.poll() is None and time.monotonic() < deadline, "it should be training"
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.slow
def test_signals_end_a_run_with_their_codes_and_the_same_command_continues(pictures):
    command = [sys.executable, "-m", "excite.cli", "train", *TINY, "--out", "run", "--workers", "0"]
    command[command.index("--epochs") + 1] = "400"
    code, err = signalled(command, signal.SIGINT)
    assert code == 130 and err.endswith("excite: stopped. The same command continues after the last whole epoch.\n")
    assert "Traceback" not in err
    code, err = signalled(command, signal.SIGTERM)
    assert code == 143 and re.search(r"^continuing run after epoch \d+$", err, flags=re.MULTILINE)
    assert "Traceback" not in err
