"""Model creation by name: any timm model, or VAN with a head for detection or segmentation.

``head`` in the options selects the second kind, so that a checkpoint's ``model_options`` describe either completely.
"""

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from van.errors import UsageError
from van.models import van as _registered  # noqa: F401  importing it registers VAN with timm
from van.models.registry import HEADS, VARIANTS


def create_model(name: str, *, num_classes: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Create an untrained network.

    Args:
        name: a timm model name; with a head, one of VAN's.
        num_classes: outputs of the classifier, or classes of the head without a background.
        options: further keyword arguments of the network; ``head`` is one of ``registry.HEADS``.

    Raises:
        UsageError: the model or head is unknown, or the network does not accept the options.
    """
    given = dict(options or {})
    try:
        if "head" in given:
            return _create_with_head(name, num_classes=num_classes, **given)
        if not timm.is_model(name):
            raise UsageError(unknown_model_message(name))
        return timm.create_model(name, num_classes=num_classes, **given)
    except (TypeError, RuntimeError) as error:  # an unknown option, or a tag that timm does not know
        raise UsageError(f"{name}: cannot create the model with the options {given}: {error}") from error


def unknown_model_message(name: str) -> str:
    """Return the error message for a name that is neither a file nor a model."""
    known = ", ".join(VARIANTS)
    return f"model: expected a file, {known} or a timm model with public weights, got {name!r}"


def _create_with_head(name: str, *, head: str, num_classes: int, **options: Any) -> nn.Module:
    """Create VAN with a head; torchvision's and transformers' detectors take seconds, so only one is imported."""
    if head in ("semantic_fpn", "upernet"):
        from van.models.segmenters import create_segmenter

        return create_segmenter(name, head=head, num_classes=num_classes, **options)
    if head in ("retinanet", "fcos", "faster_rcnn", "mask_rcnn"):
        from van.models.detectors import create_detector

        return create_detector(name, head=head, num_classes=num_classes, **options)
    if head in ("d_fine", "rt_detr_v2", "deformable_detr"):
        from van.models.transformer_detectors import TransformerDetector

        return TransformerDetector(name, head=head, num_classes=num_classes, **options)
    if head == "mask2former":
        from van.models.panoptic import PanopticSegmenter

        return PanopticSegmenter(name, num_classes=num_classes, **options)
    raise UsageError(f"head: expected one of {', '.join(HEADS)}, got {head!r}")
