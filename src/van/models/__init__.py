"""Networks: LKA and VAN, their registration with timm, every public weights format, the deploy rewrite."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from van.models.deploy import fuse

__all__ = ["fuse"]


def __getattr__(name: str) -> Any:
    if name == "fuse":  # on demand, because what else lies here must be reached without torch
        from van.models.deploy import fuse

        return fuse
    raise AttributeError(f"module 'van.models' has no attribute {name!r}; public names: {', '.join(__all__)}")
