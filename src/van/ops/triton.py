"""Fast depth-wise operators on a GPU, in Triton: raw tensors in and out, forward and backward.

Shapes: N pictures, C channels, H rows, W columns; x and gradients (N, C, H, W) in float32, bfloat16 or float16,
weights (C, 1, k, m) with odd sides and biases (C,) or None in x's dtype or float32. Sums are kept in float32.
The definition is ``reference.py``; the kernels are in ``triton_kernels.py``, their tiles in ``triton_tiling.py``.

The design, argued from the data sheet of an H200 (4.8 TB/s; 132 multiprocessors that each issue 128 float32
multiply-adds in a cycle: 33 T/s at 1.98 GHz). Nothing here is measured on a GPU yet: the numbers are bounds.

- The pair of a 5x5 and a 7x7 kernel has 74 multiply-adds for each value, so 64 x 56 x 56 at batch 256 takes at least
  115 us of arithmetic; reading and writing that map once in bfloat16 takes 43 us. So the pair is bound by
  instructions, and two passes through memory (86 us, partly hidden) cost less than recomputing 9 rows and columns of
  margin around a fused tile. On small maps the map between the passes stays in the L2 cache (13 MB at 512 x 7 x 7).
- What counts, then, is how few instructions there are beside the multiply-adds. A value is loaded and widened
  once and met by every tap from a register, by sweeping down the rows with the sums of all rows in reach held in
  registers; of what the compiled inner loops of the pair issue at 56 x 56, 74 % or more are multiply-adds in forward
  (``pytest -m slow tests/ops/test_triton_compiled.py`` counts). A dilated map falls into phases that never mix, and
  in a phase neighbouring taps are neighbours again.
- Taps that only meet padding are cut off the kernel; where a phase fits into registers as a plane (3 x 3 pixels at
  7 x 7 and dilation 3), pairs of pixel and tap that do not exist are not in the code.
- 3x3 and GELU together read and write once; backward does what GELU was given once more instead of keeping it.
- Weight gradients: each of a fixed number of programs sums its own tiles in a fixed order, then one sum over
  programs. No atomics: two runs give the same bits.
- Neighbouring channels lie in neighbouring lanes, so pixels are read in whole lines of the cache. Maps whose
  channels are not innermost are copied once: reading NCHW by strides would touch a line for each value.
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
LARGEST_SIDE = 21
"""Taps in a row or column of the largest kernel; every product is written out, and larger ones compile for minutes."""
_KERNELS = "van.ops.triton_kernels"


def why_not(x: Tensor | str) -> str | None:
    """The reason why Triton cannot serve x, or None if it can; of a device type ("cuda"), its present device."""
    if isinstance(x, Tensor) and x.dtype not in DTYPES:
        return f"the kernels compute in float32, x is {x.dtype}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; it comes with PyTorch for CUDA on Linux"
    device = x.device if isinstance(x, Tensor) else torch.device(x)
    if device.type == "cpu":
        return None if _interpreting() else "x is on the CPU, and TRITON_INTERPRET=1 was not set before the first call"
    if device.type != "cuda":
        return f"x is on {device.type}, not on a GPU"
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "there is no NVIDIA GPU here"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"the GPU has compute capability {major}.{minor}; 8.0 (Ampere) is needed"


def _interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, which is settled when they are first imported."""
    kernels = sys.modules.get(_KERNELS)
    if kernels is not None:
        return type(kernels.convolve).__name__ == "InterpretedFunction"
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")


def _kernels() -> ModuleType:
    return importlib.import_module(_KERNELS)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve every channel with its own kernel, whose taps are ``dilation`` pixels apart, keeping the size.

    Returns (N, C, H, W) in x's dtype and memory format.
    """
    return _convolve(x, weight, bias, dilation, like=x)


def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``depthwise`` by x, weight and bias, in the dtypes of x, weight and weight."""
    gradient = _pixels_last(gradient)
    of_weight, of_bias = _weight_gradient(_pixels_last(x), gradient, weight, dilation)
    return _convolve(gradient, weight, None, dilation, like=x, flip=True), of_weight, of_bias


