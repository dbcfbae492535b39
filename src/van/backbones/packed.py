"""A convolution for inference: weights packed once for oneDNN, and the following element-wise operation fused.

oneDNN, PyTorch's convolution library on CPUs, needs weights in a blocked layout of its own and otherwise reorders
them in every call; at batch 1 that costs as much as half the arithmetic of the last stages.

Shapes: (N, C, H, W) to (N, D, H', W'); float32 in channels_last for the packed path, any other for the plain one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.ops import use_reference


class PackedConv2d(nn.Conv2d):
    """A ``Conv2d`` whose weights are frozen and packed; its outputs equal the plain one's up to rounding."""

    _packed: tuple[tuple[tuple[Any, ...], Tensor], ...] = ()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, weight: Tensor | None = None, bias: Tensor | None = None) -> "PackedConv2d":
        """Return a packed copy of ``conv``, with other weights or another bias if they are given."""
        weight, bias = conv.weight if weight is None else weight, conv.bias if bias is None else bias
        packed = cls.__new__(cls)
        packed.__dict__.update(conv.__dict__)  # the settings; the parameters are replaced below
        packed._parameters = {
            "weight": nn.Parameter(weight, requires_grad=False),
            "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
        }
        return packed

    def forward(  # pyrefly: ignore[bad-param-name-override]
        self, x: Tensor, *, gelu: bool = False, multiplier: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Convolve, then apply one of: GELU, the product with ``multiplier``, the sum with ``residual``."""
        if not self._can_pack(x):
            out = super().forward(x)
            out = F.gelu(out) if gelu else out
            out = out if multiplier is None else out * multiplier
            return out if residual is None else out + residual
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        weight, other = self._weight_for(x), multiplier if residual is None else residual
        convolve = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return convolve(x, weight, self.bias, *geometry, "gelu" if gelu else "none", [], "none")
        kind = "mul" if residual is None else "add"
        return convolve.binary(x, other, weight, self.bias, *geometry, kind, 1.0, None, [], None)

    def _can_pack(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not use_reference()
            and type(x) is Tensor
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.is_autocast_enabled("cpu")
            and x.numel() > 0
            and x.is_contiguous(memory_format=torch.channels_last)
            and torch.backends.mkldnn.is_available()
        )

    def _weight_for(self, x: Tensor) -> Tensor:
        """Return the weight in oneDNN's layout for this input shape; those of the last two shapes are cached."""
        version = 0 if self.weight.is_inference() else self.weight._version
        key = (self.weight.data_ptr(), version, x.shape)
        for cached_key, cached in self._packed:
            if cached_key == key:
                return cached
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, list(x.shape))
        # an entry of older weights is dropped: only those of this storage and version stay valid
        self._packed = ((key, packed), *(old for old in self._packed[:1] if old[0][:2] == key[:2]))
        return packed

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without packed weights, which cannot be copied or pickled and are packed again on use."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}
