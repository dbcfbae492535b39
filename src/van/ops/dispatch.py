"""Selection of the backend of each operator call.

``VAN_OPS`` (``triton``, ``cpu``, ``space_to_batch``, ``reference`` or ``auto``) selects the backend of a process,
``use_backend`` that of a block of code. A backend that is selected by name and cannot run a call is an error,
never a silent fallback. A compiled model keeps the ``VAN_OPS`` it was compiled with.

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
from van.ops import cpu, native, operators, reference, space_to_batch, triton
from van.ops.reference import Kernel, check_kernels

BACKENDS = ("triton", "cpu", "space_to_batch", "reference")
"""Every backend by name, fastest first; ``auto`` takes the first that can run."""

_Function = TypeVar("_Function", bound=Callable)
_selected: ContextVar[str | None] = ContextVar("van_ops_backend", default=None)


def _assume_constant_result(function: _Function) -> _Function:
    """Apply ``torch.compiler.assume_constant_result`` without importing the whole compiler."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


class Availability(NamedTuple):
    """Whether a backend can run a call, and the reason as text."""

    ok: bool
    reason: str


def can_run(backend: str, x: Tensor, *kernels: Kernel) -> Availability:
    """Return whether ``backend`` can run ``x`` with these depth-wise kernels, and the reason.

    Raises:
        UsageError: ``backend`` is unknown.
    """
    check_backend_name(backend)
    if backend == "reference":
        return Availability(True, "the reference runs everywhere")
    if _is_exporting():
        return Availability(False, "an exporter is tracing the model and needs plain convolutions")
    if backend == "space_to_batch":
        return _can_run_space_to_batch(x, kernels)
    if _is_transforming():
        return Availability(False, "torch.func and forward-mode differentiation need native PyTorch operators")
    if x.dtype not in cpu.DTYPES:
        return Availability(False, f"x: expected float32, bfloat16 or float16, got {x.dtype}")
    sizes = [size for kernel in kernels for size in kernel.weight.shape[2:]]
    even = [size for size in sizes if size % 2 == 0]
    if even:
        return Availability(False, f"kernel size: expected odd, got {even[0]}")
    if backend == "cpu":
        return _can_run_cpp(x.device.type)
    too_large = [size for size in sizes if size > triton.MAX_KERNEL_SIZE]
    if too_large:
        return Availability(False, f"kernel size: expected at most {triton.MAX_KERNEL_SIZE}, got {too_large[0]}")
    return _can_run_triton(x.device.type)


@_assume_constant_result
def _can_run_triton(device: str) -> Availability:
    if device != "cuda" and not operators.is_triton_requested():
        return Availability(False, f"x: expected a GPU tensor, got one on {device}")
    reason = triton.unavailable_reason(device)
    return Availability(not reason, reason or "Triton supports this device")


@_assume_constant_result
def _can_run_cpp(device: str) -> Availability:
    if device != "cpu":
        return Availability(False, f"x: expected a CPU tensor, got one on {device}")
    reason = native.unavailable_reason()
    return Availability(not reason, reason or f"C++ library built for this CPU ({native.instruction_set()})")


def _can_run_space_to_batch(x: Tensor, kernels: tuple[Kernel, ...]) -> Availability:
    if x.device.type != "cpu":
        return Availability(False, f"x: expected a CPU tensor, got one on {x.device.type}")
    if torch.compiler.is_compiling() and selected_backend() != "space_to_batch":
        return Availability(False, "a compiler needs plain convolutions")
    if x.numel() == 0:
        return Availability(False, "x is empty")
    if x.dtype not in (torch.float32, torch.bfloat16):
        return Availability(False, f"x: expected float32 or bfloat16, got {x.dtype}, for which it is not faster")
    if all(kernel.dilation == 1 for kernel in kernels):
        return Availability(False, "no kernel is dilated")
    return Availability(True, "undilated convolutions are faster on this CPU")


@_assume_constant_result
def _is_exporting() -> bool:
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def _is_transforming() -> bool:
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def use_reference() -> bool:
    """Return whether plain PyTorch operators are required.

    True while a compiler, an exporter or ``torch.func`` runs, and if the reference backend is selected by name.
    """
    needs_plain_operators = torch.compiler.is_compiling() or _is_exporting() or _is_transforming()
    return needs_plain_operators or selected_backend() == "reference"


