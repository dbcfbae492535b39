"""The operators on a CPU, in C++: one task for each vector of channels, planes that stay in the caches.

Shapes: N pictures, C channels, H rows, W columns; pictures in channels_last, float32, bfloat16 or float16;
kernels (C, 1, rows, columns) with odd sides; all sums in float32. Tensors come checked from ``operators``.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from van.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_GROUPS = 8
"""Groups of pictures whose weight gradients are summed apart: a fixed number, so that threads change no bit."""


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve every channel with its own kernel: (N, C, H, W) to the same."""
    pixels = _pixels(x)
    if dilation == 1 and x.dtype == torch.float32:  # here PyTorch is as fast as the machine allows
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        out = F.conv2d(pixels, weight.float(), _floats_if_any(bias), padding=padding, groups=weight.shape[0])
        return _like(x, out)
    out, kernel, shift = torch.empty_like(pixels), _floats(weight), _floats_if_any(bias)
    native.loaded().van_depthwise(_numbers(pixels, (weight, dilation)), *_addresses(pixels, kernel, shift, out))
    return _like(x, out)


def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, ...]:
    """The gradients of ``depthwise`` by x, weight and bias; weight and bias in the dtype of ``weight``."""
    pixels, given, kernel = _pixels(x), _pixels(gradient).to(x.dtype), _floats(weight)
    of_x, of_weight, of_bias = torch.empty_like(pixels), torch.empty_like(kernel), kernel.new_empty(kernel.shape[0])
    native.loaded().van_depthwise_backward(
        _numbers(pixels, (weight, dilation)),
        _groups(x),
        *_addresses(given, pixels, kernel, of_x, of_weight, of_bias),
    )
    return _like(x, of_x), of_weight.to(weight.dtype), of_bias.to(weight.dtype)


def lka_pair(
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """Both depth-wise convolutions of large kernel attention; what lies between them never reaches memory."""
    pixels = _pixels(x)
    out = torch.empty_like(pixels)
    kernels = [_floats_if_any(tensor) for tensor in (local_weight, local_bias, dilated_weight, dilated_bias)]
    numbers = _numbers(pixels, (local_weight, 1), (dilated_weight, dilation))
    native.loaded().van_pair(numbers, *_addresses(pixels, *kernels, out))
    return _like(x, out)


def lka_pair_backward(
    gradient: Tensor,
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilation: int,
) -> tuple[Tensor, ...]:
    """The gradients of ``lka_pair`` by x, local weight and bias, dilated weight and bias."""
    pixels, given = _pixels(x), _pixels(gradient).to(x.dtype)
    local, shift, dilated = _floats(local_weight), _floats_if_any(local_bias), _floats(dilated_weight)
    of_x, channels = torch.empty_like(pixels), x.shape[1]
    of_local, of_dilated = torch.empty_like(local), torch.empty_like(dilated)
    of_local_bias, of_dilated_bias = local.new_empty(channels), local.new_empty(channels)
    native.loaded().van_pair_backward(
        _numbers(pixels, (local_weight, 1), (dilated_weight, dilation)),
        _groups(x),
        *_addresses(given, pixels, local, shift, dilated, of_x, of_local, of_local_bias, of_dilated, of_dilated_bias),
    )
    of_locals = (tensor.to(local_weight.dtype) for tensor in (of_local, of_local_bias))
    return _like(x, of_x), *of_locals, *(tensor.to(dilated_weight.dtype) for tensor in (of_dilated, of_dilated_bias))


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU of an undilated depth-wise convolution; 3x3 kernels in one pass over memory."""
    if tuple(weight.shape[2:]) != (3, 3):
        return F.gelu(depthwise(x.float(), weight, bias, 1)).to(x.dtype)
    pixels = _pixels(x)
    out, kernel, shift = torch.empty_like(pixels), _floats(weight), _floats_if_any(bias)
    native.loaded().van_gelu(_numbers(pixels, (weight, 1)), *_addresses(pixels, kernel, shift, out))
    return _like(x, out)


def depthwise_gelu_backward(gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """The gradients of ``depthwise_gelu`` by x, weight and bias; what GELU was given is computed again."""
    if tuple(weight.shape[2:]) != (3, 3):
        before = depthwise(x.float(), weight, bias, 1)
        of_before = torch.ops.aten.gelu_backward(gradient.float(), before)
        of_x, of_weight, of_bias = depthwise_backward(of_before, x.float(), weight, 1)
        return of_x.to(x.dtype), of_weight, of_bias
    pixels, given = _pixels(x), _pixels(gradient).to(x.dtype)
    kernel, shift = _floats(weight), _floats_if_any(bias)
    of_x, of_weight, of_bias = torch.empty_like(pixels), torch.empty_like(kernel), kernel.new_empty(kernel.shape[0])
    native.loaded().van_gelu_backward(
        _numbers(pixels, (weight, 1)),
        *_addresses(given, pixels, kernel, shift, of_x, of_weight, of_bias),
    )
    return _like(x, of_x), of_weight.to(weight.dtype), of_bias.to(weight.dtype)


def _pixels(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _like(x: Tensor, out: Tensor) -> Tensor:
    """``out``, which is in channels_last, with the strides of ``x``."""
    return out if x.is_contiguous(memory_format=torch.channels_last) else torch.empty_like(x).copy_(out)


def _floats(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


def _floats_if_any(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _floats(tensor)


def _numbers(pixels: Tensor, *kernels: tuple[Tensor, int]) -> ctypes.Array[ctypes.c_int64]:
    """What ``operators.cpp`` asks for: the type, the shape, and the sides and dilation of each kernel."""
    pictures, channels, rows, columns = pixels.shape
    numbers = [DTYPES.index(pixels.dtype), pictures, rows, columns, channels]
    for weight, dilation in kernels:
        numbers += [*weight.shape[2:], dilation]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _groups(x: Tensor) -> int:
    return min(_GROUPS, x.shape[0])
