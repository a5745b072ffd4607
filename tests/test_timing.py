"""Timing, on a clock that the tests turn by hand: no assertion depends on how fast this machine is."""

import copy
import gc
import json

import pytest
import torch
from torch import nn

from excite import timing
from excite.errors import UserError
from excite.timing import Spread, describe_machine, measure_latency, time_in_turns, training_step


class Clock:
    """Stands for the module ``time``; work moves it, and nothing else."""

    def __init__(self):
        self.now = 0.0
        self.pace = 1.0

    def perf_counter(self):
        return self.now

    def work(self, seconds):
        self.now += seconds * self.pace


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_percentiles_interpolate():
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (spread.p20, spread.p50, spread.p80) == pytest.approx((2.0, 3.5, 5.0))


def test_every_round_runs_each_once_from_another_start(clock):
    calls = []
    fns = {name: (lambda name=name: (calls.append(name), clock.work(1))) for name in "abc"}
    time_in_turns(fns, rounds=4, warmup=2)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["abc", "abc", "abc", "bca", "cab", "abc"]


def test_ratios_are_taken_within_a_round(clock):
    """A machine that slows down fivefold half-way blurs the times, and leaves the ratios as they are."""
    done = []

    def fn(seconds):
        def call():
            clock.pace = 1.0 if len(done) < 20 else 5.0
            done.append(seconds)
            clock.work(seconds)

        return call

    timings = time_in_turns({"plain": fn(0.010), "gated": fn(0.013)}, rounds=20, warmup=0)
    plain, gated = timings["plain"], timings["gated"]
    assert list(timings) == ["plain", "gated"]
    assert plain.ratio == Spread(1.0, 1.0, 1.0)
    assert (gated.ratio.p20, gated.ratio.p50, gated.ratio.p80) == pytest.approx((1.3, 1.3, 1.3))
    assert (plain.p20_ms, plain.p80_ms) == pytest.approx((10, 50))
    assert gated.samples_ms[0] == pytest.approx(13) and gated.samples_ms[-1] == pytest.approx(65)
    assert len(gated.samples_ms) == 20 and gated.clock == "perf_counter"


def test_warm_up_is_not_timed(clock):
    calls = []

    def first_is_slow():
        calls.append(1)
        clock.work(9.0 if len(calls) <= 3 else 0.5)

    timing_ = time_in_turns({"f": first_is_slow}, rounds=5, warmup=3)["f"]
    assert timing_.samples_ms == pytest.approx([500] * 5) and timing_.warmup == 3


def test_garbage_is_not_collected_while_timing(clock):
    enabled = []
    time_in_turns({"f": lambda: (enabled.append(gc.isenabled()), clock.work(1))}, rounds=2, warmup=1)
    assert enabled == [True, False, False] and gc.isenabled()


def test_garbage_collection_comes_back_after_a_failure():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        time_in_turns({"f": fail}, rounds=1, warmup=0)
    assert gc.isenabled()


@pytest.mark.parametrize("kwargs", [{"rounds": 0}, {"warmup": -1}])
def test_impossible_counts(kwargs):
    with pytest.raises(UserError, match="at least 1 round"):
        time_in_turns({"f": lambda: None}, **kwargs)
    with pytest.raises(UserError, match="nothing to time"):
        time_in_turns({})


# --- latency ---


class Watched(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.clock = clock
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, self.norm.training, torch.is_inference_mode_enabled()))
        self.clock.work(0.004)
        return self.norm(x)


def test_latency_runs_in_eval_mode_and_leaves_the_model_as_it_was(clock):
    model = Watched(clock)
    before = copy.deepcopy(model.state_dict())
    latency = measure_latency(model, torch.randn(5, 3), warmup=2, runs=7)
    assert model.seen == [(False, False, True)] * 9
    assert model.training and model.norm.training and not model.frozen.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert latency.p50_ms == pytest.approx(4) and latency.batch_size == 5
    assert latency.images_per_second == pytest.approx(1250)
    assert (latency.runs, latency.warmup, latency.clock) == (7, 2, "perf_counter")


def test_results_are_json_and_say_the_machine(clock):
    latency = measure_latency(Watched(clock), (torch.randn(2, 3),), warmup=0, runs=1).to_dict()
    turns = time_in_turns({"f": lambda: clock.work(1)}, rounds=2)["f"].to_dict()
    for result in (latency, turns):
        assert json.loads(json.dumps(result)) == result
        assert result["machine"] == describe_machine("cpu")
    assert turns["ratio"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    machine = describe_machine("cpu")
    assert machine["device"] == "cpu" and machine["device_name"]
    assert machine["threads"] == torch.get_num_threads() and machine["torch"] == torch.__version__


def test_latency_names_two_devices():
    with pytest.raises(UserError, match="the model is on meta, the example on cpu"):
        measure_latency(nn.Linear(2, 2, device="meta"), torch.randn(1, 2))


# --- training steps ---


def test_a_training_step_does_all_the_work_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, 3)).eval()
    before = copy.deepcopy(model.state_dict())
    modes = []
    model[1].register_forward_hook(lambda module, args, output: modes.append((module.training, output.requires_grad)))
    step = training_step(model, torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    for _ in range(3):
        assert step() is None
    assert modes == [(True, True)] * 3
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_training_step_runs_forward_backward_and_the_update(monkeypatch):
    events = []
    backward, update = torch.Tensor.backward, torch.optim.SGD.step
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a, **k: (events.append("backward"), backward(*a, **k))[1])
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *a, **k: (events.append("update"), update(*a, **k))[1])
    dtypes = []
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    step = training_step(model, torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), autocast=torch.bfloat16)
    step()
    step()
    assert events == ["backward", "update"] * 2
    assert dtypes == [torch.bfloat16] * 2


def test_a_training_step_needs_a_label_an_image():
    with pytest.raises(UserError, match=r"labels must be \[4\]"):
        training_step(nn.Linear(3, 2), torch.randn(4, 3), torch.zeros(3, dtype=torch.int64))


# --- GPUs: events in place of the processor's clock ---


def test_a_gpu_is_timed_by_its_own_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            assert log[-4:] == ["record", "work", "record", "wait"]
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    timing_ = time_in_turns({"f": lambda: log.append("work")}, rounds=3, warmup=1, device="cuda")["f"]
    assert timing_.samples_ms == (2.5, 2.5, 2.5) and timing_.clock == "cuda events"
    assert timing_.machine["device"] == "cuda" and timing_.machine["device_name"] == "a GPU"
    assert len(log) == 4 * 4
