"""Measurement of the peak memory of a call, beyond the memory that was allocated before it.

On a CPU the Linux kernel records the peak of the process (``VmHWM`` in /proc/self/status) and resets it when 5 is
written to /proc/self/clear_refs (``man 5 proc``); its value may lag by a few hundred KiB. On CUDA PyTorch's
allocator records the peak.

An exact measurement requires that memory comes from the system and is returned to it, which is slow: measure memory
first, then call ``van.ops.memory.enable_memory_reuse``, then measure time. In the opposite order some memory is
counted twice.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD and M_MMAP_MAX of ``malloc.h``."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_peak_memory(call: Callable[[], T], *, device: torch.device) -> tuple[T, int | None]:
    """Run ``call``; return its result and the peak memory beyond that allocated before, in bytes.

    The second value is None if the system records no peak.
    """
    if device.type == "cuda":
        return _measure_on_cuda(call, device)
    if device.type != "cpu":
        return call(), None
    gc.collect()
    _disable_memory_reuse()
    try:
        _CLEAR.write_text("5")
        before = _read_status_bytes("VmRSS")
    except (OSError, KeyError):
        return call(), None
    result = call()
    return result, max(0, _read_status_bytes("VmHWM") - before)


def _measure_on_cuda(call: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def _read_status_bytes(name: str) -> int:
    """Return an entry of /proc/self/status, which is in KiB, in bytes."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
    return int(lines[name].split()[0]) * 1024


def _disable_memory_reuse() -> None:
    """Make the C library allocate every block from 128 KiB up from the system, and return it when it is freed.

    Freed memory that the C library keeps for reuse would hide the allocations of the call. Once it has freed a
    block of many megabytes it also stops returning such blocks, which inflated the measurement by half.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 1 << 16)
        for name in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD):
            library.mallopt(name, 128 << 10)
        library.malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc, or no C library can be loaded
        return
