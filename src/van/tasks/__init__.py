"""The tasks: for each, how samples are collated, the loss, the metrics, and the decoding of outputs.

Public names are imported on first use.
"""

import importlib
from typing import Any

_MODULES = {
    "TASKS": "registry",
    "Batch": "base",
    "ClassificationTask": "classification",
    "DetectionTask": "detection",
    "ImageMeta": "base",
    "MixupSettings": "mixup",
    "PanopticTask": "panoptic",
    "SegmentationTask": "segmentation",
    "Task": "base",
    "make_task": "registry",
    "register_task": "registry",
}
__all__ = sorted(_MODULES)  # pyrefly: ignore[unresolvable-dunder-all]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"van.tasks.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'van.tasks' has no attribute {name!r}; expected one of {', '.join(__all__)}")
