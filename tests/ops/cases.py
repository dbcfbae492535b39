"""Test cases of the fast operators: random inputs, outputs and gradients, and the same for the reference.

Shapes: N images, C channels, H rows, W columns. Tensors have the names of the operators' arguments, and a gradient
has the name of its argument.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from van.ops import Kernel, operators, reference

FLOAT32 = 3e-5  # some hundred to some thousand products of order one, summed in float32; relative to the largest
LAYOUTS = (torch.contiguous_format, torch.channels_last)
OPERATORS = ("depthwise", "lka_pair", "depthwise_gelu")

Inputs = dict[str, Tensor | None]


class Case(NamedTuple):
    """A call: input shape (N, C, H, W), size and dilation of the kernel, and size of the local kernel before it."""

    operator: str
    shape: tuple[int, int, int, int]
    sides: tuple[int, int] = (7, 7)
    dilation: int = 3
    local_sides: tuple[int, int] = (5, 5)

    def __str__(self) -> str:
        pair = self.operator == "lka_pair"
        sizes = [self.shape, *([self.local_sides] if pair else []), self.sides]
        return f"{self.operator}-{'-'.join('x'.join(map(str, size)) for size in sizes)}-by-{self.dilation}"


def draw(
    case: Case,
    *,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.channels_last,
    with_bias: bool = True,
) -> Inputs:
    """Return deterministic random tensors for a case, in the order of the operator's arguments."""
    generator = torch.Generator().manual_seed(sum(case.shape) + sum(case.sides) + case.dilation)
    channels = case.shape[1]

    def sample(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs: Inputs = {"x": sample(*case.shape).to(dtype).contiguous(memory_format=layout)}
    kernels = {"": case.sides}
    if case.operator == "lka_pair":
        kernels = {"local_": case.local_sides, "dilated_": case.sides}
    for which, sides in kernels.items():
        inputs[f"{which}weight"] = (sample(channels, 1, *sides) / math.prod(sides) ** 0.5).to(weight_dtype)
        inputs[f"{which}bias"] = sample(channels).to(weight_dtype) if with_bias else None
    return inputs


def run_operator(case: Case, inputs: Inputs) -> Tensor:
    """Return the output of ``van.ops.operators``."""
    dilation = () if case.operator == "depthwise_gelu" else (case.dilation,)
    return getattr(operators, case.operator)(*inputs.values(), *dilation)


def run_reference(case: Case, inputs: Inputs) -> Tensor:
    """Return the output of ``van.ops.reference``."""
    x, *kernels = inputs.values()
    if case.operator == "depthwise":
        return reference.depthwise(x, Kernel(*kernels, case.dilation))
    if case.operator == "depthwise_gelu":
        return reference.depthwise_gelu(x, Kernel(*kernels))
    return reference.lka_pair(x, Kernel(*kernels[:2]), Kernel(*kernels[2:], case.dilation))


def output_and_gradients(
    function, case: Case, inputs: Inputs, *, gradient_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the output and the gradients of all tensors, for a random upstream gradient in ``gradient_dtype``."""
    inputs = {name: None if tensor is None else tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    output = function(case, inputs)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(gradient_dtype or output.dtype)
    leaves = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    gradients = torch.autograd.grad(output, list(leaves.values()), gradient.to(output.dtype))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def run_reference_float64(case: Case, inputs: Inputs) -> dict[str, Tensor]:
    """Return outputs and gradients of the reference in float64 for the same rounded inputs."""
    doubles = {name: None if tensor is None else tensor.double() for name, tensor in inputs.items()}
    return output_and_gradients(run_reference, case, doubles, gradient_dtype=inputs["x"].dtype)


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = FLOAT32) -> None:
    """Assert that every tensor is within ``tolerance`` of the expected one, relative to its largest value."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item()) if value.numel() else 1.0
        torch.testing.assert_close(
            found[name].double(), value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
