"""UPerNet (Xiao et al. 2018, arXiv:1807.10221): pyramid pooling, a feature pyramid and an auxiliary head."""

from typing import Any

from van.errors import UsageError
from van.heads.registry import Published, register_head


@register_head(
    "upernet",
    title="UPerNet",
    task="segment",
    backbone_options={"norm_eps": 1e-5},  # as in mmsegmentation
    pools_globally=True,
    public_prefix="decode_head.psp_modules.",
    published={  # multi-scale mean IoU
        "van_b2": Published(millions=57, gmacs=948, metrics={"mean_iou": 50.1}),
        "van_b3": Published(millions=75, gmacs=1030, metrics={"mean_iou": 50.6}),
        "van_b4": Published(millions=90, gmacs=1098, metrics={"mean_iou": 52.2}),
        "van_b5": Published(millions=117, gmacs=1208, metrics={"mean_iou": 53.9}),  # from ImageNet-22K
        "van_b6": Published(millions=231, gmacs=1658, metrics={"mean_iou": 54.7}),  # from ImageNet-22K
    },
    published_size=(512, 2048),
)
def create_upernet(backbone: Any, *, num_classes: int, channels: int = 512) -> Any:
    """Create an untrained network; the head has ``channels``, at least 2, the auxiliary head half as many."""
    from van.heads.segmenter import AuxiliaryHead, Segmenter, UPerHead

    if channels < 2:
        raise UsageError(f"channels: expected at least 2, got {channels}")
    in_channels = [level["num_chs"] for level in backbone.feature_info]
    head = UPerHead(in_channels, num_classes, channels=channels)
    auxiliary_head = AuxiliaryHead(in_channels[2], num_classes, channels=channels // 2)
    return Segmenter(backbone, decode_head=head, auxiliary_head=auxiliary_head)
