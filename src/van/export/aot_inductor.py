"""AOTInductor: the network as machine code of this processor in one .aoti.pt2, and PyTorch that runs it.

Plain operators are compiled, not this package's own: the file then needs torch alone, from C++ too, and its own
operators inside a compiled graph were no faster than the network in PyTorch. Pictures and weights lie channels_last.
What such a file holds runs as it is opened, like any program: the seal tells mix-ups, not malice.
Shapes: see ``van.export.writing``.
"""

import dataclasses
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from van.errors import CheckpointError, UsageError
from van.export.header import Header
from van.export.pt2_archive import CODE, header_of, read_parts, write_sealed
from van.export.session import ExportedNetwork, Session
from van.export.torch_export import bare
from van.export.writing import ExportOptions, plain_graph, prepare
from van.models.load import Loaded
from van.ops import native

WARNING = "it holds machine code, which runs when the file is opened: open only what you or somebody you trust wrote"
_TORCH, _SYSTEM, _INSTRUCTIONS = "torch", "system", "instructions"


def write(loaded: Loaded, path: Path, *, options: ExportOptions) -> Path:
    """Compile ``loaded`` for this processor into ``path``, not yet compared with PyTorch; this takes a minute.

    Raises:
        UsageError: there is no C++ compiler, or the network cannot be exported; see ``van.export.writing``.
    """
    if native.compiler() is None:
        raise UsageError(
            "aot-inductor compiles C++, and there is no compiler: install g++ or clang++, name one in CXX, or export "
            "to torch-export"
        )
    here = {_SYSTEM: system(), _INSTRUCTIONS: " ".join(sorted(instructions()))}
    prepared = prepare(loaded, options, format="aot-inductor", opset=f"machine code of {system()}", versions=here)
    layout = torch.channels_last
    module = prepared.module.to(memory_format=layout)  # pyrefly: ignore[no-matching-overload]
    prepared = dataclasses.replace(prepared, module=module, example=prepared.example.contiguous(memory_format=layout))
    header = dataclasses.replace(prepared.header, notes=(*prepared.header.notes, WARNING))
    program = bare(prepared.program())
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, plain_graph():
        between = Path(folder) / "between.pt2"
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(between))
        except Exception as error:  # the compiler raises its own, many kinds
            raise UsageError(f"{header.model} cannot be compiled: {_first_line(error)}; try torch-export") from error
        parts = {name: part for name, part in read_parts(between).items() if not name.endswith(".cpp")}
        write_sealed(parts, header, path)
    return path


def open_session(path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
    """The compiled network in ``path``; one caller is served at a time.

    Args:
        path: the .aoti.pt2; its machine code is run.
        threads: of PyTorch in this process, all of it; as they are if None.
        device: ``cpu``.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``; or the file was compiled by another
            version of torch, or for instructions that this processor lacks.
        UsageError: another device is asked for.
    """
    if device != "cpu":
        raise UsageError(f"device is {device!r}; an AOTInductor file of this package is for the cpu")
    parts = read_parts(path)
    header = header_of(parts, path)
    if header.format != "aot-inductor":
        raise CheckpointError(f"{path} is of the format {header.format}, wanted aot-inductor; name it as that format's")
    want_same_machine(header, path)
    if not any(name.startswith(CODE) and name.endswith(".so") for name in parts):
        raise CheckpointError(f"{path} holds no machine code; export it again")
    try:
        network: Any = torch._inductor.aoti_load_package(str(path))
    except Exception as error:  # PyTorch's loader raises anything
        raise CheckpointError(f"{path} cannot be loaded ({_first_line(error)}); export it again") from error
    if threads is not None:
        torch.set_num_threads(threads)

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        pictures, *others = inputs.values()
        with torch.inference_mode():
            found = network(pictures.contiguous(memory_format=torch.channels_last), *others)
        return [found] if isinstance(found, Tensor) else list(found)

    return ExportedNetwork(header, run)


def want_same_machine(header: Header, path: Path) -> None:
    """Refuse machine code that this PyTorch or this processor cannot run.

    Raises:
        CheckpointError: which of them, what the file wants, and what is here.
    """
    written, here = header.versions.get(_TORCH, "?"), torch.__version__
    if written != here:
        raise CheckpointError(f"{path} was compiled for torch {written}, and this is {here}; export it again")
    wanted = header.versions.get(_SYSTEM, "?")
    if wanted != system():
        raise CheckpointError(f"{path} was compiled for {wanted}, and this is {system()}; export it again here")
    lacking = set(header.versions.get(_INSTRUCTIONS, "").split()) - instructions()
    if lacking:
        shown = ", ".join(sorted(lacking)[:8]) + (" and more" if len(lacking) > 8 else "")
        raise CheckpointError(f"{path} was compiled for a processor with {shown}; this one has none; export it here")


def instructions() -> set[str]:
    """The processor's instruction sets by the names that Linux has for them; elsewhere what PyTorch found."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return set(next(line for line in lines if line.startswith(("flags", "Features"))).partition(":")[2].split())
    except (OSError, StopIteration):
        return {torch.backends.cpu.get_cpu_capability().lower()}


def system() -> str:
    """The operating system and the architecture."""
    return f"{platform.system()} {platform.machine()}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
