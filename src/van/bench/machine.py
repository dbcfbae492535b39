"""Properties of the benchmark machine: device name, package versions, peak arithmetic and memory bandwidth.

The roofline time is a lower bound: arithmetic at the peak rate, or memory traffic at the peak bandwidth, whichever
takes longer. Source: Williams, Waterman and Patterson 2009, "Roofline", doi:10.1145/1498765.1498785.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
import torch.nn.functional as F

from van.errors import UsageError
from van.ops import native

_PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf")
_ROUNDS = 1_000_000
"""Rounds of twelve multiply-adds; takes a few milliseconds."""
_COPIED_BYTES = 256 << 20
"""Far larger than the last-level cache of a CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a benchmark run. Both peaks are for ``threads`` threads and float32, measured in the same run."""

    name: str
    threads: int
    flops_per_s: float
    bytes_per_s: float

    def roofline_s(self, *, macs: int, bytes_moved: int) -> float:
        """Return the roofline time, a lower bound, of this much arithmetic and memory traffic, in seconds."""
        return max(2 * macs / self.flops_per_s, bytes_moved / self.bytes_per_s)


def measure_machine(device: torch.device, *, threads: int) -> Machine:
    """Return the name of the device and measure its peak arithmetic and bandwidth."""
    return Machine(
        name=device_name(device), threads=threads, flops_per_s=peak_flops(device), bytes_per_s=peak_bandwidth(device)
    )


def peak_flops(device: torch.device, *, repeats: int = 10) -> float:
    """Measure the peak arithmetic in float32, in FLOP/s; a multiply-add counts as two.

    On a CPU with a C++ compiler this is the rate of independent multiply-adds. Elsewhere it is the best of a large
    matrix product and a dense convolution, which is a few percent lower, so that roofline fractions are a few
    percent too high.
    """
    if device.type == "cpu" and native.unavailable_reason() is None:
        operations = native.multiply_adds(_ROUNDS)
        return operations / _best_s(lambda: native.multiply_adds(_ROUNDS), device, repeats)
    on_gpu = device.type != "cpu"
    side = 8192 if on_gpu else 1024
    left, right = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    out = torch.empty_like(left)
    count, channels, pixels = 64 if on_gpu else 4, 256, 32
    images = torch.rand(count, channels, pixels, pixels, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    kernel = torch.rand(channels, channels, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        product_s = _best_s(lambda: torch.mm(left, right, out=out), device, repeats)
        convolution_s = _best_s(lambda: F.conv2d(images, kernel, padding=1), device, repeats)
    operations = 2 * images.numel() * kernel[0].numel()  # includes products with the padding, removed below
    return max(2 * side**3 / product_s, operations * (1 - 2 / (3 * pixels)) ** 2 / convolution_s)


def peak_bandwidth(device: torch.device, *, repeats: int = 5) -> float:
    """Measure the peak memory bandwidth in bytes/s, read plus written: the best of ``repeats`` copies of 256 MiB."""
    source = torch.zeros(_COPIED_BYTES // 4, device=device)
    target = torch.ones_like(source)
    return 2 * _COPIED_BYTES / _best_s(lambda: target.copy_(source), device, repeats)


def _best_s(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    wait = synchronizer(device)
    times = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def resolve_device(name: str) -> torch.device:
    """Return the device of ``--device``; ``auto`` selects the GPU if one is available.

    Raises:
        UsageError: the name is unknown or PyTorch finds no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device(name)
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: PyTorch finds no such GPU; use --device cpu")
    return torch.device(name)


def synchronizer(device: torch.device) -> Callable[[], object]:
    """Return a function that waits until the device is idle."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)


@contextlib.contextmanager
def benchmark_settings(*, threads: int) -> Generator[None, None, None]:
    """Set the number of threads within the block; on a GPU also disable TF32 and enable cuDNN autotuning."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads_before)


def device_name(device: torch.device) -> str:
    """Return the name of the CPU or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the installed versions of the benchmarked packages; an empty string for a missing package."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = ""
    return installed | {"torch": torch.__version__}  # includes the build after the plus sign


def today() -> str:
    """Return the current date in UTC, formatted as 2026-01-31."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()
