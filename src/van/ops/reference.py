"""The operators, written to be read.

Shapes: N pictures, C channels, H rows, W columns; every tensor is NCHW.
This file is the definition: each fast path in ``van.ops`` is tested against it,
forward and backward. Source: Guo et al. 2022, arXiv:2202.09741, section 3.1.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from van.errors import ShapeError


class Kernel(NamedTuple):
    """One convolution's weight, its bias (or None), and the spacing of its taps in pixels."""

    weight: Tensor
    bias: Tensor | None = None
    dilation: int = 1


def same_padding(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after a row, in pixels, that keep its length.

    An even kernel reaches one tap further to the right, as ``padding="same"`` does in PyTorch.
    """
    reach = dilation * (kernel_size - 1)
    return reach // 2, reach - reach // 2


def check_kernels(x: Tensor, mix: Kernel | None = None, /, **depthwise: Kernel) -> None:
    """Refuse kernels, named as the caller knows them, whose shapes do not fit ``x``.

    Raises:
        ShapeError: ``x`` is not NCHW, or a kernel is not of the shape the operator needs.
    """
    if x.ndim != 4:
        raise ShapeError(f"x has {x.ndim} dimensions {tuple(x.shape)}; wanted 4: (N, C, H, W)")
    channels = x.shape[1]
    for name, kernel in depthwise.items():
        shape = tuple(kernel.weight.shape)
        if len(shape) != 4 or shape[:2] != (channels, 1):
            raise ShapeError(f"{name}.weight is {shape}; x has {channels} channels, so wanted ({channels}, 1, k, k)")
        if kernel.dilation < 1:
            raise ShapeError(f"{name}.dilation is {kernel.dilation}; wanted at least 1")
    if mix is not None and tuple(mix.weight.shape) != (channels, channels, 1, 1):
        raise ShapeError(f"mix.weight is {tuple(mix.weight.shape)}; wanted ({channels}, {channels}, 1, 1)")


def depthwise(x: Tensor, kernel: Kernel) -> Tensor:
    """Convolve every channel with its own kernel, keeping the size: (N, C, H, W) to the same."""
    rows, columns = kernel.weight.shape[-2:]
    top, bottom = same_padding(rows, kernel.dilation)
    left, right = same_padding(columns, kernel.dilation)
    if (top, left) == (bottom, right):
        padding = (top, left)
    else:
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    return F.conv2d(
        x, kernel.weight, kernel.bias, padding=padding, dilation=kernel.dilation, groups=kernel.weight.shape[0]
    )


def lka_pair(x: Tensor, local: Kernel, dilated: Kernel) -> Tensor:
    """The two depth-wise convolutions of large kernel attention: (N, C, H, W) to the same."""
    return depthwise(depthwise(x, local), dilated)


def depthwise_gelu(x: Tensor, kernel: Kernel) -> Tensor:
    """The middle of VAN's feed-forward part, GELU(DW(x) + bias), GELU in its exact form: (N, C, H, W) to the same."""
    return F.gelu(depthwise(x, kernel))


def large_kernel_attention(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Gate ``x`` by a map that sees a wide neighbourhood of each pixel.

    With 5x5 then 7x7-dilated-by-3 kernels one output pixel reads 23x23 inputs.

    Args:
        x: (N, C, H, W), any float dtype.
        local: depth-wise weight (C, 1, k, k) and bias (C,).
        dilated: depth-wise weight (C, 1, m, m) and bias (C,), with its dilation in pixels.
        mix: point-wise weight (C, C, 1, 1) and bias (C,).

    Returns:
        (N, C, H, W), dtype and device of ``x``.

    Raises:
        ShapeError: a kernel does not fit the channels of ``x``.
    """
    check_kernels(x, mix, local=local, dilated=dilated)
    return x * F.conv2d(lka_pair(x, local, dilated), mix.weight, mix.bias)
