"""`slim`: what goes and what stays on a network whose gates are known, and what the report says of it."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite.deploy import fuse, slim
from excite.deploy.slim_report import SlimReport
from excite.errors import UserError
from excite.gates import SE
from excite.models.base import gate_modules
from excite.surgery.constants import ChannelScale

CLASSES, CHANNELS = 4, 8


class Block(nn.Module):
    """act(gate(norm(x))), or with a SiLU between norm and gate."""

    def __init__(self, gate, silu=False):
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.gate = gate
        self.silu = silu

    def forward(self, x):
        return self.gate(F.silu(self.norm(x)) if self.silu else F.relu(self.norm(x)))


class Deciding(nn.Module):
    """Images [N, 5, 4, 4]: one channel a class, and one that is the same for all. Only the class gate tells classes.

    The stem copies the last channel four times; the class gate opens one of the four, by the class channels; the head
    reads these four alone. Two more gates are constant, and one, between two readers, cannot be folded.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(CLASSES + 1, CHANNELS, 1, bias=False)
        self.first = Block(constant_gate(0))
        self.second = Block(class_gate())
        self.third = Block(constant_gate(1), silu=True)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.head = nn.Linear(CHANNELS, CLASSES, bias=False)
        with torch.no_grad():
            self.stem.weight.zero_()
            self.conv.weight.zero_()
            self.conv.bias.zero_()
            for c in range(CLASSES):
                self.stem.weight[c, c] = self.stem.weight[CLASSES + c, CLASSES] = 1
            self.head.weight.copy_(10 * torch.eye(CLASSES, CHANNELS).roll(CLASSES, 1))

    def forward(self, x):
        x = self.third(self.second(self.first(self.stem(x))))
        return self.head((x + self.conv(x)).mean((2, 3)))


def constant_gate(seed):
    gate = SE(CHANNELS, reduction=2)
    with torch.no_grad():
        gate.fc2.weight.zero_()
        gate.fc2.bias.copy_(1 + 0.3 * torch.rand(CHANNELS, generator=torch.Generator().manual_seed(seed)))
    return gate


def class_gate():
    gate = SE(CHANNELS, reduced_channels=CHANNELS)
    with torch.no_grad():
        gate.fc1.weight.copy_(torch.eye(CHANNELS))
        gate.fc1.bias.zero_()
        gate.fc2.weight.zero_()
        gate.fc2.bias.fill_(-6)
        for c in range(CLASSES):
            gate.fc2.weight[CLASSES + c, c] = 12
    return gate


def images(n, seed=0, noise=0.35):
    """n images and labels; with so much noise about one in twenty is classified wrongly."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    means = torch.ones(n, CLASSES + 1)
    means[:, :CLASSES] = F.one_hot(labels, CLASSES) + noise * torch.randn(n, CLASSES, generator=generator)
    return means[:, :, None, None] + 0.01 * torch.randn(n, CLASSES + 1, 4, 4, generator=generator), labels


def batches(n, seed=0, size=50, **more):
    x, labels = images(n, seed, **more)
    return list(zip(x.split(size), labels.split(size), strict=True))


class Counted:
    """Batches, and how often they were gone through."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def right(model, batches):
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) == labels for x, labels in batches]).numpy()


@pytest.fixture(scope="module")
def network():
    return Deciding().eval()


@pytest.fixture(scope="module")
def slimmed(network):
    return slim(network, batches(200), batches(2000, 1), max_drop=0.5, rounds=0)


def test_constant_gates_go_and_the_class_gate_stays(network, slimmed):
    report = {gate.name: gate for gate in slimmed.report.gates}
    assert list(report) == ["first.gate", "second.gate", "third.gate"]
    assert (report["first.gate"].outcome, report["first.gate"].into) == ("folded", ("first.norm",))
    assert report["third.gate"].outcome == "multiply" and "SiLU" in report["third.gate"].reason
    kept = report["second.gate"]
    assert kept.outcome == "kept" and kept.step is None
    assert kept.reason.startswith("with it gone too, accuracy on the calibration images would fall by ")
    assert set(gate_modules(slimmed.model)) == {"second.gate"}
    assert isinstance(slimmed.model.third.gate, ChannelScale) and isinstance(slimmed.model.first.gate, nn.Identity)
    x, _ = images(50, 2)
    with torch.no_grad():
        assert (slimmed.model(x) - network(x)).abs().max() <= 1e-5 * network(x).abs().max()


