"""Benchmark of whole networks on every backend, in one run.

The outputs of each row are first compared with those of the same weights in float64; an incorrect row is not timed.
Then all rows are timed in turn in every round.
"""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from van.bench.backends import prepare
from van.bench.benchmark_model import BenchmarkModel
from van.bench.flops import count_flops
from van.bench.machine import Machine, benchmark_settings, measure_machine, synchronizer
from van.bench.memory import measure_peak_memory
from van.bench.networks import NETWORKS, build
from van.bench.rows import Case, Outcome, Row
from van.bench.timing import Timing, time_interleaved
from van.bench.training import TRAINABLE_BACKENDS, TrainingBenchmark
from van.errors import MissingExtra
from van.ops.memory import enable_memory_reuse

TOLERANCE = 1e-4
"""Largest error of logits against float64, relative to the largest logit: float32 rounding in a whole network."""
MEASUREMENTS = {"latency": "one image", "batch": "the batch", "step": "a training step"}
"""The timings of a case and their descriptions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """The settings of a network benchmark.

    ``threads`` applies to PyTorch, this package's C++ code, ONNX Runtime and OpenVINO. ``latency`` also times
    single images, ``train`` training steps on the backends that support them.
    """

    device: torch.device = torch.device("cpu")
    threads: int = 1
    rounds: int = 5
    latency: bool = True
    train: bool = False
    log: Callable[[str], object] = lambda _: None
    """Receives progress messages."""


def measure(cases: Sequence[Case], config: BenchmarkConfig) -> tuple[Machine, list[Row]]:
    """Prepare and verify every case, then time all of them in turn.

    A case that fails gets a reason; the others are not affected. All cases are held in memory at the same time,
    and memory reuse stays enabled for the process.
    """
    with benchmark_settings(threads=config.threads), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config.log("measuring peak arithmetic and memory bandwidth")
        machine = measure_machine(config.device, threads=config.threads)
        prepared = list(_prepare_rows(cases, config, Path(folder)))
        enable_memory_reuse()  # as in the commands of this package; it benefits all backends equally
        timings = {measurement: _time_measurement(measurement, prepared, config) for measurement in MEASUREMENTS}
    return machine, [prepared_row.with_timings(machine, timings) for prepared_row in prepared]


class _PreparedRow:
    """A row that is not timed yet, and its calls by measurement."""

    def __init__(self, case: Case) -> None:
        self.row = Row(case=case)
        self.calls: dict[str, Callable[[], object]] = {}

    def reject(self, outcome: Outcome, reason: str) -> None:
        """Exclude this row from timing, with the reason."""
        self.row = dataclasses.replace(self.row, outcome=outcome, reason=reason)
        self.calls.clear()

    def run_call(self, measurement: str) -> None:
        """Run one of the calls; an exception rejects this row only."""
        if measurement in self.calls:
            try:
                self.calls[measurement]()
            except Exception as error:  # a runtime may raise anything
                self.reject("failed", _format_exception(error))

    def with_timings(self, machine: Machine, timings: Mapping[str, Mapping[Case, Timing]]) -> Row:
        """Return the row with its timings, unless it was rejected."""
        row = self.row
        if row.outcome != "measured" or row.cost is None:
            return row
        latency, batch, step = (timings[measurement].get(row.case) for measurement in MEASUREMENTS)
        roofline_s = machine.roofline_s(macs=row.cost.macs, bytes_moved=row.cost.bytes_moved)
        roofline_fraction = None if batch is None else 1e3 * roofline_s / batch.median_ms
        return dataclasses.replace(row, latency=latency, batch=batch, step=step, roofline_fraction=roofline_fraction)


def _prepare_rows(cases: Sequence[Case], config: BenchmarkConfig, folder: Path) -> Iterator[_PreparedRow]:
    """Yield the prepared rows; consecutive cases of one network share its model."""
    max_batch_size = max((case.batch_size for case in cases), default=1)

    @functools.lru_cache(maxsize=1)
    def benchmark_model(network: str, image_size: int, kernel_size: int | None) -> BenchmarkModel:
        return BenchmarkModel(
            NETWORKS[network], image_size=image_size, kernel_size=kernel_size, images=max_batch_size, folder=folder
        )

    for index, case in enumerate(cases, start=1):
        config.log(f"preparing {index} of {len(cases)}: {describe_case(case)}")
        prepared_row = _PreparedRow(case)
        try:
            _prepare_row(prepared_row, benchmark_model(case.network, case.image_size, case.kernel_size), config)
        except MissingExtra as error:
            prepared_row.reject("unavailable", str(error))
        except Exception as error:  # compilers and exporters raise anything
            prepared_row.reject("failed", _format_exception(error))
        if prepared_row.row.reason:
            config.log(f"{describe_case(case)}: {prepared_row.row.outcome}: {prepared_row.row.reason}")
        yield prepared_row


def _prepare_row(prepared_row: _PreparedRow, benchmark_model: BenchmarkModel, config: BenchmarkConfig) -> None:
    case = prepared_row.row.case
    build_on_meta = functools.partial(
        build, benchmark_model.network, image_size=case.image_size, kernel_size=case.kernel_size, device="meta"
    )
    cost = count_flops(build_on_meta, batch_size=case.batch_size, image_size=case.image_size)
    prepared_row.row = dataclasses.replace(prepared_row.row, cost=cost)
    runner = prepare(case.backend, benchmark_model, threads=config.threads, device=config.device)
    run_batch = runner(benchmark_model.images[: case.batch_size])
    logits, peak = measure_peak_memory(run_batch, device=config.device)
    errors = [benchmark_model.error(logits)]
    prepared_row.calls["batch"] = run_batch
    if config.latency:
        run_single = run_batch if case.batch_size == 1 else runner(benchmark_model.images[:1])
        errors.append(benchmark_model.error(run_single()))
        prepared_row.calls["latency"] = run_single
    error = _largest_error(errors)
    prepared_row.row = dataclasses.replace(prepared_row.row, error=error, peak_memory_bytes=peak)
    if not error <= TOLERANCE:
        reason = f"relative error of the logits: expected at most {TOLERANCE:.0e}, got {error:.1e}; not timed"
        prepared_row.reject("incorrect", reason)
    elif config.train and case.backend in TRAINABLE_BACKENDS:
        _prepare_training(prepared_row, benchmark_model, config)


def _prepare_training(prepared_row: _PreparedRow, benchmark_model: BenchmarkModel, config: BenchmarkConfig) -> None:
    training_benchmark = TrainingBenchmark(prepared_row.row.case.backend, benchmark_model, config.device)
    error = training_benchmark.gradient_error()
    prepared_row.row = dataclasses.replace(prepared_row.row, gradient_error=error)
    tolerance = benchmark_model.network.gradient_tolerance
    if error <= tolerance:
        prepared_row.calls["step"] = training_benchmark.step(prepared_row.row.case.batch_size)
    else:
        reason = f"relative error of the gradients: expected at most {tolerance:.0e}, got {error:.1e}; not timed"
        prepared_row.reject("incorrect", reason)


def _time_measurement(
    measurement: str, prepared: Sequence[_PreparedRow], config: BenchmarkConfig
) -> dict[Case, Timing]:
    calls = {
        prepared_row.row.case: functools.partial(prepared_row.run_call, measurement)
        for prepared_row in prepared
        if measurement in prepared_row.calls
    }
    if not calls:
        return {}
    title = MEASUREMENTS[measurement]
    return time_interleaved(
        calls,
        rounds=config.rounds,
        warm_up=1,
        untimed=1 if measurement == "latency" else 0,
        synchronize=synchronizer(config.device),
        on_round=lambda index: config.log(f"timing {title}, {len(calls)} rows: round {index} of {config.rounds}"),
    )


def describe_case(case: Case) -> str:
    """Return a description of a case for progress messages."""
    kernel = "" if case.kernel_size is None else f", kernel {case.kernel_size}"
    return f"{case.network} {case.backend}, batch {case.batch_size}, {case.image_size} px{kernel}"


def _largest_error(errors: Sequence[float]) -> float:
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def _format_exception(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip()[:300]}"
