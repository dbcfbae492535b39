"""Heads for detection and segmentation: one file per head, registered; ``HEADS`` lists them.

The other files are what several heads share: networks on a VAN, and the post-processing of their exported files.
"""

from van.heads import (  # noqa: F401  importing a head registers it
    d_fine,
    deformable_detr,
    faster_rcnn,
    fcos,
    mask2former,
    mask_rcnn,
    retinanet,
    rt_detr_v2,
    semantic_fpn,
    upernet,
)
from van.heads.registry import HEADS, ExportPart, Head, Published, create_model, heads_of, register_head

__all__ = ["HEADS", "ExportPart", "Head", "Published", "create_model", "heads_of", "register_head"]