@pytest.mark.parametrize("max_drop,cautious", [(0, False), (5, True), (40, False)])
def test_a_class_gate_is_never_folded(network, max_drop, cautious):
    result = slim(network, batches(200), batches(40, 1), max_drop=max_drop, cautious=cautious, rounds=0)
    assert {gate.name: gate.outcome for gate in result.report.gates}["second.gate"] == "kept"
    assert isinstance(result.model.second.gate, SE)


def test_the_figures_are_those_of_an_independent_count(network, slimmed):
    report, calibration, validation = slimmed.report, batches(200), batches(2000, 1)
    before, after = right(network, validation), right(slimmed.model, validation)
    proof = report.proof
    assert (proof.images, proof.lost, proof.gained) == (2000, (before & ~after).sum(), (after & ~before).sum())
    assert (proof.before, proof.after) == (before.mean(), after.mean())
    assert report.calibration.before == right(network, calibration).mean()
    assert report.calibration.after == right(slimmed.model, calibration).mean()
    # The class gate at its mean, by hand.
    x, labels = images(200)
    with torch.no_grad():
        u = F.relu(network.second.norm(network.first(network.stem(x))))
        s = network.second.gate.excite(u.mean((2, 3))).mean(0)
        y = network.third(u * s[:, None, None])
        logits = network.head((y + network.conv(y)).mean((2, 3)))
        change = F.cross_entropy(logits, labels) - F.cross_entropy(network(x), labels)
    kept = next(gate for gate in report.gates if gate.name == "second.gate")
    assert kept.loss_change == pytest.approx(float(change), rel=1e-4)
    now = (logits.argmax(1) == labels).numpy()
    assert kept.accuracy_change == pytest.approx(now.mean() - right(network, calibration).mean(), abs=1e-9)
    # The two constant gates had gone when it was tried; that changes nothing.
    assert kept.fall == pytest.approx(-kept.accuracy_change, abs=1e-9)


def test_parameters_and_macs(network, slimmed):
    before = sum(p.numel() for p in network.parameters())
    assert slimmed.report.parameters == (before, sum(p.numel() for p in slimmed.model.parameters()))
    gone = sum(p.numel() for p in [*network.first.gate.parameters(), *network.third.gate.parameters()])
    assert slimmed.report.parameters[1] == before - gone + CHANNELS
    assert slimmed.report.macs[1] < slimmed.report.macs[0]


def test_the_network_given_is_left_as_it_is():
    model = Deciding().train()
    before = copy.deepcopy(model)
    result = slim(model, batches(40), batches(40, 1), max_drop=50, rounds=0)
    assert model.training and not result.model.training
    assert str(model) == str(before)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_validation_is_looked_at_once_and_only_where_something_went(network):
    calibration, validation = Counted(batches(80)), Counted(batches(40, 1))
    result = slim(network, calibration, validation, max_drop=0.5, rounds=0)
    assert result.report.gone and validation.passes == 1 and calibration.passes > 3
    alone = copy.deepcopy(network)
    alone.first.gate = alone.third.gate = nn.Identity()
    validation = Counted(batches(40, 1))
    result = slim(alone, batches(80), validation, max_drop=0.5, rounds=0)
    assert result.report.proof is None and validation.passes == 0 and result.report.gone == ()
    assert "No gate was taken out" in str(result.report) and result.report.to_dict()["proof"] is None
    assert result.report.parameters[0] == result.report.parameters[1]


