"""Model files under their served names, and private copies of them.

Workers load the copies: a file may be replaced, damaged or half-written while the service runs, and a worker that must
be started again still finds what the others hold.
"""

import dataclasses
import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from van.errors import CheckpointError, UsageError

_SUFFIXES = (".safetensors", ".pth", ".tar", ".pt", ".bin", ".onnx", ".xml", ".aoti.pt2", ".pt2")

Print = tuple[int, int, int]
"""Inode, size and time of change of a file: what tells a new one without reading it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A served name, and the file or model name behind it; ``path`` is None where there is no file."""

    name: str
    given: str
    path: Path | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
    """A private copy: what to load, the first digits of its sha256, and what its original looked like."""

    place: str
    version: str
    prints: tuple[Print, ...]


def sources_of(words: Sequence[str]) -> list[Source]:
    """Files or model names, each perhaps as NAME=FILE, under names that differ.

    A run's ``best`` or ``last`` checkpoint is called after the run's folder, any other file after itself.

    Raises:
        CheckpointError: there is no such file.
        UsageError: a name is no name, or stands for two files.
    """
    sources: dict[str, Source] = {}
    for word in words:
        name, given = _split(word)
        path = Path(given) if Path(given).is_file() else None
        if path is None and not Path(given).exists() and (given.endswith(_SUFFIXES) or len(Path(given).parts) > 1):
            raise CheckpointError(f"{given}: no such file")
        if not name:
            name = _called(given)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise UsageError(
                f"{name!r} is no name to serve {given} under; wanted letters, digits, _, . and -: NAME=FILE"
            )
        if name in sources:
            raise UsageError(
                f"{given} and {sources[name].given} would both be served as {name!r}; say NAME=FILE for one"
            )
        sources[name] = Source(name=name, given=given, path=path)
    return list(sources.values())


def prints_of(path: Path) -> tuple[Print, ...]:
    """Of a model's file and the one beside it where there is one; empty while a file is missing."""
    found = []
    try:
        for file in _files(path):
            status = file.stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError:
        return ()
    return tuple(found)


def copy(source: Source, folder: Path) -> Copy:
    """A private copy of a model's files in a new folder below ``folder``; of a model's name, the name.

    Raises:
        CheckpointError: it cannot be read, or changed while it was copied.
    """
    if source.path is None:
        return Copy(place=source.given, version="", prints=())
    before = prints_of(source.path)
    digest = hashlib.sha256()
    place = Path(tempfile.mkdtemp(prefix=f"{source.name}-", dir=folder))
    try:
        for file in _files(source.path):
            shutil.copyfile(file, place / file.name)
            with (place / file.name).open("rb") as copied:
                digest.update(hashlib.file_digest(copied, "sha256").digest())
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise CheckpointError(f"{source.path} cannot be copied to {folder} ({error.strerror})") from error
    if not before or prints_of(source.path) != before:
        shutil.rmtree(place, ignore_errors=True)
        raise CheckpointError(f"{source.path} changed while it was copied; it is tried again when it is still")
    return Copy(place=str(place / source.path.name), version=digest.hexdigest()[:12], prints=before)


def discard(copied: Copy) -> None:
    """Delete a private copy."""
    if copied.prints:
        shutil.rmtree(Path(copied.place).parent, ignore_errors=True)


def _files(path: Path) -> list[Path]:
    """The file, and for OpenVINO's .xml its weights."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _split(word: str) -> tuple[str, str]:
    name, equals, given = word.partition("=")
    return (name, given) if equals and not Path(word).exists() else ("", word)


def _called(given: str) -> str:
    path = Path(given)
    if path.stem in ("best", "last") and path.is_file():
        return path.resolve().parent.name
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:64]
