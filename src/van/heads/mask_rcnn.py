"""Mask R-CNN (He et al. 2017, arXiv:1703.06870): two-stage detection with a mask per object."""

from collections.abc import Sequence
from typing import Any

from van.heads.registry import ExportPart, Published, register_head


def export_part() -> ExportPart:
    """Trace both stages; low scores are filtered and masks resized in Python."""
    from van.heads.two_stage import ROI_MASKS, two_stage_export

    return two_stage_export("boxes", "labels", "scores", ROI_MASKS, computes="filters low scores and resizes the masks")


@register_head(
    "mask_rcnn",
    title="Mask R-CNN",
    task="instances",
    export=export_part,
    published={
        "van_b0": Published(millions=23.9, metrics={"box_ap": 40.2, "mask_ap": 37.6}),
        "van_b1": Published(millions=33.5, metrics={"box_ap": 42.6, "mask_ap": 38.9}),
        "van_b2": Published(millions=46.2, metrics={"box_ap": 46.4, "mask_ap": 41.8}),
        "van_b3": Published(millions=64.4, metrics={"box_ap": 48.3, "mask_ap": 43.4}),
    },
)
def create_mask_rcnn(
    backbone: Any, *, num_classes: int, channels: int = 256, first_level: int = 4,
    anchor_sizes: Sequence[int] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Create an untrained network; arguments as those of Faster R-CNN."""
    from torchvision.models.detection import MaskRCNN

    from van.heads.torchvision_detector import Detector, PyramidBackbone
    from van.heads.two_stage import box_modules, mask_modules

    pyramid = PyramidBackbone(backbone, first_level=first_level, channels=channels)
    boxes = box_modules(pyramid, num_classes, anchor_sizes)
    options = {**boxes, **mask_modules(pyramid, num_classes), **options}
    layers = ("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits")
    return Detector(MaskRCNN, pyramid, options, num_classes=num_classes, class_layers=layers, has_background=True)
