"""`export`: files that give the network's outputs in their own runtimes, say what they are, or are not written."""

import copy
import json
import os
import sys
from pathlib import Path

import onnx
import onnxruntime
import openvino
import pytest
import torch
from export_cases import CLASSES, PREPROCESSING, Pooled, gates_in_a_row, images, lively, tiny
from torch import nn

from excite import UserError, attach_, export, fuse
from excite.deploy.export import export_file
from excite.deploy.export_check import apart, compare_outputs, pictures
from excite.deploy.export_sizes import Sizes, find_sizes
from excite.deploy.manifest import Manifest
from excite.deploy.runtimes import RUNTIMES, runtime_of
from excite.gates import list_gates

SHAPES = ((1, 24, 24), (5, 24, 24), (1, 1, 1), (2, 3, 40), (3, 97, 64))


def assert_same(run, network, shapes=SHAPES, channels=3, bound=1e-5):
    generator = torch.Generator().manual_seed(5)
    for n, *sides in shapes:
        x = torch.randn(n, channels, *sides, generator=generator)
        with torch.no_grad():
            assert apart(run(x), network(x)) < bound, (n, sides)


@pytest.fixture(scope="module")
def gated():
    return gates_in_a_row()


@pytest.fixture(scope="module")
def few():
    return gates_in_a_row("se", "eca")


ABOUT = {"preprocessing": PREPROCESSING, "classes": CLASSES}


@pytest.fixture(scope="module")
def onnx_file(few, tmp_path_factory):
    """Two gates as ONNX, and what came of it."""
    return export_file(few, images(), tmp_path_factory.mktemp("files") / "few.onnx", **ABOUT)


# --- the files ---


@pytest.mark.parametrize("name", ["torch", *(pytest.param(n, marks=pytest.mark.slow) for n in ("onnx", "openvino"))])
def test_every_gate_in_every_format(name, gated, tmp_path):
    done = export_file(gated, images(), tmp_path / f"x{RUNTIMES[name].suffix}", format=name, **ABOUT)
    # In PyTorch's own programs the size at which a map becomes a single position is another case.
    least = 3 if name == "torch" else 1
    assert done.difference < 1e-6 and (done.sizes.minimum, done.sizes.step) == (least, 1)
    loaded = RUNTIMES[name].load(done.path)
    assert_same(loaded.run, gated, [shape for shape in SHAPES if min(shape[1:]) >= least])
    said = Manifest.read(loaded.entries, done.path)
    assert said.classes == CLASSES and said.preprocessing == PREPROCESSING
    assert said.input["shape"] == ["batch", 3, "height", "width"] and said.input["minimum"] == least
    assert (said.made_with["format"], said.made_with["opset"]) == (name, None if name == "torch" else 20)
    assert runtime_of(done.path) is RUNTIMES[name]


def test_what_is_compared(onnx_file):
    batches = onnx_file.comparisons
    assert {b.images for b in batches} == {"random", "example", "pictures"}
    assert {b.shape[0] for b in batches} == {1, 2, 3}
    assert {b.shape[2:] for b in batches} == {(24, 24), (1, 1), (27, 30)}


def test_onnx_by_itself(onnx_file, few):
    """Nothing of excite is needed to use the file."""
    file = onnx_file.path
    session = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, made.name, made.shape) == (
        "images", ["batch", 3, "height", "width"], "logits", ["batch", 4],
    )  # fmt: skip
    held = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(held["classes"])) == CLASSES and json.loads(held["preprocessing"]) == PREPROCESSING
    model = onnx.load(file)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert_same(RUNTIMES["onnx"].load(file).run, few)
    # No word of the files that the network is written in.
    assert b".py" not in file.read_bytes()


