"""ONNX: one file with graph, weights and header, and ONNX Runtime that answers from it.

The graph comes from PyTorch's exporter (dynamo), whose translation onnxscript's optimiser has simplified: constants
folded, and what nothing reads left out. ONNX Runtime fuses further when it opens the file.
Shapes: see ``van.export.writing``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from van.errors import CheckpointError, UsageError
from van.export.header import UNSEALED, Header, check_seal, seal
from van.export.quiet import quiet_import, quiet_log
from van.export.session import ExportedNetwork, Session
from van.export.writing import INPUT, ExportOptions, Prepared, plain_graph, prepare
from van.models.load import Loaded

OPSET = 20
"""Old enough for ONNX Runtime 1.17 and OpenVINO 2024; it has GELU as one operator."""
MAX_BYTES = 2**31 - 2**20
"""Protobuf holds no message of 2 GiB or more; what is left over is for graph and header."""
_HEADER, _SEAL = "van", "van_seal"


def write(loaded: Loaded, path: Path, *, options: ExportOptions) -> Path:
    """Write ``loaded`` to ``path``; the file is valid under ONNX's own checker, but not yet compared with PyTorch.

    Raises:
        CheckpointError: the weights are too large for one file.
        MissingExtra: onnx or onnxscript is not installed.
        UsageError: the network cannot be exported; see ``van.export.writing``.
    """
    onnx: Any = quiet_import("onnx", purpose="writing an ONNX file")
    onnxscript: Any = quiet_import("onnxscript", purpose="writing an ONNX file")
    versions = {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    prepared = prepare(loaded, options, format="onnx", opset=f"ai.onnx {OPSET}", versions=versions)
    write_graph(prepared, path, entries={_HEADER: prepared.header.to_json(), _SEAL: UNSEALED})
    onnx.checker.check_model(path, full_check=True)
    seal(path)
    return path


def write_graph(prepared: Prepared, path: Path, *, entries: Mapping[str, str]) -> None:
    """Translate ``prepared`` and write it with ``entries`` as metadata.

    Raises:
        CheckpointError: the weights are too large for one file.
        UsageError: PyTorch cannot read the network.
    """
    size = sum(tensor.nbytes for tensor in prepared.module.state_dict().values())
    if size > MAX_BYTES:
        raise CheckpointError(
            f"the weights are {size / 2**30:.2f} GiB, and one ONNX file holds less than 2; use --half or openvino"
        )
    header = prepared.header
    translated = translate(prepared.program(), header.outputs, inputs=tuple(header.inputs))
    translated.model.metadata_props.update(entries)
    translated.save(path, external_data=False)


def translate(
    program: torch.export.ExportedProgram, outputs: Sequence[str], *, inputs: Sequence[str] = (INPUT,)
) -> torch.onnx.ONNXProgram:
    """The graph in ONNX's operators, simplified.

    Args:
        program: what to translate.
        outputs, inputs: their names.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
        UsageError: there is no ONNX operator for one of the program's.
    """
    for package in ("onnx", "onnxscript"):
        quiet_import(package, purpose="writing an ONNX file")
    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0  # or the exporter's bar leaves a thread behind
    try:
        with plain_graph(), quiet_log("onnxscript"):
            translated = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                optimize=True,
            )
    except torch.onnx.OnnxExporterError as error:
        inner = [line for line in str(error).splitlines() if "Error" in line]
        raise UsageError(f"the network cannot be written as ONNX: {inner[0] if inner else error}") from error
    finally:
        tqdm.monitor_interval = interval
    assert translated is not None
    return translated


def open_session(path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
    """ONNX Runtime on ``path``; several threads may ask at once.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``.
        MissingExtra: onnxruntime is not installed.
        UsageError: it has no such device here.
    """
    runtime: Any = quiet_import("onnxruntime", purpose="answering from an ONNX file")
    check_seal(path)
    providers = _providers(runtime, device)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
    try:
        session = runtime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own, many kinds
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it ({error}); export it again") from error
    header = Header.from_json(session.get_modelmeta().custom_metadata_map.get(_HEADER, ""), path=path)
    names = list(header.outputs)

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        arrays = {name: values.numpy() for name, values in inputs.items()}
        return [torch.from_numpy(output) for output in session.run(names, arrays)]

    return ExportedNetwork(header, run)


def _providers(runtime: Any, device: str) -> list[str]:
    kind = device.partition(":")[0]
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    present = runtime.get_available_providers()
    if wanted not in present:
        raise UsageError(f"device is {device!r}, and this ONNX Runtime has {', '.join(present)}; wanted cpu")
    return list(dict.fromkeys([str(wanted), "CPUExecutionProvider"]))
