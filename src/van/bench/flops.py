"""Counts of parameters, multiply-accumulates and bytes moved in one forward pass.

Counted on the meta device, which propagates shapes without computing, on the network as released.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from van.ops import use_backend

_COUNTED = ("convolution", "addmm", "bmm", "mm.", "batch_norm", "layer_norm", "attention")
"""Substrings of the names of the operators whose tensors are counted; other operators can be fused."""


class ModelCost(NamedTuple):
    """The ``parameters`` of a network, and ``macs`` and ``bytes_moved`` in one forward pass of a batch."""

    parameters: int
    macs: int
    bytes_moved: int


def count_flops(build: Callable[[], nn.Module], *, batch_size: int, image_size: int) -> ModelCost:
    """Count the operations of a forward pass over (batch_size, 3, image_size, image_size) in float32.

    ``macs`` are half of the FLOPs of ``torch.utils.flop_counter``: convolutions, linear layers and the two
    products of attention. ``bytes_moved`` is the memory traffic with a small cache: every parameter is read
    once, and the inputs and outputs of each convolution, linear layer, norm and product are read and written
    once. Activation functions, sums and gates are excluded, because they can be fused.

    Args:
        build: returns the network on the meta device.
        batch_size: number of images.
        image_size: height and width of the images, in pixels.
    """
    model = build().eval()
    images = torch.empty(batch_size, 3, image_size, image_size, device="meta")
    with torch.no_grad(), use_backend("reference"), FlopCounterMode(display=False) as flops, _BytesMoved() as moved:
        model(images)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelCost(parameters, flops.get_total_flops() // 2, moved.bytes_moved)


class _BytesMoved(TorchDispatchMode):
    """A dispatch mode that sums the sizes of the inputs and outputs of the counted operators."""

    bytes_moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if any(name in func.__name__ for name in _COUNTED):
            result = output[0] if isinstance(output, tuple | list) else output  # skip the statistics of a norm
            tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
            self.bytes_moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return output
