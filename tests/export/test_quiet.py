"""What is outside PyTorch sends nothing home, and says what to install where it is absent."""

import sys
from pathlib import Path

import pytest

from van.errors import MissingExtra
from van.export.quiet import quiet_import

ALONE = """
import os, sys
from pathlib import Path
import numpy, onnx
from van.export.quiet import quiet_import
onnx_file = Path(sys.argv[1]) / "same.onnx"
value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "same", [value("x")], [value("y")])
onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), onnx_file)
runtime = quiet_import("onnxruntime")
session = runtime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
print(session.run(None, {"x": numpy.ones(1, numpy.float32)})[0])
openvino = quiet_import("openvino")
print(openvino.Core().compile_model(openvino.Core().read_model(onnx_file), "CPU")(numpy.ones(1, numpy.float32))[0])
print(os.environ["ORT_DISABLE_TELEMETRY"], sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__)
"""


def test_the_runtimes_answer_and_keep_no_identity_of_the_machine(run_python, tmp_path):
    """Their telemetry begins by writing one into the home folder; this is tried where nothing was written yet."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    printed = run_python(ALONE, str(tmp_path), **environment).split("\n")
    assert printed[:2] == ["[1.]", "[1.]"]
    assert printed[2] == "1 openvino.tools.ovc.telemetry_stub"
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "openvino"])
def test_an_absent_package_is_named_with_the_extra_that_brings_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"'{package}', which is not installed: pip install .*\[export\]"):
        quiet_import(package)


def test_a_package_that_is_broken_inside_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "halfway.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        quiet_import("halfway")
