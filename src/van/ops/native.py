"""Depth-wise convolutions in C++: built once, on the machine that runs them, and loaded without PyTorch's ABI.

``depthwise.cpp`` is compiled at first use for this processor and kept in a cache under a name made
from its text, the compiler and the processor. Two processes that build at once each write a file of
their own and move it into place. OpenMP comes from the library that PyTorch has already loaded, so
``torch.set_num_threads`` holds here too.

Shapes: N pictures, C channels, H rows, W columns; kernels (C, 1, m, m). Everything is float32.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from van.errors import ShapeError

_SOURCE = Path(__file__).with_name("depthwise.cpp")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
_GROUPS = 8
"""Groups of pictures whose weight gradients are summed apart: a fixed number, so that threads change no bit."""
WIDEST = 64
"""Taps in a row of the widest kernel that ``depthwise.cpp`` has room for."""
_logger = logging.getLogger(__name__)


class _Unavailable(Exception):
    """Why there is no native library here."""


def why_not() -> str | None:
    """The reason why there is no native library here, or None if there is one (it is built now if need be)."""
    found = _library()
    return found if isinstance(found, str) else None


def cache_folder() -> Path:
    """Where built libraries are kept: ``VAN_CACHE``, or a folder of this package in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VAN_CACHE") or Path(base) / "visual-attention-network")


def compiler() -> str | None:
    """The C++ compiler: ``CXX``, else the first of c++, g++ and clang++ on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


@functools.cache
def _library() -> ctypes.CDLL | str:
    try:
        library = ctypes.CDLL(str(_build()))
    except (_Unavailable, OSError) as error:
        _logger.warning("LKA runs on PyTorch's convolutions, without its own fast ones: %s", error)
        return str(error)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.van_depthwise_forward.argtypes = [pointer] * 5
    library.van_depthwise_weight_gradient.argtypes = [*[pointer] * 5, count]
    for function in (library.van_depthwise_forward, library.van_depthwise_weight_gradient):
        function.restype = None
    return library


def _build() -> Path:
    """The path of the library, compiled if this compiler has not yet compiled this text for this processor."""
    program = compiler()
    if program is None:
        raise _Unavailable("there is no C++ compiler (c++, g++ or clang++) on the path")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (_SOURCE.read_text(encoding="utf-8"), version, " ".join(_FLAGS), _processor())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    folder = cache_folder()
    built = folder / f"depthwise-{name}.so"
    if built.exists():
        return built
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as place:
            fresh = Path(place) / built.name
            command = [program, *_FLAGS, str(_SOURCE), "-o", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise _Unavailable(f"{program} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            fresh.replace(built)
    except OSError as error:
        raise _Unavailable(f"{folder} cannot be written ({error}); set VAN_CACHE to a folder that can") from error
    return built


def _processor() -> str:
    """What -march=native depends on: the kind of processor and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


