"""Calls of the fast operators: inputs drawn from a seed, output and every gradient, and the same by the definition.

Shapes: N pictures, C channels, H rows, W columns. Tensors are named as the operators name their arguments, and the
gradient of an argument goes by the argument's name.
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
    """One call: a map (N, C, H, W), the kernel's sides and dilation, and the sides of the kernel before it."""

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
    """The operator's tensors in the order of its arguments, always the same ones for a case."""
    generator = torch.Generator().manual_seed(sum(case.shape) + sum(case.sides) + case.dilation)
    channels = case.shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs: Inputs = {"x": normal(*case.shape).to(dtype).contiguous(memory_format=layout)}
    kernels = {"": case.sides}
    if case.operator == "lka_pair":
        kernels = {"local_": case.local_sides, "dilated_": case.sides}
    for which, sides in kernels.items():
        inputs[f"{which}weight"] = (normal(channels, 1, *sides) / math.prod(sides) ** 0.5).to(weight_dtype)
        inputs[f"{which}bias"] = normal(channels).to(weight_dtype) if with_bias else None
    return inputs


def by_operator(case: Case, inputs: Inputs) -> Tensor:
    """The answer of ``van.ops.operators``."""
    dilation = () if case.operator == "depthwise_gelu" else (case.dilation,)
    return getattr(operators, case.operator)(*inputs.values(), *dilation)


def by_definition(case: Case, inputs: Inputs) -> Tensor:
    """The answer of ``van.ops.reference``."""
    x, *kernels = inputs.values()
    if case.operator == "depthwise":
        return reference.depthwise(x, Kernel(*kernels, case.dilation))
    if case.operator == "depthwise_gelu":
        return reference.depthwise_gelu(x, Kernel(*kernels))
    return reference.lka_pair(x, Kernel(*kernels[:2]), Kernel(*kernels[2:], case.dilation))


def answers(function, case: Case, inputs: Inputs, *, given_in: torch.dtype | None = None) -> dict[str, Tensor]:
    """The function's output, and the gradient by every tensor given, for a random gradient drawn in ``given_in``."""
    inputs = {name: None if tensor is None else tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    output = function(case, inputs)
    given = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(given_in or output.dtype)
    leaves = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    gradients = torch.autograd.grad(output, list(leaves.values()), given.to(output.dtype))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def truth(case: Case, inputs: Inputs) -> dict[str, Tensor]:
    """The answers of the definition in float64 for the same inputs, as they are rounded."""
    doubles = {name: None if tensor is None else tensor.double() for name, tensor in inputs.items()}
    return answers(by_definition, case, doubles, given_in=inputs["x"].dtype)


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = FLOAT32) -> None:
    """Every tensor found is within ``tolerance``, relative to the largest value, of the one wanted."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        scale = max(1.0, value.abs().max().item()) if value.numel() else 1.0
        torch.testing.assert_close(
            found[name].double(), value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
