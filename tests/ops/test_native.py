"""Building the C++ library: once, by any number of processes, for the processor asked for, or not at all."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from van.errors import UsageError
from van.ops import native

needs_a_library = pytest.mark.skipif(native.why_not() is not None, reason=f"no native library: {native.why_not()}")
BUILD = "from van.ops import native; print(native.why_not())"


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, str]:
    """Choices that make a build take seconds: the compiler of this machine, told not to optimise."""
    script = tmp_path_factory.mktemp("compiler") / "c++"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(native.compiler() or "c++")} "$@" -O0\n', encoding="utf-8")
    script.chmod(0o755)
    return {"CXX": str(script), "VAN_CPU": "plain"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory, quick) -> Path:
    """Where two processes have just built at once."""
    folder = tmp_path_factory.mktemp("two") / "not" / "yet" / "there"
    environment = {**os.environ, **quick, "VAN_CACHE": str(folder)}
    command = [sys.executable, "-c", BUILD]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=200)[0] for process in both] == ["None\n", "None\n"]
    return folder


@needs_a_library
def test_two_processes_that_build_at_once_leave_one_library_and_nothing_else(cache):
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_a_library
def test_a_library_is_built_once(cache, quick, run_python):
    (built,) = cache.iterdir()
    before = built.stat().st_mtime_ns
    assert run_python(BUILD, VAN_CACHE=str(cache), **quick) == "None\n"
    assert list(cache.iterdir()) == [built]
    assert built.stat().st_mtime_ns == before


@needs_a_library
def test_a_library_that_cannot_be_loaded_is_named(cache, quick, run_python, tmp_path):
    (built,) = cache.iterdir()
    (tmp_path / built.name).write_bytes(built.read_bytes()[:100])
    said = run_python(BUILD, VAN_CACHE=str(tmp_path), **quick)
    assert str(tmp_path / built.name) in said


SERVE = """
import logging, sys
logging.basicConfig(stream=sys.stdout)
import torch
from van.ops import Kernel, can_run, depthwise_gelu, large_kernel_attention
x = torch.randn(1, 2, 9, 9)
local, dilated = Kernel(torch.randn(2, 1, 5, 5)), Kernel(torch.randn(2, 1, 7, 7), None, 3)
for _ in range(3):
    large_kernel_attention(x, local, dilated, Kernel(torch.randn(2, 2, 1, 1)))
    depthwise_gelu(x, local)
print(can_run("cpu", x, dilated).reason, can_run("phases", x, dilated).ok, sep="|")
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "there is no C++ compiler"),
        ({"CXX": "false"}, "false failed"),
        pytest.param({"VAN_CACHE": "/dev/null/cache"}, "cannot be written", marks=needs_a_library),
    ],
)
def test_without_a_library_the_phases_serve_and_the_reason_is_said_once(environment, reason, tmp_path, run_python):
    printed = run_python(SERVE, **{"VAN_CACHE": str(tmp_path), **environment})
    *warnings, verdict = printed.splitlines()
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert reason in verdict
    assert verdict.endswith("|True")
    assert not list(tmp_path.iterdir())


def test_the_cache_is_the_one_asked_for_or_the_users(monkeypatch):
    monkeypatch.setenv("VAN_CACHE", "/somewhere")
    assert native.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("VAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert native.cache_folder() == Path("/caches/visual-attention-network")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/anyone")
    assert native.cache_folder() == Path("/home/anyone/.cache/visual-attention-network")


@needs_a_library
def test_instructions_that_nobody_knows_are_refused_with_the_known_ones(monkeypatch, tmp_path, run_python):
    message = "VAN_CPU is 'sse'; wanted one of native, avx512, avx2, plain"
    monkeypatch.setenv("VAN_CPU", "sse")
    with pytest.raises(UsageError, match=message):
        native.instructions()
    code = SERVE.replace("for _ in range(3):", "try:").replace("print(", "except Exception as error: print(error)\n#")
    assert message in run_python(code, VAN_CPU="sse", VAN_CACHE=str(tmp_path))


def test_the_instructions_are_this_processors_unless_others_are_asked_for(monkeypatch):
    monkeypatch.delenv("VAN_CPU", raising=False)
    assert native.instructions() == "native"
    monkeypatch.setenv("VAN_CPU", "")
    assert native.instructions() == "native"
    monkeypatch.setenv("VAN_CPU", "plain")
    assert native.instructions() == "plain"


COMPARE = """
import sys
from pathlib import Path
import pytest, torch
from van.ops import Kernel, can_run, native
print(can_run("cpu", torch.ones(1, 1, 3, 3), Kernel(torch.ones(1, 1, 3, 3))).reason)
maps = Path("/proc/self/maps").read_text().splitlines()
print(*{line.split()[-1] for line in maps if "/operators-" in line})
sys.exit(pytest.main(["-n", "0", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
FLAG = {"plain": "", "avx2": "avx2", "avx512": "avx512f"}


def processor_has(instructions: str) -> bool:
    try:
        return FLAG[instructions] in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@needs_a_library
@pytest.mark.parametrize(
    "instructions",
    ["avx2", pytest.param("plain", marks=pytest.mark.slow), pytest.param("avx512", marks=pytest.mark.slow)],
)
def test_with_other_instructions_the_operators_agree_with_float64_too(instructions, run_python):
    """The comparisons of test_cpu.py, test_cpu_halves.py and test_gelu.py in an interpreter of their own."""
    if not processor_has(instructions):
        pytest.skip(f"this processor has no {instructions}")
    here = Path(__file__).parent
    files = [str(here / name) for name in ("test_cpu.py", "test_cpu_halves.py", "test_gelu.py")]
    reason, library, *told = run_python(COMPARE, *files, VAN_CPU=instructions).splitlines()
    assert f"({instructions})" in reason
    assert library.endswith(".so")
    assert library != native.loaded()._name  # so it is another build that was compared
    assert " passed" in told[-1]
    assert "skipped" not in told[-1]
