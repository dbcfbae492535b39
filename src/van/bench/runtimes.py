"""Networks outside PyTorch as they are measured: an ONNX file, and ONNX Runtime and OpenVINO that answer from it.

What is measured is the graph that ``van.export`` writes, without labels and preprocessing, for pictures of one size
and, once bound, of one number. Float32 throughout.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from van.export.onnx import translate
from van.export.openvino import the_core
from van.export.quiet import quiet_import
from van.export.writing import INPUT, plain_graph

_PURPOSE = "measuring this way to run a network"
_BATCH = "batch"


def write_onnx(model: nn.Module, pictures: Tensor, path: Path) -> Path:
    """Write ``model`` for any number of pictures like ``pictures`` (N, 3, H, W), N at least 2, to ``path``."""
    with plain_graph():
        program = torch.export.export(model, (pictures,), dynamic_shapes=({0: torch.export.Dim(_BATCH)},))
    translate(program, ["logits"]).save(path, external_data=False)
    return path


class OnnxRuntimeSession:
    """An ONNX file on ONNX Runtime's CPU provider, for ``batch_size`` pictures at once."""

    def __init__(self, path: Path, *, batch_size: int, threads: int) -> None:
        runtime: Any = quiet_import("onnxruntime", purpose=_PURPOSE)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name(_BATCH, batch_size)
        # its threads wait for work by spinning; left to it, they would slow down whoever is timed next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(self, pictures: Tensor) -> Tensor:
        """The logits (N, classes) of pictures (N, 3, H, W)."""
        return torch.from_numpy(self._session.run(None, {INPUT: pictures.numpy()})[0])


class OpenVinoSession:
    """An ONNX file on OpenVINO's CPU plug-in, for pictures of one shape (N, 3, H, W)."""

    def __init__(self, path: Path, *, shape: tuple[int, ...], threads: int) -> None:
        quiet_import("openvino", purpose=_PURPOSE)
        core = the_core()
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
