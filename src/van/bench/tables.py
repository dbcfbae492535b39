"""Formatting of benchmark tables as text, and as CSV with the machine, the package versions and the date."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from van.bench.machine import Machine, today, versions
from van.bench.operators import Row as OperatorRow
from van.bench.rows import Row
from van.checkpoint import write_text


class Column(NamedTuple):
    """A column of a text table: title, width, key of the row dictionary, divisor for the unit, format of the value."""

    title: str
    width: int
    entry: str
    unit: float = 1
    format_spec: str = ""


_LEFT_COLUMNS = (Column("network", 20, "network"), Column("backend", 12, "backend"))
_COLUMNS = (
    Column("image px", 9, "image_size"),
    Column("kernel px", 10, "kernel_size"),
    Column("params M", 9, "parameters", 1e6, ".1f"),
    Column("GMACs", 7, "macs", 1e9, ".2f"),
    Column("latency ms", 11, "latency_ms", 1, ".2f"),
    Column("iqr ms", 8, "latency_iqr_ms", 1, ".2f"),
    Column("batch", 6, "batch_size"),
    Column("batch ms", 10, "batch_ms", 1, ".2f"),
    Column("iqr ms", 8, "batch_iqr_ms", 1, ".2f"),
    Column("images/s", 9, "images_per_s", 1, ".1f"),
    Column("memory MB", 10, "peak_memory_mb", 1, ".1f"),
    Column("train images/s", 15, "training_images_per_s", 1, ".2f"),
    Column("roofline %", 11, "roofline_fraction", 0.01, ".1f"),
    Column("top-1 %", 8, "top1_published", 0.01, ".1f"),
    Column("error", 9, "error", 1, ".1e"),
)


def format_table(machine: Machine, rows: Sequence[Row]) -> str:
    """Format the rows as text, below the peaks of the machine; a dash stands for a value that was not measured."""
    records = [row.to_dict() for row in rows]
    columns = [
        column for column in _COLUMNS if column.entry != "kernel_size" or any(row.case.kernel_size for row in rows)
    ]
    header = "".join(f"{column.title:<{column.width}}" for column in _LEFT_COLUMNS)
    lines = [_format_peaks(machine), "", header + "".join(f"{column.title:>{column.width}}" for column in columns)]
    for record in records:
        line = "".join(f"{_format_cell(record, column):<{column.width}}" for column in _LEFT_COLUMNS)
        line += "".join(f"{_format_cell(record, column):>{column.width}}" for column in columns)
        lines.append(line + (f"  {record['outcome']}: {record['reason']}" if record["reason"] else ""))
    return "\n".join(lines)


def _format_cell(record: Mapping[str, Any], column: Column) -> str:
    value = record[column.entry]
    if value is None:
        return "-"
    return format(value / column.unit, column.format_spec) if column.format_spec else str(value)


def _format_peaks(machine: Machine) -> str:
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    return (
        f"{machine.name}, {threads}; roofline, measured in this run: "
        f"{machine.flops_per_s / 1e9:,.0f} GFLOP/s (FMA), {machine.bytes_per_s / 1e9:,.1f} GB/s"
    )


OPERATORS_HEADER = f"{'operator':<13}{'shape':<16}{'direction':<18}{'backend':<15}" + "".join(
    f"{title:>{width}}" for title, width in (("ms", 9), ("iqr ms", 8), ("speedup", 9), ("peak %", 8), ("error", 10))
)


def format_operator_row(row: OperatorRow, *, explain: bool) -> str:
    """Format one row under ``OPERATORS_HEADER``; with its reason if it was not timed or if ``explain``."""
    header = f"{row.operator:<13}{'x'.join(map(str, row.shape)):<16}{row.direction:<18}{row.backend:<15}"
    tail = f"  {row.reason}" if explain or row.time is None else ""
    if row.time is None:
        return f"{header}{'-':>9}{'-':>8}{'-':>9}{'-':>8}{'-':>10}{tail}"
    peak_percent = "-" if row.peak_fraction is None else f"{100 * row.peak_fraction:.0f}"
    times = f"{row.time.median_ms:>9.3f}{row.time.iqr_ms:>8.3f}{row.speedup:>8.1f}x"
    return f"{header}{times}{peak_percent:>8}{row.error:>10.1e}{tail}"


def write_csv(path: Path, records: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> None:
    """Write ``records``, which share their keys, with ``metadata`` appended to every line; None is an empty cell."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*(records[0] if records else ()), *metadata])
    for record in records:
        table.writerow([_csv_value(value) for value in (*record.values(), *metadata.values())])
    write_text(path, text.getvalue())


def run_metadata(machine: Machine) -> dict[str, Any]:
    """Return the metadata of a benchmark run for its CSV: threads, machine, peaks, package versions and date."""
    peaks = {"peak_flops_per_s": machine.flops_per_s, "peak_bytes_per_s": machine.bytes_per_s}
    return {"threads": machine.threads, "machine": machine.name, **peaks, **versions(), "date": today()}


def _csv_value(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, tuple | list):
        return "x".join(map(str, value))
    return "" if value is None else value
