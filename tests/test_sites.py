"""``excite sites``: the tree, the refusals, JSON, and mistakes."""

import json
import re

import pytest

from excite.cli import main


def run(capsys, *arguments):
    code = main(["sites", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_tree_has_every_site_and_what_a_gate_adds(capsys):
    code, out, err = run(capsys, "timm:resnet50")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "timm:resnet50: 16 sites for where='residual', 16 residual additions"
    assert "3 x 224 x 224" in lines[1]
    # SE with biases: 2 C^2 / 16 + C / 16 + C.
    assert re.fullmatch(r"  0\.bn3  stage 1 +256 x 56 x 56 +8,464 parameters +1\.61 M MACs +9\.63 MB", lines[3])
    assert [line for line in lines[2:-1] if not line.startswith(" ")] == ["layer1", "layer2", "layer3", "layer4"]
    # The whole is what the SE paper's formula and the biases give.
    assert lines[-1].startswith("together 2,530,992 parameters, ")


def test_refusals_stand_below_with_their_reasons(capsys):
    _, out, _ = run(capsys, "torchvision:mobilenet_v3_large", "--where", "inner", "--gate", "eca")
    above, below = out.split("no gate can go to:\n")
    assert above.count("stage") == 7 and len(below.splitlines()) == 8
    assert "features.4.block.2 (SqueezeExcitation) stands there already" in below


@pytest.mark.parametrize("where", ["residual", "pre"])
def test_a_network_without_such_places_says_what_else_there_is(capsys, where):
    code, out, _ = run(capsys, "torchvision:densenet121", "--where", where)
    assert code == 0 and "no residual additions; where='conv'" in out and "adds" not in out


def test_json_has_it_all(capsys):
    _, out, _ = run(capsys, "timm:resnet10t", "--where", "pre", "--stages", "[2,3]", "--json", "--image_size", "96")
    listed = json.loads(out)
    assert (listed["image_size"], listed["joins"], listed["where"]) == (96, 4, "pre")
    assert [(site["module"], site["side"], site["stage"]) for site in listed["sites"]] == [
        ("layer2.0.conv1", "in", 2),
        ("layer3.0.conv1", "in", 3),
    ]
    assert listed["sites"][0]["cost"]["parameters"] == 2 * 64 * 4 + 64 + 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["timm:resnet10t", "--where", "idntity"], "did you mean 'identity'"),
        (["timm:resnet10t", "--where", "block:layer9.*"], "unknown module 'layer9.*'"),
        (["timm:resnet10t", "--stages", "[5]"], "stages=(5,): this network has stages 1 to 4"),
        (["timm:resnet10t", "--gate", "none"], "name a gate"),
        (["timm:resnet10t", "--gate", "eca(kernel_size=released:resnet50)"], "has sizes for 256"),
        (["inception_v3", "--where", "conv", "--image_size", "32"], "does not take an example of shape"),
        ([], "model"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
