"""The machine's best is plausible, its settings are put back, and what is not here is refused."""

import re
import time

import pytest
import torch
import torch.nn.functional as F

from van.bench import machine
from van.bench.machine import Machine, find_device, name_of, peak_bandwidth, peak_flops, same_terms, versions
from van.errors import UsageError

CPU = torch.device("cpu")


def test_the_peaks_are_those_of_a_computer():
    """No processor since 2010 does less, and none of today does more on one thread or all."""
    with same_terms(threads=1):
        assert 1e9 < peak_flops(CPU, repeats=2) < 1e14
        assert 5e8 < peak_bandwidth(CPU, repeats=2) < 1e13


@pytest.mark.parametrize("kind", ["product", "convolution"])
def test_the_peak_of_arithmetic_is_not_beaten_by_other_arithmetic(kind):
    """A peak that forgot half of its operations would be, on one of them."""
    left, right = torch.rand(768, 768), torch.rand(768, 768)
    pictures, kernel = torch.rand(2, 128, 48, 48), torch.rand(128, 128, 3, 3)
    calls = {"product": lambda: left @ right, "convolution": lambda: F.conv2d(pictures, kernel)}
    operations = {"product": 2 * 768**3, "convolution": 2 * 2 * 128 * 46 * 46 * 128 * 9}
    with same_terms(threads=1), torch.inference_mode():
        peak = peak_flops(CPU)
        times = []
        for _ in range(8):
            began = time.perf_counter()
            calls[kind]()
            times.append(time.perf_counter() - began)
    assert operations[kind] / min(times) < 1.4 * peak


def test_the_least_time_is_that_of_the_slower_of_arithmetic_and_memory():
    here = Machine(name="x", threads=1, flops_per_s=100.0, bytes_per_s=10.0)
    assert here.least_s(macs=100, bytes_moved=10) == 2.0
    assert here.least_s(macs=100, bytes_moved=50) == 5.0


def settings() -> tuple[int, bool, bool]:
    return torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


def test_threads_and_arithmetic_are_put_back_even_after_an_error():
    before, within = settings(), []

    def fail() -> None:
        with same_terms(threads=before[0] + 1):
            within.append(settings())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert within == [(before[0] + 1, False, True)]
    assert settings() == before


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", "cuda:-1", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(UsageError, match=re.escape(f"--device is {name!r}; wanted auto, cpu or cuda")):
        find_device(name)


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda: PyTorch sees none here; use --device cpu"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--device cuda:2"):
        find_device("cuda:2")
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cpu") == CPU


def test_the_name_comes_from_the_system_or_from_python(monkeypatch: pytest.MonkeyPatch):
    assert name_of(CPU)
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: "flags : none\n")
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "abacus")
    assert name_of(CPU) == "abacus"


def test_versions_name_what_is_installed_and_leave_the_rest_empty(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_PACKAGES", ("torch", "timm", "a-package-that-is-nowhere"))
    found = versions()
    assert found["torch"] == torch.__version__
    assert re.match(r"\d+\.", found["timm"])
    assert found["a-package-that-is-nowhere"] == ""
