"""Large kernel attention and its dilated convolution on every backend, at the shapes of VAN's four stages.

Each backend is first compared with the definition in float64, forward and backward; one that is
wrong gets no speed. Shapes: (N, C, H, W) in channels_last, float32, kernels of VAN (5x5, 7x7 by 3).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from van.bench.timing import Timing, interleaved
from van.ops import BACKENDS, Kernel, can_run, cpu, large_kernel_attention, phases, reference, use_backend

STAGES = ((64, 56), (128, 28), (320, 14), (512, 7))
"""Channels and side of the map in the four stages of VAN-B1 to B4 at 224 x 224."""

TOLERANCE = 1e-4
"""Largest error against float64, relative to the largest value: float32, some hundred products summed."""


OPERATORS = ("dilated 7x7", "lka")
"""The depth-wise 7x7 dilated by 3 alone, and the whole of large kernel attention."""

_DEPTHWISE = {"cpu": cpu.depthwise, "phases": phases.depthwise_by_phases, "reference": reference.depthwise}


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
    reason: str


def measure(*, batch_size: int = 1, rounds: int = 15) -> Iterator[Row]:
    """Every operator at every stage on every backend, forward and forward with backward, as they are measured."""
    for operator in OPERATORS:
        for channels, side in STAGES:
            yield from _measure_shape(operator, (batch_size, channels, side, side), rounds)


def _measure_shape(operator: str, shape: tuple[int, int, int, int], rounds: int) -> Iterator[Row]:
    x, kernels = _inputs(shape)
    verdicts = {name: can_run(name, x, kernels[1]) for name in BACKENDS}
    right = _run(operator, "reference", x.double(), tuple(_as_double(kernel) for kernel in kernels))
    errors = {name: _error(operator, name, x, kernels, right) for name, verdict in verdicts.items() if verdict.ok}
    for direction in ("forward", "forward+backward"):
        calls = {
            name: _call(operator, name, x, kernels, backward=direction != "forward")
            for name, error in errors.items()
            if error <= TOLERANCE
        }
        times = interleaved(calls, rounds=rounds)
        for name, verdict in verdicts.items():
            time, base = times.get(name), times.get("reference")
            yield Row(
                operator=operator,
                shape=shape,
                backend=name,
                direction=direction,
                error=errors.get(name),
                time=time,
                speed_up=base.median_ms / time.median_ms if time and base else None,
                reason=verdict.reason if name not in errors or time else "its answer is wrong, so no speed is told",
            )


def _inputs(shape: tuple[int, int, int, int]) -> tuple[Tensor, tuple[Kernel, ...]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=generator) * scale).requires_grad_()

    channels = shape[1]
    x = draw(*shape).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    local = Kernel(draw(channels, 1, 5, 5, scale=1 / 5), draw(channels))
    dilated = Kernel(draw(channels, 1, 7, 7, scale=1 / 7), draw(channels), 3)
    mix = Kernel(draw(channels, channels, 1, 1, scale=channels**-0.5), draw(channels))
    return x, (local, dilated, mix)


def _as_double(kernel: Kernel) -> Kernel:
    bias = None if kernel.bias is None else kernel.bias.detach().double().requires_grad_()
    return Kernel(kernel.weight.detach().double().requires_grad_(), bias, kernel.dilation)


def _apply(operator: str, name: str, x: Tensor, kernels: tuple[Kernel, ...]) -> Tensor:
    if operator == "lka":
        with use_backend(name):
            return large_kernel_attention(x, *kernels)
    return _DEPTHWISE[name](x, kernels[1])


def _run(operator: str, name: str, x: Tensor, kernels: tuple[Kernel, ...]) -> list[Tensor]:
    """The output and every gradient."""
    x = x.detach().requires_grad_()
    used = kernels if operator == "lka" else kernels[1:2]
    leaves = [x, *(tensor for kernel in used for tensor in (kernel.weight, kernel.bias) if tensor is not None)]
    out = _apply(operator, name, x, kernels)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]


def _error(operator: str, name: str, x: Tensor, kernels: tuple[Kernel, ...], right: list[Tensor]) -> float:
    found = _run(operator, name, x, kernels)
    errors = [(f.double() - r).abs().max() / r.abs().max().clamp_min(1) for f, r in zip(found, right, strict=True)]
    return max(error.item() for error in errors)


def _call(operator: str, name: str, x: Tensor, kernels: tuple[Kernel, ...], *, backward: bool) -> Callable[[], Any]:
    def forward() -> Tensor:
        with torch.no_grad():
            return _apply(operator, name, x, kernels)

    return (lambda: _run(operator, name, x, kernels)) if backward else forward
