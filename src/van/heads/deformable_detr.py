"""Deformable DETR (Zhu et al. 2021, arXiv:2010.04159), from transformers.

It refines its boxes layer by layer, starts with small ones and weights classes twice in the matching, as its authors'
code does; transformers' defaults differ.
"""

from typing import Any

from van.heads.registry import ExportPart, register_head


def export_part() -> ExportPart:
    """Trace the network up to the scores and boxes of all queries."""
    from van.heads.transformer_detector import query_export

    return query_export(selects_queries=False)


@register_head("deformable_detr", title="Deformable DETR", task="detect", export=export_part, extra="transformers")
def create_deformable_detr(backbone: Any, **options: Any) -> Any:
    """Create an untrained network; options as those of ``van.heads.transformer_detector.TransformerDetector``."""
    from torch import nn

    from van.heads.transformer_detector import PRIOR_LOGIT, TransformerDetector

    weights = {"ce": 1.0, "bbox": 5.0, "giou": 2.0}
    options = {"with_box_refine": True, "class_cost": 2, **options}
    network = TransformerDetector(
        backbone, "Deformable DETR", "DeformableDetr", weights, selects_queries=False, **options
    )
    detector = network.detector
    for layer, (classes, boxes) in enumerate(zip(detector.class_embed, detector.bbox_embed, strict=True)):
        nn.init.constant_(classes.bias, PRIOR_LOGIT)
        nn.init.zeros_(boxes.layers[-1].weight)
        nn.init.zeros_(boxes.layers[-1].bias)
        if layer == 0:
            nn.init.constant_(boxes.layers[-1].bias[2:], -2.0)
    detector.model.decoder.bbox_embed = detector.bbox_embed
    return network
