"""The backends that run a network in the benchmarks, all from the same weights.

A backend is prepared once for a network, then bound to images. The bound call takes no arguments and returns
logits. One-time work (compiling, building, loading code) is done when it is bound.
Shapes: images (N, 3, H, W) in NCHW, float32; logits (N, 1000).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from van.bench.benchmark_model import BenchmarkModel
from van.bench.networks import CHANNELS_LAST, NCHW, Network
from van.bench.runtimes import OnnxRuntimeSession, OpenVinoSession
from van.errors import UsageError
from van.ops import use_backend

BACKENDS = {
    "van": "this package: fused, channels_last, fast operators",
    "reference": "VAN as released: plain PyTorch, unfused, NCHW",
    "eager": "peer networks in timm, eager mode, in their preferred layout",
    "compile": "torch.compile of plain PyTorch operators (fused if a VAN), in the preferred layout",
    "van_compile": "torch.compile of the van backend, with its fast operators",
    "onnxruntime": "ONNX Runtime on the CPU (fused if a VAN)",
    "openvino": "OpenVINO on the CPU in float32 (fused if a VAN)",
}
"""Every backend and its description."""
_RECOMPILE_LIMIT = 256
"""Recompilations for all networks and batch sizes of a run; PyTorch's default of 8 is meant for one network."""

_COMPILER_BACKEND = "inductor"

BoundCall = Callable[[], Tensor]
Runner = Callable[[Tensor], BoundCall]


def supported_backends(network: Network) -> tuple[str, ...]:
    """Return the names of the backends that support ``network``."""
    own = ("van", "reference", "van_compile") if network.is_van else ("eager",)
    return (*own, "compile", "onnxruntime", "openvino")


def prepare(backend: str, benchmark_model: BenchmarkModel, *, threads: int, device: torch.device) -> Runner:
    """Prepare ``backend`` for a model and return a function that binds it to images.

    Raises:
        MissingExtra: an optional package is missing.
        UsageError: the backend does not support the device.
    """
    if backend in ("onnxruntime", "openvino"):
        if device.type != "cpu":
            raise UsageError(f"backend {backend}: expected device cpu, got {device}")
        return _prepare_exported(backend, benchmark_model, threads=threads)
    if backend == "reference":
        return _prepare_pytorch(benchmark_model.model, NCHW, device, ops_backend="reference")
    if backend in ("compile", "van_compile"):
        return _prepare_compiled(benchmark_model, device, ops_backend="reference" if backend == "compile" else "auto")
    return _prepare_pytorch(benchmark_model.fused, layout_of(backend, benchmark_model.network), device)


def layout_of(backend: str, network: Network) -> str:
    """Return the memory layout of images on a backend."""
    return NCHW if backend in ("reference", "onnxruntime", "openvino") else network.layout


def copy_to_device(model: nn.Module, layout: str, device: torch.device) -> nn.Module:
    """Return a copy of ``model`` on the device, with weights in the given layout."""
    model = copy.deepcopy(model).to(device)
    return model.to(memory_format=_memory_format(layout))  # pyrefly: ignore[no-matching-overload]


def to_device(images: Tensor, layout: str, device: torch.device) -> Tensor:
    """Return the images on the device, in the given layout."""
    return images.to(device).contiguous(memory_format=_memory_format(layout))


def _memory_format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == CHANNELS_LAST else torch.contiguous_format


def _prepare_pytorch(model: nn.Module, layout: str, device: torch.device, *, ops_backend: str = "auto") -> Runner:
    model = copy_to_device(model, layout, device)

    def bind(images: Tensor) -> BoundCall:
        device_images = to_device(images, layout, device)

        def call() -> Tensor:
            with torch.inference_mode(), use_backend(ops_backend):
                return model(device_images)

        call()
        return call

    return bind


def _prepare_compiled(benchmark_model: BenchmarkModel, device: torch.device, *, ops_backend: str) -> Runner:
    layout = benchmark_model.network.layout
    model = copy_to_device(benchmark_model.fused, layout, device)
    generate = torch._dynamo.lookup_backend(_COMPILER_BACKEND)
    # Dynamo caches compiled code per code object, which all networks of a class share. A new function per network
    # and backend prevents that one runs the compiled code of another.
    unique = lambda graph, inputs: generate(graph, inputs)  # noqa: E731
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=unique)  # graph breaks are errors

    def bind(images: Tensor) -> BoundCall:
        device_images = to_device(images, layout, device)

        def call() -> Tensor:
            with torch.inference_mode(), use_backend(ops_backend):
                return compiled(device_images)

        with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
            call()
        return call

    return bind


def _prepare_exported(backend: str, benchmark_model: BenchmarkModel, *, threads: int) -> Runner:
    def bind(images: Tensor) -> BoundCall:
        if backend == "onnxruntime":
            session = OnnxRuntimeSession(benchmark_model.onnx, batch_size=len(images), threads=threads)
        else:
            session = OpenVinoSession(benchmark_model.onnx, shape=tuple(images.shape), threads=threads)
        device_images = images.contiguous()
        return lambda: session.run(device_images)

    return bind
