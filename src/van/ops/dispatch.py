"""Which backend serves a call, and why.

``VAN_OPS`` (``cpu``, ``phases``, ``reference`` or ``auto``) sets the choice for a process, ``use_backend``
for a block of code. A backend that was asked for by name and cannot serve a call is an error,
never a silent fall-back.
"""

import contextlib
import os
from collections.abc import Generator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from van.errors import UsageError
from van.ops import cpu, native, phases, reference
from van.ops.reference import Kernel

BACKENDS = {
    "cpu": cpu.large_kernel_attention,
    "phases": phases.large_kernel_attention,
    "reference": reference.large_kernel_attention,
}
"""Every backend by name, fastest first; ``auto`` takes the first that can run."""

_chosen: ContextVar[str | None] = ContextVar("van_ops_backend", default=None)


class Verdict(NamedTuple):
    """Whether a backend can serve a call, and the reason in words."""

    ok: bool
    reason: str


def can_run(backend: str, x: Tensor, dilated: Kernel) -> Verdict:
    """Say whether ``backend`` can serve ``x`` (N, C, H, W) with this dilated kernel, and why.

    Raises:
        UsageError: there is no backend of that name.
    """
    check_backend_name(backend)
    if backend == "reference":
        return Verdict(True, "the definition runs anywhere")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return Verdict(False, "a compiler or exporter is reading the model and wants plain convolutions")
    if x.device.type != "cpu":
        return Verdict(False, f"x is on {x.device.type}, not on the CPU")
    if x.numel() == 0:
        return Verdict(False, "x is empty")
    return _can_run_native(x) if backend == "cpu" else _can_run_phases(x, dilated)


def _can_run_native(x: Tensor) -> Verdict:
    if x.dtype != torch.float32:
        return Verdict(False, f"the C++ code computes in float32, x is {x.dtype}")
    missing = native.why_not()
    return Verdict(False, missing) if missing else Verdict(True, "C++ built for this processor serves float32")


def _can_run_phases(x: Tensor, dilated: Kernel) -> Verdict:
    if x.dtype not in (torch.float32, torch.bfloat16):
        return Verdict(False, f"undilated convolutions are not faster in {x.dtype}")
    if dilated.dilation == 1:
        return Verdict(False, "the kernel is not dilated, so there are no phases to split")
    return Verdict(True, "splitting a dilated map into phases pays on the CPU")


def check_backend_name(name: str) -> None:
    """Raise UsageError unless ``name`` is a backend or ``auto``."""
    if name != "auto" and name not in BACKENDS:
        raise UsageError(f"VAN_OPS or use_backend asked for {name!r}; known: auto, {', '.join(BACKENDS)}")


@contextlib.contextmanager
def use_backend(name: str) -> Generator[None, None, None]:
    """Within the block, serve every operator by ``name`` (``auto`` restores the choice)."""
    check_backend_name(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def large_kernel_attention(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Gate ``x`` by its large-kernel attention, on the best backend for this call.

    Shapes, dtypes and errors are those of ``reference.large_kernel_attention``.

    Raises:
        UsageError: the backend asked for by name cannot serve this call.
    """
    if torch.compiler.is_compiling():
        return reference.large_kernel_attention(x, local, dilated, mix)
    wanted = _chosen.get() or os.environ.get("VAN_OPS", "auto")
    check_backend_name(wanted)
    for name, operator in BACKENDS.items():
        if wanted not in ("auto", name):
            continue
        verdict = can_run(name, x, dilated)
        if verdict.ok:
            return operator(x, local, dilated, mix)
        if name == wanted:
            raise UsageError(f"the {name!r} backend cannot serve x {tuple(x.shape)}: {verdict.reason}")
    raise AssertionError("the reference backend runs anywhere")
