"""The C++ code in ``cpp/``: built once, on the machine that runs it, and loaded without PyTorch's ABI.

It is compiled at first use for this processor and kept in a cache under a name made from its text, the
compiler and the processor. Two processes that build at once each write a file of their own and move it
into place. OpenMP comes from the library that PyTorch has already loaded, so ``torch.set_num_threads``
holds here too.
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

from van.errors import UsageError

_SOURCES = Path(__file__).with_name("cpp")
_FLAGS = ("-O3", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
_INSTRUCTIONS = {
    "native": ("-march=native",),
    "avx512": ("-march=x86-64-v4",),
    "avx2": ("-march=x86-64-v3",),
    "plain": (),
}
"""What ``VAN_CPU`` may ask for, and the compiler's words for it."""
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES = {
    "van_depthwise": [_POINTER] * 5,
    "van_depthwise_backward": [_POINTER, _COUNT, *[_POINTER] * 6],
    "van_pair": [_POINTER] * 7,
    "van_pair_backward": [_POINTER, _COUNT, *[_POINTER] * 10],
    "van_gelu": [_POINTER] * 5,
    "van_gelu_backward": [_POINTER] * 8,
    "van_multiply_adds": [_COUNT, _POINTER],
}
_logger = logging.getLogger(__name__)


class _Unavailable(Exception):
    """Why there is no native library here."""


def why_not() -> str | None:
    """The reason why there is no native library here, or None if there is one (it is built now if need be)."""
    found = _library()
    return found if isinstance(found, str) else None


def loaded() -> ctypes.CDLL:
    """The library; only where ``why_not()`` is None."""
    found = _library()
    if isinstance(found, str):
        raise AssertionError(f"dispatch must not choose a library that is not there: {found}")
    return found


def multiply_adds(count: int) -> float:
    """Keep the multiply-add units of every thread busy ``count`` rounds; returns the operations done, two for each."""
    numbers = (ctypes.c_float * 3)(0.999, 0.001, 0.0)
    return loaded().van_multiply_adds(count, numbers)


def cache_folder() -> Path:
    """Where built libraries are kept: ``VAN_CACHE``, or a folder of this package in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VAN_CACHE") or Path(base) / "visual-attention-network")


def compiler() -> str | None:
    """The C++ compiler: ``CXX``, else the first of c++, g++ and clang++ on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def instructions() -> str:
    """Which instructions are compiled for: ``VAN_CPU``, by default those of this processor.

    Raises:
        UsageError: ``VAN_CPU`` is none of the names known.
    """
    name = os.environ.get("VAN_CPU") or "native"
    if name not in _INSTRUCTIONS:
        raise UsageError(f"VAN_CPU is {name!r}; wanted one of {', '.join(_INSTRUCTIONS)}")
    return name


@functools.cache
def _library() -> ctypes.CDLL | str:
    try:
        library = ctypes.CDLL(str(_build()))
    except (_Unavailable, OSError) as error:
        _logger.warning("LKA runs on PyTorch's convolutions, without its own fast ones: %s", error)
        return str(error)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.van_multiply_adds.restype = ctypes.c_double
    return library


def _build() -> Path:
    """The path of the library, compiled if this compiler has not yet compiled this text for this processor."""
    program = compiler()
    if program is None:
        raise _Unavailable("there is no C++ compiler (c++, g++ or clang++) on the path")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    flags = (*_FLAGS, *_INSTRUCTIONS[instructions()])
    texts = (path.read_text(encoding="utf-8") for path in sorted(_SOURCES.iterdir()))
    parts = (*texts, version, " ".join(flags), _processor())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    built = cache_folder() / f"operators-{name}.so"
    if not built.exists():
        _compile([program, *flags], built)
    return built


def _compile(command: list[str], built: Path) -> None:
    folder = built.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as place:
            fresh = Path(place) / built.name
            command = [*command, str(_SOURCES / "operators.cpp"), "-o", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise _Unavailable(f"{command[0]} failed: {said}")
            fresh.replace(built)
    except OSError as error:
        raise _Unavailable(f"{folder} cannot be written ({error}); set VAN_CACHE to a folder that can") from error


def _processor() -> str:
    """What -march=native depends on: the kind of processor and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
