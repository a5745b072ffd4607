"""`train`: files, figures, determinism, and the same numbers as a loop written out by hand."""

import csv
import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from training_cases import PowerCut, Watch, same_run, tiny_config, tiny_data, weights

from excite.checkpoint import read_checkpoint
from excite.data import make_loader, prepare
from excite.errors import UserError
from excite.gates import parse_gate
from excite.networks import build
from excite.training import EvalConfig, RunResult, TrainConfig, evaluate, train
from excite.training.folder import RunFolder
from excite.training.optimizers import make_optimizer
from excite.training.progress import Silent
from excite.training.run import network_spec
from excite.training.schedules import learning_rate


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """One finished run with SE, and what its display was told."""
    watch = Watch()
    result = train(tiny_config(tmp_path_factory.mktemp("run") / "se", gate="se"), data=data, progress=watch)
    return result, watch


def test_a_run_leaves_its_files(run):
    result, _ = run
    folder = result.run_dir
    names = {path.name for path in Path(folder).iterdir()}
    assert names == {
        "config.yaml", "metrics.csv", "steps.csv", "best.safetensors", "last.safetensors", "last.ckpt",
        "correct.safetensors", "result.json",
    }  # fmt: skip
    assert TrainConfig.from_yaml(f"{folder}/config.yaml").to_dict() == result.config
    assert RunResult.load(folder) == result
    assert json.loads(Path(folder, "result.json").read_text())["final"] == result.final


def test_figures_agree_with_each_other(run, data):
    result, _ = run
    assert [row["epoch"] for row in result.epochs] == [1, 2, 3]
    assert len(result.step_loss) == 3 * 4
    for i, row in enumerate(result.epochs):
        assert row["train_loss"] == pytest.approx(sum(result.step_loss[4 * i : 4 * i + 4]) / 4)
    assert result.final == {key: result.epochs[-1][key] for key in ("val_loss", "val_top1", "val_top5")}
    assert result.correct().dtype == torch.bool and len(result.correct()) == len(data.val)
    assert result.correct().double().mean().item() == result.final["val_top1"]
    assert result.data["train"] == 52 and result.data["val"] == 23
    assert result.parameters == sum(
        p.numel() for p in read_checkpoint(f"{result.run_dir}/last.safetensors").load().parameters()
    )
    assert result.versions["torch"] == torch.__version__ and result.machine["device"] == "cpu"