def test_openvino_by_itself(tmp_path):
    network = lively(tiny())
    path = export(network, images(), tmp_path / "x.xml", format="openvino", classes=CLASSES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.xml"]
    model = openvino.Core().read_model(path)
    assert json.loads(model.get_rt_info(["excite", "classes"]).astype(str)) == list(CLASSES)
    assert_same(RUNTIMES["openvino"].load(path).run, network)


def test_a_fused_network(gated, tmp_path):
    fused = fuse(gated, images())
    assert len(fused.report.gates) == len(list_gates()) - 1  # no_squeeze is no gate of channels
    done = export_file(fused, images(), tmp_path / "f.pt2", format="torch", reference=gated)
    assert_same(RUNTIMES["torch"].load(done.path).run, gated, [(1, 24, 24), (5, 24, 24), (2, 3, 40)])
    # What was fused are PyTorch's ordinary operations again, and norms have gone into convolutions.
    graph = str(torch.export.load(done.path).graph)
    assert "aten.conv2d" in graph and "batch_norm" not in graph and "mkldnn" not in graph


def test_gates_that_hang_on_other_peoples_networks(tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), Pooled(), nn.Linear(8, 4))
    network = lively(plain)
    assert len(attach_(network, "eca", images(), where="conv", start="paper")) == 2
    before = list(network.state_dict())
    path = export(network, images(), tmp_path / "attached.pt2", format="torch")
    assert_same(RUNTIMES["torch"].load(path).run, network, shapes=((1, 24, 24), (3, 40, 70)))
    assert list(network.state_dict()) == before


@pytest.mark.parametrize(("axes", "sides"), [(1, (30,)), (3, (6, 8, 10))])
def test_other_numbers_of_axes(axes, sides, tmp_path):
    network = lively(tiny(axes=axes))
    done = export_file(network, torch.randn(2, 3, *sides), tmp_path / "x.pt2", format="torch")
    shapes = [(1, *sides), (4, *(side + 3 for side in sides))]
    assert_same(RUNTIMES["torch"].load(done.path).run, network, shapes)


def test_export_gives_the_path_and_logs_the_difference(tmp_path, caplog):
    network = lively(tiny())
    path = export(network, images(1), tmp_path / "new" / "x.pt2", format="torch")
    assert path == tmp_path / "new" / "x.pt2" and [p.name for p in path.parent.iterdir()] == ["x.pt2"]
    assert f"{path}: largest difference of the outputs 0.0e+00, in torch.export 2." in caplog.text


@pytest.mark.slow
def test_compiled_by_aotinductor(tmp_path):
    network = lively(tiny())
    done = export_file(
        fuse(network, images()), images(), tmp_path / "x.pt2", format="aoti", classes=CLASSES, reference=network
    )
    loaded = RUNTIMES["aoti"].load(done.path)
    assert runtime_of(done.path) is RUNTIMES["aoti"]
    assert Manifest.read(loaded.entries, done.path).classes == CLASSES
    assert_same(loaded.run, network)


# --- sizes ---


