"""Model files with their served names, and private copies of them.

The workers load the copies: a file may be replaced, damaged or half-written while the server runs, and a worker that is
restarted must still load what the other workers hold.
"""

import dataclasses
import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from van.errors import CheckpointError, UsageError

_SUFFIXES = (".safetensors", ".pth", ".tar", ".pt", ".bin", ".onnx", ".xml", ".pt2")

Fingerprint = tuple[int, int, int]
"""Inode, size and modification time of a file: they detect a changed file without reading it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A served name, and the file or model name as given; ``path`` is None for a model name."""

    name: str
    given: str
    path: Path | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCopy:
    """A private copy: the path to load, the first digits of its SHA-256, and the fingerprints of the original."""

    path: str
    version: str
    fingerprints: tuple[Fingerprint, ...]


def parse_sources(arguments: Sequence[str]) -> list[ModelSource]:
    """Parse files or model names, each optionally as NAME=FILE, to sources with unique names.

    The ``best`` or ``last`` checkpoint of a run is named after the folder of the run, any other file after itself.

    Raises:
        CheckpointError: a file does not exist.
        UsageError: a name is invalid or used twice.
    """
    sources: dict[str, ModelSource] = {}
    for argument in arguments:
        name, given = _split_name(argument)
        path = Path(given) if Path(given).is_file() else None
        if path is None and not Path(given).exists() and (given.endswith(_SUFFIXES) or len(Path(given).parts) > 1):
            raise CheckpointError(f"{given}: no such file")
        if not name:
            name = _default_name(given)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise UsageError(
                f"{given}: invalid model name {name!r}; expected letters, digits, _, . and -, given as NAME=FILE"
            )
        if name in sources:
            raise UsageError(
                f"{given} and {sources[name].given}: both have the model name {name!r}; give NAME=FILE for one of them"
            )
        sources[name] = ModelSource(name=name, given=given, path=path)
    return list(sources.values())


def fingerprint_files(path: Path) -> tuple[Fingerprint, ...]:
    """Return the fingerprints of the files of a model; empty while one of them is missing."""
    fingerprints = []
    try:
        for file in _model_files(path):
            status = file.stat()
            fingerprints.append((status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError:
        return ()
    return tuple(fingerprints)


def copy_model(source: ModelSource, folder: Path) -> ModelCopy:
    """Copy the files of a model to a new folder in ``folder``; a source without a file is returned as its name.

    Raises:
        CheckpointError: a file cannot be copied, or changed while it was copied.
    """
    if source.path is None:
        return ModelCopy(path=source.given, version="", fingerprints=())
    before = fingerprint_files(source.path)
    digest = hashlib.sha256()
    target = Path(tempfile.mkdtemp(prefix=f"{source.name}-", dir=folder))
    try:
        for file in _model_files(source.path):
            shutil.copyfile(file, target / file.name)
            with (target / file.name).open("rb") as copied:
                digest.update(hashlib.file_digest(copied, "sha256").digest())
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise CheckpointError(f"{source.path}: cannot copy to {folder} ({error.strerror})") from error
    if not before or fingerprint_files(source.path) != before:
        shutil.rmtree(target, ignore_errors=True)
        raise CheckpointError(f"{source.path}: changed while it was copied; it is copied again when it stops changing")
    return ModelCopy(path=str(target / source.path.name), version=digest.hexdigest()[:12], fingerprints=before)


def delete_copy(copied: ModelCopy) -> None:
    """Delete a private copy."""
    if copied.fingerprints:  # a model name has none, and no files to delete
        shutil.rmtree(Path(copied.path).parent, ignore_errors=True)


def _model_files(path: Path) -> list[Path]:
    """Return the file, and for OpenVINO's .xml also its weights."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _split_name(argument: str) -> tuple[str, str]:
    name, equals, given = argument.partition("=")
    return (name, given) if equals and not Path(argument).exists() else ("", argument)


def _default_name(given: str) -> str:
    path = Path(given)
    if path.stem in ("best", "last") and path.is_file():
        return path.resolve().parent.name
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:64]
