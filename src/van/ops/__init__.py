"""The operators of large kernel attention, each with several backends.

Each function selects a backend with ``can_run``. ``reference`` is the definition that every backend is tested against.
"""

from van.ops.dispatch import (
    BACKENDS,
    Availability,
    can_run,
    depthwise,
    depthwise_gelu,
    large_kernel_attention,
    lka_pair,
    use_backend,
    use_reference,
)
from van.ops.memory import enable_memory_reuse
from van.ops.reference import Kernel

__all__ = [
    "BACKENDS",
    "Availability",
    "Kernel",
    "can_run",
    "depthwise",
    "depthwise_gelu",
    "enable_memory_reuse",
    "large_kernel_attention",
    "lka_pair",
    "use_backend",
    "use_reference",
]