def test_csv_files_hold_the_curves(run):
    result, _ = run
    rows = list(csv.DictReader(Path(result.run_dir, "metrics.csv").read_text().splitlines()))
    assert [float(row["val_loss"]) for row in rows] == [row["val_loss"] for row in result.epochs]
    steps = list(csv.DictReader(Path(result.run_dir, "steps.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in steps] == result.step_loss
    assert [(row["epoch"], row["step"]) for row in steps[3:6]] == [("1", "4"), ("2", "1"), ("2", "2")]


def test_progress_is_told_everything_once(run):
    _, watch = run
    start, *epochs, end = watch.calls
    assert start == ("start_run", "resnet20, gate se, seed 0", 12)
    assert epochs == [("epoch", 1), ("epoch", 2), ("epoch", 3)]
    assert end == ("end_run",) and watch.steps == 12


def test_checkpoints_are_portable(run, data):
    result, _ = run
    last = read_checkpoint(f"{result.run_dir}/last.safetensors")
    assert (last.spec.name, last.spec.gate, last.classes) == ("resnet20", "se", data.classes)
    assert last.preprocessing == data.preprocessing() and last.metrics == result.epochs[-1]
    assert last.extra["config"] == result.config
    best = read_checkpoint(f"{result.run_dir}/best.safetensors")
    assert best.metrics["val_top1"] == max(row["val_top1"] for row in result.epochs)


def test_evaluating_the_last_checkpoint_gives_the_final_scores(run, data):
    result, _ = run
    # Another batch size: convolutions may then add up in another order.
    got = evaluate(EvalConfig(checkpoint=result.run_dir, accelerator="cpu", batch_size=32), data=data)
    assert (got.top1, got.top5) == (result.final["val_top1"], result.final["val_top5"])
    assert got.loss == pytest.approx(result.final["val_loss"], rel=1e-5)


@pytest.mark.parametrize("gate", [None, "se"])
def test_the_loop_is_the_one_written_out_by_hand(data, tmp_path, gate):
    config = tiny_config(tmp_path, gate=gate, label_smoothing=0.1, seed=3)
    result = train(config, data=data, progress=Silent())
    network = build(network_spec(config, data), seed=3).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, config)
    loader = make_loader(data.train, data, 16, train=True, seed=3)
    losses = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, len(losses), len(loader))
            images = prepare(batch.images, batch.indices, dataset=data, train=True, seed=3, epoch=epoch)
            logits = network(images.to(memory_format=torch.channels_last))
            loss = cross_entropy(logits, batch.labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == result.step_loss
    held = weights(result)
    assert all(torch.equal(held[key], tensor) for key, tensor in network.state_dict().items())


def test_two_runs_of_one_seed_are_the_same_bits_and_of_another_are_not(run, data, tmp_path):
    result, _ = run
    again = train(tiny_config(tmp_path / "again", gate="se"), data=data, progress=Silent())
    assert same_run(result, again)
    other = train(tiny_config(tmp_path / "other", gate="se", seed=1), data=data, progress=Silent())
    assert other.step_loss[0] != result.step_loss[0]


def test_it_learns(data, tmp_path):
    config = tiny_config(tmp_path, epochs=12, augment=False)
    result = train(config, data=data, progress=Silent())
    assert result.final["val_top1"] > 0.8, "brightness alone gives the classes away"


class Dropping(nn.Module):
    """A linear network with dropout; ``thirsty`` draws from the global generator besides."""

    def __init__(self, thirsty):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 6))
        nn.init.zeros_(self.layers[2].weight)
        self.thirsty = thirsty

    def forward(self, images):
        logits = self.layers(images)
        if self.thirsty:
            torch.rand(7)
        return logits


def test_dropout_does_not_depend_on_what_else_is_drawn(data, tmp_path):
    curves = []
    for thirsty in (False, True):
        torch.manual_seed(thirsty)
        network = Dropping(thirsty)
        nn.init.zeros_(network.layers[2].bias)
        result = train(tiny_config(tmp_path / str(thirsty)), data=data, network=network, progress=Silent())
        curves.append(result.step_loss)
    assert curves[0] == curves[1] and len(set(curves[0])) == 12


def test_global_generators_are_left_alone(data, tmp_path):
    before = torch.get_rng_state()
    train(tiny_config(tmp_path, epochs=1), data=data, progress=Silent())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gate_can_be_given_as_a_config(run, data, tmp_path):
    result, _ = run
    other = train(tiny_config(tmp_path, gate="eca"), data=data, gate=parse_gate("se"), progress=Silent())
    assert other.config["gate"] == "se" and same_run(result, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "lr": 1e-3, "clip_norm": 0.5},
        {"accumulate": 3},
        {"ema": 0.9},
        {"precision": "bf16-mixed"},
        {"precision": "64-true", "channels_last": False},
        {"schedule": "step", "step_epochs": [1, 2], "augment": False},
        {"model": "timm:test_resnet"},
        {"impl": "reference", "model": "se_resnet20", "stages": [3], "options": {"zero_init_last_norm": True}},
    ],
    ids=str,
)
def test_every_setting_trains_and_saves_what_it_validated(data, tmp_path, settings):
    result = train(tiny_config(tmp_path, **{"epochs": 2} | settings), data=data, progress=Silent())
    assert len(result.step_loss) == 8
    precision = settings.get("precision", "32-true")
    got = evaluate(EvalConfig(checkpoint=result.run_dir, accelerator="cpu", precision=precision), data=data)
    assert got.top1 == result.final["val_top1"], "what was saved is what was validated"
    assert got.loss == pytest.approx(result.final["val_loss"], rel=1e-3 if "mixed" in precision else 1e-5)