class Even(nn.Module):
    """Takes images whose sides are multiples of a number."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.conv = nn.Conv2d(3, 4, step, step)

    def forward(self, x):
        if x.shape[2] % self.step or x.shape[3] % self.step:
            raise ValueError("uneven")
        return self.conv(x).mean((2, 3))


SIZES = {
    "any": (lambda: tiny(), (24, 24), Sizes((24, 24), 1, 1)),
    "pools": (lambda: nn.Sequential(*[nn.MaxPool2d(2)] * 3, Pooled()), (24, 40), Sizes((24, 40), 8, 1)),
    "unpadded": (lambda: nn.Sequential(nn.Conv2d(3, 4, 7), Pooled()), (24, 24), Sizes((24, 24), 7, 1)),
    "steps": (lambda: Even(8), (24, 48), Sizes((24, 48), 8, 8)),
    "fixed": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 4)), (9, 9), Sizes((9, 9), 9, None)),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_are_found(case):
    make, sides, expected = SIZES[case]
    assert find_sizes(make().eval(), torch.zeros(2, 3, *sides)) == expected


@pytest.mark.parametrize("case", ["pools", "steps", "fixed"])
def test_files_take_the_sizes_that_they_say(case, tmp_path):
    make, sides, expected = SIZES[case]
    network = make().eval()
    done = export_file(network, torch.randn(2, 3, *sides), tmp_path / "x.pt2", format="torch")
    assert (done.sizes.step, done.sizes.example) == (expected.step, sides)
    assert done.sizes.minimum >= expected.minimum
    run, least = RUNTIMES["torch"].load(done.path).run, done.sizes.minimum
    assert_same(run, network, [(1, least, least), (7, *sides)])
    said = Manifest.read(RUNTIMES["torch"].load(done.path).entries, done.path).input
    assert (said["minimum"], said["step"], said["example"]) == (least, expected.step, list(sides))


def test_sizes_in_words():
    assert str(Sizes((64, 64), 32, 32)) == "at least 32 pixels a side, sides multiples of 32"
    assert str(Sizes((64, 48), 64, None)) == "64 x 48 only"


# --- what goes wrong leaves nothing ---


def test_outputs_that_differ_are_an_error_that_leaves_no_file(tmp_path):
    network, other = lively(tiny()), lively(tiny(), seed=1)
    path = tmp_path / "x.pt2"
    path.write_text("the old file")
    with pytest.raises(UserError, match=r"was not written: .* differ by .*\(.*24 x 24\), more than tolerance=1.0e-03"):
        export_file(network, images(), path, format="torch", reference=other, tolerance=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt2"] and path.read_text() == "the old file"


def test_the_tolerance_is_the_networks_own_rounding_where_that_is_more(tmp_path):
    network = lively(tiny())
    with torch.no_grad():
        network[-1].weight[1:] = network[-1].weight[0]
        network[-1].weight += 3e-6 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    difference = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        difference.weight.copy_(torch.tensor([[1e4, -1e4, 0, 0], [0, 0, 1e4, -1e4]]))
        network[-1].bias.fill_(0.3)
    done = export_file(
        nn.Sequential(network, difference).eval(), images(), tmp_path / "x.pt2", format="torch", tolerance=None
    )
    assert done.rounding > 1e-3 and done.tolerance == 10 * done.rounding


def test_a_writer_that_fails_leaves_no_file(tmp_path, monkeypatch):
    network = lively(tiny())

    def fails(program, path, entries):
        path.write_text("half")
        raise RuntimeError("no such operator\nand more")

    from dataclasses import replace

    monkeypatch.setitem(RUNTIMES, "torch", replace(RUNTIMES["torch"], write=fails))
    with pytest.raises(UserError, match="cannot be exported by format 'torch': no such operator$"):
        export(network, images(), tmp_path / "x.pt2", format="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_the_compiler_said_is_in_the_message(tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec c++ "$@"\necho "g++: error: no space left" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(compiler),))
    with pytest.raises(UserError, match="by format 'aoti': .*C\\+\\+ compile error: g\\+\\+: error: no space left$"):
        export(lively(tiny()), images(), tmp_path / "new" / "x.pt2", format="aoti")
    assert list((tmp_path / "new").iterdir()) == []


def test_not_a_number_is_never_close():
    nan = torch.tensor([1.0, float("nan")])
    assert apart(nan, torch.ones(2)) == float("inf") and apart(torch.ones(2), 2 * torch.ones(2)) == 0.5


def test_files_of_another_shape_or_that_do_not_run_are_told():
    network, sizes = lively(tiny()), Sizes((24, 24), 1, 1)
    with pytest.raises(UserError, match=r"gives outputs \(1, 3\), the network \(1, 4\)"):
        compare_outputs(lambda x: network(x)[:, :3], network, images(), sizes)

    def only_squares(x):
        assert x.shape[2] == x.shape[3], "squares only"
        return network(x)

    with pytest.raises(UserError, match=r"does not take images of shape \(1, 3, 27, 30\): squares only"):
        compare_outputs(only_squares, network, images(), sizes)


def test_pictures_are_normalised_as_the_preprocessing_says():
    plain, other = pictures(3, 3, (24, 32)), pictures(3, 3, (24, 32), PREPROCESSING)
    assert plain.shape == other.shape == (3, 3, 24, 32) and plain.std() > 0.5
    # The lightest pixel is white, the darkest black.
    mean, std = torch.tensor(PREPROCESSING["mean"]), torch.tensor(PREPROCESSING["std"])
    torch.testing.assert_close(other.amin((0, 2, 3)), -mean / std)


class Two(nn.Module):
    def forward(self, x):
        return x, x


class Empty(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))[:, :0]


class Deciding(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class Random(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + torch.rand(1)


class Infinite(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) / 0


MISTAKES = {
    "format": ({"format": "onxx"}, "unknown format 'onxx': did you mean 'onnx'"),
    "formats": ({"format": "tensorrt"}, "known: aoti, onnx, openvino, torch"),
    "suffix": ({"path": "x.onnx"}, "format 'torch' is written to files that end in .pt2, or format 'onnx' for this"),
    "no file": ({"path": "."}, r"files that end in \.pt2$"),
    "no folder": ({"path": Path(__file__) / "x.pt2"}, r"path='\S+' cannot be written: \S+\.py is a file"),
    "no suffix": ({"path": "x"}, r"files that end in \.pt2$"),
    "training": ({"model": tiny().train()}, r"eval mode.*model\.eval\(\)"),
    "dtype": ({"model": tiny().eval().double()}, r"got torch\.float32, torch\.float64: call \.float\(\)"),
    "meta": ({"model": tiny().eval().to("meta")}, "are on cpu, meta: move both"),
    "shape": ({"example": torch.zeros(2, 3)}, r"\[N, C, \*S\] with 1 to 3 spatial axes; got \(2, 3\)"),
    "channels": ({"example": torch.zeros(2, 5, 8, 8)}, "Sequential does not take the example"),
    "outputs": ({"model": Two().eval()}, "one tensor; Two gave a tuple"),
    "infinite": ({"model": Infinite().eval()}, "Infinite gave numbers that are not finite"),
    "empty": ({"model": Empty().eval()}, "Empty gave an empty one"),
    "random": ({"model": Random().eval()}, "Random gives other outputs for the same images"),
    "no std": ({"preprocessing": {"mean": [0.5] * 3}}, "preprocessing has std=None: give a number for each of the 3"),
    "few means": ({"preprocessing": {"mean": [0.5], "std": [1] * 3}}, r"has mean=\[0.5\]: give a number for each"),
    "classes": ({"classes": ("a", "b")}, r"2 class names for outputs of shape \(2, 4\)"),
    "tolerance": ({"tolerance": 0}, "give a number above 0"),
    "preprocessing": (
        {"preprocessing": {"mean": {1}, "std": {1}}},
        "preprocessing of an exported file must be JSON-able",
    ),
    "values": ({"model": Deciding().eval()}, "Deciding cannot be exported by torch.export: "),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, tmp_path, capfd):
    given, message = MISTAKES[case]
    given = {"model": lively(tiny()), "example": images(), "path": "x.pt2", "format": "torch"} | given
    model, example, path = (given.pop(name) for name in ("model", "example", "path"))
    with pytest.raises(UserError, match=message):
        export(model, example, tmp_path / path, **given)
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("onnx", "onnxscript", "onnx"), ("onnx", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_package_names_the_extra(format, package, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"x{RUNTIMES[format].suffix}"
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed: pip install excite\[{extra}\]"):
        export(lively(tiny()), images(), path, format=format)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_files_that_are_none(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"cannot load it|no whole \.pt2 file"):
        runtime_of(path).load(path)


def test_the_network_is_left_as_it_is(tmp_path):
    network = lively(tiny()).train(False)
    network.requires_grad_(True)
    before = copy.deepcopy(network.state_dict())
    export(network, images(), tmp_path / "x.pt2", format="torch")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in network.parameters())
