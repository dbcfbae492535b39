"""OpenVINO export: an .xml with graph and header, a .bin with the weights, and a session on OpenVINO's CPU plug-in.

OpenVINO reads the graph from ONNX (``van.export.onnx``). By default it computes in bfloat16 wherever the processor
supports it, faster or not; here the precision is explicit: float32, or bfloat16 if the file has float16 weights, the
processor supports bfloat16, and bfloat16 was measurably faster when the file was written.
Shapes: see ``van.export.writing``.
"""

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from van.errors import CheckpointError, UsageError
from van.export.header import CHECKSUM_PLACEHOLDER, Header, Precision, verify_checksum, write_checksum
from van.export.onnx import OPSET, write_graph
from van.export.session import ExportedNetwork, Session
from van.export.suppress_output import import_without_telemetry
from van.export.writing import ExportOptions, prepare
from van.model import Model

Arithmetic = Literal["float32", "bfloat16"]
_HEADER, _CHECKSUM = ["van", "header"], ["van", "checksum"]
_HINTS: dict[Arithmetic, str] = {"float32": "f32", "bfloat16": "bf16"}
_MAX_RELATIVE_LATENCY = 0.95
"""bfloat16 is chosen if its latency is at most this fraction of float32's, to be worth its rounding."""
_ROUNDS = 20


def write(loaded: Model, path: Path, *, options: ExportOptions) -> Path:
    """Write ``loaded`` to ``path`` and the ``.bin`` beside it; predictions are not yet compared with PyTorch.

    Raises:
        CheckpointError: the weights are too large for ONNX, from which OpenVINO reads the graph.
        MissingExtra: openvino, onnx or onnxscript is not installed.
        UsageError: the network cannot be exported; see ``van.export.writing``.
    """
    openvino: Any = import_without_telemetry("openvino", purpose="OpenVINO export")
    onnx: Any = import_without_telemetry("onnx", purpose="OpenVINO export")
    onnxscript: Any = import_without_telemetry("onnxscript", purpose="OpenVINO export")
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
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        onnx_path = Path(folder) / "network.onnx"
        write_graph(prepared, onnx_path, metadata={})
        model = get_core().read_model(onnx_path)
        if options.half:
            header = _half_header(header, model, prepared.example.numpy())
        save(model, header, path, half=options.half)
    return path


def _half_header(header: Header, model: Any, images: np.ndarray) -> Header:
    """Return the header for float16 weights, with the arithmetic that is faster on this processor."""
    precision: Precision = "float16"
    note = "float16 weights; OpenVINO computes in float32"
    # Box regression and queries need more than the 8 bits of bfloat16's significand.
    if has_bfloat16() and header.task in ("classify", "segment"):
        compiled: dict[str, Any] = {name: compile_model(model, arithmetic=name, threads=None) for name in _HINTS}
        times = median_times(compiled, images, rounds=_ROUNDS)
        if times["bfloat16"] < _MAX_RELATIVE_LATENCY * times["float32"]:
            ratio = times["float32"] / times["bfloat16"]
            note = f"float16 weights; OpenVINO computes in bfloat16, {ratio:.1f}x as fast as float32 on this machine"
            precision = "bfloat16"
    return dataclasses.replace(header, precision=precision, notes=(*header.notes, note))


@functools.cache
def get_core() -> Any:
    """Return OpenVINO's ``Core``, one for the whole process.

    Each instance of the CPU plug-in (2026.4) sets an alternate signal stack for the thread, and restores the previous
    one when it ends, even if that was freed. After two instances that do not end in reverse order, the next signal
    crashes the process.
    """
    openvino: Any = import_without_telemetry("openvino", purpose="inference with OpenVINO")
    return openvino.Core()


def has_bfloat16() -> bool:
    """Return whether OpenVINO supports bfloat16 on this processor."""
    return "BF16" in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_model(model: Any, *, arithmetic: Arithmetic, threads: int | None) -> Any:
    """Compile an ``openvino.Model`` for this processor and for low latency.

    Args:
        model: the model to compile.
        arithmetic: of the layers that are not int8.
        threads: OpenVINO's default if None.
    """
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[arithmetic], "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return get_core().compile_model(model, "CPU", settings)


def median_times(compiled: Mapping[str, Any], images: np.ndarray, *, rounds: int) -> dict[str, float]:
    """Return the median latency of each network in milliseconds, measured in alternation.

    Alternation exposes all networks to the same load of the machine. Each runs once before it is timed, because the
    others evicted its data from the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for turn in range(-2, rounds):
        for name, network in compiled.items():
            network([images])
            began = time.perf_counter()
            network([images])
            if turn >= 0:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def save(model: Any, header: Header, path: Path, *, half: bool = False) -> None:
    """Write an OpenVINO model with its header, and a checksum over its two files.

    Args:
        model: an ``openvino.Model``.
        header: the metadata of the file.
        path: ends in ``.xml``.
        half: store float16 weights.
    """
    openvino: Any = import_without_telemetry("openvino", purpose="OpenVINO export")
    model.set_rt_info(header.to_json(), _HEADER)
    model.set_rt_info(CHECKSUM_PLACEHOLDER, _CHECKSUM)
    openvino.save_model(model, path, compress_to_fp16=half)
    write_checksum(path, path.with_suffix(".bin"))


def open_session(
    path: Path, *, threads: int | None = None, device: str = "cpu", arithmetic: Arithmetic | None = None
) -> Session:
    """Open ``path`` with OpenVINO's CPU plug-in; the session is thread-safe.

    Args:
        path: the .xml, with its .bin beside it.
        threads: see ``van.export.formats.open_session``.
        device: ``cpu``.
        arithmetic: of the layers that are not int8; the file's if None, float32 if the processor has no bfloat16.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``.
        MissingExtra: openvino is not installed.
        UsageError: ``device`` is not ``cpu``.
    """
    import_without_telemetry("openvino", purpose="inference with an OpenVINO file")
    if device != "cpu":
        raise UsageError(f"device: expected cpu for an OpenVINO file, got {device!r}")
    verify_checksum(path, path.with_suffix(".bin"))
    try:
        model = get_core().read_model(path)
        header = Header.from_json(str(model.get_rt_info(_HEADER).value), path=path)
        if arithmetic is None:
            arithmetic = "bfloat16" if "bfloat16" in header.precision and has_bfloat16() else "float32"
        compiled = compile_model(model, arithmetic=arithmetic, threads=threads)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: OpenVINO cannot open it ({error}); export it again") from error
    # An infer request serves one caller at a time; list.pop and list.append are atomic.
    idle: list[Any] = []

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        request = _pop_or_none(idle) or compiled.create_infer_request()
        results = request.infer({name: values.numpy() for name, values in inputs.items()}, share_inputs=True)
        outputs = [torch.from_numpy(results[name].copy()) for name in header.outputs]
        idle.append(request)
        return outputs

    return ExportedNetwork(header, run)


def _pop_or_none(idle: list[Any]) -> Any:
    try:
        return idle.pop()
    except IndexError:  # all requests are busy, or another thread took the last one
        return None
