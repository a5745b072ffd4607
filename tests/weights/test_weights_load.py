"""What loading does with gates, classifiers, leftovers and mistakes, and what its report says."""

import copy
import re
from functools import cache, partial

import pytest
import timm
import torch
from cadene_peers import cadenes
from pytorchcv.model_provider import get_model
from torch import nn
from weight_cases import on_meta

from excite.errors import UserError
from excite.gates import parse_gate
from excite.models import PLACEMENTS, create_model
from excite.models.base import gate_modules
from excite.models.resnet import BasicBlock, ResNet
from excite.weights import LoadReport, detect, load_weights
from excite.weights.fit import converted
from excite.weights.gates import infer_gate

DEPTHS = (1, 1, 1, 1)


@cache
def prototype(gate, num_classes, **kwargs):
    torch.manual_seed(0)
    return ResNet(BasicBlock, DEPTHS, gate=parse_gate(gate), num_classes=num_classes, **kwargs).eval()


def net(gate="none", num_classes=10, **kwargs):
    """A copy of one that is drawn once: drawing is what takes the time."""
    return copy.deepcopy(prototype(gate, num_classes, **kwargs))


@cache
def peer(attn=None, reduction=16):
    """timm's, plain or gated, with norms as training leaves them."""
    torch.manual_seed(1)
    se = partial(timm.layers.SEModule, rd_ratio=1 / reduction)
    args = {"attn_layer": se if attn == "se" else attn}
    model = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, list(DEPTHS), num_classes=10, block_args=args)
    for tensor in model.state_dict().values():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    return model.eval().state_dict()


def plain():
    return dict(peer())


def gated(attn="se", reduction=16):
    return dict(peer(attn, reduction))


