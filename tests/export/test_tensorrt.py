"""NVIDIA's own parser reads the files and builds engines of them; a GPU, which answering needs, is not asked for."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from export.made import classifier, with_head, written

pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is for Linux and Windows on x86-64 only")

SCRIPT = Path(__file__).parents[2] / "examples" / "tensorrt_engine.py"
_spec = importlib.util.spec_from_file_location("tensorrt_engine", SCRIPT)
example: Any = importlib.util.module_from_spec(_spec)
sys.modules["tensorrt_engine"] = example
_spec.loader.exec_module(example)


def test_an_engine_is_built_of_a_classifier(onnx_file, tmp_path, capsys):
    engine = tmp_path / "network.engine"
    assert example.main([str(onnx_file), "--out", str(engine), "--compute-capability", "8.9"]) == 0
    assert engine.stat().st_size > 100_000
    assert f"{engine.name}: {engine.stat().st_size / 1e6:.1f} MB, by tensorrt_rtx" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"half": True}], ids=str)
def test_an_engine_is_built_in_other_ways(options, tmp_path):
    path, engine = written(classifier(), tmp_path, **options), tmp_path / "network.engine"
    assert example.main([str(path), "--out", str(engine), "--compute-capability", "8.9"]) == 0
    assert engine.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet", "retinanet", "fcos"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_engine_is_built_of_networks_for_whole_pictures(head, dynamic, tmp_path):
    path, engine = written(with_head(head), tmp_path, dynamic=dynamic), tmp_path / "network.engine"
    words = ["--compute-capability", "8.9", "--most", "2", "--sizes", "64", "96"]
    assert example.main([str(path), "--out", str(engine), *words]) == 0
    assert engine.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("head", ["d_fine", "rt_detr_v2", "deformable_detr", "mask2former"])
def test_an_engine_is_built_of_networks_with_queries(head, tmp_path):
    path, engine = written(with_head(head), tmp_path), tmp_path / "network.engine"
    assert example.main([str(path), "--out", str(engine), "--compute-capability", "8.9"]) == 0
    assert engine.stat().st_size > 1_000_000


@pytest.mark.slow
def test_what_tensorrt_does_not_read_is_told(tmp_path, capsys):
    """Of two stages; this may be read by a later version, and then the example and its page are to say so."""
    path, engine = written(with_head("faster_rcnn"), tmp_path), tmp_path / "network.engine"
    assert example.main([str(path), "--out", str(engine), "--compute-capability", "8.9"]) == 1
    assert "TensorRT cannot read it" in capsys.readouterr().err
    assert not engine.exists()


def test_what_cannot_be_built_is_one_line_and_leaves_nothing(onnx_copy, tmp_path, capsys):
    path, engine = onnx_copy, tmp_path / "network.engine"
    assert example.main([str(path), "--out", str(engine), "--compute-capability", "1.0"]) == 2
    assert "--compute-capability is 1.0; tensorrt_rtx builds for" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-1])
    assert example.main([str(path), "--out", str(engine), "--compute-capability", "8.9"]) == 1
    assert "write it with van export" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert example.main([str(path), "--out", str(engine), "--compare", "cat.jpg"]) == 2
        assert "--compare needs a GPU" in capsys.readouterr().err
    assert not engine.exists()
