"""TensorRT's parser reads exported files and builds engines; inference, which needs a GPU, is not tested.

The example runs in a subprocess, as users run it, which isolates the side effects of NVIDIA's libraries.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.networks import build_classifier, build_with_head, export_file

SCRIPT = Path(__file__).parents[2] / "examples" / "tensorrt_engine.py"
FOR_8_9 = ("--compute-capability", "8.9")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="tensorrt-rtx is for Linux and Windows on x86-64 only",
)


def build(onnx: Path, engine: Path, *flags: str) -> tuple[int, str]:
    """Return the exit status and the output."""
    command = [sys.executable, str(SCRIPT), str(onnx), "--out", str(engine), *flags]
    process = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert "Traceback" not in process.stderr
    return process.returncode, process.stdout + process.stderr


def test_an_engine_is_built_for_a_classifier(onnx_file, tmp_path):
    engine = tmp_path / "network.engine"
    status, output = build(onnx_file, engine, *FOR_8_9)
    assert status == 0, output
    assert engine.stat().st_size > 100_000
    assert f"{engine.name}: {engine.stat().st_size / 1e6:.1f} MB, by tensorrt_rtx" in output


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"half": True}], ids=str)
def test_an_engine_is_built_with_fixed_batches_and_with_float16(options, tmp_path):
    engine = tmp_path / "network.engine"
    assert build(export_file(build_classifier(), tmp_path, **options), engine, *FOR_8_9)[0] == 0
    assert engine.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet", "retinanet", "fcos"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_engine_is_built_for_segmentation_and_one_stage_detection(head, dynamic, tmp_path):
    path, engine = export_file(build_with_head(head), tmp_path, dynamic=dynamic), tmp_path / "network.engine"
    assert build(path, engine, *FOR_8_9, "--max-batch-size", "2", "--input-size", "64", "96")[0] == 0
    assert engine.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("head", ["d_fine", "rt_detr_v2", "deformable_detr", "mask2former"])
def test_an_engine_is_built_for_networks_with_queries(head, tmp_path):
    engine = tmp_path / "network.engine"
    assert build(export_file(build_with_head(head), tmp_path), engine, *FOR_8_9)[0] == 0
    assert engine.stat().st_size > 1_000_000


@pytest.mark.slow
def test_a_network_that_tensorrt_cannot_read_is_an_error(tmp_path):
    """A later version may support two-stage detectors; then the example and its page must be updated."""
    engine = tmp_path / "network.engine"
    status, output = build(export_file(build_with_head("faster_rcnn"), tmp_path), engine, *FOR_8_9)
    assert (status, "network.onnx: TensorRT" in output) == (1, True)
    assert not engine.exists()


@pytest.mark.slow
def test_a_failed_build_is_an_error_and_leaves_no_file(onnx_copy, tmp_path):
    engine = tmp_path / "network.engine"
    status, output = build(onnx_copy, engine, "--compute-capability", "1.0")
    assert (status, "--compute-capability" in output and "1.0" in output) == (2, True)
    if not torch.cuda.is_available():
        status, output = build(onnx_copy, engine, "--compare", "cat.jpg")
        assert (status, "--compare" in output and "GPU" in output) == (2, True)
    onnx_copy.write_bytes(onnx_copy.read_bytes()[:-1])
    status, output = build(onnx_copy, engine, *FOR_8_9)
    assert (status, "van export" in output) == (1, True)
    assert not engine.exists()
