"""Benchmark of inference sessions for one network: PyTorch and its exported formats, in one run.

The weights are random, so nothing is downloaded. Each session is opened and compared with the network in plain
PyTorch and float32. Then all are timed in turn at batch size 1. Shapes: images (N, 3, H, W), logits (N, 1000).
"""

import contextlib
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from van.backbones.fusion import fuse
from van.bench.machine import benchmark_settings
from van.bench.memory import measure_peak_memory
from van.bench.networks import NETWORKS, build
from van.device import to_channels_last
from van.errors import UsageError
from van.export import int8, openvino
from van.export.formats import FORMATS, open_session
from van.export.verify import synthetic_images
from van.export.writing import ExportOptions
from van.model import Model, imagenet_class_names
from van.ops import use_backend
from van.preprocess import CenterCropPreprocess

SESSIONS = {
    "pytorch": "this package in PyTorch: fused, channels_last, fast operators",
    "onnxruntime": "ONNX file on ONNX Runtime, float32",
    "openvino": "OpenVINO file, float32",
    "openvino-bf16": "OpenVINO file, bfloat16 arithmetic, if the CPU supports it",
    "openvino-int8": "OpenVINO file, all layers quantized to int8, calibrated on synthetic images",
}
"""Every session and its description."""
MAX_OTHER_CPU_FRACTION = 0.1
"""Largest fraction of the CPU used by other processes before a measurement is reported as noisy."""
_NUM_COMPARED_IMAGES = 32
_MAX_ATTEMPTS = 3

Predict = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """The settings of a session benchmark: ``image_size`` in pixels, number of ``threads`` and timed ``rounds``.

    ``sessions`` are names in ``SESSIONS``. ``wait_s`` is the longest time to wait for an idle CPU before each
    attempt, in seconds. ``log`` receives progress messages.
    """

    sessions: tuple[str, ...] = tuple(SESSIONS)
    threads: int = 2
    rounds: int = 100
    image_size: int = 224
    wait_s: float = 30.0
    log: Callable[[str], object] = lambda _: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The results of a session; values are None if it is unavailable or failed.

    Args:
        network, session: names of the network and the session.
        image_size: height and width of the images, in pixels.
        p50_ms, p99_ms: latency percentiles of one image, in milliseconds.
        images_per_s: throughput at batch size 1.
        peak_memory_mb: peak memory while the session was opened and ran once, in MB.
        relative_error: largest error against float32 PyTorch, relative to the largest logit.
        top1_agreement: fraction of images with the same top-1 class as PyTorch.
        other_cpu_fraction: fraction of the CPU that other processes used during the measurement.
        outcome: ``measured``, ``failed``, or ``unavailable`` if a package or the CPU's support is missing.
        reason: why the session was not measured.
    """

    network: str
    session: str
    image_size: int
    p50_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    peak_memory_mb: float | None = None
    relative_error: float | None = None
    top1_agreement: float | None = None
    other_cpu_fraction: float | None = None
    outcome: Literal["measured", "unavailable", "failed"] = "measured"
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a flat dictionary for JSON and CSV."""
        return dataclasses.asdict(self)


def measure(networks: Sequence[str], config: BenchmarkConfig) -> list[Row]:
    """Measure every session of every network.

    Raises:
        UsageError: a session or network is unknown, or a network is not a VAN.
    """
    unknown_sessions = [session for session in config.sessions if session not in SESSIONS]
    if unknown_sessions:
        raise UsageError(f"--sessions: expected names among {', '.join(SESSIONS)}, got {', '.join(unknown_sessions)}")
    unknown_networks = [name for name in networks if name not in NETWORKS or not NETWORKS[name].is_van]
    if unknown_networks:
        vans = ", ".join(name for name, network in NETWORKS.items() if network.is_van)
        raise UsageError(f"--model: expected names among {vans}, got {', '.join(unknown_networks)}")
    rows: list[Row] = []
    with benchmark_settings(threads=config.threads):
        for name in networks:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                rows += _benchmark_network(name, config, Path(folder))
    return rows