def loads(model, *args, **kwargs):
    """Whether it loads; a network that it does not load into is as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        load_weights(model, *args, **kwargs)
    except UserError as error:
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        return str(error)
    return True


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64)


# --- plain weights, gated network ---


def test_neutral_gates_start_as_the_plain_network(x):
    theirs = plain()
    without_gates = net()
    load_weights(without_gates, theirs)
    for gate in ("se(neutral=true)", "eca(neutral=true)", "ese(gate_function=tanh,neutral=true)"):
        model = net(gate)
        report = load_weights(model, theirs)
        with torch.no_grad():
            assert torch.equal(model(x), without_gates(x))
        assert set(report.fresh) == {k for k in model.state_dict() if ".gate." in k} and not report.missing
        assert any("exactly 1 now" in note for note in report.notes)
        # Ready to learn: the first gradient of every gate is there.
        model(x).square().sum().backward()
        for name, module in gate_modules(model).items():
            assert max(p.grad.abs().max() for p in module.parameters()) > 0, name


def test_other_gates_are_to_be_asked_for():
    state = plain()
    model = net("se")
    assert "create_model(..., gate='se(neutral=true)')" in loads(model, state)
    before = model.layer1[0].gate.fc1.weight.clone()
    report = load_weights(model, state, fresh="gates")
    assert torch.equal(model.layer1[0].gate.fc1.weight, before)
    assert "layer1.0.gate.fc1.weight" in report.fresh and len(report.fresh) == 16
    assert any("about 1/2" in note for note in report.notes)


def test_gates_that_a_source_lacks_are_missing_without_strict():
    report = load_weights(net("se"), plain(), strict=False)
    assert len(report.missing) == 16 and not report.fresh
    assert any("about 1/2" in note for note in report.notes)


def test_a_neutral_gate_that_has_learnt_is_no_neutral_start():
    model = net("se(neutral=true)")
    nn.init.constant_(model.layer2[0].gate.fc2.bias, 0.1)
    assert "it has no gates" in loads(model, plain())


# --- gated weights ---


def test_gates_of_the_source_may_be_left_out():
    model = net("eca")
    state = gated()
    assert "its gates are 'se(round_to=8)'" in loads(model, state)
    report = load_weights(model, state, fresh=("gates",))
    assert len(report.unused) == 16 and all(".se." in key for key in report.unused)
    assert len(report.fresh) == 4
    assert any("asked to stay fresh" in note for note in report.notes)


def test_a_network_without_gates_has_no_place_for_them():
    said = loads(net(), gated())
    assert "it has gates, and this network has none" in said
    report = load_weights(net(), gated(), strict=False)
    assert len(report.unused) == 16 and not report.missing


@pytest.mark.parametrize(
    ("gate", "match"),
    [
        ("se", r"gate='se\(round_to=8\)' has them"),
        ("se(round_to=8,bias=false)", r"gate='se\(round_to=8\)' has them"),
        ("se(round_to=8,neutral=true)", "another function"),
        ("se(round_to=8,gate_function=hard_sigmoid)", "another function"),
        ("se(round_to=8,activation=silu)", "another function"),
        ("se(round_to=8,descriptor=max)", "another function"),
        ("ese", "another function"),
        ("eca", "another function"),
    ],
)
def test_gates_that_are_not_the_sources(gate, match):
    assert re.search(match, loads(net(gate), gated()))


def test_no_squeeze_has_ses_shapes_and_is_refused():
    assert "another function" in loads(net("no_squeeze(reduction=8)"), gated(reduction=8))


@pytest.mark.parametrize("placement", [p for p in PLACEMENTS if p not in ("standard", "pre")])
def test_gates_that_stand_elsewhere_are_refused(placement):
    model = net("se(round_to=8)", placement=placement)
    assert f"placement='standard', this network's at '{placement}'" in loads(model, gated())


def test_gates_of_other_stages_are_refused():
    assert "other widths, biases or stages" in loads(net("se(round_to=8)", stages=(3, 4)), gated())


def test_ecas_kernel_sizes_are_read_from_the_tensors():
    assert "gate='eca' has them" in loads(net("eca(kernel_size=9)"), gated("eca"))
    assert loads(net("eca"), gated("eca")) is True


@pytest.mark.parametrize(
    "gate",
    [
        *("se", "se(reduction=8)", "se(reduction=4,bias=false)", "se(round_to=8)"),
        *("se(reduced_channels=5)", "eca", "eca(kernel_size=released:resnet18)", "eca(kernel_size=9)"),
        *("eca(kernel_size=released:resnet34)",),
    ],
)
def test_gates_are_inferred_from_their_shapes(gate):
    with torch.device("meta"):
        model = create_model("resnet18", gate=gate)
    channels = {name: module.channels for name, module in gate_modules(model).items()}
    assert str(infer_gate(model.state_dict(), channels)) == gate


def test_stages_with_gates_are_found():
    with torch.device("meta"):
        model = create_model("resnet50", gate="se", stages=(2, 4))
        timms = timm.create_model("seresnet50").state_dict()
    kept = {key: value for key, value in timms.items() if ".se." not in key or key[5] in "24"}
    found = detect(kept)
    assert (found.gate, found.stages) == ("se", (2, 4))
    report = load_weights(model, kept)
    assert not report.missing and not report.unused


# --- the classifier ---


def test_another_number_of_classes():
    state = plain()
    model = net(num_classes=7)
    said = loads(model, state)
    assert "its classifier has 10 classes and this network's 7" in said and "fresh='classifier'" in said
    before = model.fc.weight.clone()
    report = load_weights(model, state, fresh="classifier")
    assert torch.equal(model.fc.weight, before)
    assert report.fresh == report.unused == ("fc.weight", "fc.bias")
    assert len(report.matched) == len(state) - 2


def test_no_classifier_leaves_the_sources_unused():
    report = load_weights(net(num_classes=0), plain())
    assert report.unused == ("fc.weight", "fc.bias")
    assert any("has no classifier (num_classes=0)" in note for note in report.notes)


def test_a_source_without_a_classifier():
    state = {key: value for key, value in plain().items() if not key.startswith("fc.")}
    assert "it has no classifier: fresh='classifier'" in loads(net(), state)
    assert load_weights(net(), state, strict=False).missing == ("fc.weight", "fc.bias")
    assert load_weights(net(), state, fresh="classifier").fresh == ("fc.weight", "fc.bias")


def test_a_network_without_storage_cannot_take_any():
    with torch.device("meta"):
        model = net_on_meta()
    assert "no storage (device meta)" in loads_meta(model, plain())


def net_on_meta():
    return ResNet(BasicBlock, DEPTHS, num_classes=10)


def test_images_of_other_channels():
    said = loads(net(in_channels=1), plain())
    assert "'conv1.weight' has shape [64, 3, 7, 7], 'conv1.weight' of this network [64, 1, 7, 7]" in said


# --- leftovers ---


def test_missing_and_unused_are_errors_unless_asked_for():
    state = plain()
    del state["layer1.0.conv2.weight"]
    assert "it lacks layer1.0.conv2.weight. strict=False loads what fits" in loads(net(), state)
    state["layer1.0.conv9.weight"] = torch.ones(1)
    model = net()
    before = model.layer1[0].conv2.weight.clone()
    report = load_weights(model, state, strict=False)
    assert report.missing == ("layer1.0.conv2.weight",) and report.unused == ("layer1.0.conv9.weight",)
    assert torch.equal(model.layer1[0].conv2.weight, before)
    state = {**plain(), "layer1.0.conv9.weight": torch.ones(1)}
    assert "it has layer1.0.conv9.weight, for which this network has no place" in loads(net(), state)


def test_a_wrong_shape_is_an_error_even_of_few():
    state = plain()
    state["layer1.0.conv2.weight"] = torch.ones(64, 64, 1, 1)
    assert "'layer1.0.conv2.weight' has shape [64, 64, 1, 1]" in loads(net(), state)
    report = load_weights(net(), state, strict=False)
    assert report.missing == report.unused == ("layer1.0.conv2.weight",)


def test_old_files_do_not_count_batches():
    state = {key: value for key, value in plain().items() if not key.endswith("num_batches_tracked")}
    report = load_weights(net(), state)
    assert not report.missing and any("norms count no batches" in note for note in report.notes)


def test_counters_of_profilers_change_nothing():
    state = plain() | {"total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)}
    report = load_weights(net(), state)
    assert set(report.unused) == {"total_ops", "layer1.0.conv1.total_params"}
    assert any("left by a profiler" in note for note in report.notes)


def test_quantised_weights_are_refused():
    state = plain()
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to(torch.int8)
    assert "holds torch.int8; quantised weights are not read" in loads(net(), state, strict=False)


def test_half_precision_becomes_the_networks():
    state = {key: value.half() if value.is_floating_point() else value for key, value in plain().items()}
    model = net()
    load_weights(model, state)
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, state["conv1.weight"].float())


# --- which network it is ---


def test_another_network_is_named():
    with torch.device("meta"):
        state = timm.create_model("seresnet50").state_dict()
        said = loads_meta(create_model("resnet101", gate="se"), state)
    assert "These weights are those of create_model('resnet50', gate='se', stride_in='3x3', stem_pool='padded')" in said


def loads_meta(model, *args, **kwargs):
    with pytest.raises(UserError) as error:
        load_weights(model, *args, **kwargs)
    return str(error.value)


def test_the_option_that_helps_is_named():
    with torch.device("meta"):
        state = timm.create_model("legacy_seresnet50").state_dict()
        said = loads_meta(create_model("resnet50", gate="se"), state)
        load_weights(create_model("resnet50", gate="se", variant="official"), state)
    assert "has stride_in='1x1', stem_pool='ceil' where this network has stride_in='3x3', stem_pool='padded'" in said
    assert "Build it with create_model(..., stride_in='1x1', stem_pool='ceil')" in said


def test_options_that_no_shape_shows_of_other_families():
    with torch.device("meta"):
        state = timm.create_model("mobilenetv1_100").state_dict()
        assert "create_model(..., activation='relu6')" in loads_meta(create_model("mobilenetv1"), state)
        state = timm.create_model("inception_v3").state_dict()
        model = create_model("inception_v3", count_include_pad=False)
        assert "create_model(..., count_include_pad=True)" in loads_meta(model, state)


def test_the_files_name_tells_networks_of_equal_shapes_apart(tmp_path):
    state = get_model("resnet50", pretrained=False, num_classes=10).state_dict()
    torch.save(state, tmp_path / "resnet50b-0503-fc5d6f97.pth")
    torch.save(state, tmp_path / "weights.pth")
    model = create_model("resnet50", num_classes=10)
    report = load_weights(model, tmp_path / "resnet50b-0503-fc5d6f97.pth")
    assert report.source == "pytorchcv:resnet50b"
    assert any("is called 'resnet50b'" in note for note in report.notes)
    said = loads(model, tmp_path / "weights.pth")
    assert "source='pytorchcv:resnet50' (stride_in='1x1'" in said
    assert "source='pytorchcv:resnet50b' (stride_in='3x3'" in said
    assert "has stride_in='1x1'" in loads(model, tmp_path / "weights.pth", source="pytorchcv:resnet50")
    assert loads(model, tmp_path / "weights.pth", source="pytorchcv:resnet50b") is True


@pytest.mark.parametrize(
    ("source", "here", "match"),
    [
        ("timm:legacy_seresnet18", "resnet18", "its basic blocks have a ReLU before the gate"),
        ("timm:resnet50d", "resnet50", "its stem is three 3x3 convolutions"),
        ("timm:ecaresnet50t", "resnet50", "its stem is three 3x3 convolutions"),
        ("timm:ecaresnetlight", "resnet50", "its shortcuts are average-pooled"),
        ("cadene:fbresnet152", "resnet152", "its convolutions have biases; the ResNets here have none"),
        ("pytorchcv:sepreresnet20_cifar10", "preresnet110", "a norm behind the stem and none behind the last stage"),
        ("pytorchcv:mobilenetv2_w1", "mobilenetv2", "its first block keeps a 1x1 convolution"),
    ],
)
def test_networks_that_none_here_computes(source, here, match):
    zoo, _, name = source.partition(":")
    make = {"timm": timm.create_model, "cadene": cadenes, "pytorchcv": partial(get_model, pretrained=False)}[zoo]
    state = on_meta(partial(make, name)).state_dict()
    assert match in loads_meta(on_meta(partial(create_model, here, gate="se")), state)
    for told in ("auto", source):
        with pytest.raises(UserError, match=match):
            detect(state, source=told)


def test_a_pool_without_tensors_is_told_by_the_name_alone(tmp_path):
    state = timm.create_model("resnetaa50", num_classes=10).state_dict()
    torch.save(state, tmp_path / "resnetaa50_a1h-4cf422b3.pth")
    model = create_model("resnet50", num_classes=10)
    assert "no network here computes: it strides by a blurring or averaging pool" in loads(
        model, tmp_path / "resnetaa50_a1h-4cf422b3.pth"
    )
    assert "strides by a blurring" in loads(model, state, source="timm:resnetaa50")


def test_mistakes_in_what_was_asked():
    model, state = net(), plain()
    assert "unknown source of weights 'tim': did you mean 'timm'" in loads(model, state, source="tim")
    assert "unknown network of timm 'seresnet51'" in loads(model, state, source="timm:seresnet51")
    assert "unknown part to leave fresh 'gate': did you mean 'gates'" in loads(model, state, fresh="gate")
    assert "fresh='gates': this network has none" in loads(model, state, fresh="gates")
    assert "fresh='classifier': this network has none" in loads(net(num_classes=0), state, fresh="classifier")
    assert "load_weights takes a network of create_model; got Linear" in loads(nn.Linear(1, 1), state)
    assert "load_weights takes a network of create_model; got DataParallel" in loads(nn.DataParallel(model), state)
    assert "no tensors of a ResNet" in loads(model, {"a.weight": torch.ones(1)})
    assert "(cadene): it has no classifier" in loads(model, state, source="cadene")
    assert "no tensors of a ResNet by the names of 'pytorchcv'" in loads(model, state, source="pytorchcv")


def test_timms_tags_do_not_matter():
    assert loads(net(), plain(), source="timm:resnet18.a1_in1k") is True


def test_own_weights_need_no_zoo(x):
    """A variant of ours writes torchvision's names; only its owner knows the variant."""
    theirs = create_model("resnet50", variant="official", num_classes=10).eval()
    model = create_model("resnet50", variant="official", num_classes=10).eval()
    assert "if excite wrote these weights, give source='excite'" in loads(model, theirs.state_dict())
    report = load_weights(model, theirs.state_dict(), source="excite")
    assert torch.equal(model(x), theirs(x))
    assert report.source == "excite" and any("as this network's" in note for note in report.notes)
    theirs = net("eca_ns")
    model = net("eca_ns")
    assert load_weights(model, theirs.state_dict()).source == "excite"