def test_cutout_reaches_training_images_alone(data, tmp_path):
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.blank = nn.Linear(64, 6), {True: [], False: []}

        def forward(self, x):
            self.blank[self.training].append((x == 0).float().mean().item())
            return self.fc(x.flatten(1))

    blanks = {}
    for side in (None, 6):
        network = Seen()
        config = tiny_config(tmp_path / str(side), epochs=1, cutout=side)
        train(config, data=data, network=network, progress=Silent())
        blanks[side] = network.blank
    assert blanks[6][False] == blanks[None][False]
    assert all(cut > whole + 0.2 for cut, whole in zip(blanks[6][True], blanks[None][True], strict=True))


def test_accumulated_batches_make_one_step(data, tmp_path):
    """Two batches of 13 added up are one of 26, but for what batch norm sees: take a network without."""

    def run(**settings):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).double()
        nn.init.zeros_(network[1].weight), nn.init.zeros_(network[1].bias)
        config = tiny_config(tmp_path / str(settings["batch_size"]), precision="64-true", **settings)
        return weights(train(config, data=data, network=network, progress=Silent()))

    split, whole = run(batch_size=13, accumulate=2), run(batch_size=26)
    torch.testing.assert_close(split, whole)


def test_a_clipped_gradient_moves_weights_less(data, tmp_path):
    def moved(**settings):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False))
        nn.init.zeros_(network[1].weight)
        plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "schedule": "constant", "lr": 1.0}
        config = tiny_config(tmp_path / str(settings), epochs=1, batch_size=52, **plain, **settings)
        return weights(train(config, data=data, network=network, progress=Silent()))["1.weight"].norm().item()

    free = moved()
    assert moved(clip_norm=free / 4) == pytest.approx(free / 4, rel=1e-3)
    assert moved(clip_norm=free * 4) == free


