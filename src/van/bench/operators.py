"""Benchmark of the operators of VAN on every backend, at the shapes of its four stages.

Each backend is first compared with the reference in float64, forward and backward; an incorrect one is not timed.
Each timed call follows an untimed one, because in a network the previous layer has just written the input to the
caches. Shapes: (N, C, H, W) in channels_last, float32; kernels of VAN (5x5, 7x7 with dilation 3, 3x3).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from van.bench.machine import peak_flops, synchronizer
from van.bench.timing import Timing, time_interleaved
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
from van.ops.memory import enable_memory_reuse
from van.weights.published import MLP_RATIOS

STAGES = tuple(zip((64, 128, 320, 512), (56, 28, 14, 7), MLP_RATIOS, strict=True))
"""Channels, feature map size in pixels and MLP ratio of the stages of VAN-B1 to B4 at 224 x 224."""

TOLERANCE = 1e-4
"""Largest error against float64, relative to the largest value: rounding of a few hundred products in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """A benchmarked operator: ``apply`` on x and ``kernels``, given as (size, dilation).

    Kernels are depth-wise, except that size 1 is a point-wise convolution.
    """

    apply: Callable[..., Tensor]
    kernels: tuple[tuple[int, int], ...]
    in_feed_forward: bool = False
    """Whether it belongs to the feed-forward network, which has more channels."""


