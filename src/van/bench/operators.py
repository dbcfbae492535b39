"""The operators of VAN on every backend, at the shapes of its four stages.

Each backend is first compared with the definition in float64, forward and backward; one that is
wrong gets no speed. Each timed call follows an untimed one of its own: in a network, too, the layer before has just
written what an operator reads. Shapes: (N, C, H, W) in channels_last, float32, kernels of VAN (5x5, 7x7 by 3, 3x3).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from van.bench.machine import peak_flops, synchroniser
from van.bench.timing import Timing, interleaved
from van.models.catalogue import MLP_RATIOS
from van.ops import (
    BACKENDS,
    Kernel,
    can_run,
    depthwise,
    depthwise_gelu,
    large_kernel_attention,
    lka_pair,
    use_backend,
)
from van.ops.memory import keep_freed_memory

STAGES = tuple(zip((64, 128, 320, 512), (56, 28, 14, 7), MLP_RATIOS, strict=True))
"""Channels, side of the map and width of the feed-forward part in the stages of VAN-B1 to B4 at 224 x 224."""

TOLERANCE = 1e-4
"""Largest error against float64, relative to the largest value: float32, some hundred products summed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """What is measured: ``apply`` on x and kernels; those of ``kernels`` (side, dilation) are depth-wise, 1 is 1x1."""

    apply: Callable[..., Tensor]
    kernels: tuple[tuple[int, int], ...]
    is_wide: bool = False
    """Whether it works inside the feed-forward part, on more channels."""


OPERATORS = {
    "dilated 7x7": Operator(apply=depthwise, kernels=((7, 3),)),
    "lka pair": Operator(apply=lka_pair, kernels=((5, 1), (7, 3))),
    "lka": Operator(apply=large_kernel_attention, kernels=((5, 1), (7, 3), (1, 1))),
    "3x3 + gelu": Operator(apply=depthwise_gelu, kernels=((3, 1),), is_wide=True),
}
"""The depth-wise 7x7 dilated by 3 alone, with the 5x5 before it, the whole of large kernel attention, and the
feed-forward part's convolution with its activation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One backend of one operator at one shape; ``error`` is against float64, the times are None if it is too large."""

    operator: str
    shape: tuple[int, int, int, int]
    backend: str
    direction: str
    error: float | None
    time: Timing | None
    speed_up: float | None
    """How many times faster than the reference backend in the same run."""
    peak_share: float | None
    """Multiply-adds of the kernels, padding included, at the peak of this machine as a share of the time; forward."""
    reason: str

    def record(self) -> dict[str, Any]:
        """Plain values, flat, for JSON and CSV."""
        return {
            "operator": self.operator,
            "shape": list(self.shape),
            "direction": self.direction,
            "backend": self.backend,
            "median_ms": self.time and self.time.median_ms,
            "iqr_ms": self.time and self.time.iqr_ms,
            "speed_up": self.speed_up,
            "peak_share": self.peak_share,
            "error": self.error,
            "reason": self.reason,
        }


def measure(*, batch_size: int = 1, rounds: int = 15, device: torch.device | None = None) -> Iterator[Row]:
    """Every operator at every stage on every backend, forward and forward with backward, as they are measured.

    The process keeps freed memory from then on, as the verbs of this package do; here for all backends alike.
    """
    keep_freed_memory()
    device = device or torch.device("cpu")
    peak = peak_flops(device)
    for name, operator in OPERATORS.items():
        for channels, side, ratio in STAGES:
            wide = int(channels * ratio) if operator.is_wide else channels
            given = _inputs((batch_size, wide, side, side), operator.kernels, device)
            yield from _measure_on(name, given, rounds, peak)


def _measure_on(name: str, given: "_Given", rounds: int, peak_flops_per_s: float) -> Iterator[Row]:
    apply, x, kernels = OPERATORS[name].apply, given.x, given.kernels
    verdicts = {backend: can_run(backend, x, *_depthwise_of(kernels)) for backend in BACKENDS}
    right = _run(apply, "reference", _as_double(given))
    least_ms = 2e3 * x.numel() * sum(kernel.weight[0].numel() for kernel in kernels) / peak_flops_per_s
    errors = {backend: _error(_run(apply, backend, given), right) for backend in BACKENDS if verdicts[backend].ok}
    for direction in ("forward", "forward+backward"):
        calls = {
            backend: _call(apply, backend, given, backward=direction != "forward")
            for backend, error in errors.items()
            if error <= TOLERANCE
        }
        times = interleaved(calls, rounds=rounds, untimed=1, synchronise=synchroniser(x.device))
        for backend, verdict in verdicts.items():
            time, base = times.get(backend), times.get("reference")
            wrong = backend in errors and time is None
            yield Row(
                operator=name,
                shape=(x.shape[0], x.shape[1], x.shape[2], x.shape[3]),
                direction=direction,
                backend=backend,
                error=errors.get(backend),
                time=time,
                speed_up=base.median_ms / time.median_ms if time and base else None,
                peak_share=least_ms / time.median_ms if time and direction == "forward" else None,
                reason="its answer is wrong, so no speed is told" if wrong else verdict.reason,
            )


class _Given(NamedTuple):
    """What an operator is measured on: x, its kernels, and a gradient of its output.

    The gradient is no constant, under which a kernel and its mirror image would have the same gradients.
    """

    x: Tensor
    kernels: tuple[Kernel, ...]
    gradient: Tensor


def _inputs(shape: tuple[int, ...], sides: tuple[tuple[int, int], ...], device: torch.device) -> _Given:
    """For each (side, dilation) a kernel whose answers are about as large as what it is given."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=generator) * scale).to(device)

    channels = shape[1]
    kernels = []
    for side, dilation in sides:
        inputs = channels if side == 1 else 1
        weight = draw(channels, inputs, side, side, scale=(inputs * side * side) ** -0.5)
        kernels.append(Kernel(weight.requires_grad_(), draw(channels).requires_grad_(), dilation))
    x, gradient = (draw(*shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return _Given(x.requires_grad_(), tuple(kernels), gradient)


def _depthwise_of(kernels: tuple[Kernel, ...]) -> list[Kernel]:
    return [kernel for kernel in kernels if kernel.weight.shape[1] == 1]


def _as_double(given: _Given) -> _Given:
    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().cpu().requires_grad_(tensor.requires_grad)

    kernels = (
        Kernel(double(kernel.weight), None if kernel.bias is None else double(kernel.bias), kernel.dilation)
        for kernel in given.kernels
    )
    return _Given(double(given.x), tuple(kernels), double(given.gradient))


def _run(apply: Callable[..., Tensor], backend: str, given: _Given) -> list[Tensor]:
    """The output and every gradient."""
    tensors = (tensor for kernel in given.kernels for tensor in (kernel.weight, kernel.bias) if tensor is not None)
    with use_backend(backend):
        out = apply(given.x, *given.kernels)
        return [out.detach(), *torch.autograd.grad(out, [given.x, *tensors], given.gradient)]


def _error(found: list[Tensor], right: list[Tensor]) -> float:
    pairs = zip(found, right, strict=True)
    return torch.stack([(f.double().cpu() - r).abs().max() / r.abs().max().clamp_min(1) for f, r in pairs]).max().item()


def _call(apply: Callable[..., Tensor], backend: str, given: _Given, *, backward: bool) -> Callable[[], Any]:
    def forward() -> Tensor:
        with torch.no_grad(), use_backend(backend):
            return apply(given.x, *given.kernels)

    return (lambda: _run(apply, backend, given)) if backward else forward
