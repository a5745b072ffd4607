"""The verb ``cost``: what it prints, writes and refuses."""

import json
import re
from pathlib import Path

import pytest

from excite.bill import CostConfig, make_bill
from excite.cli import main, parse
from excite.cost import ECA_COUNTER


def run(capsys, *arguments):
    code = main(["cost", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_several_networks_fit_80_columns(capsys):
    code, out, err = run(capsys, "resnet20", "se_resnet20", "--image_size", "16")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("not counted: nothing") == 2 and out.count("gates alone") == 1
    total = [line.split() for line in out.splitlines() if line.startswith("total")]
    assert [row[1] for row in total] == ["269,722", "272,095"]
    assert [line.split()[0] for line in out.splitlines()[3:9]] == [
        *("total", "stem", "stage1", "stage2", "stage3", "head")
    ]
    fused, ahead = float(total[1][4]), float(total[1][5])
    assert ahead <= fused < float(total[1][3])


def test_large_figures_fit_too():
    from excite.bill import _lines

    [item] = make_bill(CostConfig(models=("vgg19_bn",), gates="se", num_classes=10**6)).items
    assert all(len(line) <= 80 for line in _lines(item))


def test_gates_of_each_network_as_json(capsys):
    code, out, _ = run(capsys, "resnet20", "--gates", "none,se(reduction=4,bias=false),eca", "--json")
    rows = json.loads(out)["networks"]
    assert code == 0 and [row["network"]["gate"] for row in rows][0] == "none"
    plain, se, _ = (row["tails"] for row in rows)
    assert list(plain) == ["unfused", "fused", "squeeze-ahead"]
    for tails in plain:
        for figure in ("parameters", "macs", "bytes_moved"):
            difference = se[tails]["total"][figure] - plain[tails]["total"][figure]
            assert difference == se[tails]["gates"][figure] > 0
    assert se["unfused"]["by_module"]["layer1.0.gate"]["parameters"] == 2 * 16 * 4
    assert rows[0]["network"]["num_classes"] == 10 and rows[0]["image_size"] == 32


def test_conventions_and_other_libraries():
    config = CostConfig(models=("torchvision:resnet18",), convention="eca", image_size=64)
    [item] = make_bill(config).items
    cost = item.costs["unfused"]
    assert cost.convention is ECA_COUNTER and item.label == "torchvision:resnet18"
    assert cost.total.parameters == 11_689_512 and list(cost.by_stage)[0] == "stem"


def test_operations_that_are_not_counted_are_listed(capsys, tmp_path, monkeypatch):
    (tmp_path / "odd_network.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.cumsum(1).relu()\n"
        "def make(num_classes, in_channels):\n"
        "    return Odd()\n"
    )
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "odd_network:make", "--image_size", "8")
    assert code == 0 and "not counted: aten.cumsum x 1" in out


def test_plot_is_a_page_by_stage(capsys, tmp_path):
    file = tmp_path / "cost.html"
    code, out, _ = run(capsys, "resnet20", "--gates", "none,se", "--plot", str(file))
    page = file.read_text()
    assert code == 0 and out.endswith(f"{file}\n")
    figures = json.loads(page.partition('id="figures">')[2].partition("</script>")[0])
    assert len(figures) == 5
    assert figures[0]["data"][0]["x"] == ["stem", "stage1", "stage2", "stage3", "head"]
    assert sum(figures[0]["data"][0]["y"]) == pytest.approx(0.269722)


def test_the_page_on_cost_shows_what_is_printed_and_runs(capsys):
    page = (Path(__file__).parents[1] / "docs" / "cost.md").read_text()
    code, out, _ = run(capsys, "resnet50", "--gates", "se")
    assert code == 0 and f"```\n{out.partition(chr(10) * 2)[0]}\n```" in page
    names = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(example, names)
    assert names["cost"].uncounted == {}
    assert list(names["sweep"]) == [1, 2, 4] and names["timings"]["none"].ratio.p50 == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one network"),
        (["resnet21"], "unknown model 'resnet21': did you mean"),
        (["se_resnet20", "--gates", "eca"], "'se_resnet20' already says gate 'se'"),
        (["resnet20", "--gates", "sse"], "unknown gate 'sse'"),
        (["resnet20", "--plot", "cost.png"], "give a file that ends in .html"),
        (["resnet20", "--convention", "senat"], "convention"),
        (["torchvision:vgg11_bn", "--gates", "se"], "has no residual additions"),
        (["inception_v3", "--image_size", "8"], "does not take an example of shape [(1, 3, 8, 8)]"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_a_file_may_name_the_networks(tmp_path):
    file = tmp_path / "cost.yaml"
    file.write_text("models: [resnet20, wrn16_8]\ngates: none,se\n")
    assert parse("cost", ["--config", str(file)]).models == ("resnet20", "wrn16_8")
    assert parse("cost", ["resnet32", "--config", str(file)]).models == ("resnet32",)
