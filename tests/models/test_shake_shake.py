"""Shake-Shake: what is drawn, what it does to values and gradients; parity with pytorchcv; the author's network."""

import pytest
import torch
from model_cases import convolve, load_as_convolutions, norm, randomise, squeeze_excite
from pytorchcv.models.shakeshakeresnet_cifar import CIFARShakeShakeResNet
from torch.nn import functional as F

from excite.cost import count_cost
from excite.errors import UserError
from excite.gates import SEConfig
from excite.models import PLACEMENTS, create_model
from excite.models.base import gate_modules
from excite.models.shake import ShiftShortcut, mix
from excite.models.shake_shake import (
    ShakeEvenResNeXt,
    ShakeEvenResNeXtOptions,
    ShakeShakeResNet,
    ShakeShakeResNetOptions,
)
from tolerances import CHANCE_ERRORS, PARITY

CLOSE = PARITY[torch.float64]
SE = SEConfig(reduction=4)


def small(gate=None, options=ShakeShakeResNetOptions(), **kwargs):  # noqa: B008 - frozen
    return ShakeShakeResNet(2, 16, gate=gate, options=options, **kwargs)


def small_resnext(gate=None, **kwargs):
    return ShakeEvenResNeXt(1, 2, gate=gate, **kwargs)


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, dtype=torch.float64)


# --- the mixture ---


@pytest.mark.parametrize("backward", ["shake", "even", "keep"])
@pytest.mark.parametrize("forward", ["shake", "even"])
def test_each_image_has_one_weight_each_way(forward, backward):
    n = 4000
    first, second = torch.ones(n, 2, 1, 3, dtype=torch.float64), torch.zeros(n, 2, 1, 3, dtype=torch.float64)
    first.requires_grad_(), second.requires_grad_()
    y = mix(first, second, forward=forward, backward=backward)
    dy = torch.randn_like(y)
    y.backward(dy)
    alpha, beta = y.detach()[:, 0, 0, 0], (first.grad / dy)[:, 0, 0, 0]
    torch.testing.assert_close(y.detach(), alpha.view(-1, 1, 1, 1).expand_as(y), **CLOSE)
    torch.testing.assert_close(first.grad, beta.view(-1, 1, 1, 1) * dy, **CLOSE)
    torch.testing.assert_close(first.grad + second.grad, dy, **CLOSE)
    for weights, how in ((alpha, forward), (beta, forward if backward == "keep" else backward)):
        if how == "even":
            torch.testing.assert_close(weights, torch.full_like(weights, 0.5), **CLOSE)
        else:
            counts = torch.histc(weights, 8, 0, 1)
            assert (counts - n / 8).abs().max() < CHANCE_ERRORS * (n / 8 * 7 / 8) ** 0.5
    if backward == "keep":
        torch.testing.assert_close(alpha, beta, **CLOSE)
    elif forward == backward == "shake":
        assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < CHANCE_ERRORS / n**0.5


def test_a_seed_fixes_the_draws_and_the_dtype_does_not_change_them():
    ones, zeros = torch.ones(5, 1, 1, 1), torch.zeros(5, 1, 1, 1)

    def draw(seed, dtype=torch.float32):
        torch.manual_seed(seed)
        return mix(ones.to(dtype), zeros.to(dtype), forward="shake", backward="shake")

    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    assert torch.equal(draw(3).bfloat16(), draw(3, torch.bfloat16))
    assert torch.equal(draw(3).double(), draw(3, torch.float64))


def test_gates_do_not_change_the_draws_and_eval_makes_none():
    after = []
    for gate in (None, SE):
        model = small(gate).double().train()
        torch.manual_seed(1)
        model(torch.ones(2, 3, 8, 8, dtype=torch.float64))
        after.append(torch.get_rng_state())
        model.eval()(torch.ones(2, 3, 8, 8, dtype=torch.float64))
        assert torch.equal(torch.get_rng_state(), after[-1])
    assert torch.equal(*after)


# --- parity ---


def pytorchcv_key(key):
    if key.startswith("fc."):
        return key.replace("fc.", "output.")
    if not key.startswith("layer"):
        return "features.init_block." + key.replace("conv1", "conv").replace("bn1", "bn")
    stage, unit, part, *rest = key.removeprefix("layer").split(".")
    prefix = f"features.stage{stage}.unit{int(unit) + 1}."
    if part == "downsample":
        return f"{prefix}identity_branch.{'.'.join(rest)}"
    layer, *rest = rest
    return f"{prefix}{part}.conv{layer[-1]}.{layer[:-1]}.{rest[0]}"


