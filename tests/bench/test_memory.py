"""Peak memory of a call, independent of earlier allocations."""

from pathlib import Path

import pytest
import torch

from van.bench import memory
from van.bench.memory import measure_peak_memory

CPU = torch.device("cpu")
MEGABYTES_200 = 200_000_000
LAG = 1_000_000
"""Bytes by which the value of the Linux kernel may lag."""


def take(count: int) -> int:
    """Allocate, write and free ``count`` bytes."""
    return int(torch.ones(count // 4)[-1].item())


def test_memory_freed_within_the_call_is_counted_each_time():
    for _ in range(3):  # later iterations may reuse memory that was freed before
        result, peak_bytes = measure_peak_memory(lambda: take(MEGABYTES_200), device=CPU)
        assert result == 1
        assert peak_bytes is not None
        assert MEGABYTES_200 - LAG <= peak_bytes < 1.1 * MEGABYTES_200


def test_many_small_tensors_are_counted():
    for _ in range(2):
        _, peak_bytes = measure_peak_memory(lambda: [torch.ones(25_000) for _ in range(1000)], device=CPU)
        assert peak_bytes is not None
        assert 100_000_000 - LAG <= peak_bytes < 130_000_000


def test_memory_allocated_before_is_not_counted():
    """The control: the same bytes, allocated before the call."""
    held = torch.ones(MEGABYTES_200 // 4)
    _, peak_bytes = measure_peak_memory(lambda: held.numel(), device=CPU)
    assert peak_bytes is not None
    assert peak_bytes < 5_000_000


def test_earlier_peaks_are_ignored():
    take(2 * MEGABYTES_200)
    _, peak_bytes = measure_peak_memory(lambda: take(50_000_000), device=CPU)
    assert peak_bytes is not None
    assert 50_000_000 - LAG <= peak_bytes < 60_000_000


REPEATED_CALLS = """
import torch
from van.bench.memory import measure_peak_memory

def layers():
    x = torch.ones(5_000_000)
    for _ in range(9):
        x = x + 1

for _ in range(4):
    print(measure_peak_memory(layers, device=torch.device("cpu"))[1])
    torch.ones(50_000_000)
    layers()
"""


def test_measurement_does_not_depend_on_earlier_allocations(run_python):
    """Ten tensors of 20 MB, two alive at a time. After freeing a large block the C library would keep others."""
    for peak_bytes in map(int, run_python(REPEATED_CALLS).split()):
        assert 40_000_000 - LAG <= peak_bytes < 45_000_000


def test_unsupported_systems_return_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    assert measure_peak_memory(lambda: 7, device=CPU) == (7, None)
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert measure_peak_memory(lambda: 7, device=CPU) == (7, None)


@pytest.mark.gpu
def test_peak_gpu_memory_is_counted():
    device = torch.device("cuda")
    _, peak_bytes = measure_peak_memory(
        lambda: torch.ones(MEGABYTES_200 // 4, device=device).sum().item(), device=device
    )
    assert peak_bytes is not None
    assert MEGABYTES_200 <= peak_bytes < 1.1 * MEGABYTES_200
