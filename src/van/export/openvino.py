"""OpenVINO: an .xml with graph and header, its .bin with the weights, and OpenVINO that answers from them.

The graph is the ONNX one (``van.export.onnx``) as OpenVINO reads it. Weights may be stored as float16; the
arithmetic is float32 all the same, because OpenVINO would choose bfloat16 where the processor has it, and differ by
6e-4 on a ResNet. Shapes: see ``van.export.writing``.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from van.errors import CheckpointError, UsageError
from van.export.header import UNSEALED, Header, check_seal, seal
from van.export.onnx import OPSET, write_graph
from van.export.quiet import quiet_import
from van.export.session import ExportedNetwork, Session
from van.export.writing import INPUT, ExportOptions, prepare
from van.models.load import Loaded

_HEADER, _SEAL = ["van", "header"], ["van", "seal"]


def write(loaded: Loaded, path: Path, *, options: ExportOptions) -> Path:
    """Write ``loaded`` to ``path`` and the ``.bin`` beside it, not yet compared with PyTorch.

    Raises:
        CheckpointError: the weights are too large for ONNX, which they go through.
        MissingExtra: openvino, onnx or onnxscript is not installed.
        UsageError: the network cannot be exported; see ``van.export.writing``.
    """
    openvino: Any = quiet_import("openvino", purpose="writing an OpenVINO file")
    onnx: Any = quiet_import("onnx", purpose="writing an OpenVINO file")
    onnxscript: Any = quiet_import("onnxscript", purpose="writing an OpenVINO file")
    versions = {
        "openvino": openvino.get_version(),
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
    }
    prepared = prepare(
        loaded,
        options,
        format="openvino",
        precision="float32",
        opset=f"OpenVINO IR from ai.onnx {OPSET}",
        versions=versions,
    )
    header = prepared.header
    if options.half:
        header = _with_half_weights(header)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        between = Path(folder) / "between.onnx"
        write_graph(prepared, between, entries={})
        save(openvino.Core().read_model(between), header, path, half=options.half)
    return path


def _with_half_weights(header: Header) -> Header:
    """The same header, saying so."""
    return dataclasses.replace(
        header, precision="float16", notes=(*header.notes, "float16 weights; OpenVINO computes in float32")
    )


def save(model: Any, header: Header, path: Path, *, half: bool = False) -> None:
    """Write an OpenVINO model with its header, and seal the two files.

    Args:
        model: an ``openvino.Model``.
        header: of the file.
        path: ends in ``.xml``.
        half: store float16 weights.
    """
    openvino: Any = quiet_import("openvino", purpose="writing an OpenVINO file")
    model.set_rt_info(header.to_json(), _HEADER)
    model.set_rt_info(UNSEALED, _SEAL)
    openvino.save_model(model, path, compress_to_fp16=half)
    seal(path, path.with_suffix(".bin"))


def open_session(path: Path, *, threads: int | None = None, device: str = "cpu", precision: str = "f32") -> Session:
    """OpenVINO's CPU plug-in on ``path``; several threads may ask at once.

    Args:
        path: the .xml; its .bin lies beside it.
        threads: see ``van.export.formats.open_session``.
        device: ``cpu``.
        precision: of the arithmetic, in OpenVINO's words; ``bf16`` is faster where the processor has it.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``.
        MissingExtra: openvino is not installed.
        UsageError: another device is asked for.
    """
    openvino: Any = quiet_import("openvino", purpose="answering from an OpenVINO file")
    if device != "cpu":
        raise UsageError(f"device is {device!r}; OpenVINO files are answered from on the cpu here")
    check_seal(path, path.with_suffix(".bin"))
    core = openvino.Core()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(path)
        header = Header.from_json(str(model.get_rt_info(_HEADER).value), path=path)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: OpenVINO cannot open it ({error}); export it again") from error
    idle: list[Any] = []  # a request serves one caller at a time; pop and append are atomic

    def run(pictures: Tensor) -> list[Tensor]:
        request = _taken(idle) or compiled.create_infer_request()
        found = request.infer({INPUT: pictures.numpy()}, share_inputs=True)
        outputs = [torch.from_numpy(found[name].copy()) for name in header.outputs]
        idle.append(request)
        return outputs

    return ExportedNetwork(header, run)


def _taken(idle: list[Any]) -> Any:
    try:
        return idle.pop()
    except IndexError:  # all are at work, or another thread was faster
        return None
