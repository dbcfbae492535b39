"""Inference sessions outside PyTorch for benchmarks: ONNX Runtime and OpenVINO on an ONNX file.

The graph is the one that ``van.export`` writes, without class names and preprocessing, for one image size and
one batch size. All arithmetic is in float32.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from van.export.onnx import translate
from van.export.openvino import get_core
from van.export.suppress_output import import_without_telemetry
from van.export.writing import INPUT, reference_graph

_PURPOSE = "benchmarking exported networks"
_BATCH = "batch"


def write_onnx(model: nn.Module, images: Tensor, path: Path) -> Path:
    """Write ``model`` to ``path`` with a dynamic batch size, traced with ``images`` (N, 3, H, W), N at least 2."""
    with reference_graph():
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim(_BATCH)},))
    translate(program, ["logits"]).save(path, external_data=False)
    return path


class OnnxRuntimeSession:
    """An ONNX file on ONNX Runtime's CPU provider, for batches of ``batch_size`` images."""

    def __init__(self, path: Path, *, batch_size: int, threads: int) -> None:
        runtime: Any = import_without_telemetry("onnxruntime", purpose=_PURPOSE)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name(_BATCH, batch_size)
        # its threads spin while they wait for work, which would slow down the backend that is timed next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, 3, H, W)."""
        return torch.from_numpy(self._session.run(None, {INPUT: images.numpy()})[0])


class OpenVinoSession:
    """An ONNX file on OpenVINO's CPU plug-in, for images of one shape (N, 3, H, W)."""

    def __init__(self, path: Path, *, shape: tuple[int, ...], threads: int) -> None:
        import_without_telemetry("openvino", purpose=_PURPOSE)
        core = get_core()
        network = core.read_model(path)
        network.reshape(list(shape))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on CPUs that support it
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._prepare_compiled = core.compile_model(network, "CPU", settings)

    def run(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, 3, H, W)."""
        return torch.from_numpy(self._prepare_compiled(images.numpy())[0])
