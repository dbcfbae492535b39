"""ONNX export: one file with graph, weights and header, and a session on ONNX Runtime.

The graph comes from PyTorch's exporter (dynamo) and is simplified by onnxscript's optimizer: constants are folded and
unused nodes removed. ONNX Runtime fuses further when it opens the file.
Shapes: see ``van.export.writing``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from van.errors import CheckpointError, UsageError
from van.export.header import CHECKSUM_PLACEHOLDER, Header, verify_checksum, write_checksum
from van.export.session import ExportedNetwork, Session
from van.export.suppress_output import import_without_telemetry, suppress_log
from van.export.writing import INPUT, ExportOptions, Prepared, prepare, reference_graph
from van.model import Model

OPSET = 20
"""Supported by ONNX Runtime 1.17 and OpenVINO 2024; has GELU as one operator."""
MAX_BYTES = 2**31 - 2**20
"""A Protobuf message is smaller than 2 GiB; the remaining MiB is for graph and header."""
_HEADER, _CHECKSUM = "van", "van_checksum"


def write(loaded: Model, path: Path, *, options: ExportOptions) -> Path:
    """Write ``loaded`` to ``path``; ONNX's own checker passes, predictions are not yet compared with PyTorch.

    Raises:
        CheckpointError: the weights are too large for one file.
        MissingExtra: onnx or onnxscript is not installed.
        UsageError: the network cannot be exported; see ``van.export.writing``.
    """
    onnx: Any = import_without_telemetry("onnx", purpose="ONNX export")
    onnxscript: Any = import_without_telemetry("onnxscript", purpose="ONNX export")
    versions = {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    prepared = prepare(loaded, options, format="onnx", opset=f"ai.onnx {OPSET}", versions=versions)
    write_graph(prepared, path, metadata={_HEADER: prepared.header.to_json(), _CHECKSUM: CHECKSUM_PLACEHOLDER})
    onnx.checker.check_model(path, full_check=True)
    write_checksum(path)
    return path


def write_graph(prepared: Prepared, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Translate ``prepared`` to ONNX and write it with ``metadata`` as its metadata properties.

    Raises:
        CheckpointError: the weights are too large for one file.
        UsageError: PyTorch cannot trace the network.
    """
    size = sum(tensor.nbytes for tensor in prepared.module.state_dict().values())
    if size > MAX_BYTES:
        raise CheckpointError(
            f"weights: expected less than 2 GiB, the limit of one ONNX file, got {size / 2**30:.2f} GiB; use --half "
            "or --format torch-export"
        )
    header = prepared.header
    translated = translate(prepared.program(), header.outputs, inputs=tuple(header.inputs))
    translated.model.metadata_props.update(metadata)
    translated.save(path, external_data=False)


def translate(
    program: torch.export.ExportedProgram, outputs: Sequence[str], *, inputs: Sequence[str] = (INPUT,)
) -> torch.onnx.ONNXProgram:
    """Translate a program to ONNX operators and simplify the graph.

    Args:
        program: the exported program.
        outputs, inputs: their names.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
        UsageError: ONNX has no equivalent of one of the program's operators.
    """
    for package in ("onnx", "onnxscript"):
        import_without_telemetry(package, purpose="ONNX export")
    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0  # or the exporter's progress bar leaves a thread running
    try:
        with reference_graph(), suppress_log("onnxscript"):
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
        lines = [line for line in str(error).splitlines() if "Error" in line]
        raise UsageError(f"ONNX export failed: {lines[0] if lines else error}") from error
    finally:
        tqdm.monitor_interval = interval
    assert translated is not None
    return translated


def open_session(path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
    """Open ``path`` in ONNX Runtime; the session is thread-safe.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``.
        MissingExtra: onnxruntime is not installed.
        UsageError: ONNX Runtime has no provider for the device.
    """
    runtime: Any = import_without_telemetry("onnxruntime", purpose="inference with an ONNX file")
    verify_checksum(path)
    providers = _providers(runtime, device)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
    try:
        session = runtime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # ONNX Runtime raises many exception types of its own
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it ({error}); export it again") from error
    header = Header.from_json(session.get_modelmeta().custom_metadata_map.get(_HEADER, ""), path=path)
    names = list(header.outputs)

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        arrays = {name: values.numpy() for name, values in inputs.items()}
        return [torch.from_numpy(output) for output in session.run(names, arrays)]

    return ExportedNetwork(header, run)


def _providers(runtime: Any, device: str) -> list[str]:
    kind = device.partition(":")[0]
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    available = runtime.get_available_providers()
    if provider not in available:
        raise UsageError(f"device: expected cpu, got {device!r}; this ONNX Runtime has only {', '.join(available)}")
    return list(dict.fromkeys([str(provider), "CPUExecutionProvider"]))