def test_gates_go_in_the_order_of_what_they_cost_for_what_they_save(network):
    result = slim(network, batches(80), batches(40, 1), max_drop=100 - 1e-9, rounds=0)
    steps = {gate.name: gate.step for gate in result.report.gates}
    # Both constants cost nothing; the one that folds saves three passes over its map, the other one.
    assert steps == {"first.gate": 1, "third.gate": 2, "second.gate": 3}
    saved = {gate.name: gate.saved for gate in result.report.gates}
    assert saved == {"first.gate": 3 * 4 * 8 * 16, "second.gate": 3 * 4 * 8 * 16, "third.gate": 4 * 8 * 16}
    assert result.report.saved_in == "bytes" and not gate_modules(result.model).keys() & {"second.gate"}
    assert right(result.model, batches(40, 1)).mean() < 0.5


def test_a_cautious_choice_needs_the_calibration_images_to_prove_it(network):
    few, many = batches(200), batches(2000)
    assert slim(network, few, batches(40, 1), max_drop=1, cautious=True, rounds=0).report.gone == ()
    assert len(slim(network, many, batches(40, 1), max_drop=1, cautious=True, rounds=0).report.gone) == 2


def test_the_report_says_what_is_proven(network, slimmed):
    report = slimmed.report
    assert report.proof.proven and report.finding.startswith("Proven with 95 % confidence on 2,000 images: ")
    text = str(report)
    assert "accuracy falls by at most 0.18 points, no more than the 0.50 points allowed" in text
    assert "1 folded, 1 left as a multiplication, 1 kept" in text and "folded into first.norm" in text
    tight = slim(network, batches(200), batches(2000, 1), max_drop=0.1, rounds=0).report
    assert not tight.proof.proven
    assert tight.finding.startswith("Not proven that accuracy falls by no more than 0.10 points. What these 2,000")
    assert "Even if no prediction changed, 2,000 images could prove no less than 0.18 points" in tight.finding


def test_the_report_as_json(slimmed):
    report = slimmed.report
    held = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert held["finding"] == report.finding and held["latency"] is None
    assert held["proof"]["proven"] is True and held["proof"]["images"] == 2000
    assert [gate["outcome"] for gate in held["gates"]] == ["folded", "kept", "multiply"]
    assert held["parameters"] == {"before": report.parameters[0], "after": report.parameters[1]}


def test_times_are_measured_where_asked_for(network):
    report: SlimReport = slim(network, batches(40), batches(40, 1), max_drop=0.5, rounds=3).report
    time = report.latency
    assert (time.rounds, time.image) == (3, (1, 5, 4, 4))
    assert 0 < time.ratio.p20 <= time.ratio.p50 <= time.ratio.p80 and time.machine["device"] == "cpu"
    assert f"ratio {time.ratio.p50:.3f}" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["latency"]["ratio"]["p50"] == time.ratio.p50


def test_times_within_noise_are_not_believed(network, monkeypatch):
    from excite.deploy import saving

    def told(result):
        return slim(network, batches(40), batches(40, 1), max_drop=0.5, rounds=2).report.saved_in == result

    monkeypatch.setattr(saving, "_is_told", lambda timing: True)
    assert told("microseconds")
    monkeypatch.setattr(saving, "_is_told", lambda timing: False)
    assert told("bytes")


