"""The ways to run a network, each from the same weights.

A way is prepared once for a network, then bound to pictures: what comes back is a call without
arguments that answers with logits. What PyTorch does once (compiling, building, loading code) is done by then.
Shapes: pictures (N, 3, H, W) in NCHW, float32; logits (N, 1000).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from van.bench.networks import CHANNELS_LAST, NCHW, Network
from van.bench.runtimes import OnnxRuntimeSession, OpenVinoSession
from van.bench.subject import Subject
from van.errors import UsageError
from van.ops import use_backend

WAYS = {
    "van": "this package: fused, channels_last, its own operators",
    "reference": "VAN as released: plain PyTorch, unfused, NCHW",
    "eager": "the others as timm has them, in their usual layout",
    "compile": "torch.compile of plain PyTorch (fused first, if a VAN), in the usual layout",
    "van_compile": "torch.compile of what van is, its own operators inside",
    "onnxruntime": "ONNX Runtime on the CPU (fused first, if a VAN)",
    "openvino": "OpenVINO on the CPU in float32 (fused first, if a VAN)",
}
_MOST_COMPILED = 256
"""Networks and batch sizes at once; PyTorch's own limit of 8 is for one network that changes its mind."""

_CODE_GENERATOR = "inductor"

Bound = Callable[[], Tensor]
Runner = Callable[[Tensor], Bound]


def ways_of(network: Network) -> tuple[str, ...]:
    """The names of the ways that ``network`` can go."""
    own = ("van", "reference", "van_compile") if network.is_van else ("eager",)
    return (*own, "compile", "onnxruntime", "openvino")


def prepare(way: str, subject: Subject, *, threads: int, device: torch.device) -> Runner:
    """Make ready to run ``subject`` that way.

    Raises:
        MissingExtra: an optional package is needed and absent.
        UsageError: the way does not lead to the device.
    """
    if way in ("onnxruntime", "openvino"):
        if device.type != "cpu":
            raise UsageError(f"{way} is measured on the CPU only; the device is {device}")
        return _exported(way, subject, threads=threads)
    if way == "reference":
        return _in_pytorch(subject.model, NCHW, device, backend="reference")
    if way in ("compile", "van_compile"):
        return _compiled(subject, device, backend="reference" if way == "compile" else "auto")
    return _in_pytorch(subject.deployed, layout_of(way, subject.network), device)


def layout_of(way: str, network: Network) -> str:
    """How pictures lie in memory on that way."""
    return NCHW if way in ("reference", "onnxruntime", "openvino") else network.layout


def on_device(model: nn.Module, layout: str, device: torch.device) -> nn.Module:
    """A copy of ``model`` there, its weights in that layout."""
    model = copy.deepcopy(model).to(device)
    return model.to(memory_format=_format(layout))  # pyrefly: ignore[no-matching-overload]


def place(pictures: Tensor, layout: str, device: torch.device) -> Tensor:
    """The pictures there, in that layout."""
    return pictures.to(device).contiguous(memory_format=_format(layout))


def _format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == CHANNELS_LAST else torch.contiguous_format


def _in_pytorch(model: nn.Module, layout: str, device: torch.device, *, backend: str = "auto") -> Runner:
    model = on_device(model, layout, device)

    def bind(pictures: Tensor) -> Bound:
        placed = place(pictures, layout, device)

        def call() -> Tensor:
            with torch.inference_mode(), use_backend(backend):
                return model(placed)

        call()
        return call

    return bind


def _compiled(subject: Subject, device: torch.device, *, backend: str) -> Runner:
    layout = subject.network.layout
    model = on_device(subject.deployed, layout, device)
    generate = torch._dynamo.lookup_backend(_CODE_GENERATOR)
    # Compiled code is kept by code object and shared among all networks of a class. A code generator of its own
    # keeps each network, and each backend, from being served by another's.
    own = lambda graph, inputs: generate(graph, inputs)  # noqa: E731
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=own)  # whole, or an error

    def bind(pictures: Tensor) -> Bound:
        placed = place(pictures, layout, device)

        def call() -> Tensor:
            with torch.inference_mode(), use_backend(backend):
                return compiled(placed)

        with torch._dynamo.config.patch(recompile_limit=_MOST_COMPILED):
            call()
        return call

    return bind


def _exported(way: str, subject: Subject, *, threads: int) -> Runner:
    def bind(pictures: Tensor) -> Bound:
        if way == "onnxruntime":
            session = OnnxRuntimeSession(subject.onnx, batch_size=len(pictures), threads=threads)
        else:
            session = OpenVinoSession(subject.onnx, shape=tuple(pictures.shape), threads=threads)
        placed = pictures.contiguous()
        return lambda: session.answer(placed)

    return bind