def check_backend_name(name: str) -> None:
    """Raise UsageError unless ``name`` is a backend or ``auto``."""
    if name != "auto" and name not in BACKENDS:
        raise UsageError(f"VAN_OPS or use_backend: expected one of auto, {', '.join(BACKENDS)}, got {name!r}")


def selected_backend() -> str:
    """Return the name of the backend that is selected by ``use_backend`` or ``VAN_OPS``, or ``auto``."""
    name = _selected.get() or _process_backend()
    check_backend_name(name)
    return name


@_assume_constant_result
def _process_backend() -> str:
    return os.environ.get("VAN_OPS") or "auto"


@contextlib.contextmanager
def use_backend(name: str) -> Generator[None, None, None]:
    """Run every operator of the block on the backend ``name``; ``auto`` restores automatic selection.

    Raises:
        UsageError: ``name`` is unknown.
    """
    check_backend_name(name)
    token = _selected.set(name)
    try:
        yield
    finally:
        _selected.reset(token)


def depthwise(x: Tensor, kernel: Kernel) -> Tensor:
    """Apply a depth-wise convolution with "same" padding: (N, C, H, W) to the same.

    Raises:
        ShapeError: the kernel does not match ``x``.
        UsageError: the backend that is selected by name cannot run this call.
    """
    check_kernels(x, kernel=kernel)
    backend = _select_backend(x, kernel)
    if backend == "reference":
        return reference.depthwise(x, kernel)
    if backend == "space_to_batch":
        return space_to_batch.depthwise_space_to_batch(x, kernel)
    return operators.apply_depthwise(_cast_for_autocast(x), *kernel)


def lka_pair(x: Tensor, local: Kernel, dilated: Kernel) -> Tensor:
    """Apply the two depth-wise convolutions of large kernel attention: (N, C, H, W) to the same.

    Raises:
        ShapeError: a kernel does not match ``x``.
        UsageError: the backend that is selected by name cannot run this call.
    """
    check_kernels(x, local=local, dilated=dilated)
    backend = _select_backend(x, local, dilated)
    if backend == "reference":
        return reference.lka_pair(x, local, dilated)
    if backend == "space_to_batch":
        return space_to_batch.lka_pair_space_to_batch(x, local, dilated)
    if local.dilation != 1:  # the fused operator requires an undilated first kernel
        return depthwise(depthwise(x, local), dilated)
    return operators.apply_lka_pair(_cast_for_autocast(x), local.weight, local.bias, *dilated)


def depthwise_gelu(x: Tensor, kernel: Kernel) -> Tensor:
    """Apply a depth-wise convolution followed by the exact GELU: (N, C, H, W) to the same.

    Raises:
        ShapeError: the kernel does not match ``x``.
        UsageError: the backend that is selected by name cannot run this call.
    """
    check_kernels(x, kernel=kernel)
    if kernel.dilation != 1:
        return F.gelu(depthwise(x, kernel))
    # space-to-batch of an undilated kernel is the reference
    if selected_backend() == "space_to_batch" or _select_backend(x, kernel) == "reference":
        return reference.depthwise_gelu(x, kernel)
    return operators.apply_depthwise_gelu(_cast_for_autocast(x), kernel.weight, kernel.bias)


def large_kernel_attention(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Multiply ``x`` by its large kernel attention map, on the fastest backend for this call.

    Shapes, dtypes and errors are those of ``reference.large_kernel_attention``.

    Raises:
        UsageError: the backend that is selected by name cannot run this call.
    """
    check_kernels(x, mix, local=local, dilated=dilated)
    return x * F.conv2d(lka_pair(x, local, dilated), mix.weight, mix.bias)


def _select_backend(x: Tensor, *kernels: Kernel) -> str:
    name = selected_backend()
    if name == "auto":
        first = 0 if x.is_cuda or operators.is_triton_requested() else 1  # skip the check of Triton for CPU tensors
        return next(name for name in BACKENDS[first:] if can_run(name, x, *kernels).ok)
    availability = can_run(name, x, *kernels)
    if not availability.ok:
        raise UsageError(
            f"backend {name!r} cannot run x {tuple(x.shape)}: {availability.reason}; "
            "use VAN_OPS=auto to select a backend that can"
        )
    return name


def _cast_for_autocast(x: Tensor) -> Tensor:
    """Cast ``x`` to the autocast dtype if autocast is enabled, as PyTorch's own convolutions do."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