@pytest.mark.parametrize("training", [False, True])
def test_late_relus_equal_pytorchcvs(training, monkeypatch):
    options = ShakeShakeResNetOptions(relu="post", mix_forward="even", mix_backward="even")
    theirs = CIFARShakeShakeResNet([[16] * 2, [32] * 2, [64] * 2], 16, bottleneck=False)
    theirs = randomise(theirs).double().train(training)
    ours = small(options=options).double().train(training)
    load_as_convolutions(ours, theirs, pytorchcv_key)
    x = images().requires_grad_()
    x_theirs = x.detach().clone().requires_grad_()
    halves = lambda *shape, **kwargs: torch.full(shape, 0.5, **kwargs)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", halves)
        expected = theirs(x_theirs)
        expected.square().sum().backward()
    y = ours(x)
    y.square().sum().backward()
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[pytorchcv_key(name)], **CLOSE)


def forward_shake(state, x, placement, *, relu_first):
    """Eval-mode forward, from the paper and the author's code."""
    x = norm(state, "bn1", convolve(x, state["conv1.weight"]))
    x = x if relu_first else F.relu(x)
    for stage in (1, 2, 3):
        for i in range(10):
            prefix = f"layer{stage}.{i}."
            p = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if p:
                x = shake_block(p, x, 2 if stage > 1 and i == 0 else 1, placement, relu_first)
    x = F.relu(x) if relu_first else x
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def shake_block(p, x, stride, placement, relu_first):
    def gate(at, u, q):
        return squeeze_excite(q, u) if at == placement and "gate.fc1.weight" in q else u

    h = F.relu(x) if relu_first else x
    shortcut = x
    if "downsample.bn.weight" in p:
        shifted = torch.zeros_like(h)
        shifted[:, :, 1:, 1:] = h[:, :, :-1, :-1]
        halves = [F.conv2d(h[:, :, ::stride, ::stride], p["downsample.conv1.weight"])]
        halves += [F.conv2d(shifted[:, :, ::stride, ::stride], p["downsample.conv2.weight"])]
        shortcut = norm(p, "downsample.bn", torch.cat(halves, 1))
    elif "downsample.0.weight" in p:
        shortcut = norm(p, "downsample.1", convolve(h, p["downsample.0.weight"], stride))
    mixed = 0
    for name in ("branch1.", "branch2."):
        q = {key.removeprefix(name): value for key, value in p.items() if key.startswith(name)}
        y = gate("pre", h, q)
        if "conv3.weight" in q:
            y = F.relu(norm(q, "bn1", convolve(y, q["conv1.weight"])))
            y = gate("inner", F.relu(norm(q, "bn2", convolve(y, q["conv2.weight"], stride))), q)
            y = norm(q, "bn3", convolve(y, q["conv3.weight"]))
        else:
            y = gate("inner", F.relu(norm(q, "bn1", convolve(y, q["conv1.weight"], stride))), q)
            y = norm(q, "bn2", convolve(y, q["conv2.weight"]))
        mixed = mixed + gate("standard", y, q) / 2
    y = mixed + gate("identity", shortcut, p)
    return gate("post", y if relu_first else F.relu(y), p)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("make", [small, small_resnext])
def test_networks_and_placements_are_the_papers(make, placement):
    model = randomise(make(SE, placement=placement, stages=(1, 3))).double().eval()
    assert {key.split(".")[0] for key in model.state_dict() if ".gate." in key} == {"layer1", "layer3"}
    blocks = 2 if make is small else 1
    assert len(gate_modules(model)) == 2 * blocks * (1 if placement in ("post", "identity") else 2)
    x = images(2, 15)
    expected = forward_shake(model.state_dict(), x, placement, relu_first=make is small)
    torch.testing.assert_close(model(x), expected, **CLOSE)


@pytest.mark.parametrize("relu", ["pre", "post"])
def test_place_of_the_relu_is_seen(relu):
    model = randomise(small(options=ShakeShakeResNetOptions(relu=relu))).double().eval()
    x = images()
    pre, post = (forward_shake(model.state_dict(), x, "", relu_first=first) for first in (True, False))
    right, wrong = (pre, post) if relu == "pre" else (post, pre)
    torch.testing.assert_close(model(x), right, **CLOSE)
    assert not torch.allclose(model(x), wrong, rtol=1e-2)


def test_a_training_pass_mixes_by_the_drawn_weights():
    block = randomise(small(SE)).double().layer2[1].train()
    x = torch.randn(4, 32, 5, 5, dtype=torch.float64)
    h = F.relu(x)
    torch.manual_seed(9)
    y = block(x)
    torch.manual_seed(9)
    alpha = torch.rand(2, 4, 1, 1, 1)[0].double()
    expected = x + alpha * block.branch1(h) + (1 - alpha) * block.branch2(h)
    torch.testing.assert_close(y, expected, **CLOSE)