def lka_pair(
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """A depth-wise convolution, then a dilated one: (N, C, H, W) in x's dtype and memory format."""
    seen = _convolve(x, local_weight, local_bias, 1)
    return _convolve(seen, dilated_weight, dilated_bias, dilation, like=x)


def lka_pair_backward(
    gradient: Tensor,
    x: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``lka_pair`` by x, local weight and bias, dilated weight and bias; the map between is redone."""
    pixels, gradient = _pixels_last(x), _pixels_last(gradient)
    seen = _convolve(pixels, local_weight, local_bias, 1)
    of_dilated = _weight_gradient(seen, gradient, dilated_weight, dilation)
    del seen
    between = _convolve(gradient, dilated_weight, None, dilation, flip=True)
    of_local = _weight_gradient(pixels, between, local_weight, 1)
    return _convolve(between, local_weight, None, 1, like=x, flip=True), *of_local, *of_dilated


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU (the exact one) of a depth-wise convolution: (N, C, H, W) in x's dtype and memory format."""
    return _convolve(x, weight, bias, 1, like=x, gelu=True)


def depthwise_gelu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``depthwise_gelu`` by x, weight and bias, in the dtypes of each (of weight, without a bias)."""
    between, of_weight, of_bias = _gelu_gradient(_pixels_last(gradient), _pixels_last(x), weight, bias)
    of_x = _convolve(between, weight, None, 1, like=x, flip=True)
    return of_x, of_weight, of_bias if bias is None else of_bias.to(bias.dtype)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    *,
    like: Tensor | None = None,
    flip: bool = False,
    gelu: bool = False,
) -> Tensor:
    """Run ``convolve`` into a new tensor in the memory format of ``like``, or with its channels innermost."""
    x = _pixels_last(x)
    out = _new_map(x) if like is None else torch.empty_like(like)
    if x.numel() == 0:
        return out
    target = out if _has_pixels_last(out) else _new_map(x)
    taps = _taps(weight, x, dilation)
    problem = _problem("convolve", x, taps, dilation)
    arguments = {"x": x, "taps": taps, "bias": _vector(bias), "out": target}
    sizes = {"flip": flip, "gelu": gelu, "dilation": dilation, **_strides(x=x, out=target)}
    _launch(problem, arguments, sizes)
    return out if target is out else out.copy_(target)


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Run ``weight_gradient`` and sum what its programs found: of weight and of bias, both in weight's dtype."""
    if x.numel() == 0:
        return torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
    taps = _taps_in_reach(weight, x, dilation).permute(2, 3, 0, 1)
    problem = _problem("weight_gradient", x, taps, dilation)
    partial = _room_for_sums(problem, x)
    sizes = {"dilation": dilation, **_strides(x=x, gradient=gradient)}
    _launch(problem, {"x": x, "gradient": gradient, "partial": partial}, sizes)
    return _summed(partial, weight, taps.shape)


def _gelu_gradient(gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``gelu_gradient``: the gradient between convolution and GELU, and those of weight and bias."""
    between = _new_map(x)
    if x.numel() == 0:
        return between, torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
    taps = _taps(weight, x, 1)
    problem = _problem("gelu_gradient", x, taps, 1)
    partial = _room_for_sums(problem, x)
    arguments = {"x": x, "gradient": gradient, "taps": taps, "bias": _vector(bias), "out": between, "partial": partial}
    _launch(problem, arguments, _strides(x=x, gradient=gradient, out=between))
    return between, *_summed(partial, weight, taps.shape)


def _has_pixels_last(x: Tensor) -> bool:
    return x.shape[1] == 1 or x.stride(1) == 1


def _pixels_last(x: Tensor) -> Tensor:
    """``x`` itself if the channels of a pixel are neighbours, however the pixels lie; else a copy."""
    return x if _has_pixels_last(x) else x.contiguous(memory_format=torch.channels_last)


def _new_map(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _strides(**maps: Tensor) -> dict[str, int]:
    """Strides of the maps by the names the kernels use; that of a pixel is compiled in, so a lone one is made C."""
    strides = {}
    for name, x in maps.items():
        strides |= {f"{name}_image": x.stride(0), f"{name}_row": x.stride(2)}
        strides[f"{name}_pixel"] = x.stride(3) if x.shape[3] > 1 else x.shape[1]
    return strides


def _taps_in_reach(weight: Tensor, x: Tensor, dilation: int) -> Tensor:
    """The weight without outer taps that meet only padding on a map as large as x."""
    for axis in (2, 3):
        side = weight.shape[axis]
        cut = max(0, side // 2 - (x.shape[axis] - 1) // dilation)
        weight = weight.narrow(axis, cut, side - 2 * cut)
    return weight


def _taps(weight: Tensor, x: Tensor, dilation: int) -> Tensor:
    """The taps in reach as the kernels read them: (rows, columns, C, 1) in float32."""
    taps = _taps_in_reach(weight, x, dilation).permute(2, 3, 0, 1)
    return torch.empty(taps.shape, dtype=torch.float32, device=weight.device).copy_(taps)


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _problem(operator: str, x: Tensor, taps: Tensor, dilation: int) -> Problem:
    images, channels, rows, columns = x.shape
    if max(taps.shape[:2]) > LARGEST_SIDE:
        raise ShapeError(
            f"weight has {taps.shape[0]} x {taps.shape[1]} taps that reach the map; the Triton kernels take sides up "
            f"to {LARGEST_SIDE}; use VAN_OPS=reference for this one"
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


def _room_for_sums(problem: Problem, x: Tensor) -> Tensor:
    """A place (parts, taps + 1, C) for every program's own sums."""
    chosen = tiling.settings(problem, tiling.tiling_for(problem))
    parts = tiling.programs(problem, chosen)[1] * chosen["image_block"]
    taps = problem.kernel_rows * problem.kernel_columns
    return torch.empty(parts, taps + 1, problem.channels, dtype=torch.float32, device=x.device)


def _summed(partial: Tensor, weight: Tensor, taps: torch.Size) -> tuple[Tensor, Tensor]:
    """The sums over programs as the gradients of weight, with zeros for taps out of reach, and of bias."""
    sums = partial.sum(0)
    rows, columns = taps[:2]
    of_weight = torch.zeros_like(weight)
    inner = of_weight.narrow(2, (weight.shape[2] - rows) // 2, rows)
    inner = inner.narrow(3, (weight.shape[3] - columns) // 2, columns)
    inner.copy_(sums[:-1].t().reshape(inner.shape))
    return of_weight, sums[-1].to(weight.dtype)


def _launch(problem: Problem, tensors: dict[str, Any], sizes: dict[str, Any]) -> None:
    """Start the kernel of that name on the device and the stream of x."""
    named = ("images", "channels", "rows", "columns", "kernel_rows", "kernel_columns")
    sizes = {**{name: getattr(problem, name) for name in named}, **sizes}
    # fusing is on by default, but Triton 3.9 warns those who do not say so
    sizes["enable_fp_fusion"] = True
    x = tensors["x"]
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        if os.environ.get("VAN_TUNE") == "1" and not _interpreting():
            _tuned(problem)[functools.partial(_programs_of_tuner, problem)](**tensors, **sizes)
        else:
            own = tiling.tiling_for(problem)
            kernel = getattr(_kernels(), problem.operator)
            kernel[_programs(problem, own)](**tensors, **sizes, **tiling.settings(problem, own), num_warps=1)


def _programs(problem: Problem, chosen: Tiling) -> tuple[int]:
    blocks, each = tiling.programs(problem, tiling.settings(problem, chosen))
    return (blocks * each,)


def _programs_of_tuner(problem: Problem, arguments: dict[str, Any]) -> tuple[int]:
    """How many programs to start for a tiling on trial; those that sum apart are as many as there is room for."""
    if problem.operator != "convolve":
        return _programs(problem, tiling.tiling_for(problem))
    lanes = arguments["channel_block"] * arguments["image_block"]
    return _programs(problem, Tiling(tile_columns=arguments["tile_columns"], step=arguments["step"], lanes=lanes))


@functools.cache
def _tuned(problem: Problem) -> Any:
    """The kernel with the tilings that ``triton.autotune`` shall time for this problem."""
    import triton

    configs = [triton.Config(tiling.settings(problem, each), num_warps=1) for each in tiling.neighbours(problem)]
    kept = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    key = ["images", "channels", "rows", "columns", "kernel_rows", "kernel_columns"]
    return triton.autotune(configs=configs, key=key, **kept)(getattr(_kernels(), problem.operator))
