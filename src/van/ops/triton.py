"""The GPU backend, in Triton: depth-wise operators, forward and backward, on raw tensors.

Shapes: N images, C channels, H rows, W columns; x and gradients (N, C, H, W) in float32, bfloat16 or float16,
weights (C, 1, k, m) with odd sizes and biases (C,) or None in x's dtype or float32. Sums are kept in float32.
The definition is ``reference.py``; the kernels are in ``triton_kernels.py``, their tiles in ``triton_tiling.py``.

The design follows from the data sheet of an H200 (4.8 TB/s; 132 multiprocessors that each issue 128 float32
multiply-adds per cycle: 33 T/s at 1.98 GHz). Nothing here is measured on a GPU yet: the numbers are bounds.

- The pair of a 5x5 and a 7x7 kernel has 74 multiply-adds per value, so 64 x 56 x 56 at batch 256 takes at least
  115 us of arithmetic; reading and writing that feature map once in bfloat16 takes 43 us. So the pair is
  compute-bound, and two passes through memory (86 us, partly hidden) cost less than recomputing a halo of 9 rows and
  columns around a fused tile. For small feature maps the intermediate stays in the L2 cache (13 MB at 512 x 7 x 7).
- Therefore the kernels minimize instructions other than multiply-adds. A value is loaded and converted to float32
  once, then multiplied by every tap from a register: a program sweeps down the rows and holds the sums of all
  affected output rows in registers. At 56 x 56, 74 % or more of the instructions in the inner loops of the forward
  pass are multiply-adds (``pytest -m slow tests/ops/test_triton_compiled.py`` counts them). A dilated feature map is
  decomposed into phases (polyphase components), in which the kernel is not dilated.
- Taps that read only padding are cropped. Where a phase fits into registers as a plane (3 x 3 pixels at
  7 x 7 and dilation 3), products with padding are omitted at compile time.
- The 3x3 convolution and GELU are fused; backward recomputes the input of GELU instead of saving it.
- Weight gradients: each of a fixed number of programs sums its own tiles in a fixed order, then one reduction over
  programs. Without atomics, two runs are bitwise identical.
- Neighboring channels lie in neighboring lanes, so reads cover whole cache lines. Tensors whose channels are not
  innermost are copied once: strided reads of NCHW would touch one cache line per value.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from van.errors import ShapeError
from van.ops import triton_tiling as tiling
from van.ops.triton_tiling import Problem, Tiling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_KERNEL_SIZE = 21
"""Largest kernel size. Every product is unrolled, and larger kernels compile for minutes."""
_KERNELS = "van.ops.triton_kernels"


def unavailable_reason(x: Tensor | str) -> str | None:
    """Return why Triton cannot run on x, or None if it can.

    Args:
        x: a tensor, or a device type such as "cuda" for its current device.
    """
    if isinstance(x, Tensor) and x.dtype not in DTYPES:
        return f"x: expected float32, bfloat16 or float16, got {x.dtype}"
    if importlib.util.find_spec("triton") is None:
        return "package triton is not installed; it is included in PyTorch for CUDA on Linux"
    device = x.device if isinstance(x, Tensor) else torch.device(x)
    if device.type == "cpu":
        if _uses_interpreter():
            return None
        return "x: expected a GPU tensor, got one on cpu; to use the interpreter, set TRITON_INTERPRET=1 before import"
    if device.type != "cuda":
        return f"x: expected a GPU tensor, got one on {device.type}"
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "no NVIDIA GPU is available"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"GPU: expected compute capability 8.0 (Ampere) or newer, got {major}.{minor}"


def _uses_interpreter() -> bool:
    """Return whether the kernels run in Triton's interpreter, which is decided when they are first imported."""
    kernels = sys.modules.get(_KERNELS)
    if kernels is not None:
        return type(kernels.convolve).__name__ == "InterpretedFunction"
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")


def _load_kernels() -> ModuleType:
    return importlib.import_module(_KERNELS)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Apply a depth-wise convolution with "same" padding: (N, C, H, W) in x's dtype and memory format."""
    return _run_convolve(x, weight, bias, dilation, like=x)


def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias of ``depthwise``, in the dtypes of x, weight and weight."""
    gradient = _channels_innermost(gradient)
    grad_weight, grad_bias = _run_weight_gradient(_channels_innermost(x), gradient, weight, dilation)
    return _run_convolve(gradient, weight, None, dilation, like=x, flip=True), grad_weight, grad_bias


def lka_pair(
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """Apply a depth-wise convolution, then a dilated one: (N, C, H, W) in x's dtype and memory format."""
    local_out = _run_convolve(x, local_weight, local_bias, 1)
    return _run_convolve(local_out, dilated_weight, dilated_bias, dilation, like=x)


