"""The peak of a call is seen, whether or not its memory is given back, and by whom it was held before."""

from pathlib import Path

import pytest
import torch

from van.bench import memory
from van.bench.memory import with_peak_growth

CPU = torch.device("cpu")
MEGABYTES_200 = 200_000_000
LAG = 1_000_000
"""Bytes by which the kernel's count may be behind."""


def take(count: int) -> int:
    """Touch ``count`` bytes, hold them for a moment, give them back."""
    return int(torch.ones(count // 4)[-1].item())


def test_what_a_call_takes_and_gives_back_is_counted_each_time():
    for _ in range(3):  # the second time the memory may come from what the first one freed
        answer, grown = with_peak_growth(lambda: take(MEGABYTES_200), device=CPU)
        assert answer == 1
        assert grown is not None
        assert MEGABYTES_200 - LAG <= grown < 1.1 * MEGABYTES_200


def test_many_small_pieces_are_counted_like_a_large_one():
    for _ in range(2):
        _, grown = with_peak_growth(lambda: [torch.ones(25_000) for _ in range(1000)], device=CPU)
        assert grown is not None
        assert 100_000_000 - LAG <= grown < 130_000_000


def test_what_was_held_before_is_not_counted():
    """The control: the same bytes, taken outside."""
    held = torch.ones(MEGABYTES_200 // 4)
    _, grown = with_peak_growth(lambda: held.numel(), device=CPU)
    assert grown is not None
    assert grown < 5_000_000


def test_an_earlier_peak_is_forgotten():
    take(2 * MEGABYTES_200)
    _, grown = with_peak_growth(lambda: take(50_000_000), device=CPU)
    assert grown is not None
    assert 50_000_000 - LAG <= grown < 60_000_000


AGAIN_AND_AGAIN = """
import torch
from van.bench.memory import with_peak_growth

def layers():
    x = torch.ones(5_000_000)
    for _ in range(9):
        x = x + 1

for _ in range(4):
    print(with_peak_growth(layers, device=torch.device("cpu"))[1])
    torch.ones(50_000_000)
    layers()
"""


def test_the_same_call_takes_the_same_whatever_the_process_did_before(run_python):
    """Ten tensors of 20 MB, two at a time alive. Once it has freed a large block, the C library would keep others."""
    for grown in map(int, run_python(AGAIN_AND_AGAIN).split()):
        assert 40_000_000 - LAG <= grown < 45_000_000


def test_a_system_that_counts_nothing_answers_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    assert with_peak_growth(lambda: 7, device=CPU) == (7, None)
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert with_peak_growth(lambda: 7, device=CPU) == (7, None)


@pytest.mark.gpu
def test_a_gpu_s_peak_is_counted():
    device = torch.device("cuda")
    _, grown = with_peak_growth(lambda: torch.ones(MEGABYTES_200 // 4, device=device).sum().item(), device=device)
    assert grown is not None
    assert MEGABYTES_200 <= grown < 1.1 * MEGABYTES_200
