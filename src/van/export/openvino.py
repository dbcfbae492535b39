"""OpenVINO: an .xml with graph and header, its .bin with the weights, and OpenVINO that answers from them.

The graph is the ONNX one (``van.export.onnx``) as OpenVINO reads it. Left alone OpenVINO would compute in bfloat16
wherever the processor has it, faster or not, so it is told what to do: float32, but bfloat16 in a file with weights
in half the bytes for which bfloat16 was measured to be faster when it was written, on processors that have it.
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
from van.export.header import UNSEALED, Header, Precision, check_seal, seal
from van.export.onnx import OPSET, write_graph
from van.export.quiet import quiet_import
from van.export.session import ExportedNetwork, Session
from van.export.writing import ExportOptions, prepare
from van.models.load import Loaded

Arithmetic = Literal["float32", "bfloat16"]
_HEADER, _SEAL = ["van", "header"], ["van", "seal"]
_HINTS: dict[Arithmetic, str] = {"float32": "f32", "bfloat16": "bf16"}
_CLEARLY = 0.95
"""Of float32's time, at most, that bfloat16 must take to be worth its rounding."""
_ROUNDS = 20


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
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        between = Path(folder) / "between.onnx"
        write_graph(prepared, between, entries={})
        model = the_core().read_model(between)
        if options.half:
            header = _in_half(header, model, prepared.example.numpy())
        save(model, header, path, half=options.half)
    return path


def _in_half(header: Header, model: Any, pictures: np.ndarray) -> Header:
    """The same header for weights in half the bytes, with the arithmetic that is faster here."""
    precision: Precision = "float16"
    told = "float16 weights; OpenVINO computes in float32"
    if has_bfloat16() and header.task in ("classify", "segment"):  # boxes and queries need more than eight bits
        compiled: dict[str, Any] = {name: compile_model(model, arithmetic=name, threads=None) for name in _HINTS}
        times = median_times(compiled, pictures, rounds=_ROUNDS)
        if times["bfloat16"] < _CLEARLY * times["float32"]:
            ratio = times["float32"] / times["bfloat16"]
            told = f"float16 weights; OpenVINO computes in bfloat16, {ratio:.1f} times as fast as float32 here"
            precision = "bfloat16"
    return dataclasses.replace(header, precision=precision, notes=(*header.notes, told))


@functools.cache
def the_core() -> Any:
    """OpenVINO's own ``Core``, one for the process.

    With each of them its CPU plug-in (2026.4) gives the thread another stack for signal handlers, and with its end the
    one from before back, freed or not: after two that do not end in reverse order the next signal ends the process.
    """
    openvino: Any = quiet_import("openvino", purpose="computing with OpenVINO")
    return openvino.Core()


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_model(model: Any, *, arithmetic: Arithmetic, threads: int | None) -> Any:
    """An ``openvino.Model`` for this processor, for one picture after the other.

    Args:
        model: what to compile.
        arithmetic: of what is not in 8 bits.
        threads: as many as OpenVINO likes if None.
    """
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[arithmetic], "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return the_core().compile_model(model, "CPU", settings)


def median_times(compiled: Mapping[str, Any], pictures: np.ndarray, *, rounds: int) -> dict[str, float]:
    """The median time of each in milliseconds, taken in turn.

    Each runs once before it is timed, which brings back its caches.
    """
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for turn in range(-2, rounds):
        for name, network in compiled.items():
            network([pictures])
            began = time.perf_counter()
            network([pictures])
            if turn >= 0:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


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


def open_session(
    path: Path, *, threads: int | None = None, device: str = "cpu", arithmetic: Arithmetic | None = None
) -> Session:
    """OpenVINO's CPU plug-in on ``path``; several threads may ask at once.

    Args:
        path: the .xml; its .bin lies beside it.
        threads: see ``van.export.formats.open_session``.
        device: ``cpu``.
        arithmetic: of what is not in 8 bits; the file's own if None, float32 where the processor has no bfloat16.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``.
        MissingExtra: openvino is not installed.
        UsageError: another device is asked for.
    """
    quiet_import("openvino", purpose="answering from an OpenVINO file")
    if device != "cpu":
        raise UsageError(f"device is {device!r}; OpenVINO files are answered from on the cpu here")
    check_seal(path, path.with_suffix(".bin"))
    try:
        model = the_core().read_model(path)
        header = Header.from_json(str(model.get_rt_info(_HEADER).value), path=path)
        if arithmetic is None:
            arithmetic = "bfloat16" if "bfloat16" in header.precision and has_bfloat16() else "float32"
        compiled = compile_model(model, arithmetic=arithmetic, threads=threads)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: OpenVINO cannot open it ({error}); export it again") from error
    idle: list[Any] = []  # a request serves one caller at a time; pop and append are atomic

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        request = _taken(idle) or compiled.create_infer_request()
        found = request.infer({name: values.numpy() for name, values in inputs.items()}, share_inputs=True)
        outputs = [torch.from_numpy(found[name].copy()) for name in header.outputs]
        idle.append(request)
        return outputs

    return ExportedNetwork(header, run)


def _taken(idle: list[Any]) -> Any:
    try:
        return idle.pop()
    except IndexError:  # all are at work, or another thread was faster
        return None
