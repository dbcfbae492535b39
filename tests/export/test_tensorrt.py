"""NVIDIA's own parser reads the files and builds engines of them; a GPU, which answering needs, is not asked for.

The example runs in a process of its own, as users run it: what NVIDIA's libraries do to a process stays there.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.made import classifier, with_head, written

SCRIPT = Path(__file__).parents[2] / "examples" / "tensorrt_engine.py"
FOR_8_9 = ("--compute-capability", "8.9")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="tensorrt-rtx is for Linux and Windows on x86-64 only",
)


def build(onnx: Path, engine: Path, *words: str) -> tuple[int, str]:
    """The exit status and what was printed."""
    command = [sys.executable, str(SCRIPT), str(onnx), "--out", str(engine), *words]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_an_engine_is_built_of_a_classifier(onnx_file, tmp_path):
    engine = tmp_path / "network.engine"
    status, told = build(onnx_file, engine, *FOR_8_9)
    assert status == 0, told
    assert engine.stat().st_size > 100_000
    assert f"{engine.name}: {engine.stat().st_size / 1e6:.1f} MB, by tensorrt_rtx" in told


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"half": True}], ids=str)
def test_an_engine_is_built_in_other_ways(options, tmp_path):
    engine = tmp_path / "network.engine"
    assert build(written(classifier(), tmp_path, **options), engine, *FOR_8_9)[0] == 0
    assert engine.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet", "retinanet", "fcos"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_engine_is_built_of_networks_for_whole_pictures(head, dynamic, tmp_path):
    path, engine = written(with_head(head), tmp_path, dynamic=dynamic), tmp_path / "network.engine"
    assert build(path, engine, *FOR_8_9, "--most", "2", "--sizes", "64", "96")[0] == 0
    assert engine.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("head", ["d_fine", "rt_detr_v2", "deformable_detr", "mask2former"])
def test_an_engine_is_built_of_networks_with_queries(head, tmp_path):
    engine = tmp_path / "network.engine"
    assert build(written(with_head(head), tmp_path), engine, *FOR_8_9)[0] == 0
    assert engine.stat().st_size > 1_000_000


@pytest.mark.slow
def test_what_tensorrt_does_not_read_is_told(tmp_path):
    """Of two stages; this may be read by a later version, and then the example and its page are to say so."""
    engine = tmp_path / "network.engine"
    status, told = build(written(with_head("faster_rcnn"), tmp_path), engine, *FOR_8_9)
    assert (status, "TensorRT cannot read it" in told) == (1, True)
    assert not engine.exists()


@pytest.mark.slow
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(onnx_copy, tmp_path):
    engine = tmp_path / "network.engine"
    status, told = build(onnx_copy, engine, "--compute-capability", "1.0")
    assert (status, "--compute-capability is 1.0; tensorrt_rtx builds for" in told) == (2, True)
    if not torch.cuda.is_available():
        status, told = build(onnx_copy, engine, "--compare", "cat.jpg")
        assert (status, "--compare needs a GPU" in told) == (2, True)
    onnx_copy.write_bytes(onnx_copy.read_bytes()[:-1])
    status, told = build(onnx_copy, engine, *FOR_8_9)
    assert (status, "write it with van export" in told) == (1, True)
    assert not engine.exists()
