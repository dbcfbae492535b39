"""The operators this project exists for.

``large_kernel_attention`` chooses a backend by ``can_run``; ``reference`` is the definition
that every backend is tested against.
"""

from van.ops.dispatch import BACKENDS, Verdict, can_run, large_kernel_attention, use_backend
from van.ops.reference import Kernel

__all__ = ["BACKENDS", "Kernel", "Verdict", "can_run", "large_kernel_attention", "use_backend"]
