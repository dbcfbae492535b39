"""Semantic FPN (Kirillov et al. 2019, arXiv:1901.02446): the levels of a feature pyramid, merged and classified."""

from typing import Any

from van.errors import UsageError
from van.heads.registry import Published, register_head


@register_head(
    "semantic_fpn",
    title="Semantic FPN",
    task="segment",
    backbone_options={"norm_eps": 1e-5},  # as in mmsegmentation
    public_prefix="decode_head.scale_heads.",
    published={
        "van_b0": Published(millions=8, gmacs=26, metrics={"mean_iou": 38.5}),
        "van_b1": Published(millions=18, gmacs=35, metrics={"mean_iou": 42.9}),
        "van_b2": Published(millions=30, gmacs=48, metrics={"mean_iou": 46.7}),
        "van_b3": Published(millions=49, gmacs=68, metrics={"mean_iou": 48.1}),
    },
    published_size=(512, 512),
)
def create_semantic_fpn(backbone: Any, *, num_classes: int, channels: int = 128) -> Any:
    """Create an untrained network; the head has ``channels``, at least 2, on a neck of twice as many."""
    from van.heads.segmenter import FeaturePyramid, Segmenter, SemanticFpnHead

    if channels < 2:
        raise UsageError(f"channels: expected at least 2, got {channels}")
    neck = FeaturePyramid([level["num_chs"] for level in backbone.feature_info], 2 * channels)
    return Segmenter(backbone, neck=neck, decode_head=SemanticFpnHead(2 * channels, num_classes, channels=channels))
