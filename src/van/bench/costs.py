"""What one forward pass costs on paper: parameters, multiply-accumulates, bytes moved.

Counted on the meta device, where shapes flow and nothing is computed, on the network as released.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from van.ops import use_backend

_COUNTED = ("convolution", "addmm", "bmm", "mm.", "batch_norm", "layer_norm", "attention")
"""Parts of the names of the operators whose tensors are counted; what is between them can be fused away."""


class Cost(NamedTuple):
    """Of a batch: ``parameters`` of the network, ``macs`` and ``bytes_moved`` in one forward pass."""

    parameters: int
    macs: int
    bytes_moved: int


def count(build: Callable[[], nn.Module], *, batch_size: int, size_px: int) -> Cost:
    """Cost of a forward pass over (batch_size, 3, size_px, size_px) in float32.

    ``macs`` are half of what ``torch.utils.flop_counter`` counts: convolutions, linear layers and the two
    products of attention. ``bytes_moved`` is what a machine with a small cache has to move: every
    parameter read once, and what goes in and out of each convolution, linear layer, norm and product
    read and written once. Activation functions, sums and gates are left out, as they can be fused.

    Args:
        build: makes the network on the meta device.
        batch_size: pictures.
        size_px: their side.
    """
    model = build().eval()
    pictures = torch.empty(batch_size, 3, size_px, size_px, device="meta")
    with torch.no_grad(), use_backend("reference"), FlopCounterMode(display=False) as flops, _BytesMoved() as moved:
        model(pictures)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, flops.get_total_flops() // 2, moved.bytes_moved)


class _BytesMoved(TorchDispatchMode):
    """Adds up the sizes of the tensors that go in and out of the counted operators."""

    bytes_moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if any(part in func.__name__ for part in _COUNTED):
            given = answer[0] if isinstance(answer, tuple | list) else answer  # a norm's statistics stay behind
            tensors = [value for value in (*args, given) if isinstance(value, Tensor)]
            self.bytes_moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return answer
