"""Registration of the fast operators with PyTorch: ``van::depthwise``, ``van::lka_pair``, ``van::depthwise_gelu``.

Each is one node in graphs of ``torch.compile`` and ``torch.export``. On a CPU it runs the C++ of ``cpu.py``, on a
GPU the Triton kernels of ``triton.py``. Gradients are operators too and save only their inputs; double backward
runs the reference operators.

Shapes: N images, C channels, H rows, W columns; every feature map is (N, C, H, W) in float32, bfloat16 or
float16, every kernel (C, 1, rows, columns) with odd sizes. Outputs have the strides of ``x``.
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


def is_triton_requested() -> bool:
    """Return whether ``VAN_OPS=triton`` runs CPU tensors in Triton's interpreter, gradients included."""
    return os.environ.get("VAN_OPS") == "triton"


def _implementation(x: Tensor) -> ModuleType:
    """Return the module that implements the operators for the device of ``x``."""
    return triton if x.is_cuda or is_triton_requested() else cpu


_FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""The Python function of each registered operator, for calls that bypass PyTorch's dispatcher."""


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    def register(function: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(f"van::{name}", mutates_args=())(function)
        _FUNCTIONS[operator] = function
        return operator

    return register


@_operator("depthwise")
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Apply a depth-wise convolution with "same" padding: (N, C, H, W) to the same.

    Raises:
        ShapeError: a tensor has another dtype or shape.
    """
    _check(x, dilation, weight=weight, bias=bias)
    return _implementation(x).depthwise(x, weight, bias, dilation)


@_operator("depthwise_backward")
def depthwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias of ``depthwise``; bitwise identical for any number of threads."""
    _check_gradient(gradient, x)
    return _implementation(x).depthwise_backward(gradient, x, weight, dilation)


@_operator("lka_pair")
def lka_pair(
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """Apply a depth-wise convolution, then a dilated one, without saving the intermediate.

    Raises:
        ShapeError: a tensor has another dtype or shape.
    """
    _check(x, local_weight=local_weight, local_bias=local_bias)
    _check(x, dilation, dilated_weight=dilated_weight, dilated_bias=dilated_bias)
    return _implementation(x).lka_pair(x, local_weight, local_bias, dilated_weight, dilated_bias, dilation)


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
    """Return the gradients of x, local weight and bias, dilated weight and bias of ``lka_pair``."""
    _check_gradient(gradient, x)
    return _implementation(x).lka_pair_backward(gradient, x, local_weight, local_bias, dilated_weight, dilation)


@_operator("depthwise_gelu")
def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply an undilated depth-wise convolution and the exact GELU, in one pass over memory.

    Raises:
        ShapeError: a tensor has another dtype or shape.
    """
    _check(x, weight=weight, bias=bias)
    return _implementation(x).depthwise_gelu(x, weight, bias)


@_operator("depthwise_gelu_backward")
def depthwise_gelu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias of ``depthwise_gelu``; the input of GELU is recomputed."""
    _check_gradient(gradient, x)
    return _implementation(x).depthwise_gelu_backward(gradient, x, weight, bias)


def _check(x: Tensor, dilation: int = 1, **kernel: Tensor | None) -> None:
    """Check x and one kernel, given as its weight and its bias; the C++ and Triton code does no checks."""
    for name, tensor in {"x": x, **kernel}.items():
        if tensor is not None and tensor.dtype not in cpu.DTYPES:
            raise ShapeError(f"{name}: expected float32, bfloat16 or float16, got {tensor.dtype}")
    if x.ndim != 4:
        raise ShapeError(f"x: expected 4 dimensions (N, C, H, W), got {x.ndim}: {tuple(x.shape)}")
    (weight_name, weight), (bias_name, bias) = kernel.items()
    channels = x.shape[1]
    shape = tuple(weight.shape) if weight is not None else ()
    if len(shape) != 4 or shape[:2] != (channels, 1) or not (shape[2] % 2 and shape[3] % 2):
        raise ShapeError(
            f"{weight_name}: expected ({channels}, 1, k, m) with odd k and m, got {shape}; x has {channels} channels"
        )
    if dilation < 1:
        raise ShapeError(f"dilation: expected at least 1, got {dilation}")
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ShapeError(f"{bias_name}: expected ({channels},), got {tuple(bias.shape)}")


def _check_gradient(gradient: Tensor, x: Tensor) -> None:
    if gradient.shape != x.shape:
        raise ShapeError(f"gradient: expected the shape of x {tuple(x.shape)}, got {tuple(gradient.shape)}")


def _reference_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return reference.depthwise(x.float(), _float_kernel(weight, bias, dilation)).to(x.dtype)


def _reference_lka_pair(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilated: Tensor, dilated_bias: Tensor | None, dilation: int
) -> Tensor:
    kernels = _float_kernel(weight, bias), _float_kernel(dilated, dilated_bias, dilation)
    return reference.lka_pair(x.float(), *kernels).to(x.dtype)


def _reference_depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return reference.depthwise_gelu(x.float(), _float_kernel(weight, bias)).to(x.dtype)


def _float_kernel(weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Kernel:
    """Return the kernel in float32, with a size of plain integers even if a compiler traces dynamic shapes."""
    size = (int(length) for length in weight.shape[2:])
    static = weight.float().reshape(weight.shape[0], 1, *size)
    return Kernel(static, None if bias is None else bias.float(), dilation)


def _save_inputs(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.non_tensors = [None if isinstance(value, Tensor) else (value,) for value in inputs]


def _saved_inputs(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if non_tensor is None else non_tensor[0] for non_tensor in ctx.non_tensors]


def _gradients_for_inputs(inputs: Sequence[Any], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return one gradient per input; ``gradients`` has one per tensor parameter, which precede the dilation."""
    padded = [*gradients, *[None] * (len(inputs) - len(gradients))]
    return tuple(g if isinstance(value, Tensor) else None for value, g in zip(inputs, padded, strict=True))


def _double_backward(
    reference_function: Callable[..., Tensor], ctx: Any, *upstream: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the gradients by the reference; differentiable if gradients are enabled."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [_requires_grad_view(value) for value in _saved_inputs(ctx)]
        gradient, *arguments = inputs
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        first = iter(torch.autograd.grad(reference_function(*arguments), tensors, gradient, create_graph=True))
        slots = [value for value in arguments if not isinstance(value, int)]
        pairs = [(next(first), grad) for value, grad in zip(slots, upstream, strict=True) if value is not None]
    used = [(output, grad) for output, grad in pairs if grad is not None]
    outputs, grad_outputs = [output for output, _ in used], [grad for _, grad in used]
    second = iter(
        torch.autograd.grad(outputs, [gradient, *tensors], grad_outputs, create_graph=create_graph, allow_unused=True)
    )
    return tuple(next(second) if isinstance(value, Tensor) else None for value in inputs)


def _requires_grad_view(value: Any) -> Any:
    """Return a view of ``value`` that requires a gradient; other values unchanged.

    The upstream gradient may itself depend on x. A view is reached only through the operator.
    """
    if not isinstance(value, Tensor):
        return value
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


def _vmap_by_loop(operator: Any, info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, Any]:
    """Implement ``torch.func.vmap`` of an operator by one call per slice."""
    slices = [
        operator(*(v if d is None else v.select(d, index) for v, d in zip(inputs, in_dims, strict=True)))
        for index in range(info.batch_size)
    ]
    if isinstance(slices[0], Tensor):
        return torch.stack(slices), 0
    return tuple(torch.stack(results) for results in zip(*slices, strict=True)), (0,) * len(slices[0])


def _fake_backward(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Return empty gradients of x and of each weight and bias, for tracing; a bias has C values."""
    x, *kernels = inputs
    weights = kernels[: len(kernels) // 2 * 2 : 2]
    return torch.empty_like(x), *(t for w in weights for t in (w.new_empty(w.shape), w.new_empty(w.shape[0])))


def _register_rules(operator: Any, backward: Any, reference_function: Callable[..., Tensor]) -> None:
    """Register the fake kernels, the gradients and the vmap rules of an operator and of its backward."""

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _saved_inputs(ctx)
        return _gradients_for_inputs(inputs, backward(gradient, *inputs))

    operator.register_fake(lambda x, *kernels: torch.empty_like(x))
    backward.register_fake(_fake_backward)
    operator.register_autograd(gradients, setup_context=_save_inputs)
    backward.register_autograd(functools.partial(_double_backward, reference_function), setup_context=_save_inputs)
    for registered in (operator, backward):
        registered.register_vmap(functools.partial(_vmap_by_loop, registered))


def _make_eager_call(operator: Any, backward: Any) -> Callable[..., Tensor]:
    """Return a function that bypasses PyTorch's dispatcher for plain tensors in eager mode.

    The dispatcher costs as much time as the operator on a small feature map. Under a compiler, for tensor
    subclasses and under dispatch modes the registered operator is called.
    """
    compute, compute_backward = _FUNCTIONS[operator], _FUNCTIONS[backward]

    class EagerFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            _save_inputs(ctx, inputs, None)
            return compute(*inputs)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            inputs = _saved_inputs(ctx)
            # double backward needs the registered operator, which builds a graph
            function = backward if torch.is_grad_enabled() else compute_backward
            return _gradients_for_inputs(inputs, function(*gradients, *inputs))

    def call(*inputs: Any) -> Tensor:
        tensors = [value for value in inputs if value is not None and not isinstance(value, int)]
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or not all(type(tensor) in _PLAIN_TENSOR_TYPES for tensor in tensors)
        ):
            return operator(*inputs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return EagerFunction.apply(*inputs)
        return compute(*inputs)

    return call


_PLAIN_TENSOR_TYPES = (Tensor, torch.nn.Parameter)
_register_rules(depthwise, depthwise_backward, _reference_depthwise)
_register_rules(lka_pair, lka_pair_backward, _reference_lka_pair)
_register_rules(depthwise_gelu, depthwise_gelu_backward, _reference_depthwise_gelu)
apply_depthwise = _make_eager_call(depthwise, depthwise_backward)
apply_lka_pair = _make_eager_call(lka_pair, lka_pair_backward)
apply_depthwise_gelu = _make_eager_call(depthwise_gelu, depthwise_gelu_backward)
