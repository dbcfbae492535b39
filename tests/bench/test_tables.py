"""Benchmark tables as text, and as CSV with machine, versions and date."""

import csv
from pathlib import Path

import torch

from van.bench.flops import ModelCost
from van.bench.machine import Machine
from van.bench.rows import Case, Row
from van.bench.tables import format_table, run_metadata, write_csv
from van.bench.timing import Timing

MACHINE = Machine(name="a machine", threads=2, flops_per_s=2.5e11, bytes_per_s=3.25e10)
CASE = Case(network="van_b0", backend="van", batch_size=8)
MEASURED = Row(
    case=CASE, cost=ModelCost(4_105_800, 8 * 864_224_000, 10**9), latency=Timing(25.0, 0.5), batch=Timing(160.0, 2.0),
    step=Timing(640.0, 9.0), peak_memory_bytes=123_400_000, roofline_fraction=0.4567, error=1.2e-6,
)  # fmt: skip
WRONG = Row(
    case=Case(network="van_b0", backend="openvino", batch_size=8), error=0.5, outcome="incorrect", reason="it is off"
)


def test_table_row_matches_its_header():
    peaks, empty, header, line, other = format_table(MACHINE, [MEASURED, WRONG]).splitlines()
    assert all(fact in peaks for fact in ("a machine, 2 threads", "250 GFLOP/s", "32.5 GB/s"))
    assert empty == ""
    titles = (
        "network backend image px params M GMACs latency ms iqr ms batch batch ms iqr ms images/s memory MB "
        "train images/s roofline % top-1 % error"
    )
    assert header.split() == titles.split()
    values = "van_b0 van 224 4.1 0.86 25.00 0.50 8 160.00 2.00 50.0 123.4 12.50 45.7 75.4 1.2e-06"
    assert line.split() == values.split()
    assert len(header) == len(line)
    assert other.startswith("van_b0              openvino ")
    assert other.endswith("5.0e-01  incorrect: it is off")
    assert other.split().count("-") == 10


def test_kernel_size_column_appears_only_if_set():
    row = Row(case=Case(network="van_b0", backend="van", batch_size=1, kernel_size=35))
    assert "kernel" in format_table(MACHINE, [row]).splitlines()[2].split()
    assert "kernel" not in format_table(MACHINE, [MEASURED])


def test_empty_table_has_a_header():
    assert len(format_table(MACHINE, []).splitlines()) == 3


def test_csv_contains_rows_and_run_metadata(tmp_path: Path):
    path = tmp_path / "new" / "models.csv"
    write_csv(path, [row.to_dict() for row in (MEASURED, WRONG)], run_metadata(MACHINE))
    measured, wrong = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    assert float(measured["images_per_s"]) == 50
    assert measured["macs"] == "864224000"
    assert float(measured["roofline_fraction"]) == 0.4567
    assert (wrong["images_per_s"], wrong["outcome"], wrong["reason"]) == ("", "incorrect", "it is off")
    for row in (measured, wrong):
        assert (row["machine"], row["threads"], row["torch"]) == ("a machine", "2", torch.__version__)
        assert float(row["peak_flops_per_s"]) == 2.5e11
        assert len(row["date"]) == 10


def test_csv_without_rows_contains_the_metadata_header(tmp_path: Path):
    write_csv(tmp_path / "empty.csv", [], {"machine": "x"})
    assert (tmp_path / "empty.csv").read_text() == "machine\n"
