"""Fresh networks by name: any timm model, or VAN with a head for detection or segmentation.

``head`` in the options chooses the second kind, so that a checkpoint's ``model_options`` say all there is to say.
"""

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from van.errors import UsageError
from van.models import van as _registered  # noqa: F401  importing it registers VAN with timm
from van.models.catalogue import HEADS, VARIANTS


def create(name: str, *, num_classes: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A fresh, untrained network.

    Args:
        name: a timm model name; one of VAN's where there is a head.
        num_classes: outputs of the classifier, or classes of what the head finds.
        options: further keyword arguments of the network; ``head`` is one of ``catalogue.HEADS``.

    Raises:
        UsageError: there is no model or head of that name, or the network refuses the options.
    """
    given = dict(options or {})
    try:
        if "head" in given:
            return _with_head(name, num_classes=num_classes, **given)
        if not timm.is_model(name):
            raise UsageError(unknown(name))
        return timm.create_model(name, num_classes=num_classes, **given)
    except (TypeError, RuntimeError) as error:  # an option it does not take; a tag that timm does not know
        raise UsageError(f"{name} cannot be built with {given}: {error}") from error


def unknown(name: str) -> str:
    """What to say of a name that is none of a model."""
    known = ", ".join(VARIANTS)
    return f"{name!r} is neither a file nor a model; known: {known}, and every timm model with public weights"


def _with_head(name: str, *, head: str, num_classes: int, **options: Any) -> nn.Module:
    """Each import stands where it is used: torchvision's and transformers' detectors take seconds to load."""
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
    raise UsageError(f"there is no head {head!r}; known: {', '.join(HEADS)}")
