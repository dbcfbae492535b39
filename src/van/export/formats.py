"""The formats of exported files: how each is written, and how it is opened again.

Writers and openers are named, not imported: each format needs packages of its own.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from van.checkpoint import is_checkpoint
from van.errors import UsageError
from van.export.session import Session
from van.export.writing import ExportOptions
from van.models.load import Loaded

Writer = Callable[..., Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One of them.

    Args:
        name: on the command line.
        suffix: of its files.
        module: has ``write(loaded, path, *, options)`` and ``open_session(path, *, threads, device)``.
        beside: suffixes of files that belong to it, in place of its own.
        writer: in place of the module's, such as one that quantises with pictures bound to it.
    """

    name: str
    suffix: str
    module: str
    beside: tuple[str, ...] = ()
    writer: Writer | None = None

    def write(self, loaded: Loaded, path: Path, *, options: ExportOptions) -> Path:
        """Write ``loaded`` to ``path`` as it stands, unverified; see the format's module."""
        return (self.writer or self._module.write)(loaded, path, options=options)

    def open(self, path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
        """A session on the file; see the format's module."""
        return self._module.open_session(path, threads=threads, device=device)

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files of the network at ``path``, it first."""
        stem = path.name.removesuffix(self.suffix)
        return path, *(path.with_name(stem + suffix) for suffix in self.beside)

    @property
    def _module(self) -> Any:
        return importlib.import_module(self.module)


FORMATS = {
    format_.name: format_
    for format_ in (
        Format(name="onnx", suffix=".onnx", module="van.export.onnx"),
        Format(name="openvino", suffix=".xml", module="van.export.openvino", beside=(".bin",)),
        Format(name="aot-inductor", suffix=".aoti.pt2", module="van.export.aot_inductor"),
        Format(name="torch-export", suffix=".pt2", module="van.export.torch_export"),
    )
}
"""By name; where the suffixes of two fit, the first is meant."""


def format_of(path: Path | str) -> Format | None:
    """The format that a file's name speaks of, or None."""
    name = Path(path).name.lower()
    return next((found for found in FORMATS.values() if name.endswith(found.suffix)), None)


def is_exported(path: Path | str) -> bool:
    """Whether ``path`` is a file whose name is that of an exported network; what is in it ``open_session`` sees."""
    path = Path(path)
    return format_of(path) is not None and path.is_file() and not is_checkpoint(path)


def open_session(path: Path | str, *, threads: int | None = None, device: str = "cpu") -> Session:
    """A session on an exported file, whose seal is checked first.

    Args:
        path: see ``FORMATS``.
        threads: of the runtime's own; as many as it likes if None.
        device: ``cpu``, or ``cuda`` where the format can.

    Raises:
        CheckpointError: the file is missing, damaged, or was not exported by this package.
        HashMismatch: it was changed since.
        MissingExtra: the format's package is not installed.
        UsageError: no format has that suffix, or it has no such device here.
    """
    path = Path(path)
    found = format_of(path)
    if found is None:
        known = ", ".join(format_.suffix for format_ in FORMATS.values())
        raise UsageError(f"{path} has the suffix of no exported network; known: {known}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; wanted at least 1")
    return found.open(path, threads=threads, device=device)
