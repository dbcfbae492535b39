"""The registry of export formats: how each is written, and how its files are opened.

Modules are named, not imported, because each format needs packages of its own.
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
from van.model import Model

Writer = Callable[..., Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Args:
        name: on the command line.
        suffix: of its files.
        module: has ``write(loaded, path, *, options)`` and ``open_session(path, *, threads, device)``.
        companions: suffixes of the files beside the main one, which replace its own suffix.
        writer: replaces the module's ``write``, for example by one that quantizes with given images.
    """

    name: str
    suffix: str
    module: str
    companions: tuple[str, ...] = ()
    writer: Writer | None = None

    def write(self, loaded: Model, path: Path, *, options: ExportOptions) -> Path:
        """Write ``loaded`` to ``path`` without verification; see the format's module."""
        return (self.writer or self._module.write)(loaded, path, options=options)

    def open(self, path: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
        """Open a session on the file; see the format's module."""
        return self._module.open_session(path, threads=threads, device=device)

    def all_files(self, path: Path) -> tuple[Path, ...]:
        """Return all files of the network at ``path``, the main file first."""
        stem = path.name.removesuffix(self.suffix)
        return path, *(path.with_name(stem + suffix) for suffix in self.companions)

    @property
    def _module(self) -> Any:
        return importlib.import_module(self.module)


FORMATS = {
    format_.name: format_
    for format_ in (
        Format(name="onnx", suffix=".onnx", module="van.export.onnx"),
        Format(name="openvino", suffix=".xml", module="van.export.openvino", companions=(".bin",)),
        Format(name="torch-export", suffix=".pt2", module="van.export.torch_export"),
    )
}
"""By name."""


def format_of(path: Path | str) -> Format | None:
    """Return the format that matches the file's name, or None."""
    name = Path(path).name.lower()
    return next((format_ for format_ in FORMATS.values() if name.endswith(format_.suffix)), None)


def is_exported(path: Path | str) -> bool:
    """Return whether ``path`` is a file named like an exported network; its content is checked by ``open_session``."""
    path = Path(path)
    return format_of(path) is not None and path.is_file() and not is_checkpoint(path)


def open_session(path: Path | str, *, threads: int | None = None, device: str = "cpu") -> Session:
    """Open a session on an exported file after verifying its checksum.

    Args:
        path: see ``FORMATS``.
        threads: of the runtime; its default if None.
        device: ``cpu``, or ``cuda`` where the format supports it.

    Raises:
        CheckpointError: the file is missing, damaged, or was not exported by this package.
        HashMismatch: the file was changed since it was exported.
        MissingExtra: the format's package is not installed.
        UsageError: no format has that suffix, or the format does not support the device.
    """
    path = Path(path)
    format_ = format_of(path)
    if format_ is None:
        known = ", ".join(format_.suffix for format_ in FORMATS.values())
        raise UsageError(f"{path}: expected an exported network with one of the suffixes {known}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads: expected at least 1, got {threads}")
    return format_.open(path, threads=threads, device=device)
