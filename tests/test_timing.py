"""Timing, on a clock that the tests turn by hand: no assertion depends on how fast this machine is."""

import copy
import gc
import json

import pytest
import torch
from torch import nn

from excite.errors import UserError
from excite.timing import (
    Spread,
    compare_latency,
    describe_machine,
    measure_latency,
    sweep_latency,
    time_in_turns,
    training_step,
    turns,
)


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
    monkeypatch.setattr(turns, "time", clock)
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
    timing = time_in_turns({"f": lambda: clock.work(1)}, rounds=2)["f"].to_dict()
    for result in (latency, timing):
        assert json.loads(json.dumps(result)) == result
        assert result["machine"] == describe_machine("cpu")
    assert timing["ratio"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    machine = describe_machine("cpu")
    assert machine["device"] == "cpu" and machine["device_name"]
    assert machine["threads"] == torch.get_num_threads() and machine["torch"] == torch.__version__


def test_latency_names_two_devices():
    with pytest.raises(UserError, match="the model is on meta, the example on cpu"):
        measure_latency(nn.Linear(2, 2, device="meta"), torch.randn(1, 2))


# --- batch sizes, and several networks ---


class Counted(nn.Module):
    """Takes a millisecond an image and one a call, and keeps what it was given."""

    def __init__(self, clock, pace=1.0):
        super().__init__()
        self.clock, self.pace, self.seen = clock, pace, []

    def forward(self, x, *others):
        self.seen.append((x, *others))
        assert not self.training and torch.is_inference_mode_enabled()
        self.clock.work((1 + len(x)) * 1e-3 * self.pace)
        return x


def test_a_sweep_times_every_batch_size(clock):
    model = Counted(clock)
    sweep = sweep_latency(model, torch.randn(1, 3), batch_sizes=(1, 4, 2, 4), warmup=1, runs=3)
    assert list(sweep) == [1, 4, 2]
    assert {size: latency.p50_ms for size, latency in sweep.items()} == pytest.approx({1: 2, 4: 5, 2: 3})
    assert {size: latency.batch_size for size, latency in sweep.items()} == {1: 1, 4: 4, 2: 2}
    assert sweep[4].images_per_second == pytest.approx(800)
    assert {(latency.runs, latency.warmup) for latency in sweep.values()} == {(3, 1)}
    # By turns, from another size each round.
    sizes = [len(x) for x, *_ in model.seen]
    assert sizes == [1, 4, 2] + [1, 4, 2] + [4, 2, 1] + [2, 1, 4]
    assert model.training


def test_a_sweep_repeats_the_example(clock):
    model = Counted(clock)
    x, y = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), torch.arange(2)
    sweep_latency(model, (x, y), batch_sizes=(1, 3, 4), warmup=0, runs=1)
    for (images, numbers), kept in zip(model.seen, ([0], [0, 1, 0], [0, 1, 0, 1]), strict=True):
        assert torch.equal(images, x[kept]) and torch.equal(numbers, y[kept])
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("example", "sizes", "message"),
    [
        (torch.randn(1, 3), (2, 0), r"batch_sizes=\[2, 0\]: give at least one, each at least 1"),
        (torch.randn(1, 3), (), r"batch_sizes=\[\]"),
        (torch.randn(0, 3), (1,), r"shape \[\(0, 3\)\] is no batch"),
        (torch.tensor(1.0), (1,), r"shape \[\(\)\] is no batch"),
        ((torch.randn(1, 3), torch.randn(2, 3)), (1,), "the same number of images"),
        (torch.randn(1, 3, device="meta"), (1,), "the model is on cpu, the example on meta"),
    ],
)
def test_sweeps_that_cannot_be(example, sizes, message):
    with pytest.raises(UserError, match=message):
        sweep_latency(nn.Linear(3, 3), example, batch_sizes=sizes)


def test_networks_are_compared_in_turns(clock):
    models = {"plain": Counted(clock), "gated": Counted(clock, pace=1.5)}
    models["plain"].eval()
    timings = compare_latency(models, torch.randn(1, 3), warmup=1, runs=4)
    assert timings["plain"].ratio == Spread(1.0, 1.0, 1.0)
    assert timings["gated"].ratio.p50 == pytest.approx(1.5) and timings["gated"].p50_ms == pytest.approx(3)
    assert len(timings["gated"].samples_ms) == 4
    assert {name: model.training for name, model in models.items()} == {"plain": False, "gated": True}


def test_comparisons_that_cannot_be():
    x = torch.randn(1, 3)
    with pytest.raises(UserError, match="the model 'b' is on meta, the example on cpu"):
        compare_latency({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3, device="meta")}, x)
    with pytest.raises(UserError, match="nothing to time"):
        compare_latency({}, x)


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
