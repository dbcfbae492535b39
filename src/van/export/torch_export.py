"""torch.export format: one .pt2 with a graph of ATen operators, weights and header, and a session on PyTorch.

The graph does not need this package: ``torch.export.load(path).module()`` returns the outputs in the header (for a
two-stage detector after ``import torchvision``, which has its operators).
The file contains no pickle, and everything except a plain graph is rejected before PyTorch reads it; see
``van.export.pt2_archive``. Shapes: see ``van.export.writing``.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from van.device import resolve_device
from van.errors import CheckpointError
from van.export.pt2_archive import (
    build_archive,
    check_program,
    clear_sample_inputs,
    read_entries,
    read_header,
    write_archive,
)
from van.export.session import ExportedNetwork, Session
from van.export.suppress_output import suppress_log
from van.export.writing import ExportOptions, prepare
from van.model import Model


def write(loaded: Model, path: Path, *, options: ExportOptions) -> Path:
    """Write ``loaded`` to ``path``; predictions are not yet compared with PyTorch.

    Raises:
        UsageError: the network cannot be exported; see ``van.export.writing``.
    """
    prepared = prepare(loaded, options, format="torch-export", opset=f"ATen of torch {torch.__version__}")
    program = strip_source_info(prepared.program())
    program.example_inputs = None  # torch.export.save would store them as a pickle
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, suppress_log("torch.export", level=logging.CRITICAL):
        raw_path = Path(folder) / "raw.pt2"
        torch.export.save(program, raw_path)
        write_archive(clear_sample_inputs(read_entries(raw_path)), prepared.header, path)
    return path


def open_session(path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
    """Open the program in ``path`` with PyTorch.

    Args:
        path: the .pt2.
        threads: for PyTorch in the whole process; unchanged if None.
        device: one that PyTorch supports on this machine.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``.
        UnsafePickle: the file contains anything but a graph of ATen operators.
        UsageError: the device is not available.
    """
    target = resolve_device(device)
    entries = read_entries(path)
    header = read_header(entries, path)
    if header.format != "torch-export":
        raise CheckpointError(
            f"{path}: expected the format torch-export, got {header.format}; give the file that format's suffix"
        )
    check_program(entries, path)
    try:
        with suppress_log("torch.export", level=logging.CRITICAL):
            program = torch.export.load(build_archive(entries))
        if target.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, target)
        network: Any = program.module()
    except Exception as error:  # PyTorch's reader raises many exception types
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        written = header.versions.get("torch", "?")
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot read a file of torch {written} ({first}); export it again"
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            outputs = network(*(values.to(target) for values in inputs.values()))
            return [output.cpu() for output in outputs]

    return ExportedNetwork(header, run)


def strip_source_info(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove the paths and lines of source files, and the guards, from a program in place.

    Guards are Python code that checks shapes before each run; the session checks them itself.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
                    node.meta.pop(name, None)
    program._guards_code = []
    return program
