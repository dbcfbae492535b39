"""Dilated convolutions as undilated ones by space-to-batch, for CPUs without a C++ compiler.

A depth-wise convolution with dilation d never mixes pixels whose rows or columns differ modulo d. So the
feature map is split into d x d sub-maps along the batch, and each is convolved with the *undilated* kernel.
PyTorch has fast code for undilated depth-wise convolutions and is several times slower on dilated ones.
In channels_last the split only moves whole pixels of C values. On small feature maps most weights of a large
kernel read only padding; they are cropped first.

Shapes: (N, C, H, W); inside, the sub-maps lie along the batch: (N*d*d, C, ceil(H/d), ceil(W/d)).
"""

import torch.nn.functional as F
from torch import Tensor

from van.ops.reference import Kernel, depthwise, same_padding


def space_to_batch(x: Tensor, dilation: int) -> Tensor:
    """Move the pixels of (N, C, H, W) to d*d sub-maps along the batch, by row and column modulo d.

    ``H`` and ``W`` must be multiples of d. Returns (N*d*d, C, H/d, W/d) in channels_last.
    """
    images, channels, rows, columns = x.shape
    d = dilation
    pixels = x.permute(0, 2, 3, 1).reshape(images, rows // d, d, columns // d, d, channels)
    batch = pixels.permute(0, 2, 4, 1, 3, 5).reshape(images * d * d, rows // d, columns // d, channels)
    return batch.permute(0, 3, 1, 2)


def batch_to_space(batch: Tensor, dilation: int) -> Tensor:
    """Invert ``space_to_batch``: (N*d*d, C, h, w) to (N, C, h*d, w*d) in channels_last."""
    count, channels, rows, columns = batch.shape
    d = dilation
    pixels = batch.permute(0, 2, 3, 1).reshape(count // (d * d), d, d, rows, columns, channels)
    x = pixels.permute(0, 3, 1, 4, 2, 5).reshape(count // (d * d), rows * d, columns * d, channels)
    return x.permute(0, 3, 1, 2)


def crop_weight(kernel: Kernel, rows: int, columns: int) -> Kernel:
    """Remove the outer weights that read only padding on a rows x columns feature map; odd kernel sizes only."""
    weight, d = kernel.weight, kernel.dilation
    halves = [size // 2 if size % 2 else 0 for size in weight.shape[2:]]
    margins = [max(0, half - (length - 1) // d) for half, length in zip(halves, (rows, columns), strict=True)]
    if any(margins):
        # narrowing in stride order gives the gradient the strides of the weight, which DDP requires
        channels_last = weight.stride(1) == 1
        cropped = weight.permute(0, 2, 3, 1) if channels_last else weight
        for axis, margin in enumerate(margins, start=1 if channels_last else 2):
            cropped = cropped.narrow(axis, margin, cropped.shape[axis] - 2 * margin)
        weight = cropped.permute(0, 3, 1, 2) if channels_last else cropped
    is_pointwise = tuple(weight.shape[2:]) == (1, 1)
    return Kernel(weight, kernel.bias, 1 if is_pointwise else d)


def depthwise_space_to_batch(x: Tensor, kernel: Kernel) -> Tensor:
    """Compute ``reference.depthwise`` by space-to-batch: (N, C, H, W) to the same, in the memory format of x."""
    kernel = crop_weight(kernel, x.shape[2], x.shape[3])
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
    # pad both sizes to a multiple of the dilation
    right += -(columns + left + right) % d
    bottom += -(rows + top + bottom) % d
    padded = F.pad(x, (left, right, top, bottom)) if any((left, right, top, bottom)) else x
    out = F.conv2d(space_to_batch(padded, d), kernel.weight, kernel.bias, padding=padding, groups=channels)
    return match_memory_format(x, batch_to_space(out, d)[:, :, :rows, :columns])


def match_memory_format(x: Tensor, out: Tensor) -> Tensor:
    """Return ``out`` in channels_last if ``x`` is, else contiguous."""
    # torch.func.vmap does not support is_contiguous(memory_format=torch.channels_last)
    if x.permute(0, 2, 3, 1).is_contiguous():
        return out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return out.contiguous()


def lka_pair_space_to_batch(x: Tensor, local: Kernel, dilated: Kernel) -> Tensor:
    """Compute ``reference.lka_pair`` by space-to-batch, in the memory format of x."""
    return depthwise_space_to_batch(depthwise_space_to_batch(x, local), dilated)
