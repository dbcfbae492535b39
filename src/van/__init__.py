"""VAN, the Visual Attention Network, and Large Kernel Attention.

Importing this package registers ``van_b0`` ... ``van_b6`` with timm: now if timm is already imported, else when it is
imported. Public names are imported on first use. So ``import van`` takes milliseconds and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from van import registration

if TYPE_CHECKING:
    from van.checkpoint import Checkpoint, load_checkpoint
    from van.errors import VanError
    from van.explain import Explainer
    from van.models.layers import LKA
    from van.models.van import VAN
    from van.ops import large_kernel_attention
    from van.predict import Predictor
    from van.predictions import Classification
    from van.preprocess import CenterCropPreprocess

__version__ = "0.1.0"

_MODULES = {
    "Checkpoint": "van.checkpoint",
    "Classification": "van.predictions",
    "Explainer": "van.explain",
    "LKA": "van.models.layers",
    "Predictor": "van.predict",
    "CenterCropPreprocess": "van.preprocess",
    "VAN": "van.models.van",
    "VanError": "van.errors",
    "large_kernel_attention": "van.ops",
    "load_checkpoint": "van.checkpoint",
}

__all__ = [
    "LKA",
    "VAN",
    "CenterCropPreprocess",
    "Checkpoint",
    "Classification",
    "Explainer",
    "Predictor",
    "VanError",
    "__version__",
    "large_kernel_attention",
    "load_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "explain":  # a subpackage with public names of its own
        return importlib.import_module("van.explain")
    if name not in _MODULES:
        raise AttributeError(f"module 'van' has no attribute {name!r}; expected one of {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


registration.register_with_timm()
