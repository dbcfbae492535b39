"""The reference operators in plain PyTorch.

Shapes: N images, C channels, H rows, W columns; every tensor is NCHW.
This file is the definition: each fast path in ``van.ops`` is tested against it,
forward and backward. Source: Guo et al. 2022, arXiv:2202.09741, section 3.1.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from van.errors import ShapeError


class Kernel(NamedTuple):
    """The weight of one convolution, its bias (or None) and its dilation in pixels."""

    weight: Tensor
    bias: Tensor | None = None
    dilation: int = 1


def same_padding(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Return the zero padding before and after a row, in pixels, that keeps its length.

    An even kernel is padded by one more on the right, as with ``padding="same"`` in PyTorch.
    """
    span = dilation * (kernel_size - 1)
    return span // 2, span - span // 2


def check_kernels(x: Tensor, mix: Kernel | None = None, /, **depthwise: Kernel) -> None:
    """Check that the kernels match ``x``; keyword names appear in the errors.

    Raises:
        ShapeError: ``x`` is not NCHW, or a kernel is not of the shape the operator needs.
    """
    if x.ndim != 4:
        raise ShapeError(f"x: expected 4 dimensions (N, C, H, W), got {x.ndim}: {tuple(x.shape)}")
    channels = x.shape[1]
    for name, kernel in depthwise.items():
        shape = tuple(kernel.weight.shape)
        if len(shape) != 4 or shape[:2] != (channels, 1):
            raise ShapeError(f"{name}.weight: expected ({channels}, 1, k, k), got {shape}; x has {channels} channels")
        if kernel.dilation < 1:
            raise ShapeError(f"{name}.dilation: expected at least 1, got {kernel.dilation}")
    if mix is not None and tuple(mix.weight.shape) != (channels, channels, 1, 1):
        expected = (channels, channels, 1, 1)
        raise ShapeError(f"mix.weight: expected {expected}, got {tuple(mix.weight.shape)}")


def depthwise(x: Tensor, kernel: Kernel) -> Tensor:
    """Apply a depth-wise convolution with "same" padding: (N, C, H, W) to the same."""
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
    """Apply the two depth-wise convolutions of large kernel attention: (N, C, H, W) to the same."""
    return depthwise(depthwise(x, local), dilated)


def depthwise_gelu(x: Tensor, kernel: Kernel) -> Tensor:
    """Apply the depth-wise convolution and the exact GELU of VAN's feed-forward network: (N, C, H, W) to the same."""
    return F.gelu(depthwise(x, kernel))


def large_kernel_attention(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Multiply ``x`` by its large kernel attention map.

    With a 5x5 kernel and a 7x7 kernel of dilation 3 the receptive field of one output pixel is 23x23 pixels.

    Args:
        x: (N, C, H, W), any float dtype.
        local: depth-wise weight (C, 1, k, k) and bias (C,).
        dilated: depth-wise weight (C, 1, m, m) and bias (C,), with its dilation in pixels.
        mix: point-wise weight (C, C, 1, 1) and bias (C,).

    Returns:
        (N, C, H, W), dtype and device of ``x``.

    Raises:
        ShapeError: a kernel does not match the channels of ``x``.
    """
    check_kernels(x, mix, local=local, dilated=dilated)
    return x * F.conv2d(lka_pair(x, local, dilated), mix.weight, mix.bias)
