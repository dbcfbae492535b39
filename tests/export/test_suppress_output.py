"""Other runtimes send no telemetry, and a missing one is reported with what to install."""

import sys
from pathlib import Path

import pytest

from van.errors import MissingExtra
from van.export.suppress_output import import_without_telemetry

ISOLATED = """
import os, sys
from pathlib import Path
import numpy, onnx
from van.export.suppress_output import import_without_telemetry
onnx_file = Path(sys.argv[1]) / "same.onnx"
value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "same", [value("x")], [value("y")])
onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), onnx_file)
runtime = import_without_telemetry("onnxruntime")
session = runtime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
print(session.run(None, {"x": numpy.ones(1, numpy.float32)})[0])
openvino = import_without_telemetry("openvino")
print(openvino.Core().compile_model(openvino.Core().read_model(onnx_file), "CPU")(numpy.ones(1, numpy.float32))[0])
print(os.environ["ORT_DISABLE_TELEMETRY"], sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__)
"""


def test_the_runtimes_predict_and_write_no_machine_id(run_python, tmp_path):
    """Their telemetry starts by writing an id to the home folder; this test starts with an empty one."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    printed = run_python(ISOLATED, str(tmp_path), **environment).split("\n")
    assert printed[:2] == ["[1.]", "[1.]"]
    assert printed[2] == "1 openvino.tools.ovc.telemetry_stub"
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "openvino"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}.*\[export\]"):
        import_without_telemetry(package)


def test_a_package_with_a_broken_import_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        import_without_telemetry("broken")
