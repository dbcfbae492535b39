"""Compilation and loading of the C++ library in ``cpp/``, which does not depend on PyTorch's ABI.

The library is compiled at first use for this CPU and cached under a hash of its sources, the compiler and the
CPU. Processes that build at the same time each write a file of their own and move it into place. OpenMP comes
from the library that PyTorch has already loaded, so ``torch.set_num_threads`` applies here too.
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
_INSTRUCTION_SETS = {
    "native": ("-march=native",),
    "avx512": ("-march=x86-64-v4",),
    "avx2": ("-march=x86-64-v3",),
    "plain": (),
}
"""The values of ``VAN_CPU`` and their compiler flags."""
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
    """The native library cannot be built."""


def unavailable_reason() -> str | None:
    """Return why the native library is unavailable, or None if it is available; builds it if necessary."""
    library = _library()
    return library if isinstance(library, str) else None


def get_library() -> ctypes.CDLL:
    """Return the native library; call only if ``unavailable_reason()`` is None."""
    library = _library()
    if isinstance(library, str):
        raise AssertionError(f"dispatch selected the native library, which is unavailable: {library}")
    return library


def multiply_adds(count: int) -> float:
    """Run ``count`` rounds of multiply-adds on every thread; return the number of operations, two per multiply-add."""
    numbers = (ctypes.c_float * 3)(0.999, 0.001, 0.0)
    return get_library().van_multiply_adds(count, numbers)


def cache_folder() -> Path:
    """Return the folder of built libraries: ``VAN_CACHE``, or this package's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VAN_CACHE") or Path(base) / "visual-attention-network")


def compiler() -> str | None:
    """Return the path of the C++ compiler: ``CXX``, else the first of c++, g++ and clang++ on the PATH."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def instruction_set() -> str:
    """Return the instruction set to compile for: ``VAN_CPU``, by default ``native``.

    Raises:
        UsageError: ``VAN_CPU`` is unknown.
    """
    name = os.environ.get("VAN_CPU") or "native"
    if name not in _INSTRUCTION_SETS:
        raise UsageError(f"VAN_CPU: expected one of {', '.join(_INSTRUCTION_SETS)}, got {name!r}")
    return name


@functools.cache
def _library() -> ctypes.CDLL | str:
    try:
        library = ctypes.CDLL(str(_build()))
    except (_Unavailable, OSError) as error:
        _logger.warning("native library unavailable, falling back to PyTorch's convolutions: %s", error)
        return str(error)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.van_multiply_adds.restype = ctypes.c_double
    return library


def _build() -> Path:
    """Return the path of the library; compile it if the cache has none for these sources, compiler and CPU."""
    program = compiler()
    if program is None:
        raise _Unavailable("no C++ compiler (c++, g++ or clang++) on the PATH; install one or set CXX")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    flags = (*_FLAGS, *_INSTRUCTION_SETS[instruction_set()])
    sources = (path.read_text(encoding="utf-8") for path in sorted(_SOURCES.iterdir()))
    key_parts = (*sources, version, " ".join(flags), _processor())
    name = hashlib.sha256("\0".join(key_parts).encode()).hexdigest()[:20]
    built = cache_folder() / f"operators-{name}.so"
    if not built.exists():
        _compile([program, *flags], built)
    return built


def _compile(command: list[str], built: Path) -> None:
    folder = built.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as build_folder:
            temporary = Path(build_folder) / built.name
            _logger.warning("building the C++ operators for this CPU, once, into %s ...", folder)
            command = [*command, str(_SOURCES / "operators.cpp"), "-o", str(temporary)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
                raise _Unavailable(f"{command[0]} failed: {last_line}")
            temporary.replace(built)  # atomic, so that concurrent builds never load a partial file
    except OSError as error:
        raise _Unavailable(f"{folder} is not writable ({error}); set VAN_CACHE to a writable folder") from error


def _processor() -> str:
    """Return the CPU model and its features, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    prefixes = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(prefixes)))
