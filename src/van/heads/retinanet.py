"""RetinaNet (Lin et al. 2017, arXiv:1708.02002): one-stage detection with anchors and focal loss."""

from collections.abc import Sequence
from typing import Any

from van.heads.registry import ExportPart, Published, register_head


def export_part() -> ExportPart:
    """Trace the network up to the scores and boxes of all anchors."""
    from van.heads.torchvision_detector import one_stage_export

    return one_stage_export("cls_logits", "bbox_regression")


@register_head(
    "retinanet",
    title="RetinaNet",
    task="detect",
    export=export_part,
    published={
        "van_b0": Published(millions=13.4, metrics={"box_ap": 38.8}),
        "van_b1": Published(millions=23.6, metrics={"box_ap": 42.3}),
        "van_b2": Published(millions=36.3, metrics={"box_ap": 44.9}),
        "van_b3": Published(millions=54.5, metrics={"box_ap": 47.5}),
    },
)
def create_retinanet(
    backbone: Any, *, num_classes: int, channels: int = 256, first_level: int = 8,
    anchor_sizes: Sequence[int] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Create an untrained network; options as those of ``van.heads.torchvision_detector.PyramidBackbone`` and of
    torchvision's detector. ``anchor_sizes`` are pixels on the five levels; each is used three times, up to 1.6 times
    larger.
    """
    from torchvision.models.detection import RetinaNet

    from van.heads.torchvision_detector import Detector, PyramidBackbone, anchor_generator

    pyramid = PyramidBackbone(backbone, first_level=first_level, channels=channels)
    anchors = anchor_generator(anchor_sizes, scales=[2 ** (third / 3) for third in range(3)])
    layers = ("head.classification_head.cls_logits",)
    options = {"anchor_generator": anchors, **options}
    return Detector(RetinaNet, pyramid, options, num_classes=num_classes, class_layers=layers)