@torch.library.custom_op("van::depthwise", mutates_args=(), device_types="cpu")
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve every channel with its own kernel, keeping the size.

    Args:
        x: (N, C, H, W), float32 on the CPU, any strides.
        weight: (C, 1, m, m), m odd.
        bias: (C,) or None.
        dilation: distance of the taps, in pixels.

    Returns:
        (N, C, H, W) in channels_last.

    Raises:
        ShapeError: a tensor is not of that type or shape.
    """
    _check(x, weight, bias)
    return _forward(x.contiguous(memory_format=torch.channels_last), weight, bias, dilation)


@depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("van::depthwise_backward", mutates_args=(), device_types="cpu")
def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``depthwise`` by x (channels_last), weight and bias; the same bits on any number of threads."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    pixels = x.contiguous(memory_format=torch.channels_last)
    of_x = _forward(gradient, weight.flip(2, 3), None, dilation)
    pictures, channels = x.shape[:2]
    rows, columns = weight.shape[2:]
    groups = min(_GROUPS, max(pictures, 1))
    of_weight = x.new_empty(groups, rows * columns, channels)
    of_bias = x.new_empty(groups, channels)
    library = _loaded()
    library.van_depthwise_weight_gradient(
        _shape(pixels, weight, dilation),
        *(tensor.data_ptr() for tensor in (pixels, gradient, of_weight, of_bias)),
        groups,
    )
    summed = of_weight.sum(0).t().reshape(channels, 1, rows, columns)
    return of_x, torch.empty_like(weight).copy_(summed), of_bias.sum(0)


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    of_x = torch.empty_like(x, memory_format=torch.channels_last)
    return of_x, torch.empty_like(weight), x.new_empty(x.shape[1])


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, ctx.dilation = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = depthwise_backward(gradient, x, weight, ctx.dilation)
    return of_x, of_weight, of_bias if ctx.has_bias else None, None


def _keep_all(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    gradient, x, weight, ctx.dilation = inputs
    ctx.save_for_backward(gradient, x, weight)


def _second_gradients(ctx: Any, by_x: Tensor, by_weight: Tensor, by_bias: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the gradients: they are bilinear in (gradient, x, weight), so convolutions again."""
    gradient, x, weight = ctx.saved_tensors
    of_gradient = depthwise(by_x, weight, by_bias, ctx.dilation) + depthwise(x, by_weight, None, ctx.dilation)
    of_x, _, _ = depthwise_backward(gradient, x, by_weight, ctx.dilation)
    _, of_weight, _ = depthwise_backward(gradient, by_x, weight, ctx.dilation)
    return of_gradient, of_x, of_weight, None


def _one_by_one(operator: Any, info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, Any]:
    """``torch.func.vmap`` of an operator: it is called for each slice."""
    slices = [
        operator(*(v if d is None else v.select(d, place) for v, d in zip(inputs, in_dims, strict=True)))
        for place in range(info.batch_size)
    ]
    if isinstance(slices[0], Tensor):
        return torch.stack(slices), 0
    return tuple(torch.stack(parts) for parts in zip(*slices, strict=True)), (0,) * len(slices[0])


depthwise.register_autograd(_gradients, setup_context=_keep)
depthwise_backward.register_autograd(_second_gradients, setup_context=_keep_all)
depthwise.register_vmap(functools.partial(_one_by_one, depthwise))
depthwise_backward.register_vmap(functools.partial(_one_by_one, depthwise_backward))


def _loaded() -> ctypes.CDLL:
    library = _library()
    if isinstance(library, str):
        raise AssertionError(f"dispatch must not choose a library that is not there: {library}")
    return library


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """C++ trusts what it is given, so it is looked at here."""
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ShapeError(f"{name} is {tensor.dtype}; the C++ code computes in float32")
    channels = x.shape[1] if x.ndim == 4 else 0
    fits = x.ndim == 4 and weight.ndim == 4 and tuple(weight.shape[:2]) == (channels, 1)
    if not fits or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0 or weight.shape[3] > WIDEST:
        raise ShapeError(
            f"x is {tuple(x.shape)} and weight {tuple(weight.shape)}; wanted (N, C, H, W) and (C, 1, k, m) with k and "
            f"m odd and m at most {WIDEST}"
        )
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ShapeError(f"bias is {tuple(bias.shape)}; wanted ({channels},)")


def _shape(x: Tensor, weight: Tensor, dilation: int) -> ctypes.Array[ctypes.c_int64]:
    pictures, channels, rows, columns = x.shape
    numbers = (pictures, rows, columns, channels, *weight.shape[2:], dilation)
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _forward(pixels: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    if dilation == 1:  # here PyTorch is as fast as the machine allows
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        out = F.conv2d(pixels, weight, bias, padding=padding, groups=weight.shape[0])
        return out.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(pixels)
    taps = weight.flatten(1).t().contiguous()
    bias = None if bias is None else bias.contiguous()
    _loaded().van_depthwise_forward(
        _shape(pixels, weight, dilation),
        pixels.data_ptr(),
        taps.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
    )
    return out