OPERATORS = {
    "dilated 7x7": Operator(apply=depthwise, kernels=((7, 3),)),
    "lka pair": Operator(apply=lka_pair, kernels=((5, 1), (7, 3))),
    "lka": Operator(apply=large_kernel_attention, kernels=((5, 1), (7, 3), (1, 1))),
    "3x3 + gelu": Operator(apply=depthwise_gelu, kernels=((3, 1),), in_feed_forward=True),
}
"""The depth-wise 7x7 convolution with dilation 3, the pair with the 5x5 convolution before it, the whole large kernel
attention, and the convolution with GELU of the feed-forward network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one operator, shape, direction and backend.

    ``error`` is relative to the largest value in float64; ``time`` is None if it exceeds ``TOLERANCE``.
    """

    operator: str
    shape: tuple[int, int, int, int]
    backend: str
    direction: str
    error: float | None
    time: Timing | None
    speedup: float | None
    """Time of the reference backend in the same run, divided by the time of this one."""
    peak_fraction: float | None
    """Time of the multiply-adds at the peak of this machine, as a fraction of the measured time; forward only.

    Products with padding are included."""
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return a flat dictionary for JSON and CSV."""
        return {
            "operator": self.operator,
            "shape": list(self.shape),
            "direction": self.direction,
            "backend": self.backend,
            "median_ms": self.time and self.time.median_ms,
            "iqr_ms": self.time and self.time.iqr_ms,
            "speedup": self.speedup,
            "peak_fraction": self.peak_fraction,
            "error": self.error,
            "reason": self.reason,
        }


def measure(*, batch_size: int = 1, rounds: int = 15, device: torch.device | None = None) -> Iterator[Row]:
    """Measure every operator, stage and backend, forward and forward+backward; yield rows as they complete.

    Memory reuse stays enabled for the process, as in the commands of this package; it benefits all backends equally.
    """
    enable_memory_reuse()
    device = device or torch.device("cpu")
    peak = peak_flops(device)
    for name, operator in OPERATORS.items():
        for channels, size, ratio in STAGES:
            width = int(channels * ratio) if operator.in_feed_forward else channels
            inputs = _random_inputs((batch_size, width, size, size), operator.kernels, device)
            yield from _measure_operator(name, inputs, rounds, peak)


def _measure_operator(name: str, inputs: "_Inputs", rounds: int, peak_flops_per_s: float) -> Iterator[Row]:
    apply, x, kernels = OPERATORS[name].apply, inputs.x, inputs.kernels
    availabilities = {backend: can_run(backend, x, *_depthwise_kernels(kernels)) for backend in BACKENDS}
    expected = _run_backward(apply, "reference", _to_double(inputs))
    least_ms = 2e3 * x.numel() * sum(kernel.weight[0].numel() for kernel in kernels) / peak_flops_per_s
    errors = {
        backend: _relative_error(_run_backward(apply, backend, inputs), expected)
        for backend in BACKENDS
        if availabilities[backend].ok
    }
    for direction in ("forward", "forward+backward"):
        calls = {
            backend: _make_call(apply, backend, inputs, backward=direction != "forward")
            for backend, error in errors.items()
            if error <= TOLERANCE
        }
        times = time_interleaved(calls, rounds=rounds, untimed=1, synchronize=synchronizer(x.device))
        for backend, availability in availabilities.items():
            time, reference_time = times.get(backend), times.get("reference")
            is_incorrect = backend in errors and time is None
            reason = availability.reason
            if is_incorrect:
                reason = f"relative error: expected at most {TOLERANCE:.0e}, got {errors[backend]:.1e}; not timed"
            yield Row(
                operator=name,
                shape=(x.shape[0], x.shape[1], x.shape[2], x.shape[3]),
                direction=direction,
                backend=backend,
                error=errors.get(backend),
                time=time,
                speedup=reference_time.median_ms / time.median_ms if time and reference_time else None,
                peak_fraction=least_ms / time.median_ms if time and direction == "forward" else None,
                reason=reason,
            )


class _Inputs(NamedTuple):
    """The inputs of an operator: x, its kernels, and the upstream gradient.

    The gradient is random. With a constant one, a kernel and its mirror image would have the same gradients.
    """

    x: Tensor
    kernels: tuple[Kernel, ...]
    gradient: Tensor


def _random_inputs(shape: tuple[int, ...], sizes: tuple[tuple[int, int], ...], device: torch.device) -> _Inputs:
    """Return random inputs, with one kernel per (size, dilation) that preserves the variance of its input."""
    generator = torch.Generator().manual_seed(0)

    def random_tensor(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=generator) * scale).to(device)

    channels = shape[1]
    kernels = []
    for size, dilation in sizes:
        in_channels = channels if size == 1 else 1
        weight = random_tensor(channels, in_channels, size, size, scale=(in_channels * size * size) ** -0.5)
        kernels.append(Kernel(weight.requires_grad_(), random_tensor(channels).requires_grad_(), dilation))
    x, gradient = (random_tensor(*shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return _Inputs(x.requires_grad_(), tuple(kernels), gradient)


def _depthwise_kernels(kernels: tuple[Kernel, ...]) -> list[Kernel]:
    return [kernel for kernel in kernels if kernel.weight.shape[1] == 1]


def _to_double(inputs: _Inputs) -> _Inputs:
    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().cpu().requires_grad_(tensor.requires_grad)

    kernels = (
        Kernel(double(kernel.weight), None if kernel.bias is None else double(kernel.bias), kernel.dilation)
        for kernel in inputs.kernels
    )
    return _Inputs(double(inputs.x), tuple(kernels), double(inputs.gradient))


def _run_backward(apply: Callable[..., Tensor], backend: str, inputs: _Inputs) -> list[Tensor]:
    """Return the output and all gradients."""
    tensors = (tensor for kernel in inputs.kernels for tensor in (kernel.weight, kernel.bias) if tensor is not None)
    with use_backend(backend):
        out = apply(inputs.x, *inputs.kernels)
        return [out.detach(), *torch.autograd.grad(out, [inputs.x, *tensors], inputs.gradient)]


def _relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(actual, expected, strict=True)
    return torch.stack([(f.double().cpu() - r).abs().max() / r.abs().max().clamp_min(1) for f, r in pairs]).max().item()


def _make_call(apply: Callable[..., Tensor], backend: str, inputs: _Inputs, *, backward: bool) -> Callable[[], Any]:
    def forward() -> Tensor:
        with torch.no_grad(), use_backend(backend):
            return apply(inputs.x, *inputs.kernels)

    return (lambda: _run_backward(apply, backend, inputs)) if backward else forward
