"""Fast LKA on a CPU: depth-wise convolutions in C++, forward and backward.

The definition is ``reference.py``; kernels with an even side, which ``native`` does not have, go by phases.
"""

import torch.nn.functional as F
from torch import Tensor

from van.ops import native
from van.ops.phases import depthwise_by_phases, in_layout_of, taps_in_reach
from van.ops.reference import Kernel, check_kernels


def depthwise(x: Tensor, kernel: Kernel) -> Tensor:
    """The same numbers as ``reference.depthwise``: (N, C, H, W) float32 to the same, in x's memory format."""
    kernel = taps_in_reach(kernel, x.shape[2], x.shape[3])
    rows, columns = kernel.weight.shape[2:]
    if rows % 2 == 0 or columns % 2 == 0 or columns > native.WIDEST:
        return depthwise_by_phases(x, kernel)
    return in_layout_of(x, native.depthwise(x, kernel.weight, kernel.bias, kernel.dilation))


def large_kernel_attention(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """``reference.large_kernel_attention`` with its depth-wise convolutions in C++."""
    check_kernels(x, local, dilated, mix)
    attention = depthwise(depthwise(x, local), dilated)
    return x * F.conv2d(attention, mix.weight, mix.bias)
