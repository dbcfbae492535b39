"""Machine peaks are plausible, benchmark settings are restored, and unavailable devices are errors."""

import re
import time

import pytest
import torch
import torch.nn.functional as F

from van.bench import machine
from van.bench.machine import (
    Machine,
    benchmark_settings,
    device_name,
    peak_bandwidth,
    peak_flops,
    resolve_device,
    versions,
)
from van.errors import UsageError

CPU = torch.device("cpu")


def test_peaks_are_plausible():
    """Bounds for CPUs from 2010 until today, on any number of threads."""
    with benchmark_settings(threads=1):
        assert 1e9 < peak_flops(CPU, repeats=2) < 1e14
        assert 5e8 < peak_bandwidth(CPU, repeats=2) < 1e13


@pytest.mark.parametrize("kind", ["product", "convolution"])
def test_peak_flops_exceeds_matrix_products_and_convolutions(kind):
    """A peak that misses half of its operations would be exceeded by one of them."""
    left, right = torch.rand(768, 768), torch.rand(768, 768)
    images, kernel = torch.rand(2, 128, 48, 48), torch.rand(128, 128, 3, 3)
    calls = {"product": lambda: left @ right, "convolution": lambda: F.conv2d(images, kernel)}
    operations = {"product": 2 * 768**3, "convolution": 2 * 2 * 128 * 46 * 46 * 128 * 9}
    with benchmark_settings(threads=1), torch.inference_mode():
        peak = peak_flops(CPU)
        times = []
        for _ in range(8):
            began = time.perf_counter()
            calls[kind]()
            times.append(time.perf_counter() - began)
    assert operations[kind] / min(times) < 1.4 * peak


def test_roofline_time_is_the_maximum_of_arithmetic_and_memory_time():
    here = Machine(name="x", threads=1, flops_per_s=100.0, bytes_per_s=10.0)
    assert here.roofline_s(macs=100, bytes_moved=10) == 2.0
    assert here.roofline_s(macs=100, bytes_moved=50) == 5.0


def settings() -> tuple[int, bool, bool]:
    return torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


def test_benchmark_settings_are_restored_after_an_exception():
    before, within = settings(), []

    def fail() -> None:
        with benchmark_settings(threads=before[0] + 1):
            within.append(settings())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert within == [(before[0] + 1, False, True)]
    assert settings() == before


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", "cuda:-1", ""])
def test_unknown_devices_raise_usage_error(name):
    with pytest.raises(UsageError, match=f"--device.*{re.escape(repr(name))}"):
        resolve_device(name)


def test_unavailable_devices_raise_usage_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"--device cuda: .*--device cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--device cuda:2"):
        resolve_device("cuda:2")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == CPU


def test_device_name_falls_back_to_platform(monkeypatch: pytest.MonkeyPatch):
    assert device_name(CPU)
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: "flags : none\n")
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "abacus")
    assert device_name(CPU) == "abacus"


def test_versions_of_missing_packages_are_empty(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_PACKAGES", ("torch", "timm", "a-package-that-is-nowhere"))
    found = versions()
    assert found["torch"] == torch.__version__
    assert re.match(r"\d+\.", found["timm"])
    assert found["a-package-that-is-nowhere"] == ""
