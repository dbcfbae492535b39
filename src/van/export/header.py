"""The metadata header of an exported file, and the checksum that binds it to graph and weights.

The header is JSON inside the file. The checksum is a sha256 over the whole file, header included, so that an edited
header, a changed weight or a .bin of another network is detected before the first prediction. It detects accidental
changes only: anybody who edits a file can also recompute the checksum.
"""

import contextlib
import dataclasses
import hashlib
import json
import mmap
import re
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from van.errors import CheckpointError, HashMismatch, TruncatedFile, VanError
from van.preprocess import CenterCropPreprocess, ResizePreprocess, read_preprocess

VERSION = 1
Precision = Literal["float32", "float16", "bfloat16", "int8", "int8+bfloat16"]
"""``int8+bfloat16``: int8 in the quantized layers and bfloat16 in the others, on processors that have bfloat16."""
Shape = tuple[int | None, ...]
"""None for a dynamic dimension."""

_PREFIX = b"van-sha256-"
_DIGITS = 64
CHECKSUM_PLACEHOLDER = _PREFIX.decode() + "0" * _DIGITS
"""Written exactly once into a file, before ``write_checksum`` replaces its zeros."""
_CHECKSUM = re.compile(_PREFIX + rb"[0-9a-f]{64}")
_FIELD_TYPES: dict[str, type] = {
    "task": str, "model": str, "class_names": list, "preprocess": dict, "task_options": dict, "model_options": dict,
    "format": str, "precision": str, "dynamic": bool, "inputs": dict, "outputs": list, "opset": str, "source": str,
    "versions": dict, "notes": list,
}  # fmt: skip
"""The type of each field in JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """The metadata of an exported network: the fields of its checkpoint, and how it was exported.

    Args:
        task, model, class_names, preprocess, task_options, model_options: as in ``van.checkpoint.Checkpoint``.
        format: one of ``van.export.formats.FORMATS``.
        precision: of the arithmetic; of the weights, where a runtime stores them in less precision than it computes.
        dynamic: whether the input has dynamic dimensions.
        inputs: shapes by name, None for a dynamic dimension.
        outputs: names, in order.
        opset: the operator set, as the format names it.
        source: sha256 of the checkpoint; empty if there was no file.
        versions: of the packages that wrote the file.
        notes: messages for the user, such as the post-processing that the session does in Python.
    """

    task: str
    model: str
    class_names: tuple[str, ...]
    preprocess: CenterCropPreprocess | ResizePreprocess
    format: str
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    precision: Precision = "float32"
    dynamic: bool = False
    opset: str = ""
    source: str = ""
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the header as one line of ASCII JSON."""
        values = {name: getattr(self, name) for name in _FIELD_TYPES} | {"preprocess": self.preprocess.to_dict()}
        return json.dumps({"version": VERSION, **values})

    @classmethod
    def from_json(cls, text: str, *, path: Path | str = "the file") -> "Header":
        """Parse the output of ``to_json``.

        Raises:
            CheckpointError: the header is damaged or has another version; the message names ``path``.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: the header is not valid JSON ({error}); export the file again") from error
        version = values.pop("version", None) if isinstance(values, dict) else None
        if not isinstance(values, dict) or version != VERSION:
            raise CheckpointError(
                f"{path}: expected header version {VERSION}, got {version}; export the file again, or update van"
            )
        wrong = [name for name, kind in _FIELD_TYPES.items() if not isinstance(values.get(name), kind)]
        if wrong or set(values) != set(_FIELD_TYPES) or values["precision"] not in get_args(Precision):
            invalid = ", ".join(wrong or sorted(set(values) ^ set(_FIELD_TYPES)) or ["precision"])
            raise CheckpointError(f"{path}: the header has invalid fields: {invalid}; export the file again")
        try:
            values["preprocess"] = read_preprocess(values["preprocess"])
            values["inputs"] = {name: tuple(shape) for name, shape in values["inputs"].items()}
            lists = {name: tuple(values[name]) for name in ("class_names", "outputs", "notes")}
            fields: dict[str, Any] = {**values, **lists}
            return cls(**fields)
        except (TypeError, VanError) as error:
            raise CheckpointError(f"{path}: the header has invalid fields ({error}); export the file again") from error


def write_checksum(path: Path, *others: Path) -> None:
    """Replace ``CHECKSUM_PLACEHOLDER`` in ``path`` by the sha256 of ``path`` and ``others``."""
    with path.open("r+b") as file:
        offset = _find_checksum(path)
        file.seek(offset)
        file.write(_digest(path, offset, others).encode())


def verify_checksum(path: Path, *others: Path) -> None:
    """Check that no file was changed since ``write_checksum``.

    Args:
        path: the file that contains the checksum.
        others: its companion files, in the order given to ``write_checksum``.

    Raises:
        CheckpointError: a file does not exist, or ``path`` contains no checksum.
        HashMismatch: one of the files was changed.
        TruncatedFile: ``path`` is empty.
    """
    for file_path in (path, *others):
        if not file_path.is_file():
            reason = "is a folder; expected an exported network" if file_path.is_dir() else "no such file"
            hint = f"; it belongs beside {path.name}" if file_path is not path else ""
            raise CheckpointError(f"{file_path}: {reason}{hint}")
    try:
        offset = _find_checksum(path)
        with path.open("rb") as file:
            file.seek(offset)
            stored = file.read(_DIGITS).decode()
        actual = _digest(path, offset, others)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if stored != actual:
        names = " and ".join(file_path.name for file_path in (path, *others))
        raise HashMismatch(f"{path}: sha256 of {names}: expected {stored}, got {actual}; export the network again")


def header_with_checksum(header: Header, entries: Iterable[tuple[str, bytes]]) -> str:
    """Return JSON with the header and a sha256 over it and ``entries``, for a container that stores them separately.

    Args:
        header: of the file.
        entries: names and contents of everything else in the container, in a reproducible order.
    """
    text = header.to_json()
    return json.dumps({"header": text, "sha256": _digest_of_entries(text, entries)})


def read_header_with_checksum(text: str, entries: Iterable[tuple[str, bytes]], *, path: Path | str) -> Header:
    """Return the header given to ``header_with_checksum``.

    Raises:
        CheckpointError: ``text`` is damaged or has another version.
        HashMismatch: the header or an entry was changed.
    """
    try:
        values = json.loads(text)
        header, stored = str(values["header"]), str(values["sha256"])
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: the header is damaged ({error}); export the file again") from error
    actual = _digest_of_entries(header, entries)
    if stored != actual:
        raise HashMismatch(f"{path}: sha256: expected {stored}, got {actual}; export the network again")
    return Header.from_json(header, path=path)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_checksum(path: Path) -> int:
    """Return the offset of the checksum's digits in bytes.

    A second checksum in the file would make it ambiguous which one counts, so exactly one is accepted.
    """
    with _map_file(path) as content:
        offsets = [match.end() - _DIGITS for match in _CHECKSUM.finditer(content)]
    if len(offsets) != 1:
        raise CheckpointError(
            f"{path}: expected 1 checksum of van, got {len(offsets)}: the file is truncated or damaged, or another "
            "program wrote it; write it with van export"
        )
    return offsets[0]


def _digest(path: Path, offset: int, others: Iterable[Path]) -> str:
    # A file cannot contain its own hash: the digits are hashed as zeros.
    with _map_file(path) as content, memoryview(content) as view:
        digest = hashlib.sha256(view[:offset])
        digest.update(b"0" * _DIGITS)
        digest.update(view[offset + _DIGITS :])
    for other in others:
        digest.update(bytes.fromhex(file_sha256(other)))
    return digest.hexdigest()


def _digest_of_entries(header: str, entries: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, content in entries:
        # Both hashes have a fixed length, so no byte can move from a name into the content unnoticed.
        digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _map_file(path: Path) -> Generator[mmap.mmap, None, None]:
    if path.stat().st_size == 0:
        raise TruncatedFile(f"{path}: is empty; export or copy it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