def format_table(rows: Sequence[Row], machine: str, threads: int) -> str:
    """Format the rows as text; a dash stands for a value that was not measured."""
    columns = (
        ("p50 ms", "p50_ms", 9, ".2f"), ("p99 ms", "p99_ms", 9, ".2f"), ("images/s", "images_per_s", 10, ".1f"),
        ("memory MB", "peak_memory_mb", 11, ".0f"), ("error", "relative_error", 10, ".1e"),
        ("top-1 agreement", "top1_agreement", 17, ".1%"), ("other CPU", "other_cpu_fraction", 11, ".0%"),
    )  # fmt: skip
    header = f"{'network':<10}{'session':<16}" + "".join(f"{title:>{width}}" for title, _, width, _ in columns)
    lines = [f"{machine}, {threads} thread{'' if threads == 1 else 's'}, batch size 1", "", header]
    for row in rows:
        values = row.to_dict()
        line = f"{row.network:<10}{row.session:<16}"
        for _, key, width, format_spec in columns:
            line += f"{'-' if values[key] is None else format(values[key], format_spec):>{width}}"
        lines.append(line + (f"  {row.reason}" if row.reason else ""))
    if any(row.other_cpu_fraction is not None and row.other_cpu_fraction > MAX_OTHER_CPU_FRACTION for row in rows):
        lines.append(
            f"noisy: other processes used more than {MAX_OTHER_CPU_FRACTION:.0%} of the CPU (column other CPU); "
            "run the benchmark again"
        )
    return "\n".join(lines)


def _benchmark_network(name: str, config: BenchmarkConfig, folder: Path) -> list[Row]:
    loaded = Model(
        build(NETWORKS[name], image_size=config.image_size),
        name=name,
        options={},
        task="classify",
        class_names=imagenet_class_names(1000),
        preprocess=CenterCropPreprocess(image_size=config.image_size),
    )
    images = torch.stack([loaded.preprocess(image) for image in synthetic_images(_NUM_COMPARED_IMAGES)])
    with torch.inference_mode(), use_backend("reference"):
        expected = torch.cat([loaded.network(image[None]) for image in images])
    rows: dict[str, Row] = {}
    predictors: dict[str, Predict] = {}
    for session in config.sessions:
        config.log(f"opening {name} {session}")
        rows[session] = Row(network=name, session=session, image_size=config.image_size)
        try:
            opener = _make_opener(session, loaded, folder, config)
            open_and_run = functools.partial(_open_and_run, opener, images[:1])  # the first run allocates buffers
            predict, peak_bytes = measure_peak_memory(open_and_run, device=torch.device("cpu"))
            rows[session] = _compare_with_pytorch(rows[session], predict, images, expected, peak_bytes)
            predictors[session] = predict
        except UsageError as error:  # MissingExtra among them
            rows[session] = dataclasses.replace(rows[session], outcome="unavailable", reason=str(error))
        except Exception as error:  # runtimes raise anything
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
            rows[session] = dataclasses.replace(rows[session], outcome="failed", reason=reason)
    times, other_fraction = ({}, None) if not predictors else _time_with_least_noise(predictors, images[:1], config)
    return [_with_timings(row, times.get(session), other_fraction) for session, row in rows.items()]


def _make_opener(session: str, loaded: Model, folder: Path, config: BenchmarkConfig) -> Callable[[], Predict]:
    """Export the file of the session and return a function that opens it."""
    if session == "pytorch":
        return lambda: _prepare_pytorch(fuse(loaded.network))
    if session == "openvino-bf16" and not openvino.has_bfloat16():
        raise UsageError("this CPU does not support bfloat16 arithmetic")
    format_name = "onnx" if session == "onnxruntime" else "openvino"
    path = folder / f"{session}{FORMATS[format_name].suffix}"
    if session == "openvino-int8":
        int8.write(
            loaded, path, options=ExportOptions(), format_=FORMATS[format_name],
            images=synthetic_images(_NUM_COMPARED_IMAGES), max_accuracy_drop=1.0, threads=config.threads, rounds=5,
            candidates=(int8.ALL_LAYERS,), log=lambda _: None,
        )  # fmt: skip
    else:
        FORMATS[format_name].write(loaded, path, options=ExportOptions())
    if session == "openvino-bf16":
        return lambda: openvino.open_session(path, threads=config.threads, arithmetic="bfloat16")
    return lambda: open_session(path, threads=config.threads)


