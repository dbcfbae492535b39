"""Mask2Former cut in two: all up to the classes and the masks of its queries, which is exported, and the cutting.

Shapes: a canvas (N, 3, R, C); Q queries: class logits (N, Q, K + 1) and, at a quarter of the canvas, mask logits
(N, Q, R / 4, C / 4).
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from van.models.canvas import Size, common_canvas
from van.models.panoptic import PanopticSegmenter, cut_to_picture

NAME = "mask2former"
OUTPUTS = ("class_logits", "mask_logits")


class MaskHeads(nn.Module):
    """The part of a ``PanopticSegmenter`` that is exported; the network's self-attention is replaced, in place."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, PanopticSegmenter)
        self.network = network
        decoder: Any = network.segmenter.model.transformer_module.decoder
        for layer in decoder.layers:
            layer.self_attn = _SelfAttention(layer.self_attn)

    def forward(self, canvas: Tensor) -> tuple[Tensor, ...]:
        """Class and mask logits of the queries."""
        found: Any = self.network.segmenter(pixel_values=canvas)
        return found.class_queries_logits, found.masks_queries_logits


class _SelfAttention(nn.Module):
    """transformers' self-attention of the queries with four axes from the first product to the last.

    It puts batch and heads on one axis. The simplifier of the ONNX graph undoes that for one factor of a product and
    not for the other, and OpenVINO 2026.4 cannot compile such a product.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, None]:
        """Of (Q, N, C) the same; nothing reads the attention itself."""
        assert attention_mask is None, "queries see all others"
        plain = hidden_states.transpose(0, 1)
        placed = plain + position_embeddings.transpose(0, 1)
        own = self.attention
        heads = (own.num_heads, own.head_dim)
        layers = ((own.q_proj, placed), (own.k_proj, placed), (own.v_proj, plain))
        query, key, value = (layer(x).unflatten(-1, heads).transpose(1, 2) for layer, x in layers)
        found = F.scaled_dot_product_attention(query, key, value)
        return own.out_proj(found.transpose(1, 2).flatten(2)).transpose(0, 1), None


class MaskDecoder:
    """That of Mask2Former; what is made of overlapping masks is the task's."""

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Multiples of 32 pixels."""
        return common_canvas(sizes)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], canvas: Size) -> list[dict[str, Tensor]]:
        """Each picture's queries, their masks without the filling."""
        return [
            {"class_logits": classes, "mask_logits": cut_to_picture(masks, canvas, size)}
            for classes, masks, size in zip(*outputs, sizes, strict=True)
        ]