def test_shifted_shortcut_sees_the_neighbours():
    shortcut = ShiftShortcut(1, 2, 2).double().eval()
    with torch.no_grad():
        shortcut.conv1.weight.fill_(1)
        shortcut.conv2.weight.fill_(1)
    x = torch.arange(25.0, dtype=torch.float64).view(1, 1, 5, 5)
    y = shortcut(x) * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(y[0, 0], x[0, 0, ::2, ::2], **CLOSE)
    torch.testing.assert_close(y[0, 1, 1:, 1:], x[0, 0, 1::2, 1::2], **CLOSE)
    assert not y[0, 1, 0].any() and not y[0, 1, :, 0].any()


# --- counts ---


@pytest.mark.parametrize(("width", "millions"), [(32, 2.9), (96, 26.2)])
def test_parameters_are_the_papers(width, millions):
    """arXiv 1705.07485, Sec. 2.3."""
    with torch.device("meta"):
        model = ShakeShakeResNet(4, width)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "gmacs", "blocks", "widths"),
    [
        ("shake_shake26_2x96d", 10, 26_192_922, 3.78, 4, (96, 192, 384)),
        ("shake_even29_2x4x64d", 100, 34_529_700, 5.39, 3, (256, 512, 1024)),
    ],
)
def test_counts(name, classes, parameters, gmacs, blocks, widths):
    """Two gates a block, of 2 C^2 / r + C / r + C parameters each (SE paper, Eq. 5, and biases)."""
    with torch.device("meta"):
        model = create_model(f"se_{name}", num_classes=classes)
    cost = count_cost(model, torch.empty(1, 3, 32, 32, device="meta"))
    assert cost.uncounted == {}
    assert cost.gates.parameters == 2 * blocks * sum(2 * c * (c // 16) + c // 16 + c for c in widths)
    assert cost.total.parameters - cost.gates.parameters == parameters
    assert cost.total.macs - cost.gates.macs == pytest.approx(gmacs * 1e9, rel=2e-3)


# --- the rest of the contract ---


def test_pyramid():
    model = randomise(small(SE)).eval()
    x = torch.randn(2, 3, 32, 24)
    maps = model.forward_pyramid(x)
    assert {s: m.shape for s, m in maps.items()} == {1: (2, 16, 32, 24), 2: (2, 32, 16, 12), 4: (2, 64, 8, 6)}
    assert model.pyramid_channels == {1: 16, 2: 32, 4: 64}
    assert torch.equal(maps[4], model.forward_features(x)) and (maps[4] >= 0).all()
    assert torch.equal(model.forward_head(maps[4]), model(x))


@pytest.mark.parametrize("make", [small, small_resnext])
def test_both_tails_train_alike(make):
    grads = []
    for impl in ("reference", "fused"):
        torch.manual_seed(5)
        model = randomise(make(SE, impl=impl)).double().train()
        model(images(3, 8)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


@pytest.mark.slow
def test_compiles_whole():
    model = randomise(ShakeShakeResNet(1, 4, gate=SE)).double()
    x = images(2, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        torch.manual_seed(2)
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append((y.detach(), [p.grad for p in model.parameters()]))
    (y, grads), (y_compiled, grads_compiled) = results
    torch.testing.assert_close(y_compiled, y, **CLOSE)
    for mine, other in zip(grads_compiled, grads, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def test_options_of_the_names():
    with torch.device("meta"):
        shake, even = create_model("shake_shake26_2x96d"), create_model("shake_even29_2x4x64d")
    assert [b.mix_backward for b in (shake.layer1[0], even.layer1[0])] == ["shake", "even"]
    assert ShakeEvenResNeXtOptions().mix_forward == shake.layer1[0].mix_forward == "shake"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "shake_shake26"}, "did you mean 'shake_shake26_2x96d'"),
        ({"name": "shake_shake26_2x96d", "mix_forward": "shaken"}, "did you mean 'shake'"),
        ({"name": "shake_shake26_2x96d", "mix_backward": "kept"}, "did you mean 'keep'"),
        ({"name": "shake_shake26_2x96d", "relu": "late"}, "relu 'late'"),
        ({"name": "shake_even29_2x4x64d", "relu": "post"}, "option of model 'shake_even29_2x4x64d' 'relu'"),
        ({"name": "shake_even29_2x4x64d", "stages": (4,)}, "layer1 to layer3"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(**kwargs)


def test_sizes_out_of_range_are_refused():
    with pytest.raises(UserError, match="depth=0"):
        ShakeShakeResNet(0, 16)
    with pytest.raises(UserError, match="width=15"):
        ShakeShakeResNet(1, 15)
