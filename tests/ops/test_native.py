"""Compilation of the C++ library: caching, concurrent builds, instruction sets and unavailable compilers."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from van.errors import UsageError
from van.ops import native

requires_library = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=f"no native library: {native.unavailable_reason()}"
)
PRINT_UNAVAILABLE_REASON = "from van.ops import native; print(native.unavailable_reason())"


@pytest.fixture(scope="module")
def fast_build_environment(tmp_path_factory) -> dict[str, str]:
    """Return an environment for builds without optimization, which take seconds."""
    script = tmp_path_factory.mktemp("compiler") / "c++"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(native.compiler() or "c++")} "$@" -O0\n', encoding="utf-8")
    script.chmod(0o755)
    return {"CXX": str(script), "VAN_CPU": "plain"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory, fast_build_environment) -> Path:
    """Return a cache folder in which two processes have just built the library concurrently."""
    folder = tmp_path_factory.mktemp("two") / "not" / "yet" / "there"
    environment = {**os.environ, **fast_build_environment, "VAN_CACHE": str(folder)}
    command = [sys.executable, "-c", PRINT_UNAVAILABLE_REASON]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=200)[0] for process in both] == ["None\n", "None\n"]
    return folder


@requires_library
def test_concurrent_builds_leave_exactly_one_library(cache):
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@requires_library
def test_library_is_built_once(cache, fast_build_environment, run_python):
    (built,) = cache.iterdir()
    before = built.stat().st_mtime_ns
    assert run_python(PRINT_UNAVAILABLE_REASON, VAN_CACHE=str(cache), **fast_build_environment) == "None\n"
    assert list(cache.iterdir()) == [built]
    assert built.stat().st_mtime_ns == before


@requires_library
def test_error_names_a_library_that_cannot_be_loaded(cache, fast_build_environment, run_python, tmp_path):
    (built,) = cache.iterdir()
    (tmp_path / built.name).write_bytes(built.read_bytes()[:100])
    output = run_python(PRINT_UNAVAILABLE_REASON, VAN_CACHE=str(tmp_path), **fast_build_environment)
    assert str(tmp_path / built.name) in output


RUN_OPERATORS = """
import logging, sys
logging.basicConfig(stream=sys.stdout)
import torch
from van.ops import Kernel, can_run, depthwise_gelu, large_kernel_attention
x = torch.randn(1, 2, 9, 9)
local, dilated = Kernel(torch.randn(2, 1, 5, 5)), Kernel(torch.randn(2, 1, 7, 7), None, 3)
for _ in range(3):
    large_kernel_attention(x, local, dilated, Kernel(torch.randn(2, 2, 1, 1)))
    depthwise_gelu(x, local)
print(can_run("cpu", x, dilated).reason, can_run("space_to_batch", x, dilated).ok, sep="|")
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler"),
        ({"CXX": "false"}, "false failed"),
        pytest.param({"VAN_CACHE": "/dev/null/cache"}, "/dev/null/cache", marks=requires_library),
    ],
)
def test_without_a_library_space_to_batch_runs_and_one_warning_is_logged(environment, reason, tmp_path, run_python):
    printed = run_python(RUN_OPERATORS, **{"VAN_CACHE": str(tmp_path), **environment})
    *warnings, availability = printed.splitlines()
    building = [line for line in warnings if "building the C++ operators" in line]
    assert len(building) == (1 if reason == "false failed" else 0)
    (warning,) = (line for line in warnings if line not in building)
    assert reason in warning
    assert reason in availability
    assert availability.endswith("|True")
    assert not list(tmp_path.iterdir())


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("VAN_CACHE", "/somewhere")
    assert native.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("VAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert native.cache_folder() == Path("/caches/visual-attention-network")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/anyone")
    assert native.cache_folder() == Path("/home/anyone/.cache/visual-attention-network")


@requires_library
def test_unknown_instruction_sets_raise_usage_error(monkeypatch, tmp_path, run_python):
    monkeypatch.setenv("VAN_CPU", "sse")
    with pytest.raises(UsageError, match=r"VAN_CPU.*native, avx512, avx2, plain.*'sse'"):
        native.instruction_set()
    code = RUN_OPERATORS.replace("for _ in range(3):", "try:").replace(
        "print(", "except Exception as error: print(error)\n#"
    )
    output = run_python(code, VAN_CPU="sse", VAN_CACHE=str(tmp_path))
    assert "VAN_CPU" in output
    assert "'sse'" in output


def test_instruction_set_defaults_to_native(monkeypatch):
    monkeypatch.delenv("VAN_CPU", raising=False)
    assert native.instruction_set() == "native"
    monkeypatch.setenv("VAN_CPU", "")
    assert native.instruction_set() == "native"
    monkeypatch.setenv("VAN_CPU", "plain")
    assert native.instruction_set() == "plain"


RUN_TESTS = """
import sys
from pathlib import Path
import pytest, torch
from van.ops import Kernel, can_run, native
print(can_run("cpu", torch.ones(1, 1, 3, 3), Kernel(torch.ones(1, 1, 3, 3))).reason)
maps = Path("/proc/self/maps").read_text().splitlines()
print(*{line.split()[-1] for line in maps if "/operators-" in line})
sys.exit(pytest.main(["-n", "0", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
CPU_FLAGS = {"plain": "", "avx2": "avx2", "avx512": "avx512f"}


def cpu_supports(instruction_set: str) -> bool:
    try:
        return CPU_FLAGS[instruction_set] in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@requires_library
@pytest.mark.parametrize(
    "instruction_set",
    ["avx2", pytest.param("plain", marks=pytest.mark.slow), pytest.param("avx512", marks=pytest.mark.slow)],
)
def test_other_instruction_sets_match_float64(instruction_set, run_python):
    """Run test_cpu.py, test_cpu_halves.py and test_gelu.py in a separate process."""
    if not cpu_supports(instruction_set):
        pytest.skip(f"this CPU does not support {instruction_set}")
    here = Path(__file__).parent
    files = [str(here / name) for name in ("test_cpu.py", "test_cpu_halves.py", "test_gelu.py")]
    reason, library, *log = run_python(RUN_TESTS, *files, VAN_CPU=instruction_set).splitlines()
    assert f"({instruction_set})" in reason
    assert library.endswith(".so")
    assert library != native.get_library()._name  # a different build was tested
    assert " passed" in log[-1]
    assert "skipped" not in log[-1]
