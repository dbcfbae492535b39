"""Export of Mask2Former: everything up to the queries' classes and masks is traced, masks are cropped in Python.

Shapes: padded images (N, 3, R, C); Q queries: class logits (N, Q, K + 1) and, at a quarter of the padded size, mask
logits (N, Q, R / 4, C / 4).
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from van.models.padding import Size, common_padded_size
from van.models.panoptic import PanopticSegmenter, crop_to_image

NAME = "mask2former"
OUTPUTS = ("class_logits", "mask_logits")


class TracedMaskHead(nn.Module):
    """The exported part of a ``PanopticSegmenter``; replaces the network's self-attention in place."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, PanopticSegmenter)
        self.network = network
        decoder: Any = network.segmenter.model.transformer_module.decoder
        for layer in decoder.layers:
            layer.self_attn = _SelfAttention(layer.self_attn)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return class and mask logits of the queries."""
        outputs: Any = self.network.segmenter(pixel_values=images)
        return outputs.class_queries_logits, outputs.masks_queries_logits


class _SelfAttention(nn.Module):
    """The queries' self-attention of transformers, with separate axes for batch and heads throughout.

    transformers merges batch and heads into one axis. The ONNX optimizer undoes that for one factor of a matrix
    product and not for the other, and OpenVINO 2026.4 cannot compile such a product.
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
        """Return the attended queries (Q, N, C); the attention weights are None because nothing reads them."""
        assert attention_mask is None, "each query attends to all others"
        hidden = hidden_states.transpose(0, 1)
        with_positions = hidden + position_embeddings.transpose(0, 1)
        attention = self.attention
        heads = (attention.num_heads, attention.head_dim)
        layers = ((attention.q_proj, with_positions), (attention.k_proj, with_positions), (attention.v_proj, hidden))
        query, key, value = (layer(x).unflatten(-1, heads).transpose(1, 2) for layer, x in layers)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attention.out_proj(attended.transpose(1, 2).flatten(2)).transpose(0, 1), None


class MaskDecoder:
    """The post-processing of Mask2Former up to mask logits; ``van.tasks.panoptic`` resolves overlapping masks."""

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """Return the padded size, multiples of 32 pixels."""
        return common_padded_size(sizes)

    def __call__(self, outputs: Sequence[Tensor], sizes: Sequence[Size], padded_size: Size) -> list[dict[str, Tensor]]:
        """Return each image's class and mask logits, masks without the padding."""
        return [
            {"class_logits": class_logits, "mask_logits": crop_to_image(mask_logits, padded_size, size)}
            for class_logits, mask_logits, size in zip(*outputs, sizes, strict=True)
        ]
