"""Memory reuse, in separate processes because it cannot be undone."""

import sys

import pytest

CODE = """
import sys
import torch
from van.ops import enable_memory_reuse

def resident_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

enabled = sys.argv[1] == "reuse" and enable_memory_reuse()
before = resident_mib()
for _ in range(3):
    torch.ones(64 << 20)  # 256 MiB, freed immediately
print(enabled, resident_mib() - before > 200)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_is_kept_only_if_reuse_is_enabled(run_python):
    assert run_python(CODE, "default").split() == ["False", "False"]
    enabled, kept = run_python(CODE, "reuse").split()
    assert enabled == kept  # a C library without mallopt keeps nothing


def test_other_operating_systems_return_false(monkeypatch):
    from van.ops import memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.enable_memory_reuse() is False
