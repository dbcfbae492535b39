"""A convolution whose weights no longer change: laid out for the processor once, with what follows it fused in.

oneDNN, with which PyTorch convolves on a CPU, wants weights in blocks of its own and otherwise brings them there
in every call; at batch 1 that costs as much as half the arithmetic of the last stages.

Shapes: (N, C, H, W) to (N, D, H', W'); float32 and channels_last for the fast way, anything for the plain one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.ops import plain_operators_wanted


class FrozenConv2d(nn.Conv2d):
    """A ``Conv2d`` without gradients of its own; its answers are those of the plain one up to rounding."""

    _packed: tuple[tuple[tuple[Any, ...], Tensor], ...] = ()

    @classmethod
    def of(cls, conv: nn.Conv2d, weight: Tensor | None = None, bias: Tensor | None = None) -> "FrozenConv2d":
        """The same convolution, frozen, with other weights if some are given."""
        weight, bias = conv.weight if weight is None else weight, conv.bias if bias is None else bias
        frozen = cls.__new__(cls)
        frozen.__dict__.update(conv.__dict__)  # its settings, and below its own parameters
        frozen._parameters = {
            "weight": nn.Parameter(weight, requires_grad=False),
            "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
        }
        return frozen

    def forward(
        self,
        input: Tensor,  # noqa: A002 - Conv2d's own name
        *,
        gelu: bool = False,
        times: Tensor | None = None,
        plus: Tensor | None = None,
    ) -> Tensor:
        """``conv(input)``, then one of: its GELU, its product with ``times``, its sum with ``plus``."""
        if not self._can_pack(input):
            out = super().forward(input)
            out = F.gelu(out) if gelu else out
            out = out if times is None else out * times
            return out if plus is None else out + plus
        place = (self.padding, self.stride, self.dilation, self.groups)
        weight, other = self._weight_for(input), times if plus is None else plus
        convolve = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return convolve(input, weight, self.bias, *place, "gelu" if gelu else "none", [], "none")
        kind = "mul" if plus is None else "add"
        return convolve.binary(input, other, weight, self.bias, *place, kind, 1.0, None, [], None)

    def _can_pack(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not plain_operators_wanted()
            and type(x) is Tensor
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.is_autocast_enabled("cpu")
            and x.numel() > 0
            and x.is_contiguous(memory_format=torch.channels_last)
            and torch.backends.mkldnn.is_available()
        )

    def _weight_for(self, x: Tensor) -> Tensor:
        """The weight in the blocks that oneDNN wants for this shape; the layouts of the last two shapes are kept."""
        version = 0 if self.weight.is_inference() else self.weight._version
        key = (self.weight.data_ptr(), version, x.shape)
        for known, blocks in self._packed:
            if known == key:
                return blocks
        place = (self.padding, self.stride, self.dilation, self.groups)
        blocks = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *place, list(x.shape))
        self._packed = ((key, blocks), *(old for old in self._packed[:1] if old[0][:2] == key[:2]))
        return blocks

    def __getstate__(self) -> dict[str, Any]:
        """Without the blocks, which can be neither copied nor written, and are soon made again."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}