def test_the_result_exports_and_fuses(slimmed):
    x, _ = images(6, 3)
    with torch.no_grad():
        expected = slimmed.model(x)
        for other in (torch.export.export(slimmed.model, (x,)).module(), fuse(slimmed.model, x)):
            assert (other(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_images_may_come_in_any_order_that_says_which_they_are(network, slimmed):
    x, labels = images(200)
    order = torch.randperm(200)
    shuffled = [(x[part], labels[part], part) for part in order.split(64)]
    result = slim(network, shuffled, batches(2000, 1), max_drop=0.5, rounds=0)
    assert [gate.outcome for gate in result.report.gates] == [gate.outcome for gate in slimmed.report.gates]
    assert result.report.calibration == slimmed.report.calibration


class ShuffledWithIndices:
    """Another order at each pass, and which images they are."""

    def __iter__(self):
        x, labels = images(2000)
        return iter([(x[part], labels[part], part) for part in torch.randperm(2000).split(500)])


def test_images_are_paired_whatever_their_order(network):
    # Unpaired, some ninety images would seem lost, and as many gained: too many to prove anything by.
    assert (
        len(slim(network, ShuffledWithIndices(), batches(40, 1), max_drop=0.5, cautious=True, rounds=0).report.gone)
        == 2
    )


def test_validation_images_that_gates_were_chosen_on_prove_nothing_and_are_left_out(network, slimmed):
    calibration, others = batches(200), batches(2000, 1)
    mixed = [*others, (calibration[0][0][:30].clone(), calibration[0][1][:30])]
    report = slim(network, calibration, mixed, max_drop=0.5, rounds=0).report
    assert (report.shared, report.proof) == (30, slimmed.report.proof) and slimmed.report.shared == 0
    assert report.to_dict()["shared"] == 30
    assert report.finding == (
        f"{slimmed.report.finding} 30 more validation images are left out: the gates were chosen on them, too."
    )
    one = slim(network, calibration, [(x[:1], y[:1]) for x, y in mixed[-2:]], max_drop=0.5, rounds=0).report
    assert one.finding.endswith("1 more validation image is left out: the gates were chosen on it, too.")
    assert one.proof.images == 1 and "after; 1 image\n" in str(one)
    # The same images in memory of their own, in another order.
    with pytest.raises(UserError, match="calibration and validation are the same images: .* so give others"):
        slim(network, calibration, batches(200)[::-1], max_drop=0.5, rounds=0)


class Shuffled:
    """Another order at each pass, and nothing that says which images they are."""

    def __iter__(self):
        x, labels = images(60)
        order = torch.randperm(60)
        return iter([(x[order], labels[order])])


def test_mistakes(network):
    few = batches(20)
    for wrong, said in [
        ({"calibration": iter(few)}, "can be gone through only once"),
        ({"validation": few}, "calibration and validation are the same images"),
        ({"calibration": []}, "calibration gave no image"),
        ({"validation": []}, "validation gave no image: nothing can be proven"),
        ({"calibration": [(few[0][0], None)]}, "labels of a batch are of type NoneType"),
        ({"calibration": Shuffled()}, "another order, at each pass"),
        ({"max_drop": -0.1}, "max_drop=-0.1: the allowed fall of accuracy in percentage points"),
        ({"max_drop": 100}, "max_drop=100"),
        ({"level": 0.5}, "level=0.5: a confidence lies between 0.5 and 1"),
        ({"rounds": -1}, "rounds=-1"),
        ({"model": nn.Sequential(nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(64, 4)).eval()}, "has no gate"),
    ]:
        given = {
            "model": network,
            "calibration": few,
            "validation": batches(20, 1),
            "max_drop": 50,
            "rounds": 0,
        } | wrong
        with pytest.raises(UserError, match=said):
            slim(given.pop("model"), given.pop("calibration"), given.pop("validation"), **given)


def test_a_gate_that_runs_twice_is_kept():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.gate, self.head = nn.Conv2d(5, 8, 1), SE(8, 2), nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.head(self.gate(F.relu(self.gate(self.stem(x)))).mean((2, 3)))

    result = slim(Twice().eval(), batches(40), batches(40, 1), max_drop=90, rounds=0)
    (gate,) = result.report.gates
    assert gate.outcome == "kept" and gate.reason == "it runs several times in a forward pass"
    assert np.isfinite(gate.loss_change)


def test_what_proves_nothing_is_refused(network):
    good, few = batches(40), batches(8, 1)
    with pytest.raises(UserError, match="validation gave no image"):
        slim(network, good, [], max_drop=1, rounds=0)
    with pytest.raises(UserError, match=r"max_drop='1': .* from 0 and below 100"):
        slim(network, good, few, max_drop="1", rounds=0)
    images, labels = few[0][:2]
    with pytest.raises(UserError, match="not finite"):
        slim(network, good, [(images * float("nan"), labels)], max_drop=99, rounds=0)
