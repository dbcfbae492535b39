"""Datasets: readers of every registered format, validation, augmentation, and the embedded digits and scenes.

Public names are imported on first use, so that settings can be read without torch.
"""

import importlib
from typing import Any

_MODULES = {
    "FORMATS": "formats",
    "AnnotatedDataset": "annotations",
    "Annotation": "annotations",
    "AugmentSettings": "augment",
    "DenseDataset": "dense_dataset",
    "ImageDataset": "image_dataset",
    "ImageRecord": "annotations",
    "Issues": "annotations",
    "Item": "image_dataset",
    "JointAugmentSettings": "augment",
    "check_dataset": "check",
    "evaluation_dataset": "evaluation",
    "load_image_folder": "folder",
    "load_split": "formats",
    "load_splits": "check",
    "register_format": "registry",
    "training_transform": "augment",
}
__all__ = sorted(_MODULES)  # pyrefly: ignore[unresolvable-dunder-all]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'van.datasets' has no attribute {name!r}; expected one of {', '.join(__all__)}")
    return getattr(importlib.import_module(f"van.datasets.{_MODULES[name]}"), name)
