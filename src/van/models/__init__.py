"""Networks: LKA and VAN, detection and segmentation heads, public weights formats, fusion for inference."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from van.models.fusion import fuse

__all__ = ["fuse"]


def __getattr__(name: str) -> Any:
    if name == "fuse":  # imported on demand, because van.models.registry and design must not import torch
        from van.models.fusion import fuse

        return fuse
    raise AttributeError(f"module 'van.models' has no attribute {name!r}; public names: {', '.join(__all__)}")
