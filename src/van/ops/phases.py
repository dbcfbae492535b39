"""LKA on a CPU without a compiler: dilated convolutions by phases.

A depth-wise convolution dilated by d never mixes pixels whose rows or columns differ modulo d.
So the map falls into d x d phases, each of which meets the *undilated* kernel, for which PyTorch
has fast code; the dilated one it computes several times slower. In channels_last the split only
moves whole pixels of C values. On small maps most taps of a large kernel read nothing but padding;
they are cut off first.

Shapes: (N, C, H, W); inside, the phases lie along the batch: (N*d*d, C, ceil(H/d), ceil(W/d)).
"""

import torch.nn.functional as F
from torch import Tensor

from van.ops.reference import Kernel, depthwise, same_padding


def split_phases(x: Tensor, dilation: int) -> Tensor:
    """Deal the pixels of (N, C, H, W) to d*d maps by row and column modulo d.

    ``H`` and ``W`` must be multiples of d. Returns (N*d*d, C, H/d, W/d) in channels_last.
    """
    pictures, channels, rows, columns = x.shape
    d = dilation
    pixels = x.permute(0, 2, 3, 1).reshape(pictures, rows // d, d, columns // d, d, channels)
    phases = pixels.permute(0, 2, 4, 1, 3, 5).reshape(pictures * d * d, rows // d, columns // d, channels)
    return phases.permute(0, 3, 1, 2)


def join_phases(phases: Tensor, dilation: int) -> Tensor:
    """Undo ``split_phases``: (N*d*d, C, h, w) to (N, C, h*d, w*d) in channels_last."""
    count, channels, rows, columns = phases.shape
    d = dilation
    pixels = phases.permute(0, 2, 3, 1).reshape(count // (d * d), d, d, rows, columns, channels)
    x = pixels.permute(0, 3, 1, 4, 2, 5).reshape(count // (d * d), rows * d, columns * d, channels)
    return x.permute(0, 3, 1, 2)


def taps_in_reach(kernel: Kernel, rows: int, columns: int) -> Kernel:
    """The kernel without the outer taps that read only padding on a rows x columns map; odd sides only."""
    weight, d = kernel.weight, kernel.dilation
    halves = [side // 2 if side % 2 else 0 for side in weight.shape[2:]]
    cuts = [max(0, half - (length - 1) // d) for half, length in zip(halves, (rows, columns), strict=True)]
    if any(cuts):
        # cutting in the order of the strides gives the gradient the weight's own strides, as DDP wants it
        last = weight.stride(1) == 1
        taps = weight.permute(0, 2, 3, 1) if last else weight
        for axis, cut in enumerate(cuts, start=1 if last else 2):
            taps = taps.narrow(axis, cut, taps.shape[axis] - 2 * cut)
        weight = taps.permute(0, 3, 1, 2) if last else taps
    alone = tuple(weight.shape[2:]) == (1, 1)
    return Kernel(weight, kernel.bias, 1 if alone else d)


def depthwise_by_phases(x: Tensor, kernel: Kernel) -> Tensor:
    """The same numbers as ``reference.depthwise``: (N, C, H, W) to the same, in x's memory format."""
    kernel = taps_in_reach(kernel, x.shape[2], x.shape[3])
    d = kernel.dilation
    if d == 1:
        return depthwise(x, kernel)
    channels, _, kernel_rows, kernel_columns = kernel.weight.shape
    rows, columns = x.shape[2:]
    if kernel_rows % 2 and kernel_columns % 2:
        margins, padding = (0, 0, 0, 0), (kernel_rows // 2, kernel_columns // 2)
    else:
        margins = (*same_padding(kernel_columns, d), *same_padding(kernel_rows, d))
        padding = (0, 0)
    left, right, top, bottom = margins
    right += -(columns + left + right) % d
    bottom += -(rows + top + bottom) % d
    padded = F.pad(x, (left, right, top, bottom)) if any((left, right, top, bottom)) else x
    out = F.conv2d(split_phases(padded, d), kernel.weight, kernel.bias, padding=padding, groups=channels)
    return in_layout_of(x, join_phases(out, d)[:, :, :rows, :columns])


def in_layout_of(x: Tensor, out: Tensor) -> Tensor:
    """``out`` in channels_last if ``x`` is, else contiguous."""
    if x.permute(0, 2, 3, 1).is_contiguous():  # channels_last, asked in words that torch.func.vmap knows
        return out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return out.contiguous()


def lka_pair_by_phases(x: Tensor, local: Kernel, dilated: Kernel) -> Tensor:
    """The same numbers as ``reference.lka_pair``, in x's memory format."""
    return depthwise_by_phases(depthwise_by_phases(x, local), dilated)
