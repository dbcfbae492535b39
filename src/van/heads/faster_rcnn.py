"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497): two-stage detection."""

from collections.abc import Sequence
from typing import Any

from van.heads.registry import ExportPart, register_head


def export_part() -> ExportPart:
    """Trace both stages; low scores are filtered in Python."""
    from van.heads.two_stage import two_stage_export

    return two_stage_export("boxes", "labels", "scores", computes="filters low scores")


@register_head("faster_rcnn", title="Faster R-CNN", task="detect", export=export_part)
def create_faster_rcnn(
    backbone: Any, *, num_classes: int, channels: int = 256, first_level: int = 4,
    anchor_sizes: Sequence[int] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Create an untrained network with heads as wide as the pyramid; at 256 channels they equal torchvision's.

    Options as those of ``van.heads.torchvision_detector.PyramidBackbone`` and of torchvision's detector;
    ``anchor_sizes`` are pixels on the five levels.
    """
    from torchvision.models.detection import FasterRCNN

    from van.heads.torchvision_detector import Detector, PyramidBackbone
    from van.heads.two_stage import box_modules

    pyramid = PyramidBackbone(backbone, first_level=first_level, channels=channels)
    options = {**box_modules(pyramid, num_classes, anchor_sizes), **options}
    layers = ("roi_heads.box_predictor",)
    return Detector(FasterRCNN, pyramid, options, num_classes=num_classes, class_layers=layers, has_background=True)
