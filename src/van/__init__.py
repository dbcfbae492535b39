"""VAN, the Visual Attention Network, and Large Kernel Attention.

Importing this package registers ``van_b0`` ... ``van_b6`` with timm: now if timm is already imported, else when it is
imported. Public names are imported on first use. So ``import van`` takes milliseconds and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from van import registration

if TYPE_CHECKING:
    from van.api import benchmark, check_dataset, convert, evaluate, explain, export, predict, report, serve, train
    from van.backbones.layers import LKA
    from van.backbones.van import VAN
    from van.checkpoint import Checkpoint, load_checkpoint
    from van.errors import VanError
    from van.model import Model
    from van.ops import large_kernel_attention
    from van.predictions import Classification, Detections, Segmentation
    from van.preprocess import CenterCropPreprocess
    from van.results import Metrics, Run

__version__ = "0.1.0"

_MODULES = {
    "Checkpoint": "van.checkpoint",
    "Classification": "van.predictions",
    "Detections": "van.predictions",
    "LKA": "van.backbones.layers",
    "Metrics": "van.results",
    "Model": "van.model",
    "CenterCropPreprocess": "van.preprocess",
    "Run": "van.results",
    "Segmentation": "van.predictions",
    "VAN": "van.backbones.van",
    "VanError": "van.errors",
    "benchmark": "van.api",
    "check_dataset": "van.api",
    "convert": "van.api",
    "evaluate": "van.api",
    "large_kernel_attention": "van.ops",
    "load_checkpoint": "van.checkpoint",
    "serve": "van.api",
    "train": "van.api",
}
_CALLABLE_MODULES = ("explain", "export", "predict", "report")
"""Verbs that are modules, too; see ``van.callable_module``."""

__all__ = [
    "LKA",
    "VAN",
    "CenterCropPreprocess",
    "Checkpoint",
    "Classification",
    "Detections",
    "Metrics",
    "Model",
    "Run",
    "Segmentation",
    "VanError",
    "__version__",
    "benchmark",
    "check_dataset",
    "convert",
    "evaluate",
    "explain",
    "export",
    "large_kernel_attention",
    "load_checkpoint",
    "predict",
    "report",
    "serve",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_MODULES:
        return importlib.import_module(f"van.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'van' has no attribute {name!r}; expected one of {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


registration.register_with_timm()
