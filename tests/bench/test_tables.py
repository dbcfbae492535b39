"""A table has a line for each row under its titles; what is kept has machine, versions and date beside it."""

import csv
from pathlib import Path

import torch

from van.bench.costs import Cost
from van.bench.machine import Machine
from van.bench.rows import Case, Row
from van.bench.tables import stamp_of, table_of, write_csv
from van.bench.timing import Timing

MACHINE = Machine(name="a machine", threads=2, flops_per_s=2.5e11, bytes_per_s=3.25e10)
CASE = Case(network="van_b0", way="van", batch_size=8)
MEASURED = Row(
    case=CASE, cost=Cost(4_105_800, 8 * 864_224_000, 10**9), latency=Timing(25.0, 0.5), batch=Timing(160.0, 2.0),
    step=Timing(640.0, 9.0), peak_memory_bytes=123_400_000, roofline_share=0.4567, error=1.2e-6,
)  # fmt: skip
WRONG = Row(case=Case(network="van_b0", way="openvino", batch_size=8), error=0.5, outcome="wrong", reason="it is off")


def test_a_line_holds_the_figures_under_their_titles():
    peaks, empty, head, line, other = table_of(MACHINE, [MEASURED, WRONG]).splitlines()
    assert peaks == "a machine, 2 threads; the roof, measured in this run: 250 GFLOP/s (FMA), 32.5 GB/s"
    assert empty == ""
    titles = "network way px Mparam GMACs ms at 1 iqr batch ms iqr img/s MB train/s roof % top-1 error"
    assert head.split() == titles.split()
    figures = "van_b0 van 224 4.1 0.86 25.00 0.50 8 160.00 2.00 50.0 123.4 12.50 45.7 75.4 1.2e-06"
    assert line.split() == figures.split()
    assert len(head) == len(line)
    assert other.startswith("van_b0              openvino ")
    assert other.endswith("5.0e-01  wrong: it is off")
    assert other.split().count("-") == 10


def test_the_kernel_size_has_a_column_where_it_is_not_the_paper_s():
    row = Row(case=Case(network="van_b0", way="van", batch_size=1, kernel_size=35))
    assert "kernel" in table_of(MACHINE, [row]).splitlines()[2].split()
    assert "kernel" not in table_of(MACHINE, [MEASURED])


def test_an_empty_table_has_a_head():
    assert len(table_of(MACHINE, []).splitlines()) == 3


def test_a_kept_table_is_read_back_with_its_circumstances(tmp_path: Path):
    path = tmp_path / "new" / "models.csv"
    write_csv(path, [row.record() for row in (MEASURED, WRONG)], stamp_of(MACHINE))
    measured, wrong = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    assert float(measured["images_per_s"]) == 50
    assert measured["macs"] == "864224000"
    assert float(measured["roofline_share"]) == 0.4567
    assert (wrong["images_per_s"], wrong["outcome"], wrong["reason"]) == ("", "wrong", "it is off")
    for row in (measured, wrong):
        assert (row["machine"], row["threads"], row["torch"]) == ("a machine", "2", torch.__version__)
        assert float(row["roof_flops_per_s"]) == 2.5e11
        assert len(row["date"]) == 10


def test_a_kept_table_without_rows_is_its_stamp(tmp_path: Path):
    write_csv(tmp_path / "empty.csv", [], {"machine": "x"})
    assert (tmp_path / "empty.csv").read_text() == "machine\n"
