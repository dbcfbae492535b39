"""The operators this project exists for.

Each function chooses a backend by ``can_run``; ``reference`` is the definition that every backend is tested against.
"""

from van.ops.dispatch import (
    BACKENDS,
    Verdict,
    can_run,
    depthwise,
    depthwise_gelu,
    large_kernel_attention,
    lka_pair,
    plain_operators_wanted,
    use_backend,
)
from van.ops.memory import keep_freed_memory
from van.ops.reference import Kernel

__all__ = [
    "BACKENDS",
    "Kernel",
    "Verdict",
    "can_run",
    "depthwise",
    "depthwise_gelu",
    "keep_freed_memory",
    "large_kernel_attention",
    "lka_pair",
    "plain_operators_wanted",
    "use_backend",
]