def _prepare_pytorch(network: nn.Module) -> Predict:
    network = to_channels_last(network, torch.device("cpu"))

    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(images.contiguous(memory_format=torch.channels_last))

    return predict


def _open_and_run(opener: Callable[[], Predict], image: Tensor) -> Predict:
    predict = opener()
    predict(image)
    return predict


def _compare_with_pytorch(row: Row, predict: Predict, images: Tensor, expected: Tensor, peak_bytes: int | None) -> Row:
    logits = torch.cat([predict(image[None]) for image in images])
    return dataclasses.replace(
        row,
        relative_error=((logits - expected).abs().max() / expected.abs().max()).item(),
        top1_agreement=(logits.argmax(1) == expected.argmax(1)).float().mean().item(),
        peak_memory_mb=None if peak_bytes is None else peak_bytes / 1e6,
    )


def _time_with_least_noise(
    predictors: dict[str, Predict], image: Tensor, config: BenchmarkConfig
) -> tuple[dict[str, list[float]], float | None]:
    """Time the sessions in up to three attempts, until other processes leave the CPU idle.

    Returns the times in milliseconds of the attempt with the least CPU usage of other processes, and that usage.
    """
    best: tuple[dict[str, list[float]], float | None] | None = None
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        _wait_for_idle_cpu(config)
        config.log(f"timing {len(predictors)} sessions in turn, {config.rounds} rounds")
        with _measure_cpu_usage() as usage:
            times = _time_sessions(predictors, image, config.rounds)
        fraction = usage.other_fraction
        if best is None or (fraction is not None and best[1] is not None and fraction < best[1]):
            best = times, fraction
        if fraction is None or fraction <= MAX_OTHER_CPU_FRACTION:
            break
        config.log(f"other processes used {fraction:.0%} of the CPU (attempt {attempt} of {_MAX_ATTEMPTS})")
    assert best is not None
    return best


def _time_sessions(predictors: dict[str, Predict], image: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the times in milliseconds; each session runs once before each timed run, which reloads the caches."""
    times: dict[str, list[float]] = {session: [] for session in predictors}
    for round_index in range(-3, rounds):
        for session, predict in predictors.items():
            predict(image)
            start = time.perf_counter()
            predict(image)
            if round_index >= 0:
                times[session].append((time.perf_counter() - start) * 1e3)
    return times


def _with_timings(row: Row, times: list[float] | None, other_fraction: float | None) -> Row:
    if not times:
        return row
    sorted_times = sorted(times)
    return dataclasses.replace(
        row,
        p50_ms=statistics.median(sorted_times),
        p99_ms=sorted_times[min(len(sorted_times) - 1, round(0.99 * len(sorted_times)))],
        images_per_s=1e3 * len(sorted_times) / sum(sorted_times),
        other_cpu_fraction=other_fraction,
    )


class _CpuUsage:
    """The fraction of the CPU that other processes used in a block; None if the system does not record it."""

    other_fraction: float | None = None


@contextlib.contextmanager
def _measure_cpu_usage() -> Any:
    usage, before, own_start_s, start = _CpuUsage(), _read_busy_s(), time.process_time(), time.perf_counter()
    yield usage
    after, elapsed_s = _read_busy_s(), time.perf_counter() - start
    if before is not None and after is not None:
        cores = after[1]
        usage.other_fraction = max(0.0, after[0] - before[0] - (time.process_time() - own_start_s)) / (
            elapsed_s * cores
        )


def _read_busy_s() -> tuple[float, int] | None:
    """Return the busy time of all cores in seconds, and the number of cores; None if it is not recorded."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = (int(field) for field in lines[0].split()[1:])
    cores = sum(line.startswith("cpu") for line in lines) - 1
    return (user + nice + system + irq + softirq) / 100, cores


def _wait_for_idle_cpu(config: BenchmarkConfig) -> None:
    deadline = time.perf_counter() + config.wait_s
    logged = False
    while time.perf_counter() < deadline:
        with _measure_cpu_usage() as usage:
            time.sleep(min(1.0, config.wait_s))
        if usage.other_fraction is None or usage.other_fraction <= MAX_OTHER_CPU_FRACTION:
            return
        if not logged:
            config.log(
                f"other processes use {usage.other_fraction:.0%} of the CPU; waiting up to {config.wait_s:.0f} s"
            )
            logged = True
