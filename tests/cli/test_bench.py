"""``van bench`` prints a row for each thing it measures, and writes them with the machine and the date."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from van.bench import cases, models, operators
from van.bench.rows import Row
from van.cli.main import main
from van.errors import UsageError
from van.ops import BACKENDS, native


@pytest.fixture(autouse=True)
def one_small_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "STAGES", ((5, 9, 1.0),))


FAST = [] if native.why_not() else ["cpu"]
SERVED = {
    operator: [*FAST, *([] if operator == "3x3 + gelu" else ["phases"]), "reference"]
    for operator in operators.OPERATORS
}
"""The backends that can serve each operator on a CPU."""


def test_the_table_has_a_row_for_every_backend_that_is_here(capsys: pytest.CaptureFixture[str]):
    before = torch.get_num_threads()
    assert main(["bench", "ops", "--rounds", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["operator", "shape", "direction", "backend", "ms", "iqr", "times", "peak", "%", "error"]
    assert [row[47:].split()[0] for row in rows] == [name for names in SERVED.values() for name in names * 2]
    assert all(row.split()[-3].endswith("x") for row in rows)
    assert [row.split()[-2] == "-" for row in rows] == ["backward" in row for row in rows]
    assert torch.get_num_threads() == before


def test_explaining_names_every_backend_and_its_reason(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ops", "--rounds", "1", "--explain"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == len(operators.OPERATORS) * len(BACKENDS) * 2
    assert sum("the definition runs anywhere" in row for row in rows) == len(operators.OPERATORS) * 2
    assert sum("not on a GPU" in row for row in rows) == len(operators.OPERATORS) * 2


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ops", "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["backend"] for row in rows} == {*FAST, "phases", "reference"}
    assert all(row["shape"] == [1, 5, 9, 9] for row in rows)


def test_the_csv_names_machine_versions_and_date(tmp_path: Path):
    path = tmp_path / "new" / "ops.csv"
    assert main(["bench", "ops", "--rounds", "1", "--batch-size", "2", "--csv", str(path)]) == 0
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 2 * sum(map(len, SERVED.values()))
    for row in rows:
        assert row["shape"] == "2x5x9x9"
        assert float(row["median_ms"]) > 0
        assert row["torch"] == torch.__version__
        assert row["machine"]
        assert len(row["date"]) == 10


SMALL = ["bench", "models", "--size-px", "64", "--batch-size", "2", "--rounds", "1"]


def test_networks_are_printed_side_by_side(capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    assert main([*SMALL, "--models", "van_b0", "resnet50", "--ways", "van", "reference", "eager", "--train"]) == 0
    printed = capsys.readouterr()
    peaks, _, head, *rows = printed.out.splitlines()
    assert "GFLOP/s" in peaks
    assert head.split()[:3] == ["network", "way", "px"]
    assert [row.split()[:2] for row in rows] == [["van_b0", "van"], ["van_b0", "reference"], ["resnet50", "eager"]]
    assert "preparing 1 of 3: van_b0 van, batch 2, 64 px" in printed.err
    assert torch.get_num_threads() == threads


def test_networks_as_json_and_csv_hold_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "new" / "models.csv"
    assert main([*SMALL, "--models", "van_b0", "--ways", "van", "reference", "--json", "--csv", str(path)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [record["way"] for record in records] == ["van", "reference"]
    for record, row in zip(records, rows, strict=True):
        assert record.keys() == row.keys()
        assert float(row["images_per_s"]) == pytest.approx(record["images_per_s"], rel=1e-4)
        assert row["torch"] == torch.__version__
        assert row["onnxruntime"]
        assert float(row["roofline_share"]) > 0


def test_top1_over_speed_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "speed.png"
    flags = ["--models", "van_b0", "--ways", "van", "--batch-size", "1", "--rounds", "1", "--plot", str(path)]
    assert main(["bench", "models", *flags]) == 0
    with Image.open(path) as picture:
        assert min(picture.size) > 600
    assert "0.86" in capsys.readouterr().out


def test_growth_is_printed_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cases, "KERNEL_SIZES", (7, 14))
    path = tmp_path / "kernel.png"
    assert main([*SMALL, "--grow", "kernel", "--ways", "van", "--plot", str(path)]) == 0
    _, _, head, *rows = capsys.readouterr().out.splitlines()
    assert "kernel" in head.split()
    assert [row.split()[:4] for row in rows] == [["van_b0", "van", "64", "7"], ["van_b0", "van", "64", "14"]]
    with Image.open(path) as picture:
        assert min(picture.size) > 500


@pytest.mark.parametrize(
    ("outcome", "ways", "status"),
    [("measured", [], 0), ("not installed", [], 0), ("not installed", ["--ways", "van"], 1), ("wrong", [], 1),
     ("failed", [], 1)],
)  # fmt: skip
def test_the_status_tells_whether_every_row_is_right(outcome, ways, status, monkeypatch, capsys):
    """A package that is not installed is a failure where its way was asked for by name."""
    machine = models.survey(torch.device("cpu"), threads=1)
    told = [Row(case=case, outcome=outcome, reason="so it is") for case in cases.side_by_side(["van_b0"], **TWO)]
    monkeypatch.setattr(models, "measure", lambda *_: (machine, told[:1]))
    assert main(["bench", "models", "--models", "van_b0", *ways]) == status
    assert f"  {outcome}: so it is" in capsys.readouterr().out


TWO = {"batch_size": 2, "size_px": 64}


def test_every_usual_row_stands_in_the_table_without_flags(monkeypatch: pytest.MonkeyPatch):
    seen: list = []

    def look(wanted, terms):
        seen.extend([wanted, terms])
        raise UsageError("seen enough")

    monkeypatch.setattr(models, "measure", look)
    assert main(["bench", "models"]) == 2
    wanted, terms = seen
    peers = {
        "convnext_tiny",
        "convnext_small",
        "swin_tiny",
        "swin_small",
        "pvt_v2_b2",
        "inception_next_tiny",
        "resnet50",
    }
    assert {case.network for case in wanted} == {"van_b0", "van_b1", "van_b2", *peers}
    assert {case.way for case in wanted} == {"van", "reference", "eager", "compile", "onnxruntime", "openvino"}
    assert (terms.threads, terms.latency, terms.train) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nets"], "there is no subject 'nets'; known: ops, models, sessions; see van bench --help"),
        (["ops", "--rounds", "0"], "--rounds is 0; wanted at least 1"),
        (["ops", "--threads", "0"], "--threads is 0; wanted at least 1"),
        (["ops", "--batch-size", "-1"], "--batch-size is -1; wanted at least 1"),
        (["models", "--size-px", "31"], "--size-px is 31; wanted at least 32"),
        (["models", "--rounds", "0"], "--rounds is 0; wanted at least 1"),
        (["models", "--plot", "speed.pdf"], "--plot is speed.pdf; wanted a name ending in .png"),
        (
            ["models", "--plot", "speed.png", "--size-px", "64"],
            "--plot draws top-1 as published for 224 px, and --size-px is 64",
        ),
        (["models", "--device", "abacus"], "--device is 'abacus'; wanted auto, cpu or cuda"),
    ],
)
def test_bad_usage_is_told_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"van: {message}\n"


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "van bench ops" in printed
    assert "van bench models" in printed
