"""The measured file answers on both runtimes as PyTorch does, for another number of pictures than it was made with."""

import sys
from pathlib import Path

import pytest
import torch

from explain.small import small
from van.bench.runtimes import OnnxRuntimeSession, OpenVinoSession, write_onnx
from van.errors import MissingExtra
from van.models.deploy import fuse
from van.ops import use_backend


@pytest.fixture(scope="module")
def network():
    return small(size_px=32)


@pytest.fixture(scope="module")
def onnx_file(network, tmp_path_factory) -> Path:
    return write_onnx(fuse(network.model), torch.randn(2, 3, 32, 32), tmp_path_factory.mktemp("onnx") / "a.onnx")


@pytest.mark.parametrize("count", [1, 3])
def test_the_runtimes_answer_as_pytorch_does(network, onnx_file, count):
    pictures = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    with torch.inference_mode(), use_backend("reference"):
        right = network.model(pictures)
    for session in (
        OnnxRuntimeSession(onnx_file, batch_size=count, threads=1),
        OpenVinoSession(onnx_file, shape=tuple(pictures.shape), threads=1),
    ):
        torch.testing.assert_close(session.answer(pictures), right, rtol=0, atol=1e-6)


def test_an_absent_runtime_is_named(onnx_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="measuring this way to run a network needs the package 'onnxruntime'"):
        OnnxRuntimeSession(onnx_file, batch_size=1, threads=1)
    with pytest.raises(MissingExtra, match="measuring this way to run a network needs the package 'openvino'"):
        OpenVinoSession(onnx_file, shape=(1, 3, 32, 32), threads=1)