# --- one tensor ---


def test_linear_layers_and_convolutions_are_the_same_numbers():
    maps, kernel = torch.randn(2, 5, 3, 3), torch.randn(4, 5, 3, 3)
    flat = converted(kernel, (4, 45))
    torch.testing.assert_close(maps.flatten(1) @ flat.T, nn.functional.conv2d(maps, kernel)[:, :, 0, 0])
    assert torch.equal(converted(flat, (4, 5, 3, 3)), kernel)
    assert converted(torch.ones(1, 6), (6,)).shape == converted(torch.ones(1, 6, 1, 1), (6,)).shape == (6,)
    for tensor, shape in (
        ((4, 45), (45, 4)),
        ((64, 1, 3, 3), (1, 64, 3, 3)),
        ((6,), (2, 3)),
        ((2, 3), (6,)),
        ((3, 2, 4), (2, 12)),
    ):
        assert converted(torch.ones(tensor), shape) is None


# --- the report ---


def test_the_report_reads_well():
    model = net("se(round_to=8)", num_classes=7)
    text = str(load_weights(model, gated(), fresh="classifier"))
    lines = text.splitlines()
    assert lines[0].startswith("the state dict (timm): ") and lines[0].endswith("tensors loaded")
    assert any(
        line.split()[:2] == ["renamed", "16"] and "layer1.0.se.fc1.weight -> layer1.0.gate.fc1.weight" in line
        for line in lines
    )
    assert any(line.split()[:2] == ["reshaped", "8"] for line in lines)
    assert any(line.split()[:3] == ["left", "fresh", "2"] for line in lines)
    assert any(line.startswith("  - timm has stem_pool='padded', as this network") for line in lines)


def test_the_report_is_frozen():
    report = load_weights(net(), plain())
    assert isinstance(report, LoadReport)
    with pytest.raises(AttributeError):
        report.missing = ()
