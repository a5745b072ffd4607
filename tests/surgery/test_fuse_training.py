"""``fuse_training_``: blocks of other libraries train through one tail, and stay what they were in all else."""

from __future__ import annotations

import copy
import gc
import io
import sys
import weakref
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import excite
from excite.models import blocks
from excite.surgery import tails
from excite.surgery.tail_graph import TailForward

Networks = Callable[[], nn.Module]


def _timm(name: str, **options: object) -> Networks:
    return lambda: timm.create_model(name, num_classes=7, **options)


def _torchvision(name: str) -> Networks:
    return lambda: torchvision.models.get_model(name, num_classes=7)


# Name: the network, how many tails it has, and in how many of them something scales channels or images.
NETWORKS = {
    "timm seresnet18": (_timm("seresnet18"), 8, 8),
    "timm ecaresnet26t": (_timm("ecaresnet26t"), 8, 8),
    "timm resnet26, drop path": (_timm("resnet26", drop_path_rate=0.3), 8, 7),
    "timm seresnet18, drop path": (_timm("seresnet18", drop_path_rate=0.3), 8, 8),
    "timm regnety_002": (_timm("regnety_002"), 13, 0),
    "timm efficientnet_lite0": (_timm("efficientnet_lite0", drop_path_rate=0.2), 9, 9),
    "torchvision resnet18": (_torchvision("resnet18"), 8, 0),
    "torchvision mobilenet_v2": (_torchvision("mobilenet_v2"), 10, 0),
    "torchvision regnet_x_400mf": (_torchvision("regnet_x_400mf"), 22, 0),
}


