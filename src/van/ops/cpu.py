"""The CPU backend, in C++: one task per vector of channels, on planes that stay in the caches.

Shapes: N images, C channels, H rows, W columns; images in channels_last, float32, bfloat16 or float16;
kernels (C, 1, rows, columns) with odd sizes; all sums in float32. ``operators`` checks the tensors.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from van.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_GROUPS = 8
"""Groups of images whose weight gradients are summed separately.

A fixed number, so that results are bitwise identical for any number of threads."""


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Apply a depth-wise convolution with "same" padding: (N, C, H, W) to the same."""
    pixels = _to_channels_last(x)
    if dilation == 1 and x.dtype == torch.float32:  # PyTorch is already as fast as the hardware allows
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        out = F.conv2d(pixels, weight.float(), _to_float_or_none(bias), padding=padding, groups=weight.shape[0])
        return _match_strides(x, out)
    out, kernel, float_bias = torch.empty_like(pixels), _to_float(weight), _to_float_or_none(bias)
    native.get_library().van_depthwise(
        _shape_arguments(pixels, (weight, dilation)), *_data_pointers(pixels, kernel, float_bias, out)
    )
    return _match_strides(x, out)


def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight and bias of ``depthwise``; the last two in the dtype of ``weight``."""
    pixels, grad_out, kernel = _to_channels_last(x), _to_channels_last(gradient).to(x.dtype), _to_float(weight)
    grad_x, grad_weight, grad_bias = (
        torch.empty_like(pixels),
        torch.empty_like(kernel),
        kernel.new_empty(kernel.shape[0]),
    )
    native.get_library().van_depthwise_backward(
        _shape_arguments(pixels, (weight, dilation)),
        _num_groups(x),
        *_data_pointers(grad_out, pixels, kernel, grad_x, grad_weight, grad_bias),
    )
    return _match_strides(x, grad_x), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def lka_pair(
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """Apply both depth-wise convolutions of large kernel attention without writing the intermediate to memory."""
    pixels = _to_channels_last(x)
    out = torch.empty_like(pixels)
    kernels = [_to_float_or_none(tensor) for tensor in (local_weight, local_bias, dilated_weight, dilated_bias)]
    values = _shape_arguments(pixels, (local_weight, 1), (dilated_weight, dilation))
    native.get_library().van_pair(values, *_data_pointers(pixels, *kernels, out))
    return _match_strides(x, out)


def lka_pair_backward(
    gradient: Tensor,
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilation: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, local weight and bias, dilated weight and bias of ``lka_pair``."""
    pixels, grad_out = _to_channels_last(x), _to_channels_last(gradient).to(x.dtype)
    local, float_bias, dilated = _to_float(local_weight), _to_float_or_none(local_bias), _to_float(dilated_weight)
    grad_x, channels = torch.empty_like(pixels), x.shape[1]
    grad_local, grad_dilated = torch.empty_like(local), torch.empty_like(dilated)
    grad_local_bias, grad_dilated_bias = local.new_empty(channels), local.new_empty(channels)
    native.get_library().van_pair_backward(
        _shape_arguments(pixels, (local_weight, 1), (dilated_weight, dilation)),
        _num_groups(x),
        *_data_pointers(
            grad_out,
            pixels,
            local,
            float_bias,
            dilated,
            grad_x,
            grad_local,
            grad_local_bias,
            grad_dilated,
            grad_dilated_bias,
        ),
    )
    local_gradients = (tensor.to(local_weight.dtype) for tensor in (grad_local, grad_local_bias))
    return (
        _match_strides(x, grad_x),
        *local_gradients,
        *(tensor.to(dilated_weight.dtype) for tensor in (grad_dilated, grad_dilated_bias)),
    )


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply an undilated depth-wise convolution and GELU; 3x3 kernels in one pass over memory."""
    if tuple(weight.shape[2:]) != (3, 3):
        return F.gelu(depthwise(x.float(), weight, bias, 1)).to(x.dtype)
    pixels = _to_channels_last(x)
    out, kernel, float_bias = torch.empty_like(pixels), _to_float(weight), _to_float_or_none(bias)
    native.get_library().van_gelu(
        _shape_arguments(pixels, (weight, 1)), *_data_pointers(pixels, kernel, float_bias, out)
    )
    return _match_strides(x, out)


def depthwise_gelu_backward(gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight and bias of ``depthwise_gelu``; the input of GELU is recomputed."""
    if tuple(weight.shape[2:]) != (3, 3):
        preactivation = depthwise(x.float(), weight, bias, 1)
        grad_preactivation = torch.ops.aten.gelu_backward(gradient.float(), preactivation)
        grad_x, grad_weight, grad_bias = depthwise_backward(grad_preactivation, x.float(), weight, 1)
        return grad_x.to(x.dtype), grad_weight, grad_bias
    pixels, grad_out = _to_channels_last(x), _to_channels_last(gradient).to(x.dtype)
    kernel, float_bias = _to_float(weight), _to_float_or_none(bias)
    grad_x, grad_weight, grad_bias = (
        torch.empty_like(pixels),
        torch.empty_like(kernel),
        kernel.new_empty(kernel.shape[0]),
    )
    native.get_library().van_gelu_backward(
        _shape_arguments(pixels, (weight, 1)),
        *_data_pointers(grad_out, pixels, kernel, float_bias, grad_x, grad_weight, grad_bias),
    )
    return _match_strides(x, grad_x), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def _to_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _match_strides(x: Tensor, out: Tensor) -> Tensor:
    """Return ``out``, which is in channels_last, with the strides of ``x``."""
    return out if x.is_contiguous(memory_format=torch.channels_last) else torch.empty_like(x).copy_(out)


def _to_float(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


def _to_float_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _to_float(tensor)


def _shape_arguments(pixels: Tensor, *kernels: tuple[Tensor, int]) -> ctypes.Array[ctypes.c_int64]:
    """Pack the arguments of ``operators.cpp``: dtype, N, H, W, C, then rows, columns and dilation of each kernel."""
    images, channels, rows, columns = pixels.shape
    values = [DTYPES.index(pixels.dtype), images, rows, columns, channels]
    for weight, dilation in kernels:
        values += [*weight.shape[2:], dilation]
    return (ctypes.c_int64 * len(values))(*values)


def _data_pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _num_groups(x: Tensor) -> int:
    return min(_MAX_GROUPS, x.shape[0])
