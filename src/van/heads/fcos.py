"""FCOS (Tian et al. 2019, arXiv:1904.01355): one-stage detection without anchors."""

from typing import Any

from van.errors import UsageError
from van.heads.registry import ExportPart, register_head


def export_part() -> ExportPart:
    """Trace the network up to the scores and boxes of all cells."""
    from van.heads.torchvision_detector import one_stage_export

    return one_stage_export("cls_logits", "bbox_regression", "bbox_ctrness")


@register_head("fcos", title="FCOS", task="detect", export=export_part)
def create_fcos(backbone: Any, *, num_classes: int, channels: int = 256, first_level: int = 8, **options: Any) -> Any:
    """Create an untrained network; options as those of ``van.heads.torchvision_detector.PyramidBackbone`` and of
    torchvision's detector.
    """
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    from van.heads.torchvision_detector import LEVELS, Detector, PyramidBackbone

    if channels % 64:  # group norms have 32 groups, and a group needs two values even on a map of one pixel
        raise UsageError(f"channels: expected a multiple of 64 for fcos, got {channels}")
    pyramid = PyramidBackbone(backbone, first_level=first_level, channels=channels)
    cells = AnchorGenerator(tuple((first_level * 2**level,) for level in range(LEVELS)), ((1.0,),) * LEVELS)
    layers = ("head.classification_head.cls_logits",)
    options = {"anchor_generator": cells, **options}
    return Detector(FCOS, pyramid, options, num_classes=num_classes, class_layers=layers)