def lka_pair_backward(
    gradient: Tensor,
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, local weight and bias, dilated weight and bias; the intermediate is recomputed."""
    pixels, gradient = _channels_innermost(x), _channels_innermost(gradient)
    local_out = _run_convolve(pixels, local_weight, local_bias, 1)
    dilated_gradients = _run_weight_gradient(local_out, gradient, dilated_weight, dilation)
    del local_out  # free its memory before the next allocation
    grad_local = _run_convolve(gradient, dilated_weight, None, dilation, flip=True)
    local_gradients = _run_weight_gradient(pixels, grad_local, local_weight, 1)
    return _run_convolve(grad_local, local_weight, None, 1, like=x, flip=True), *local_gradients, *dilated_gradients


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a depth-wise convolution and the exact GELU: (N, C, H, W) in x's dtype and memory format."""
    return _run_convolve(x, weight, bias, 1, like=x, gelu=True)


def depthwise_gelu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias in their dtypes (that of weight, if there is no bias)."""
    grad_local, grad_weight, grad_bias = _run_gelu_gradient(
        _channels_innermost(gradient), _channels_innermost(x), weight, bias
    )
    grad_x = _run_convolve(grad_local, weight, None, 1, like=x, flip=True)
    return grad_x, grad_weight, grad_bias if bias is None else grad_bias.to(bias.dtype)


def _run_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    *,
    like: Tensor | None = None,
    flip: bool = False,
    gelu: bool = False,
) -> Tensor:
    """Run ``convolve`` into a new tensor in the memory format of ``like``, or in channels_last."""
    x = _channels_innermost(x)
    out = _empty_channels_last(x) if like is None else torch.empty_like(like)
    if x.numel() == 0:
        return out
    target = out if _has_channels_innermost(out) else _empty_channels_last(x)
    taps = _pack_weight(weight, x, dilation)
    problem = _make_problem("convolve", x, taps, dilation)
    arguments = {"x": x, "taps": taps, "bias": _contiguous_or_none(bias), "out": target}
    sizes = {"flip": flip, "gelu": gelu, "dilation": dilation, **_stride_arguments(x=x, out=target)}
    _launch(problem, arguments, sizes)
    return out if target is out else out.copy_(target)


def _run_weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Run ``weight_gradient`` and reduce over programs: gradients of weight and bias, both in weight's dtype."""
    if x.numel() == 0:
        return torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
    taps = _crop_weight(weight, x, dilation).permute(2, 3, 0, 1)
    problem = _make_problem("weight_gradient", x, taps, dilation)
    partial = _allocate_partial_sums(problem, x)
    sizes = {"dilation": dilation, **_stride_arguments(x=x, gradient=gradient)}
    _launch(problem, {"x": x, "gradient": gradient, "partial": partial}, sizes)
    return _reduce_partial_sums(partial, weight, taps.shape)


def _run_gelu_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``gelu_gradient``: gradients of the input of GELU, of weight and of bias."""
    grad_local = _empty_channels_last(x)
    if x.numel() == 0:
        return grad_local, torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
    taps = _pack_weight(weight, x, 1)
    problem = _make_problem("gelu_gradient", x, taps, 1)
    partial = _allocate_partial_sums(problem, x)
    arguments = {
        "x": x,
        "gradient": gradient,
        "taps": taps,
        "bias": _contiguous_or_none(bias),
        "out": grad_local,
        "partial": partial,
    }
    _launch(problem, arguments, _stride_arguments(x=x, gradient=gradient, out=grad_local))
    return grad_local, *_reduce_partial_sums(partial, weight, taps.shape)


def _has_channels_innermost(x: Tensor) -> bool:
    return x.shape[1] == 1 or x.stride(1) == 1


def _channels_innermost(x: Tensor) -> Tensor:
    """Return ``x`` if the stride of its channels is 1, whatever its other strides; else a copy in channels_last."""
    return x if _has_channels_innermost(x) else x.contiguous(memory_format=torch.channels_last)


def _empty_channels_last(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _stride_arguments(**maps: Tensor) -> dict[str, int]:
    """Return the strides of the maps, named as the kernel parameters.

    The pixel stride is a compile-time constant. With one column it is arbitrary, so C is passed to avoid recompiling.
    """
    strides = {}
    for name, x in maps.items():
        strides |= {f"{name}_image": x.stride(0), f"{name}_row": x.stride(2)}
        strides[f"{name}_pixel"] = x.stride(3) if x.shape[3] > 1 else x.shape[1]
    return strides


def _crop_weight(weight: Tensor, x: Tensor, dilation: int) -> Tensor:
    """Remove the outer taps that read only padding on a feature map of the size of x."""
    for axis in (2, 3):
        side = weight.shape[axis]
        margin = max(0, side // 2 - (x.shape[axis] - 1) // dilation)
        weight = weight.narrow(axis, margin, side - 2 * margin)
    return weight


def _pack_weight(weight: Tensor, x: Tensor, dilation: int) -> Tensor:
    """Return the cropped weight in the layout of the kernels: (rows, columns, C, 1) in float32."""
    taps = _crop_weight(weight, x, dilation).permute(2, 3, 0, 1)
    return torch.empty(taps.shape, dtype=torch.float32, device=weight.device).copy_(taps)


def _contiguous_or_none(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _make_problem(operator: str, x: Tensor, taps: Tensor, dilation: int) -> Problem:
    images, channels, rows, columns = x.shape
    if max(taps.shape[:2]) > MAX_KERNEL_SIZE:
        raise ShapeError(
            f"weight: expected at most {MAX_KERNEL_SIZE} rows and columns inside the feature map for the Triton "
            f"kernels, got {taps.shape[0]} x {taps.shape[1]}; use VAN_OPS=reference"
        )
    return Problem(
        operator=operator,
        images=images,
        channels=channels,
        rows=rows,
        columns=columns,
        kernel_rows=taps.shape[0],
        kernel_columns=taps.shape[1],
        dilation=dilation,
    )


def _allocate_partial_sums(problem: Problem, x: Tensor) -> Tensor:
    """Allocate the partial sums of all programs: (splits, taps + 1, C) in float32."""
    arguments = tiling.kernel_arguments(problem, tiling.select_tiling(problem))
    splits = tiling.launch_grid(problem, arguments)[1] * arguments["image_block"]
    taps = problem.kernel_rows * problem.kernel_columns
    return torch.empty(splits, taps + 1, problem.channels, dtype=torch.float32, device=x.device)


def _reduce_partial_sums(partial: Tensor, weight: Tensor, taps: torch.Size) -> tuple[Tensor, Tensor]:
    """Sum over programs: the gradient of weight, with zeros for cropped taps, and the gradient of bias."""
    sums = partial.sum(0)
    rows, columns = taps[:2]
    grad_weight = torch.zeros_like(weight)
    inner_weight = grad_weight.narrow(2, (weight.shape[2] - rows) // 2, rows)
    inner_weight = inner_weight.narrow(3, (weight.shape[3] - columns) // 2, columns)
    inner_weight.copy_(sums[:-1].t().reshape(inner_weight.shape))
    return grad_weight, sums[-1].to(weight.dtype)


def _launch(problem: Problem, tensors: dict[str, Any], sizes: dict[str, Any]) -> None:
    """Launch the kernel of the problem on the device and the current stream of x."""
    shape_names = ("images", "channels", "rows", "columns", "kernel_rows", "kernel_columns")
    sizes = {**{name: getattr(problem, name) for name in shape_names}, **sizes}
    # fusion is the default, but Triton 3.9 warns if the option is not passed
    sizes["enable_fp_fusion"] = True
    x = tensors["x"]
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        if os.environ.get("VAN_TUNE") == "1" and not _uses_interpreter():
            _autotuned_kernel(problem)[functools.partial(_autotune_grid, problem)](**tensors, **sizes)
        else:
            selected = tiling.select_tiling(problem)
            kernel = getattr(_load_kernels(), problem.operator)
            arguments = tiling.kernel_arguments(problem, selected)
            kernel[_launch_grid(problem, selected)](**tensors, **sizes, **arguments, num_warps=1)


def _launch_grid(problem: Problem, selected: Tiling) -> tuple[int]:
    blocks, programs_per_block = tiling.launch_grid(problem, tiling.kernel_arguments(problem, selected))
    return (blocks * programs_per_block,)


def _autotune_grid(problem: Problem, arguments: dict[str, Any]) -> tuple[int]:
    """Return the grid for a candidate tiling; gradient kernels keep the grid that the partial sums are sized for."""
    if problem.operator != "convolve":
        return _launch_grid(problem, tiling.select_tiling(problem))
    lanes = arguments["channel_block"] * arguments["image_block"]
    return _launch_grid(problem, Tiling(tile_columns=arguments["tile_columns"], step=arguments["step"], lanes=lanes))


@functools.cache
def _autotuned_kernel(problem: Problem) -> Any:
    """Return the kernel with the candidate tilings that ``triton.autotune`` times for this problem."""
    import triton

    candidates = tiling.candidate_tilings(problem)
    configs = [triton.Config(tiling.kernel_arguments(problem, candidate), num_warps=1) for candidate in candidates]
    cache_option = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    key = ["images", "channels", "rows", "columns", "kernel_rows", "kernel_columns"]
    return triton.autotune(configs=configs, key=key, **cache_option)(getattr(_load_kernels(), problem.operator))
