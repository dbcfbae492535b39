"""``van bench`` prints a row per benchmark and writes CSV with the machine and the date."""

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


FAST = [] if native.unavailable_reason() else ["cpu"]
AVAILABLE_BACKENDS = {
    operator: [*FAST, *([] if operator == "3x3 + gelu" else ["space_to_batch"]), "reference"]
    for operator in operators.OPERATORS
}
"""The backends that are available for each operator on a CPU."""


def test_table_has_a_row_for_every_available_backend(capsys: pytest.CaptureFixture[str]):
    before = torch.get_num_threads()
    assert main(["bench", "ops", "--rounds", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "operator",
        "shape",
        "direction",
        "backend",
        "ms",
        "iqr",
        "ms",
        "speedup",
        "peak",
        "%",
        "error",
    ]
    assert [row[47:].split()[0] for row in rows] == [
        name for names in AVAILABLE_BACKENDS.values() for name in names * 2
    ]
    assert all(row.split()[-3].endswith("x") for row in rows)
    assert [row.split()[-2] == "-" for row in rows] == ["backward" in row for row in rows]
    assert torch.get_num_threads() == before


def test_explain_prints_every_backend_and_its_reason(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ops", "--rounds", "1", "--explain"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == len(operators.OPERATORS) * len(BACKENDS) * 2
    assert sum("runs everywhere" in row for row in rows) == len(operators.OPERATORS) * 2
    assert sum("expected a GPU" in row for row in rows) == len(operators.OPERATORS) * 2


def test_json_output_is_one_object_per_line(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ops", "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["backend"] for row in rows} == {*FAST, "space_to_batch", "reference"}
    assert all(row["shape"] == [1, 5, 9, 9] for row in rows)


def test_csv_contains_machine_versions_and_date(tmp_path: Path):
    path = tmp_path / "new" / "ops.csv"
    assert main(["bench", "ops", "--rounds", "1", "--batch-size", "2", "--csv", str(path)]) == 0
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 2 * sum(map(len, AVAILABLE_BACKENDS.values()))
    for row in rows:
        assert row["shape"] == "2x5x9x9"
        assert float(row["median_ms"]) > 0
        assert row["torch"] == torch.__version__
        assert row["machine"]
        assert len(row["date"]) == 10


SMALL = ["bench", "models", "--image-size", "64", "--batch-size", "2", "--rounds", "1"]


def test_models_table_lists_networks_and_backends(capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    assert main([*SMALL, "--models", "van_b0", "resnet50", "--backends", "van", "reference", "eager", "--train"]) == 0
    printed = capsys.readouterr()
    peaks, _, head, *rows = printed.out.splitlines()
    assert "GFLOP/s" in peaks
    assert head.split()[:4] == ["network", "backend", "image", "px"]
    assert [row.split()[:2] for row in rows] == [["van_b0", "van"], ["van_b0", "reference"], ["resnet50", "eager"]]
    assert "preparing 1 of 3: van_b0 van, batch 2, 64 px" in printed.err
    assert torch.get_num_threads() == threads


def test_json_and_csv_contain_the_same_values(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "new" / "models.csv"
    assert main([*SMALL, "--models", "van_b0", "--backends", "van", "reference", "--json", "--csv", str(path)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [record["backend"] for record in records] == ["van", "reference"]
    for record, row in zip(records, rows, strict=True):
        assert record.keys() == row.keys()
        assert float(row["images_per_s"]) == pytest.approx(record["images_per_s"], rel=1e-4)
        assert row["torch"] == torch.__version__
        assert row["onnxruntime"]
        assert float(row["roofline_fraction"]) > 0


def test_accuracy_over_throughput_is_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "speed.png"
    flags = ["--models", "van_b0", "--backends", "van", "--batch-size", "1", "--rounds", "1", "--plot", str(path)]
    assert main(["bench", "models", *flags]) == 0
    with Image.open(path) as image:
        assert min(image.size) > 600
    assert "0.86" in capsys.readouterr().out


def test_sweep_is_printed_and_plotted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cases, "KERNEL_SIZES", (7, 14))
    path = tmp_path / "kernel.png"
    assert main([*SMALL, "--sweep", "kernel", "--backends", "van", "--plot", str(path)]) == 0
    _, _, head, *rows = capsys.readouterr().out.splitlines()
    assert "kernel" in head.split()
    assert [row.split()[:4] for row in rows] == [["van_b0", "van", "64", "7"], ["van_b0", "van", "64", "14"]]
    with Image.open(path) as image:
        assert min(image.size) > 500


@pytest.mark.parametrize(
    ("outcome", "flags", "status"),
    [("measured", [], 0), ("unavailable", [], 0), ("unavailable", ["--backends", "van"], 1), ("incorrect", [], 1),
     ("failed", [], 1)],
)  # fmt: skip
def test_exit_status_reflects_the_outcomes(outcome, flags, status, monkeypatch, capsys):
    """A missing package is a failure only if its backend was selected by name."""
    machine = models.measure_machine(torch.device("cpu"), threads=1)
    rows = [Row(case=case, outcome=outcome, reason="test reason") for case in cases.comparison_cases(["van_b0"], **TWO)]
    monkeypatch.setattr(models, "measure", lambda *_: (machine, rows[:1]))
    assert main(["bench", "models", "--models", "van_b0", *flags]) == status
    assert f"  {outcome}: test reason" in capsys.readouterr().out


TWO = {"batch_size": 2, "image_size": 64}


def test_default_networks_and_backends(monkeypatch: pytest.MonkeyPatch):
    calls: list = []

    def record(selected, config):
        calls.extend([selected, config])
        raise UsageError("stop")

    monkeypatch.setattr(models, "measure", record)
    assert main(["bench", "models"]) == 2
    selected, config = calls
    peers = {
        "convnext_tiny",
        "convnext_small",
        "swin_tiny",
        "swin_small",
        "pvt_v2_b2",
        "inception_next_tiny",
        "resnet50",
    }
    assert {case.network for case in selected} == {"van_b0", "van_b1", "van_b2", *peers}
    assert {case.backend for case in selected} == {"van", "reference", "eager", "compile", "onnxruntime", "openvino"}
    assert (config.threads, config.latency, config.train) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["nets"], ["nets", "ops", "models", "sessions"]),
        (["ops", "--rounds", "0"], ["--rounds", "at least 1", "got 0"]),
        (["ops", "--threads", "0"], ["--threads", "at least 1", "got 0"]),
        (["ops", "--batch-size", "-1"], ["--batch-size", "at least 1", "got -1"]),
        (["models", "--image-size", "31"], ["--image-size", "at least 32", "got 31"]),
        (["models", "--rounds", "0"], ["--rounds", "at least 1", "got 0"]),
        (["models", "--plot", "speed.pdf"], ["--plot", ".png", "speed.pdf"]),
        (
            ["models", "--plot", "speed.png", "--image-size", "64"],
            ["--plot", "--image-size 224", "got 64"],
        ),
        (["models", "--device", "abacus"], ["--device", "auto, cpu", "'abacus'"]),
    ],
)
def test_invalid_arguments_print_one_error_line(
    arguments: list[str], facts: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("van: ")
    assert error.count("\n") == 1
    assert all(fact in error for fact in facts)


def test_help_contains_examples(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "van bench ops" in printed
    assert "van bench models" in printed
