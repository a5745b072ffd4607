"""`excite bench`: its rows, its table and its mistakes; how long anything took is nobody's business here."""

import json

import pytest

from excite.cli import main
from excite.deploy.bench import BenchConfig, bench


def run(capsys, *arguments):
    code = main(["bench", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    rows = tmp_path_factory.mktemp("bench") / "new" / "rows.jsonl"
    config = BenchConfig(
        models=("timm:test_efficientnet", "resnet20"), gate="eca", batch_sizes=(1, 3), image_size=64, rounds=2,
        warmup=1, threads=1, rows=str(rows),
    )  # fmt: skip
    return bench(config), rows


def test_rows_have_every_state_with_and_without_gates(measured):
    result, _ = measured
    states = [(row.network, row.batch_size, row.state, row.gated) for row in result.rows]
    assert len(states) == len(set(states)) == 2 * 2 * 4
    first = result.rows[0]
    assert (first.state, first.gated, first.timing.ratio.p50) == ("eager", False, 1)
    assert all(row.timing.p20_ms <= row.timing.p50_ms <= row.timing.p80_ms for row in result.rows)
    assert all(row.difference < 1e-5 for row in result.rows)
    # Gates of its own, or those it was given.
    assert {row.network: row.gate.partition("(")[0] for row in result.rows} == {
        "timm:test_efficientnet": "se",
        "resnet20": "eca",
    }
    assert {name: {gate.how for gate in report.gates} for name, report in result.reports.items()} == {
        "timm:test_efficientnet": {"in the next convolution"},
        "resnet20": {"tail"},
    }


def test_ratios_are_of_the_same_rounds(measured):
    result, _ = measured
    plain, gated = result.rows[0], next(row for row in result.rows if row.state == "eager" and row.gated)
    by_hand = sorted(a / b for a, b in zip(gated.timing.samples_ms, plain.timing.samples_ms, strict=True))
    assert gated.over_plain["p50"] == pytest.approx(sum(by_hand) / 2)
    assert plain.over_plain == {"p20": 1, "p50": 1, "p80": 1}


def test_rows_are_appended_as_json(measured):
    result, path = measured
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [json.loads(json.dumps(row.to_dict())) for row in result.rows]
    assert {"machine", "ratio", "over_plain", "precision", "rounds", "difference"} <= set(rows[0])
    assert rows[0]["machine"]["threads"] == 1


def test_the_table(capsys):
    code, out, err = run(capsys, "se_resnet20", "--batch_sizes", "[2]", "--rounds", "1", "--warmup", "0")
    assert (code, err) == (0, "")
    assert "se_resnet20, gates se; batch 2 of 32 x 32" in out and "fused, gated" in out
    assert "fuse(se_resnet20): gates: 9 tail" in out
    assert max(map(len, out.splitlines())) <= 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one network"),
        (["resnet21"], "unknown model 'resnet21'"),
        (["resnet20", "--batch_sizes", "[0]"], "batch_sizes=0"),
        (["resnet20", "--gate", "none"], "name a gate"),
        (["torchvision:vgg11_bn"], "has no residual additions"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
