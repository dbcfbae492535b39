"""Which backend serves a call, and why.

``VAN_OPS`` (``triton``, ``cpu``, ``phases``, ``reference`` or ``auto``) sets the choice for a process,
``use_backend`` for a block of code. A backend that was asked for by name and cannot serve a call is an error,
never a silent fall-back. A compiled model keeps the ``VAN_OPS`` it was compiled under.

Shapes: x (N, C, H, W); depth-wise kernels (C, 1, k, m), any dtype.
"""

import contextlib
import os
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from van.errors import UsageError
from van.ops import cpu, native, operators, phases, reference, triton
from van.ops.reference import Kernel, check_kernels

BACKENDS = ("triton", "cpu", "phases", "reference")
"""Every backend by name, fastest first; ``auto`` takes the first that can run."""

_Function = TypeVar("_Function", bound=Callable)
_chosen: ContextVar[str | None] = ContextVar("van_ops_backend", default=None)


def _settled_when_compiled(function: _Function) -> _Function:
    """What ``torch.compiler.assume_constant_result`` says to the compiler, without importing all of the compiler."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


class Verdict(NamedTuple):
    """Whether a backend can serve a call, and the reason in words."""

    ok: bool
    reason: str


def can_run(backend: str, x: Tensor, *kernels: Kernel) -> Verdict:
    """Say whether ``backend`` can serve ``x`` with these depth-wise kernels, and why.

    Raises:
        UsageError: there is no backend of that name.
    """
    check_backend_name(backend)
    if backend == "reference":
        return Verdict(True, "the definition runs anywhere")
    if _exporter_is_reading():
        return Verdict(False, "an exporter is reading the model and wants plain convolutions")
    if backend == "phases":
        return _can_run_phases(x, kernels)
    if _being_transformed():
        return Verdict(False, "torch.func or forward-mode differentiation wants operators that it knows")
    if x.dtype not in cpu.DTYPES:
        return Verdict(False, f"the fast operators compute in float32, x is {x.dtype}")
    sides = [side for kernel in kernels for side in kernel.weight.shape[2:]]
    if any(side % 2 == 0 for side in sides):
        return Verdict(False, "a kernel has an even side")
    if backend == "cpu":
        return _can_run_cpp(x.device.type)
    if any(side > triton.LARGEST_SIDE for side in sides):
        return Verdict(False, f"a kernel has a side of more than the {triton.LARGEST_SIDE} taps that Triton is given")
    return _can_run_triton(x.device.type)


@_settled_when_compiled
def _can_run_triton(device: str) -> Verdict:
    if device != "cuda" and not operators.triton_asked_for():
        return Verdict(False, f"x is on {device}, not on a GPU")
    missing = triton.why_not(device)
    return Verdict(not missing, missing or "Triton compiles its kernels for this device")


@_settled_when_compiled
def _can_run_cpp(device: str) -> Verdict:
    if device != "cpu":
        return Verdict(False, f"x is on {device}, not on the CPU")
    missing = native.why_not()
    return Verdict(not missing, missing or f"C++ built for this processor ({native.instructions()}) serves it")


def _can_run_phases(x: Tensor, kernels: tuple[Kernel, ...]) -> Verdict:
    if x.device.type != "cpu":
        return Verdict(False, f"x is on {x.device.type}, not on the CPU")
    if torch.compiler.is_compiling() and wanted_backend() != "phases":
        return Verdict(False, "a compiler wants plain convolutions")
    if x.numel() == 0:
        return Verdict(False, "x is empty")
    if x.dtype not in (torch.float32, torch.bfloat16):
        return Verdict(False, f"undilated convolutions are not faster in {x.dtype}")
    if all(kernel.dilation == 1 for kernel in kernels):
        return Verdict(False, "no kernel is dilated, so there are no phases to split")
    return Verdict(True, "splitting a dilated map into phases pays on the CPU")


@_settled_when_compiled
def _exporter_is_reading() -> bool:
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def _being_transformed() -> bool:
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def plain_operators_wanted() -> bool:
    """Whether a compiler, an exporter or ``torch.func`` is at work, or the reference is asked for by name."""
    at_work = torch.compiler.is_compiling() or _exporter_is_reading() or _being_transformed()
    return at_work or wanted_backend() == "reference"


def check_backend_name(name: str) -> None:
    """Raise UsageError unless ``name`` is a backend or ``auto``."""
    if name != "auto" and name not in BACKENDS:
        raise UsageError(f"VAN_OPS or use_backend asked for {name!r}; known: auto, {', '.join(BACKENDS)}")


def wanted_backend() -> str:
    """The backend asked for, or ``auto``."""
    wanted = _chosen.get() or _backend_of_the_process()
    check_backend_name(wanted)
    return wanted


@_settled_when_compiled
def _backend_of_the_process() -> str:
    return os.environ.get("VAN_OPS") or "auto"


@contextlib.contextmanager
def use_backend(name: str) -> Generator[None, None, None]:
    """Within the block, serve every operator by ``name`` (``auto`` restores the choice)."""
    check_backend_name(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def depthwise(x: Tensor, kernel: Kernel) -> Tensor:
    """Convolve every channel with its own kernel, keeping the size: (N, C, H, W) to the same.

    Raises:
        ShapeError: the kernel does not fit ``x``.
        UsageError: the backend asked for by name cannot serve this call.
    """
    check_kernels(x, kernel=kernel)
    backend = _backend_for(x, kernel)
    if backend == "reference":
        return reference.depthwise(x, kernel)
    if backend == "phases":
        return phases.depthwise_by_phases(x, kernel)
    return operators.serve_depthwise(_as_autocast_wants(x), *kernel)


def lka_pair(x: Tensor, local: Kernel, dilated: Kernel) -> Tensor:
    """The two depth-wise convolutions of large kernel attention, one after the other: (N, C, H, W) to the same.

    Raises:
        ShapeError: a kernel does not fit ``x``.
        UsageError: the backend asked for by name cannot serve this call.
    """
    check_kernels(x, local=local, dilated=dilated)
    backend = _backend_for(x, local, dilated)
    if backend == "reference":
        return reference.lka_pair(x, local, dilated)
    if backend == "phases":
        return phases.lka_pair_by_phases(x, local, dilated)
    if local.dilation != 1:
        return depthwise(depthwise(x, local), dilated)
    return operators.serve_lka_pair(_as_autocast_wants(x), local.weight, local.bias, *dilated)


def depthwise_gelu(x: Tensor, kernel: Kernel) -> Tensor:
    """GELU, in its exact form, of an undilated depth-wise convolution: (N, C, H, W) to the same.

    Raises:
        ShapeError: the kernel does not fit ``x``.
        UsageError: the backend asked for by name cannot serve this call.
    """
    check_kernels(x, kernel=kernel)
    if kernel.dilation != 1:
        return F.gelu(depthwise(x, kernel))
    if wanted_backend() == "phases" or _backend_for(x, kernel) == "reference":  # undilated, the phases are one
        return reference.depthwise_gelu(x, kernel)
    return operators.serve_depthwise_gelu(_as_autocast_wants(x), kernel.weight, kernel.bias)


def large_kernel_attention(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Gate ``x`` by its large-kernel attention, on the best backend for this call.

    Shapes, dtypes and errors are those of ``reference.large_kernel_attention``.

    Raises:
        UsageError: the backend asked for by name cannot serve this call.
    """
    check_kernels(x, mix, local=local, dilated=dilated)
    return x * F.conv2d(lka_pair(x, local, dilated), mix.weight, mix.bias)


def _backend_for(x: Tensor, *kernels: Kernel) -> str:
    wanted = wanted_backend()
    if wanted == "auto":
        first = 0 if x.is_cuda or operators.triton_asked_for() else 1  # Triton need not be asked about a CPU
        return next(name for name in BACKENDS[first:] if can_run(name, x, *kernels).ok)
    verdict = can_run(wanted, x, *kernels)
    if not verdict.ok:
        raise UsageError(f"the {wanted!r} backend cannot serve x {tuple(x.shape)}: {verdict.reason}")
    return wanted


def _as_autocast_wants(x: Tensor) -> Tensor:
    """Where autocast is on, ``x`` in its dtype: there a convolution would do the same."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
