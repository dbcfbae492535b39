"""The fast operators as PyTorch knows them: ``van::depthwise``, ``van::lka_pair``, ``van::depthwise_gelu``.

Each is one node to ``torch.compile`` and ``torch.export``. On a CPU it runs the C++ of ``cpu.py``, on a GPU
the Triton kernels of ``triton.py``. Gradients are operators too, which keep no map but their inputs; gradients
of gradients go through the definition.

Shapes: N pictures, C channels, H rows, W columns; every picture is (N, C, H, W) in any float dtype of
32 bits or fewer, every kernel (C, 1, rows, columns) with odd sides. Answers have the strides of ``x``.
"""

import functools
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from van.errors import ShapeError
from van.ops import cpu, reference, triton
from van.ops.reference import Kernel


def triton_asked_for() -> bool:
    """Whether ``VAN_OPS=triton`` sends maps on the CPU to Triton's interpreter, gradients included."""
    return os.environ.get("VAN_OPS") == "triton"


def _code_for(x: Tensor) -> ModuleType:
    """The module that serves this device."""
    return triton if x.is_cuda or triton_asked_for() else cpu


_PLAIN_FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""What each operator computes, without PyTorch's dispatcher before it."""


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    def register(function: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(f"van::{name}", mutates_args=())(function)
        _PLAIN_FUNCTIONS[operator] = function
        return operator

    return register


@_operator("depthwise")
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve every channel with its own kernel, whose taps are ``dilation`` pixels apart, keeping the size.

    Raises:
        ShapeError: the tensors are not of those types or shapes.
    """
    _check(x, dilation, weight=weight, bias=bias)
    return _code_for(x).depthwise(x, weight, bias, dilation)


@_operator("depthwise_backward")
def depthwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``depthwise`` by x, weight and bias; the same bits on any number of threads."""
    _check_gradient(gradient, x)
    return _code_for(x).depthwise_backward(gradient, x, weight, dilation)


@_operator("lka_pair")
def lka_pair(
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """A depth-wise convolution, then a dilated one, without keeping what lies between.

    Raises:
        ShapeError: the tensors are not of those types or shapes.
    """
    _check(x, local_weight=local_weight, local_bias=local_bias)
    _check(x, dilation, dilated_weight=dilated_weight, dilated_bias=dilated_bias)
    return _code_for(x).lka_pair(x, local_weight, local_bias, dilated_weight, dilated_bias, dilation)


@_operator("lka_pair_backward")
def lka_pair_backward(
    gradient: Tensor,
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``lka_pair`` by x, local weight and bias, dilated weight and bias."""
    _check_gradient(gradient, x)
    return _code_for(x).lka_pair_backward(gradient, x, local_weight, local_bias, dilated_weight, dilation)


@_operator("depthwise_gelu")
def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU (the exact one) of an undilated depth-wise convolution, in one pass over memory.

    Raises:
        ShapeError: the tensors are not of those types or shapes.
    """
    _check(x, weight=weight, bias=bias)
    return _code_for(x).depthwise_gelu(x, weight, bias)


@_operator("depthwise_gelu_backward")
def depthwise_gelu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``depthwise_gelu`` by x, weight and bias; what GELU was given is computed again."""
    _check_gradient(gradient, x)
    return _code_for(x).depthwise_gelu_backward(gradient, x, weight, bias)


def _check(x: Tensor, dilation: int = 1, **kernel: Tensor | None) -> None:
    """The fast code trusts what it is given, so one kernel, its weight and its bias, is looked at here."""
    for name, tensor in {"x": x, **kernel}.items():
        if tensor is not None and tensor.dtype not in cpu.DTYPES:
            raise ShapeError(f"{name} is {tensor.dtype}; the fast operators take float32, bfloat16 and float16")
    (weight_name, weight), (bias_name, bias) = kernel.items()
    channels = x.shape[1] if x.ndim == 4 else 0
    shape = tuple(weight.shape) if weight is not None else ()
    if x.ndim != 4 or len(shape) != 4 or shape[:2] != (channels, 1) or not (shape[2] % 2 and shape[3] % 2):
        raise ShapeError(
            f"x is {tuple(x.shape)} and {weight_name} {shape}; wanted (N, C, H, W) and (C, 1, k, m), k and m odd"
        )
    if dilation < 1:
        raise ShapeError(f"dilation is {dilation}; wanted at least 1")
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ShapeError(f"{bias_name} is {tuple(bias.shape)}; wanted ({channels},)")


def _check_gradient(gradient: Tensor, x: Tensor) -> None:
    if gradient.shape != x.shape:
        raise ShapeError(f"gradient is {tuple(gradient.shape)}; wanted the shape of x, {tuple(x.shape)}")


def _of_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return reference.depthwise(x.float(), _floats(weight, bias, dilation)).to(x.dtype)


def _of_pair(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilated: Tensor, dilated_bias: Tensor | None, dilation: int
) -> Tensor:
    kernels = _floats(weight, bias), _floats(dilated, dilated_bias, dilation)
    return reference.lka_pair(x.float(), *kernels).to(x.dtype)


def _of_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return reference.depthwise_gelu(x.float(), _floats(weight, bias)).to(x.dtype)


def _floats(weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Kernel:
    """In float32, with sides that are plain numbers also where a compiler keeps every size open."""
    sides = (int(side) for side in weight.shape[2:])
    fixed = weight.float().reshape(weight.shape[0], 1, *sides)
    return Kernel(fixed, None if bias is None else bias.float(), dilation)


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]


def _kept(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.others]


def _only_for_tensors(inputs: Sequence[Any], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """One gradient for each input, from one for each that may be a tensor: those stand first, the dilation last."""
    padded = [*gradients, *[None] * (len(inputs) - len(gradients))]
    return tuple(g if isinstance(value, Tensor) else None for value, g in zip(inputs, padded, strict=True))


def _second_gradients(definition: Callable[..., Tensor], ctx: Any, *by: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the gradients, through the definition; differentiable in their turn if the caller asks for that."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [_wanting_gradients(value) for value in _kept(ctx)]
        gradient, *given = inputs
        leaves = [value for value in given if isinstance(value, Tensor)]
        gradients = iter(torch.autograd.grad(definition(*given), leaves, gradient, create_graph=True))
        places = [value for value in given if not isinstance(value, int)]
        pairs = [(next(gradients), b) for value, b in zip(places, by, strict=True) if value is not None]
    used = [pair for pair in pairs if pair[1] is not None]
    wanted = [gradient, *leaves]
    firsts, bys = [first for first, _ in used], [by for _, by in used]
    second = iter(torch.autograd.grad(firsts, wanted, bys, create_graph=again, allow_unused=True))
    return tuple(next(second) if isinstance(value, Tensor) else None for value in inputs)


def _wanting_gradients(value: Any) -> Any:
    """A view of a tensor: the gradient may itself depend on x, but a view is reached through the operator alone."""
    if not isinstance(value, Tensor):
        return value
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


def _one_by_one(operator: Any, info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, Any]:
    """``torch.func.vmap`` of an operator: it is called for each slice."""
    slices = [
        operator(*(v if d is None else v.select(d, place) for v, d in zip(inputs, in_dims, strict=True)))
        for place in range(info.batch_size)
    ]
    if isinstance(slices[0], Tensor):
        return torch.stack(slices), 0
    return tuple(torch.stack(parts) for parts in zip(*slices, strict=True)), (0,) * len(slices[0])


def _shapes_of_gradients(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """x's, then those of each weight and its bias, which is as long as there are channels."""
    x, *kernels = inputs
    weights = kernels[: len(kernels) // 2 * 2 : 2]
    return torch.empty_like(x), *(t for w in weights for t in (w.new_empty(w.shape), w.new_empty(w.shape[0])))


def _tell_pytorch(operator: Any, backward: Any, definition: Callable[..., Tensor]) -> None:
    """Register the shapes, the gradients and the vmap of an operator and of its backward."""

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _kept(ctx)
        return _only_for_tensors(inputs, backward(gradient, *inputs))

    operator.register_fake(lambda x, *kernels: torch.empty_like(x))
    backward.register_fake(_shapes_of_gradients)
    operator.register_autograd(gradients, setup_context=_keep)
    backward.register_autograd(functools.partial(_second_gradients, definition), setup_context=_keep)
    for each in (operator, backward):
        each.register_vmap(functools.partial(_one_by_one, each))


def _short_cut(operator: Any, backward: Any) -> Callable[..., Tensor]:
    """The operator for plain tensors in eager mode, past PyTorch's dispatcher, which costs as much as a small map.

    Where anything else is going on, a compiler, a tensor of another class or a mode that watches operators, the
    registered operator serves.
    """
    compute, compute_backward = _PLAIN_FUNCTIONS[operator], _PLAIN_FUNCTIONS[backward]

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            _keep(ctx, inputs, None)
            return compute(*inputs)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            inputs = _kept(ctx)
            by = backward if torch.is_grad_enabled() else compute_backward  # gradients of gradients need a graph
            return _only_for_tensors(inputs, by(*gradients, *inputs))

    def serve(*inputs: Any) -> Tensor:
        tensors = [value for value in inputs if value is not None and not isinstance(value, int)]
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or not all(type(tensor) in _PLAIN for tensor in tensors)
        ):
            return operator(*inputs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return Eager.apply(*inputs)
        return compute(*inputs)

    return serve


_PLAIN = (Tensor, torch.nn.Parameter)
_tell_pytorch(depthwise, depthwise_backward, _of_depthwise)
_tell_pytorch(lka_pair, lka_pair_backward, _of_pair)
_tell_pytorch(depthwise_gelu, depthwise_gelu_backward, _of_gelu)
serve_depthwise = _short_cut(depthwise, depthwise_backward)
serve_lka_pair = _short_cut(lka_pair, lka_pair_backward)
serve_depthwise_gelu = _short_cut(depthwise_gelu, depthwise_gelu_backward)
