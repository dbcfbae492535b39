"""Tables as they are printed, and as they are kept: CSV with the machine, the versions and the date."""

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
    """A title, how wide it is printed, and which entry of a row's record stands there, in what unit and form."""

    title: str
    width: int
    entry: str
    unit: float = 1
    form: str = ""


_LEADING = (Column("network", 20, "network"), Column("way", 12, "way"))
_COLUMNS = (
    Column("px", 5, "size_px"),
    Column("kernel", 7, "kernel_size"),
    Column("Mparam", 7, "parameters", 1e6, ".1f"),
    Column("GMACs", 7, "macs", 1e9, ".2f"),
    Column("ms at 1", 9, "latency_ms", 1, ".2f"),
    Column("iqr", 7, "latency_iqr_ms", 1, ".2f"),
    Column("batch", 6, "batch_size"),
    Column("ms", 10, "batch_ms", 1, ".2f"),
    Column("iqr", 8, "batch_iqr_ms", 1, ".2f"),
    Column("img/s", 9, "images_per_s", 1, ".1f"),
    Column("MB", 8, "peak_memory_mb", 1, ".1f"),
    Column("train/s", 8, "training_images_per_s", 1, ".2f"),
    Column("roof %", 7, "roofline_share", 0.01, ".1f"),
    Column("top-1", 6, "top1_published", 0.01, ".1f"),
    Column("error", 9, "error", 1, ".1e"),
)


def table_of(machine: Machine, rows: Sequence[Row]) -> str:
    """The rows as text, the best figures of the run above them; a dash is what was not measured."""
    records = [row.record() for row in rows]
    columns = [column for column in _COLUMNS if column.title != "kernel" or any(row.case.kernel_size for row in rows)]
    head = "".join(f"{column.title:<{column.width}}" for column in _LEADING)
    lines = [_peaks(machine), "", head + "".join(f"{column.title:>{column.width}}" for column in columns)]
    for record in records:
        line = "".join(f"{_text(record, column):<{column.width}}" for column in _LEADING)
        line += "".join(f"{_text(record, column):>{column.width}}" for column in columns)
        lines.append(line + (f"  {record['outcome']}: {record['reason']}" if record["reason"] else ""))
    return "\n".join(lines)


def _text(record: Mapping[str, Any], column: Column) -> str:
    value = record[column.entry]
    if value is None:
        return "-"
    return format(value / column.unit, column.form) if column.form else str(value)


def _peaks(machine: Machine) -> str:
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    return (
        f"{machine.name}, {threads}; the roof, measured in this run: "
        f"{machine.flops_per_s / 1e9:,.0f} GFLOP/s (FMA), {machine.bytes_per_s / 1e9:,.1f} GB/s"
    )


OPERATORS_HEAD = f"{'operator':<13}{'shape':<16}{'direction':<18}{'backend':<11}" + "".join(
    f"{title:>{width}}" for title, width in (("ms", 9), ("iqr", 8), ("times", 8), ("peak %", 8), ("error", 10))
)


def operator_line(row: OperatorRow, *, explain: bool) -> str:
    """One backend of one operator under ``OPERATORS_HEAD``; with its reason where there is no speed, or ``explain``."""
    head = f"{row.operator:<13}{'x'.join(map(str, row.shape)):<16}{row.direction:<18}{row.backend:<11}"
    tail = f"  {row.reason}" if explain or row.time is None else ""
    if row.time is None:
        return f"{head}{'-':>9}{'-':>8}{'-':>8}{'-':>8}{'-':>10}{tail}"
    share = "-" if row.peak_share is None else f"{100 * row.peak_share:.0f}"
    times = f"{row.time.median_ms:>9.3f}{row.time.iqr_ms:>8.3f}{row.speed_up:>7.1f}x"
    return f"{head}{times}{share:>8}{row.error:>10.1e}{tail}"


def write_csv(path: Path, records: Sequence[Mapping[str, Any]], stamp: Mapping[str, Any]) -> None:
    """Write ``records``, which have the same keys, with ``stamp`` at the end of every line; None is an empty cell."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*(records[0] if records else ()), *stamp])
    for record in records:
        table.writerow([_cell(value) for value in (*record.values(), *stamp.values())])
    write_text(path, text.getvalue())


def stamp_of(machine: Machine) -> dict[str, Any]:
    """What every line of a kept table says about how it came to be."""
    peaks = {"roof_flops_per_s": machine.flops_per_s, "roof_bytes_per_s": machine.bytes_per_s}
    return {"threads": machine.threads, "machine": machine.name, **peaks, **versions(), "date": today()}


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, tuple | list):
        return "x".join(map(str, value))
    return "" if value is None else value
