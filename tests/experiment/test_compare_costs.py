"""Costs of gates: counted, and measured in turns with plain within bounded time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from excite.errors import UserError
from excite.experiment import costs
from excite.experiment.costs import count_costs, measure_costs, timing_devices
from excite.models import create_model


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3)
    )


def networks() -> dict[str, nn.Module]:
    return {"wide": network(16), "none": network(4)}


EXAMPLE = torch.zeros(40, 1, 8, 8)


def test_counts_are_those_of_one_image() -> None:
    made = {
        g: create_model("resnet20", gate=None if g == "none" else g, num_classes=10, in_channels=1)
        for g in ("none", "se")
    }
    counted = count_costs(made, torch.zeros(1, 1, 28, 28))
    for gate, model in made.items():
        assert counted[gate].parameters == sum(p.numel() for p in model.parameters())
    assert 0 < counted["se"].macs - counted["none"].macs < 0.01 * counted["none"].macs


def test_every_network_is_timed_in_both_ways_beside_plain() -> None:
    measured = measure_costs(networks(), EXAMPLE, 3, seconds=0.01)
    assert list(measured) == ["none", "wide"]
    for timings in measured.values():
        inference, step = timings
        assert (inference.what, inference.batch_size, inference.precision) == ("inference", 1, "32-true")
        assert (step.what, step.batch_size, step.device) == ("training step", 40, "cpu")
        assert inference.rounds >= 5 and step.rounds >= 5
    assert [t.ratio for t in measured["none"]] == [1.0, 1.0]
    assert len(measure_costs(networks(), EXAMPLE, 3, seconds=0.01, train=False)["wide"]) == 1


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_networks_are_left_as_they_were(precision: str) -> None:
    made = networks()
    made["none"].train()
    made["wide"].eval()
    before = {g: {k: v.clone() for k, v in n.state_dict().items()} for g, n in made.items()}
    measured = measure_costs(made, EXAMPLE, 3, precision=precision, seconds=0.01)
    assert measured["wide"][1].precision == precision
    assert made["none"].training and not made["wide"].training
    for gate, model in made.items():
        for key, value in model.state_dict().items():
            assert value.dtype == before[gate][key].dtype and torch.equal(value, before[gate][key])


def test_a_batch_that_takes_too_long_is_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 8 images already take longer than half a call may, 8 it stays: time is bounded on slow machines."""
    monkeypatch.setattr(costs, "_call_seconds", lambda call, place: 1.0)
    measured = measure_costs(networks(), EXAMPLE, 3, seconds=2.0)
    assert measured["wide"][1].batch_size == 8
    assert measured["wide"][1].rounds == 5


def test_plain_is_needed() -> None:
    with pytest.raises(UserError, match="plain"):
        measure_costs({"wide": network(4)}, EXAMPLE, 3)


def test_where_a_comparison_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [d.type for d in timing_devices("auto")] == ["cuda", "cpu"]
    assert [d.type for d in timing_devices("cpu")] == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [d.type for d in timing_devices("auto")] == ["cpu"]
