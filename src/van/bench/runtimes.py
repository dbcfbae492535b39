"""Networks outside PyTorch: an ONNX file, and ONNX Runtime and OpenVINO that answer from it.

Both libraries send usage data home unless told not to, from the moment they are imported (seen in
onnxruntime 1.31 and openvino 2026.4): here they are told before that. Float32 throughout.
"""

import importlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from van.errors import MissingExtra
from van.ops import use_backend

_INPUT, _BATCH = "pictures", "batch"


def quiet_import(name: str) -> ModuleType:
    """Import onnx, onnxruntime or openvino with their telemetry switched off.

    ONNX Runtime reads ``ORT_DISABLE_TELEMETRY`` once, when it is loaded. OpenVINO does without the package
    ``openvino_telemetry`` where there is none, so it is made to find none.

    Raises:
        MissingExtra: the package is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # pyrefly: ignore  # None is how an import is refused
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingExtra(name, "export", "measuring this way to run a network") from error


def write_onnx(model: nn.Module, pictures: Tensor, path: Path) -> Path:
    """Write ``model`` for any number of pictures like ``pictures`` (N, 3, H, W), N at least 2, to ``path``."""
    quiet_import("onnx")
    quiet_import("onnxscript")
    with use_backend("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            model,
            (pictures,),
            path,
            dynamo=True,
            verbose=False,
            external_data=False,  # one file; B6, the largest here, has 0.8 of the 2 GB that fit
            input_names=[_INPUT],
            dynamic_shapes=({0: torch.export.Dim(_BATCH)},),
        )
    return path


class OnnxRuntimeSession:
    """An ONNX file on ONNX Runtime's CPU provider, for ``batch_size`` pictures at once."""

    def __init__(self, path: Path, *, batch_size: int, threads: int) -> None:
        runtime: Any = quiet_import("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name(_BATCH, batch_size)
        # its threads wait for work by spinning; left to it, they would slow down whoever is timed next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(self, pictures: Tensor) -> Tensor:
        """The logits (N, classes) of pictures (N, 3, H, W)."""
        return torch.from_numpy(self._session.run(None, {_INPUT: pictures.numpy()})[0])


class OpenVinoSession:
    """An ONNX file on OpenVINO's CPU plug-in, for pictures of one shape (N, 3, H, W)."""

    def __init__(self, path: Path, *, shape: tuple[int, ...], threads: int) -> None:
        openvino: Any = quiet_import("openvino")
        core = openvino.Core()
        network = core.read_model(path)
        network.reshape(list(shape))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # it would choose bfloat16 where the processor has it
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._compiled = core.compile_model(network, "CPU", settings)

    def answer(self, pictures: Tensor) -> Tensor:
        """The logits (N, classes) of pictures (N, 3, H, W)."""
        return torch.from_numpy(self._compiled(pictures.numpy())[0])
