"""RT-DETR v2 (Lv et al. 2024, arXiv:2407.17140), from transformers."""

from typing import Any

from van.heads.registry import ExportPart, register_head


def export_part() -> ExportPart:
    """Trace the network up to the scores and boxes of all queries."""
    from van.heads.transformer_detector import query_export

    return query_export(selects_queries=True)


@register_head("rt_detr_v2", title="RT-DETR v2", task="detect", export=export_part, extra="transformers")
def create_rt_detr_v2(backbone: Any, **options: Any) -> Any:
    """Create an untrained network; options as those of ``van.heads.transformer_detector.TransformerDetector``."""
    from van.heads.transformer_detector import TransformerDetector

    weights = dict.fromkeys(("vfl", "bbox", "giou"), 1.0)  # transformers returns the losses already weighted
    return TransformerDetector(backbone, "RT-DETR v2", "RTDetrV2", weights, selects_queries=True, **options)
