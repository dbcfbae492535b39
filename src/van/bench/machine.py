"""The machine that is measured: its name, its versions, and how fast it can compute and move memory at all.

The roofline is what no program can beat: arithmetic at the peak, or the bytes at the bandwidth, whichever
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
"""Of twelve multiply-adds each: some milliseconds."""
_COPIED_BYTES = 256 << 20
"""Far larger than the last cache of a processor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a table was measured. Both peaks are for ``threads`` threads, float32, and of the same run."""

    name: str
    threads: int
    flops_per_s: float
    bytes_per_s: float

    def least_s(self, *, macs: int, bytes_moved: int) -> float:
        """The time that this much arithmetic and this much memory takes at least."""
        return max(2 * macs / self.flops_per_s, bytes_moved / self.bytes_per_s)


def survey(device: torch.device, *, threads: int) -> Machine:
    """Name the machine and measure its two peaks."""
    return Machine(
        name=name_of(device), threads=threads, flops_per_s=peak_flops(device), bytes_per_s=peak_bandwidth(device)
    )


def peak_flops(device: torch.device, *, repeats: int = 10) -> float:
    """Additions and multiplications a second in float32.

    On a CPU with a C++ compiler, what its multiply-add units do when nothing else is asked of them. Elsewhere the
    best of a large matrix product and a dense convolution, which comes within some percent of that, so that a
    share of the roofline is as much too high.
    """
    if device.type == "cpu" and native.why_not() is None:
        done = native.multiply_adds(_ROUNDS)
        return done / _best_s(lambda: native.multiply_adds(_ROUNDS), device, repeats)
    on_gpu = device.type != "cpu"
    side = 8192 if on_gpu else 1024
    left, right = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    out = torch.empty_like(left)
    count, channels, pixels = 64 if on_gpu else 4, 256, 32
    pictures = torch.rand(count, channels, pixels, pixels, device=device)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    kernel = torch.rand(channels, channels, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        product_s = _best_s(lambda: torch.mm(left, right, out=out), device, repeats)
        convolution_s = _best_s(lambda: F.conv2d(pictures, kernel, padding=1), device, repeats)
    done = 2 * pictures.numel() * kernel[0].numel()  # of which the border's are multiplied by nothing
    return max(2 * side**3 / product_s, done * (1 - 2 / (3 * pixels)) ** 2 / convolution_s)


def peak_bandwidth(device: torch.device, *, repeats: int = 5) -> float:
    """Bytes a second that a copy reads and writes, best of ``repeats`` copies of 256 MiB."""
    source = torch.zeros(_COPIED_BYTES // 4, device=device)
    target = torch.ones_like(source)
    return 2 * _COPIED_BYTES / _best_s(lambda: target.copy_(source), device, repeats)


def _best_s(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    wait = synchroniser(device)
    times = []
    for _ in range(repeats + 1):
        wait()
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def find_device(name: str) -> torch.device:
    """The device of that name, ``auto`` being the GPU where there is one.

    Raises:
        UsageError: PyTorch sees no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device(name)
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UsageError(f"--device is {name!r}; wanted auto, cpu or cuda")
    if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: PyTorch sees none here; use --device cpu")
    return torch.device(name)


def synchroniser(device: torch.device) -> Callable[[], object]:
    """A call that returns when the device has done what was asked of it."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)


@contextlib.contextmanager
def same_terms(*, threads: int) -> Generator[None, None, None]:
    """Within the block: so many threads; on a GPU whole float32 arithmetic and the fastest algorithm for all."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


def name_of(device: torch.device) -> str:
    """The name of the processor, or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The installed versions of what is measured with; an absent package has an empty one."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found | {"torch": torch.__version__}  # with the build behind the plus sign


def today() -> str:
    """The date in UTC, as 2026-01-31."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()
