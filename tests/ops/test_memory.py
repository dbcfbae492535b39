"""Freed memory kept for the next tensors, in interpreters of their own: it cannot be undone."""

import sys

import pytest

CODE = """
import sys
import torch
from van.ops import keep_freed_memory

def resident_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

told = sys.argv[1] == "keep" and keep_freed_memory()
before = resident_mib()
for _ in range(3):
    torch.ones(64 << 20)  # 256 MiB, dropped at once
print(told, resident_mib() - before > 200)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_a_dropped_tensor_is_kept_only_where_it_was_asked_for(run_python):
    assert run_python(CODE, "leave").split() == ["False", "False"]
    told, kept = run_python(CODE, "keep").split()
    assert told == kept  # where the C library cannot be told, nothing is kept


def test_another_system_is_left_alone(monkeypatch):
    from van.ops import memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
