"""How much memory a call takes at its highest, beyond what was held before it.

On a CPU the kernel keeps the process's peak (``VmHWM`` in /proc/self/status) and forgets it when 5 is
written to /proc/self/clear_refs (Linux, ``man 5 proc``); its count may lag by some hundred KiB. On CUDA
PyTorch's allocator keeps it.

To be counted exactly, memory has to come from the system and go back to it, which is slow: measure memory
first, then call ``van.ops.memory.keep_freed_memory``, then measure time. The other way round some is
counted twice.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Answer = TypeVar("Answer")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""What ``malloc.h`` calls M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD and M_MMAP_MAX."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def with_peak_growth(call: Callable[[], Answer], *, device: torch.device) -> tuple[Answer, int | None]:
    """The answer of ``call``, and the bytes by which memory rose above what was held before; None if nobody counts."""
    if device.type == "cuda":
        return _on_cuda(call, device)
    if device.type != "cpu":
        return call(), None
    gc.collect()
    _give_back_freed_memory()
    try:
        _CLEAR.write_text("5")
        before = _kept_bytes("VmRSS")
    except (OSError, KeyError):
        return call(), None
    answer = call()
    return answer, max(0, _kept_bytes("VmHWM") - before)


def _on_cuda(call: Callable[[], Answer], device: torch.device) -> tuple[Answer, int | None]:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    answer = call()
    torch.cuda.synchronize(device)
    return answer, torch.cuda.max_memory_allocated(device) - before


def _kept_bytes(name: str) -> int:
    """The line of that name in /proc/self/status, which counts in KiB."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
    return int(lines[name].split()[0]) * 1024


def _give_back_freed_memory() -> None:
    """Have every block from 128 KiB up come from the system and go back to it, as it is taken and freed.

    Freed memory that the C library keeps for reuse would hide what the call takes; and once it has freed a
    block of many megabytes it stops giving such blocks back, which made the same call look half as large again.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 1 << 16)
        for name in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD):
            library.mallopt(name, 128 << 10)
        library.malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc, or a system without a C library to ask
        return
