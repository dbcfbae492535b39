"""Runtimes match PyTorch for batch sizes other than the one of the export."""

import sys
from pathlib import Path

import pytest
import torch

from explain.small_models import small
from van.backbones.fusion import fuse
from van.bench.runtimes import OnnxRuntimeSession, OpenVinoSession, write_onnx
from van.errors import MissingExtra
from van.ops import use_backend


@pytest.fixture(scope="module")
def network():
    return small(image_size=32)


@pytest.fixture(scope="module")
def onnx_file(network, tmp_path_factory) -> Path:
    return write_onnx(fuse(network.network), torch.randn(2, 3, 32, 32), tmp_path_factory.mktemp("onnx") / "a.onnx")


@pytest.mark.parametrize("count", [1, 3])
def test_runtimes_match_pytorch(network, onnx_file, count):
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    with torch.inference_mode(), use_backend("reference"):
        right = network.network(images)
    for session in (
        OnnxRuntimeSession(onnx_file, batch_size=count, threads=1),
        OpenVinoSession(onnx_file, shape=tuple(images.shape), threads=1),
    ):
        torch.testing.assert_close(session.run(images), right, rtol=0, atol=1e-6)


def test_missing_runtime_raises_missing_extra(onnx_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="onnxruntime"):
        OnnxRuntimeSession(onnx_file, batch_size=1, threads=1)
    with pytest.raises(MissingExtra, match="openvino"):
        OpenVinoSession(onnx_file, shape=(1, 3, 32, 32), threads=1)
