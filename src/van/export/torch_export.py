"""PyTorch's own exported programs: one .pt2 with a graph of ATen operators, weights and header.

The graph needs nothing of this package: ``torch.export.load(path).module()`` gives what the session's runtime gives
(of a detector of two stages after ``import torchvision``, whose operators are in it).
Nothing in the file is a pickle, and what is no plain graph is refused before PyTorch sees it; see
``van.export.pt2_archive``. Shapes: see ``van.export.writing``.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from van.errors import CheckpointError
from van.export.pt2_archive import as_archive, check_program, header_of, read_parts, without_samples, write_sealed
from van.export.quiet import quiet_log
from van.export.session import ExportedNetwork, Session
from van.export.writing import ExportOptions, prepare
from van.models.load import Loaded, usable_device


def write(loaded: Loaded, path: Path, *, options: ExportOptions) -> Path:
    """Write ``loaded`` to ``path``, not yet compared with PyTorch.

    Raises:
        UsageError: the network cannot be exported; see ``van.export.writing``.
    """
    prepared = prepare(loaded, options, format="torch-export", opset=f"ATen of torch {torch.__version__}")
    program = bare(prepared.program())
    program.example_inputs = None  # they would be kept as a pickle
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, quiet_log("torch.export", level=logging.CRITICAL):
        between = Path(folder) / "between.pt2"
        torch.export.save(program, between)
        write_sealed(without_samples(read_parts(between)), prepared.header, path)
    return path


def open_session(path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
    """PyTorch on the program in ``path``.

    Args:
        path: the .pt2.
        threads: of PyTorch in this process, all of it; as they are if None.
        device: one that PyTorch has here.

    Raises:
        CheckpointError, HashMismatch: see ``van.export.formats.open_session``.
        UnsafePickle: the file holds something else than a graph of plain operators.
        UsageError: there is no such device.
    """
    place = usable_device(device)
    parts = read_parts(path)
    header = header_of(parts, path)
    if header.format != "torch-export":
        raise CheckpointError(f"{path} is of the format {header.format}, wanted torch-export; name it as that format's")
    check_program(parts, path)
    try:
        with quiet_log("torch.export", level=logging.CRITICAL):
            program = torch.export.load(as_archive(parts))
        if place.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, place)
        network: Any = program.module()
    except Exception as error:  # PyTorch's reader raises anything
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        written = header.versions.get("torch", "?")
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot read what torch {written} wrote ({first}); export it again"
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            found = network(*(values.to(place) for values in inputs.values()))
            return [output.cpu() for output in found]

    return ExportedNetwork(header, run)


def bare(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without what it was read from, the paths and lines of source files, and without guards.

    Guards are Python code that looks at shapes before each run, which the session does itself.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
                    node.meta.pop(name, None)
    program._guards_code = []
    return program
