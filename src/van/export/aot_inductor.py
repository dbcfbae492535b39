"""AOTInductor format: the network compiled to machine code for this processor in one .aoti.pt2, and its session.

The reference operators are compiled, not this package's own kernels: the file then needs only torch, also from C++,
and the kernels inside a compiled graph were no faster than the network in PyTorch. Images and weights are
channels_last. Opening such a file runs its code, like any program: the checksum detects accidental changes, not
malicious ones. Shapes: see ``van.export.writing``.
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
from van.export.pt2_archive import CODE, read_entries, read_header, write_archive
from van.export.session import ExportedNetwork, Session
from van.export.torch_export import strip_source_info
from van.export.writing import ExportOptions, prepare, reference_graph
from van.models.load import LoadedModel
from van.ops import native

WARNING = "the file contains machine code, which runs when the file is opened: open only files from a trusted source"
_TORCH, _SYSTEM, _INSTRUCTIONS = "torch", "system", "instructions"


def write(loaded: LoadedModel, path: Path, *, options: ExportOptions) -> Path:
    """Compile ``loaded`` for this processor into ``path``; takes about a minute.

    Predictions are not yet compared with PyTorch.

    Raises:
        UsageError: there is no C++ compiler, or the network cannot be exported; see ``van.export.writing``.
    """
    if native.compiler() is None:
        raise UsageError(
            "aot-inductor: no C++ compiler found; install g++ or clang++, set CXX to a compiler, or use "
            "--format torch-export"
        )
    environment = {_SYSTEM: platform_name(), _INSTRUCTIONS: " ".join(sorted(cpu_instructions()))}
    prepared = prepare(
        loaded, options, format="aot-inductor", opset=f"machine code of {platform_name()}", versions=environment
    )
    layout = torch.channels_last
    module = prepared.module.to(memory_format=layout)  # pyrefly: ignore[no-matching-overload]
    prepared = dataclasses.replace(prepared, module=module, example=prepared.example.contiguous(memory_format=layout))
    header = dataclasses.replace(prepared.header, notes=(*prepared.header.notes, WARNING))
    program = strip_source_info(prepared.program())
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, reference_graph():
        raw_path = Path(folder) / "raw.pt2"
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(raw_path))
        except Exception as error:  # the compiler raises many exception types of its own
            raise UsageError(
                f"{header.model}: compilation failed ({_first_line(error)}); use --format torch-export"
            ) from error
        # The C++ sources contain paths of this machine, and nothing reads them.
        entries = {name: content for name, content in read_entries(raw_path).items() if not name.endswith(".cpp")}
        write_archive(entries, header, path)
    return path


def open_session(path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
    """Open the compiled network in ``path``; it serves one caller at a time.

    Args:
        path: the .aoti.pt2; its machine code runs.
        threads: for PyTorch in the whole process; unchanged if None.
        device: ``cpu``.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``; or the file was compiled by another
            version of torch, or for instructions that this processor lacks.
        UsageError: ``device`` is not ``cpu``.
    """
    if device != "cpu":
        raise UsageError(f"device: expected cpu for an AOTInductor file, got {device!r}")
    entries = read_entries(path)
    header = read_header(entries, path)
    if header.format != "aot-inductor":
        raise CheckpointError(
            f"{path}: expected the format aot-inductor, got {header.format}; give the file that format's suffix"
        )
    check_same_machine(header, path)
    if not any(name.startswith(CODE) and name.endswith(".so") for name in entries):
        raise CheckpointError(f"{path}: contains no machine code; export it again")
    try:
        network: Any = torch._inductor.aoti_load_package(str(path))
    except Exception as error:  # PyTorch's loader raises many exception types
        raise CheckpointError(f"{path}: cannot be loaded ({_first_line(error)}); export it again") from error
    if threads is not None:
        torch.set_num_threads(threads)

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        images, *others = inputs.values()
        with torch.inference_mode():
            outputs = network(images.contiguous(memory_format=torch.channels_last), *others)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return ExportedNetwork(header, run)


def check_same_machine(header: Header, path: Path) -> None:
    """Check that this PyTorch and this processor can run the machine code.

    Raises:
        CheckpointError: they cannot; the message has the value of the file and that of this machine.
    """
    hint = "export it again on this machine"
    compiled_for, here = header.versions.get(_TORCH, "?"), torch.__version__
    if compiled_for != here:
        raise CheckpointError(f"{path}: compiled for torch {compiled_for}, this is torch {here}; {hint}")
    compiled_for, here = header.versions.get(_SYSTEM, "?"), platform_name()
    if compiled_for != here:
        raise CheckpointError(f"{path}: compiled for {compiled_for}, this is {here}; {hint}")
    missing = set(header.versions.get(_INSTRUCTIONS, "").split()) - cpu_instructions()
    if missing:
        names = ", ".join(sorted(missing)[:8]) + (" and more" if len(missing) > 8 else "")
        raise CheckpointError(f"{path}: compiled for a processor with {names}, which this one lacks; {hint}")


def cpu_instructions() -> set[str]:
    """Return the processor's instruction sets, by Linux's names; on other systems PyTorch's name for the best one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return set(next(line for line in lines if line.startswith(("flags", "Features"))).partition(":")[2].split())
    except (OSError, StopIteration):
        return {torch.backends.cpu.get_cpu_capability().lower()}


def platform_name() -> str:
    """Return the operating system and the architecture."""
    return f"{platform.system()} {platform.machine()}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
