"""VAN, the Visual Attention Network, and Large Kernel Attention.

Importing this package registers ``van_b0`` ... ``van_b6`` with timm: at once where timm is already
imported, else in the moment it is. So ``import van`` itself costs milliseconds, and a command
that needs no network never loads one.
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
    from van.preprocess import Preprocess
    from van.results import Classes

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "van.checkpoint",
    "Classes": "van.results",
    "Explainer": "van.explain",
    "LKA": "van.models.layers",
    "Predictor": "van.predict",
    "Preprocess": "van.preprocess",
    "VAN": "van.models.van",
    "VanError": "van.errors",
    "large_kernel_attention": "van.ops",
    "load_checkpoint": "van.checkpoint",
}

__all__ = [
    "LKA",
    "VAN",
    "Checkpoint",
    "Classes",
    "Explainer",
    "Predictor",
    "Preprocess",
    "VanError",
    "__version__",
    "large_kernel_attention",
    "load_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "explain":  # a room with names of its own
        return importlib.import_module("van.explain")
    if name not in _HOMES:
        raise AttributeError(f"module 'van' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


registration.register_with_timm()