def test_the_average_is_what_is_validated_and_saved(data, tmp_path):
    """Without warm-up of the decay this would be 0.9; after t updates it is min(0.9, (1 + t) / (10 + t))."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False))
    nn.init.zeros_(network[1].weight)
    config = tiny_config(tmp_path, epochs=1, ema=0.9, momentum=0.0, nesterov=False)
    seen = []
    network.register_forward_pre_hook(lambda m, _: seen.append(m[1].weight.detach().clone()) if m.training else None)
    result = train(config, data=data, network=network, progress=Silent())
    # Weights before each step, then the last ones, which only the training state has.
    state = torch.load(f"{result.run_dir}/last.ckpt", weights_only=True)
    steps = [*seen[1:], state["current_model_state"]["network.1.weight"]]
    average = steps[0]
    for t, step in enumerate(steps[1:], start=1):
        decay = min(0.9, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * step
    torch.testing.assert_close(weights(result)["1.weight"], average)
    torch.testing.assert_close(network[1].weight.detach(), average)


def test_a_finished_run_is_not_run_again(run, data, caplog):
    result, _ = run
    watch = Watch()
    again = train(tiny_config(result.run_dir, gate="se", workers=3), data=data, progress=watch)
    assert again == result and watch.calls == []
    assert "finished already" in caplog.text


def test_a_folder_of_another_run_is_refused(run, data):
    result, _ = run
    with pytest.raises(UserError, match=r"holds a run with other settings \(lr: 0.05 there, 0.1 now, seed"):
        train(tiny_config(result.run_dir, gate="se", lr=0.1, seed=4), data=data)
    with pytest.raises(UserError, match="holds a run already: name another folder with out, or give resume=true"):
        train(tiny_config(result.run_dir, gate="se", resume=False), data=data)


def test_a_finished_run_on_other_data_is_not_this_one(run):
    result, _ = run
    with pytest.raises(UserError, match=r"holds a run on other data \(tiny\)"):
        train(tiny_config(result.run_dir, gate="se"), data=tiny_data(seed=1))


def test_a_network_of_ones_own_needs_a_folder(data):
    with pytest.raises(UserError, match="needs out"):
        train(TrainConfig(), data=data, network=Dropping(False))


def test_a_folder_of_something_else_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        train(tiny_config(tmp_path), data=data)
    with pytest.raises(UserError, match="is a file: name a folder"):
        train(tiny_config(tmp_path / "thesis.tex"), data=data)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "sse"}, "unknown gate 'sse'"),
        ({"model": "resnet21"}, "unknown model 'resnet21'"),
        ({"model": "se_resnet20", "gate": "eca"}, "already says gate"),
        ({"precision": "16-mixed"}, "precision='16-mixed' needs a GPU"),
        ({"accelerator": "abacus"}, "cannot train with accelerator='abacus'"),
        ({"options": {"depth": 3}}, "unknown option"),
        ({"stages": [7]}, "7"),
    ],
    ids=str,
)
def test_a_mistake_is_found_before_anything_is_written(data, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(tmp_path / "run", **settings), data=data)
    assert not (tmp_path / "run").exists()


def test_divergence_is_said_with_the_way_out(data, tmp_path):
    with pytest.raises(
        UserError, match=r"training diverged: the loss is (nan|inf) at epoch \d, step \d+; give a smaller lr"
    ):
        train(tiny_config(tmp_path, lr=1e30, warmup_epochs=0), data=data, progress=Silent())
    assert not (tmp_path / "result.json").exists()


def test_ctrl_c_ends_the_run_as_such(data, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    watch = Watch(stop_after_epoch=1, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(tmp_path), data=data, progress=watch)
    assert signal.getsignal(signal.SIGINT) is handler, "further ctrl-C must still be heard"
    assert watch.calls[-1] == ("end_run",)


def test_the_folder_is_named_after_what_it_holds(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(tiny_config("x", gate="se(reduction=8)", epochs=1), out=None)
    result = train(config, data=data, progress=Silent())
    assert result.run_dir == f"runs/resnet20-se-reduction=8-seed0-{config.digest()}"


def test_plain_is_one_run_however_it_is_said(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = dataclasses.replace(tiny_config("x", epochs=1), out=None)
    first = train(plain, data=data, progress=Silent())
    assert first.config["gate"] == "none"
    assert train(dataclasses.replace(plain, gate="none"), data=data).to_dict() == first.to_dict()
    assert len(list(Path("runs").iterdir())) == 1
    # A run that was begun when null was still written.
    held = Path(first.run_dir, "config.yaml")
    held.write_text(held.read_text().replace("gate: none", "gate: null"))
    assert train(dataclasses.replace(plain, out=first.run_dir), data=data).final == first.final


def test_an_error_of_the_display_is_no_secret(data, tmp_path):
    with pytest.raises(PowerCut):
        train(tiny_config(tmp_path), data=data, progress=Watch(stop_after_epoch=2, error=PowerCut()))


def test_other_pictures_are_other_data(data, tmp_path):
    config = tiny_config(tmp_path, epochs=1)
    train(config, data=data, progress=Silent())
    inverted = dataclasses.replace(data, val=dataclasses.replace(data.val, images=255 - data.val.images))
    relabelled = dataclasses.replace(data, val=dataclasses.replace(data.val, labels=data.val.labels.flip(0)))
    for other in (inverted, relabelled):
        with pytest.raises(ValueError, match="other data"):
            train(config, data=other, progress=Silent())


def test_two_processes_do_not_share_a_folder(data, tmp_path):
    config = tiny_config(tmp_path, epochs=1)
    folder = RunFolder.of(config)
    with folder.locked(), pytest.raises(ValueError, match="another process is training"):
        train(config, data=data, progress=Silent())
    assert train(config, data=data, progress=Silent()).final


def test_a_validation_loss_that_is_no_number_is_named(data, tmp_path):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 6)

        def forward(self, x):
            y = self.fc(x.flatten(1))
            return y if self.training else y * float("nan")

    with pytest.raises(ValueError, match="diverged: the validation loss is nan"):
        train(tiny_config(tmp_path, epochs=1), data=data, network=Breaks(), progress=Silent())


def test_outputs_that_are_no_logits_are_named(data, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 6)

        def forward(self, x):
            y = self.fc(x.flatten(1))
            return (y, y) if self.training else y

    with pytest.raises(ValueError, match="gives a tuple in training"):
        train(tiny_config(tmp_path, epochs=1), data=data, network=Two(), progress=Silent())


def test_a_folder_that_cannot_be_made_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write in"):
        train(tiny_config(tmp_path / "file" / "run", epochs=1), data=data, progress=Silent())