def _randomised(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(dtype).train()


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Fuse maps of any size; for each tail that was fused, whether anything scales in it."""
    calls = []

    def counted(norm, x, shortcut, excite, *rest):  # noqa: ANN001
        calls.append(excite is not None)
        return original(norm, x, shortcut, excite, *rest)

    original = tails.normed_tail
    monkeypatch.setattr(tails, "normed_tail", counted)
    for gated in (True, False):
        monkeypatch.setitem(sys.modules["excite.ops.tail"]._WORTH, gated, 0)
    yield calls


def _trained(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output, gradients (the input's last) and buffers of one step."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(3)
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return y.detach(), [*gradients, x.grad], [b.clone() for b in model.buffers()]


def _assert_same(ours: tuple, theirs: tuple, bound: float) -> None:
    for mine, other in zip((ours[0], *ours[1], *ours[2]), (theirs[0], *theirs[1], *theirs[2]), strict=True):
        assert mine.dtype == other.dtype
        # Against the largest of all gradients too: that of a bias before a norm is zero but for rounding.
        scale = max(float(other.abs().max()), 1e-3 * max(float(g.abs().max()) for g in theirs[1]))
        assert float((mine - other).abs().max()) <= bound * max(scale, 1e-30)


IMAGES = torch.rand(4, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_the_same(name: str, fused_calls: list[bool]) -> None:
    build, n_tails, n_scaled = NETWORKS[name]
    model = _randomised(build())
    plain = copy.deepcopy(model)
    sites = excite.fuse_training_(model, IMAGES)
    fused_calls.clear()
    ours = _trained(model, IMAGES)
    assert (len(sites), len(fused_calls), sum(fused_calls)) == (n_tails, n_tails, n_scaled)
    _assert_same(ours, _trained(plain, IMAGES), 1e-9)


def test_names_classes_and_evaluation_stay_and_detach_undoes_it() -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7))
    parameters, keys = list(model.parameters()), list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    expected = model.eval()(IMAGES)
    excite.fuse_training_(model, IMAGES)
    assert not model.training
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(IMAGES), expected)
    assert excite.detach_(model) == []
    assert not any("forward" in m.__dict__ for m in model.modules())
    with pytest.raises(excite.UserError, match="no gate attached"):
        excite.detach_(model)


def test_it_changes_nothing_by_looking() -> None:
    model = _randomised(timm.create_model("resnet18", num_classes=7, drop_path_rate=0.5))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    excite.fuse_training_(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("first", ["attach", "fuse"])
@pytest.mark.parametrize("gate", ["se", "eca"])
def test_attached_gates_are_in_the_tail(first: str, gate: str, fused_calls: list[bool]) -> None:
    model = _randomised(torchvision.models.resnet18(num_classes=7))
    steps = [lambda: excite.attach_(model, gate, IMAGES, start="paper"), lambda: excite.fuse_training_(model, IMAGES)]
    for step in steps if first == "attach" else steps[::-1]:
        step()
    for parameter in excite.gate_parameters(model):
        nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(5))
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module.__dict__.pop("forward", None)
    fused_calls.clear()
    ours = _trained(model, IMAGES)
    assert fused_calls == [True] * 8
    _assert_same(ours, _trained(plain, IMAGES), 1e-9)
    assert len(excite.detach_(model)) == 8
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_copies_and_pickles_take_it_along(fused_calls: list[bool]) -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7))
    excite.fuse_training_(model, IMAGES)
    model(IMAGES)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        nn.init.zeros_(model.layer4[0].se.fc1.weight)
        blocks = [m for m in twin.modules() if "forward" in m.__dict__]
        assert len(blocks) == 8
        assert all(b.forward.block() is b for b in blocks)
        fused_calls.clear()
        own = {id(p) for p in twin.parameters()}
        twin(IMAGES).sum().backward()
        assert fused_calls == [True] * 8
        assert all(p.grad is not None for p in twin.parameters() if id(p) in own)


def _seen(module: nn.Module) -> list[int]:
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("name", ["layer1.0.bn2", "layer1.0.se", "layer1.0.se.fc1", "layer1.0.act2", "layer1.0"])
def test_hooks_are_called(name: str, fused_calls: list[bool]) -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7))
    excite.fuse_training_(model, IMAGES)
    seen = _seen(model.get_submodule(name))
    fused_calls.clear()
    model(IMAGES)
    assert seen == [1]
    assert len(fused_calls) == (8 if name == "layer1.0" else 7)


def test_hooks_of_containers_are_called(fused_calls: list[bool]) -> None:
    model = _randomised(torchvision.models.mobilenet_v2(num_classes=7))
    excite.fuse_training_(model, IMAGES)
    seen = _seen(model.features[3].conv)
    fused_calls.clear()
    model(IMAGES)
    assert seen == [1]
    assert len(fused_calls) == 9


CHANGES = {
    "a gate taken out": lambda block: setattr(block, "se", nn.Identity()),
    "another norm": lambda block: setattr(block, "bn2", nn.GroupNorm(4, 64).double()),
    "another activation": lambda block: setattr(block, "act2", nn.Tanh()),
    "another function in the gate": lambda block: setattr(block.se, "gate", nn.Tanh()),
    "a layer without its bias": lambda block: setattr(block.se.fc2, "bias", None),
    "a weight that is computed": lambda block: nn.utils.parametrizations.weight_norm(block.se.fc1),
    "a part in another mode": lambda block: block.bn2.eval(),
    "a norm that stops counting": lambda block: setattr(block.bn2, "track_running_stats", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_modules_may_change_afterwards(change: str, fused_calls: list[bool]) -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7))
    excite.fuse_training_(model, IMAGES)
    model(IMAGES)
    CHANGES[change](model.layer1[0])
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module.__dict__.pop("forward", None)
    fused_calls.clear()
    ours = _trained(model, IMAGES)
    assert len(fused_calls) == (8 if "counting" in change else 7)
    _assert_same(ours, _trained(plain, IMAGES), 1e-9)


def test_gates_may_be_swapped_and_the_blocks_fused_again(fused_calls: list[bool]) -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7))
    excite.fuse_training_(model, IMAGES)
    excite.swap_(model, "se", "eca", IMAGES)
    fused_calls.clear()
    model(IMAGES)
    assert fused_calls == []
    assert len(excite.fuse_training_(model, IMAGES)) == 8
    fused_calls.clear()
    ours = _trained(model, IMAGES)
    assert fused_calls == [True] * 8
    excite.detach_(model)
    model.load_state_dict(dict(model.state_dict()))
    assert len(ours[1]) == len([*model.parameters()]) + 1


def test_norms_in_eval_mode_are_left(fused_calls: list[bool]) -> None:
    model = _randomised(torchvision.models.resnet18(num_classes=7))
    excite.fuse_training_(model, IMAGES)
    plain = copy.deepcopy(model)
    excite.detach_(plain)
    fused_calls.clear()
    for network in (model, plain):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    _assert_same(_trained(model, IMAGES), _trained(plain, IMAGES), 1e-12)
    assert fused_calls == []


def test_small_maps_go_module_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7))
    plain = copy.deepcopy(model)
    excite.fuse_training_(model, IMAGES)
    monkeypatch.setattr(tails, "normed_tail", None)
    ours, theirs = (_trained(m, IMAGES) for m in (model, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))


def test_synchronised_norms_are_left(fused_calls: list[bool]) -> None:
    model = _randomised(torchvision.models.resnet18(num_classes=7))
    excite.fuse_training_(model, IMAGES)
    nn.SyncBatchNorm.convert_sync_batchnorm(model.layer1)
    fused_calls.clear()
    model(IMAGES)
    assert len(fused_calls) == 6  # two blocks have other norms now


def test_autocast(fused_calls: list[bool]) -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7), torch.float32)
    plain = copy.deepcopy(model)
    excite.fuse_training_(model, IMAGES.float())
    fused_calls.clear()
    outputs = []
    for network in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y = network(IMAGES.float())
        F.cross_entropy(y.float(), torch.arange(4)).backward()
        outputs.append(y.float())
    assert len(fused_calls) == 8
    assert (outputs[0] - outputs[1]).abs().max() <= 0.1 * outputs[1].abs().max()


@pytest.mark.slow
def test_it_compiles() -> None:
    model = _randomised(timm.create_model("resnet18", num_classes=7), torch.float32)
    excite.fuse_training_(model, IMAGES.float())
    x = IMAGES.float()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    _assert_same(_trained(compiled, x), _trained(model, x), 2e-3)


class _Block(nn.Module):
    """A residual block whose forward is plain; the others' are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.scale, self.calls = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), 1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x) * self.scale) + x)


class _ByValue(_Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return F.relu(y + x if x.sum() > 0 else y - x)


class _ByKind(_Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return F.relu(y + x) if isinstance(x, torch.fx.Proxy) else F.relu(y + x) + 1


class _WithoutGradient(_Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.conv(x)
        return F.relu(self.bn(y) + x)


class _Counting(_Block):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(self.bn(self.conv(x)) + x)


class _ByChance(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.rand(1).item() < 0.5 else F.relu(self.bn(self.conv(x)) + x)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # noqa: ANN001, ANN205
        return x.clone()

    @staticmethod
    def backward(ctx, dy):  # noqa: ANN001, ANN205
        return -dy


class _HandWritten(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(_Reversed.apply(x))) + x)


class _Helped(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x)

    def helper(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x * torch.tensor(0.5))) + x)


class _HelpedByAnotherName(_Block):
    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        return this.helper(x)

    def helper(this, x: Tensor) -> Tensor:  # noqa: N805
        this.calls += 1
        return F.relu(this.bn(this.conv(x)) + x)


class _OverItsInput(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x += self.bn(self.conv(x.clone()))
        return F.relu(x)


NOT_PLAIN = {
    _ByValue: "its forward cannot be traced",
    _ByKind: "traced, its outputs are not the same",
    _WithoutGradient: "there is a with statement in its forward",
    _Counting: "its forward writes to self.calls",
    _ByChance: "its forward calls torch.rand",
    _HandWritten: "its forward calls _Reversed.apply",
    _Helped: "its forward calls torch.tensor",
    _HelpedByAnotherName: "its forward writes to this.calls",
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_blocks_that_a_trace_does_not_show_are_left_with_the_reason(kind: type[_Block]) -> None:
    model = nn.Sequential(kind(), _Block())
    before = [set(vars(m)) for m in model.modules()]
    torch.manual_seed(0)  # the block that chooses by chance runs in full
    found = excite.survey_tails(model, torch.rand(2, 3, 8, 8))
    assert [site.module for site in found.sites] == ["1.bn"]
    assert [(r.label, NOT_PLAIN[kind] in r.reason) for r in found.refused] == [("0", True)], found.refused
    assert [set(vars(m)) for m in model.modules()] == before
    excite.fuse_training_(model, torch.rand(2, 3, 8, 8))
    assert [isinstance(m.__dict__.get("forward"), TailForward) for m in model] == [False, True]


def test_sums_over_the_input_stay_there() -> None:
    model = nn.Sequential(_OverItsInput(), _Block())
    assert [site.module for site in excite.survey_tails(model, torch.rand(2, 3, 8, 8)).sites] == ["1.bn"]


def test_plain_attributes_may_change_afterwards(fused_calls: list[bool]) -> None:
    model = _randomised(nn.Sequential(_Block(), _Block()))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    excite.fuse_training_(model, x)
    model[0].scale = 3.0
    plain = copy.deepcopy(model)
    excite.detach_(plain)
    fused_calls.clear()
    _assert_same(_trained(model, x), _trained(plain, x), 1e-9)
    assert fused_calls == [False]


def test_a_block_alone_is_fused() -> None:
    block = torchvision.models.resnet.BasicBlock(3, 3)
    assert [site.module for site in excite.fuse_training_(block, torch.rand(2, 3, 8, 8))] == ["bn2"]


@pytest.mark.parametrize("own", [True, False], ids=["excite", "timm"])
def test_passes_of_two_sizes_before_one_backward(own: bool) -> None:
    """The one goes by modules, the other is fused, both through the same norms."""
    model = excite.create_model("se_resnet18") if own else timm.create_model("seresnet18")
    plain = copy.deepcopy(_randomised(model, torch.float32))
    if own:
        for module in plain.modules():
            if hasattr(module, "impl"):
                module.impl = "reference"
    else:
        excite.fuse_training_(model, IMAGES.float())
    small, large = torch.rand(2, 3, 32, 32), torch.rand(4, 3, 128, 128)
    losses = []
    for network in (model, plain):
        loss = network(small).square().mean() + network(large).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_functional_calls_and_transforms_take_the_modules(fused_calls: list[bool]) -> None:
    model = _randomised(timm.create_model("seresnet18", num_classes=7))
    plain = copy.deepcopy(model)
    excite.fuse_training_(model, IMAGES)
    fused_calls.clear()

    def loss(parameters: dict[str, Tensor], network: nn.Module) -> Tensor:
        buffers = {name: b.clone() for name, b in network.named_buffers()}
        return torch.func.functional_call(network, (parameters, buffers), (IMAGES,)).square().sum()

    found = []
    for network in (model, plain):
        parameters = {name: p.detach() for name, p in network.named_parameters()}
        found.append((loss(parameters, network), torch.func.grad(loss)(parameters, network)["conv1.weight"]))
    assert len(fused_calls) == 8  # the first, which transforms nothing
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-8 * theirs.abs().max()


def test_a_network_is_freed_with_its_last_name() -> None:
    model = torchvision.models.resnet18()
    excite.fuse_training_(model, torch.rand(2, 3, 64, 64))
    there = weakref.ref(model.layer1[0])
    gc.collect()
    gc.disable()
    try:
        del model
        assert there() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: timm.create_model("vgg11_bn"), "no residual additions"),
        (lambda: timm.create_model("convnext_atto"), "no batch norm stands before an addition"),
        (lambda: excite.create_model("resnet18"), "excite's own and have their tails"),
        (lambda: nn.DataParallel(torchvision.models.resnet18()), "before wrapping"),
    ],
)
def test_where_there_is_none(build: Networks, message: str) -> None:
    with pytest.raises(excite.UserError, match=message):
        excite.fuse_training_(build(), torch.rand(2, 3, 64, 64))


def test_twice_is_refused_and_changes_nothing() -> None:
    model = torchvision.models.resnet18()
    excite.fuse_training_(model, torch.rand(2, 3, 64, 64))
    before = [m.__dict__.get("forward") for m in model.modules()]
    with pytest.raises(excite.UserError, match="one already"):
        excite.fuse_training_(model, torch.rand(2, 3, 64, 64))
    assert [m.__dict__.get("forward") for m in model.modules()] == before


def test_an_example_that_does_not_train() -> None:
    with pytest.raises(excite.UserError, match="in training mode"):
        excite.fuse_training_(torchvision.models.resnet18(), torch.rand(1, 3, 32, 32))


def test_networks_of_excite_take_attached_gates_into_their_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = blocks.normed_tail
    monkeypatch.setattr(blocks, "normed_tail", lambda *args: calls.append(args[3]) or original(*args))
    for gated in (True, False):
        monkeypatch.setitem(sys.modules["excite.ops.tail"]._WORTH, gated, 0)
    built = _randomised(excite.create_model("resnet18", gate="se", num_classes=7))
    model = _randomised(excite.create_model("resnet18", num_classes=7))
    excite.attach_(model, "se", IMAGES, start="paper")
    model.load_state_dict({k.replace(".gate.", ".bn2.excite_gate."): v for k, v in built.state_dict().items()})
    calls.clear()
    ours = _trained(model, IMAGES)
    assert [middle.__self__ for middle in calls] == [m for m in model.modules() if isinstance(m, excite.SE)]
    theirs = _trained(built, IMAGES)
    assert torch.equal(ours[0], theirs[0])
    seen = _seen(model.layer1[0].bn2.excite_gate)
    calls.clear()
    model(IMAGES)
    assert (len(calls), seen) == (7, [1])
