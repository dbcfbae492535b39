"""What must not be separated from an exported network, and the seal that holds the two together.

The header is JSON inside the file. The seal is a sha256 over all that was written, the header among it, so that
an edited header, a changed weight or the weights of another network beside it are noticed before anything is
answered. It guards against mix-ups: whoever changes a file on purpose can seal it again.
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
from van.preprocess import Preprocess, WholePreprocess, read_preprocess

VERSION = 1
Precision = Literal["float32", "float16", "bfloat16", "int8", "int8+bfloat16"]
"""The last has 8 bits in most layers and bfloat16 between them, where the processor computes so."""
Shape = tuple[int | None, ...]
"""None where a size is free."""

_MARK = b"van-seal-"
_DIGITS = 64
UNSEALED = _MARK.decode() + "0" * _DIGITS
"""Written once into a file that ``seal`` is to close."""
_SEAL = re.compile(_MARK + rb"[0-9a-f]{64}")
_KINDS: dict[str, type] = {
    "task": str, "model": str, "labels": list, "preprocess": dict, "task_options": dict, "model_options": dict,
    "format": str, "precision": str, "dynamic": bool, "inputs": dict, "outputs": list, "opset": str, "source": str,
    "versions": dict, "notes": list,
}  # fmt: skip
"""What each entry is in JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """A checkpoint's own entries, and how its network was exported.

    Args:
        task, model, labels, preprocess, task_options, model_options: as in ``van.checkpoint.Checkpoint``.
        format: one of ``van.export.formats.FORMATS``.
        precision: of the arithmetic or, where a runtime stores less than it computes with, of the weights.
        dynamic: whether sizes are free.
        inputs: shapes by name, None where a size is free.
        outputs: names, in their order.
        opset: the operator set, in the format's own words.
        source: sha256 of the checkpoint; empty if there was no file.
        versions: of the packages that wrote the file.
        notes: what the user should be told, such as what the session does in Python.
    """

    task: str
    model: str
    labels: tuple[str, ...]
    preprocess: Preprocess | WholePreprocess
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
        """One line of ASCII."""
        values = {name: getattr(self, name) for name in _KINDS} | {"preprocess": self.preprocess.to_dict()}
        return json.dumps({"version": VERSION, **values})

    @classmethod
    def from_json(cls, text: str, *, path: Path | str = "the file") -> "Header":
        """The header that ``to_json`` came from.

        Raises:
            CheckpointError: it is damaged or of another version; ``path`` is named.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its header is damaged ({error}); export it again") from error
        if not isinstance(values, dict) or values.pop("version", None) != VERSION:
            raise CheckpointError(f"{path}: its header is not of version {VERSION}; export it again, or update van")
        wrong = [name for name, kind in _KINDS.items() if not isinstance(values.get(name), kind)]
        if wrong or set(values) != set(_KINDS) or values["precision"] not in get_args(Precision):
            seen = ", ".join(wrong or sorted(set(values) ^ set(_KINDS)) or ["precision"])
            raise CheckpointError(f"{path}: its header is not what this package writes: {seen}; export it again")
        try:
            values["preprocess"] = read_preprocess(values["preprocess"])
            values["inputs"] = {name: tuple(shape) for name, shape in values["inputs"].items()}
            lists = {name: tuple(values[name]) for name in ("labels", "outputs", "notes")}
            plain: dict[str, Any] = {**values, **lists}
            return cls(**plain)
        except (TypeError, VanError) as error:
            raise CheckpointError(f"{path}: its header is not what this package writes ({error})") from error


def seal(path: Path, *others: Path) -> None:
    """Put the sha256 of ``path`` and of ``others`` in the place of ``UNSEALED`` in ``path``."""
    with path.open("r+b") as file:
        place = _place_of_seal(path)
        file.seek(place)
        file.write(_digest(path, place, others).encode())


def check_seal(path: Path, *others: Path) -> None:
    """Refuse a file that is not as ``seal`` left it.

    Args:
        path: the file with the seal.
        others: files that belong to it, in the order given to ``seal``.

    Raises:
        CheckpointError: there is no such file, or no seal in it.
        HashMismatch: it, or one of the others, was changed since.
        TruncatedFile: it is empty.
    """
    for each in (path, *others):
        if not each.is_file():
            what = "a folder, not an exported network" if each.is_dir() else "no such file"
            beside = f"; it belongs beside {path.name}" if each is not path else ""
            raise CheckpointError(f"{each}: {what}{beside}")
    try:
        place = _place_of_seal(path)
        with path.open("rb") as file:
            file.seek(place)
            stored = file.read(_DIGITS).decode()
        found = _digest(path, place, others)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if stored != found:
        both = " and ".join(each.name for each in (path, *others))
        raise HashMismatch(f"{path}: the sha256 of {both} is {found}, and it was sealed with {stored}; export it again")


def sealed_json(header: Header, parts: Iterable[tuple[str, bytes]]) -> str:
    """The header and the sha256 of it and of ``parts``, for a container that holds them side by side.

    Args:
        header: of the file.
        parts: names and contents of all else in the container, in an order that its reader can tell.
    """
    text = header.to_json()
    return json.dumps({"header": text, "sha256": _digest_of_parts(text, parts)})


def open_sealed_json(text: str, parts: Iterable[tuple[str, bytes]], *, path: Path | str) -> Header:
    """The header that ``sealed_json`` was given.

    Raises:
        CheckpointError: ``text`` is damaged or of another version.
        HashMismatch: the header or one of the parts was changed since.
    """
    try:
        values = json.loads(text)
        header, stored = str(values["header"]), str(values["sha256"])
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error}); export it again") from error
    found = _digest_of_parts(header, parts)
    if stored != found:
        raise HashMismatch(f"{path}: its sha256 is {found}, and it was sealed with {stored}; export it again")
    return Header.from_json(header, path=path)


def file_sha256(path: Path) -> str:
    """Of its content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place_of_seal(path: Path) -> int:
    """Where its digits start; there must be one and no more, or it would not be clear which is meant."""
    with _mapped(path) as content:
        places = [found.end() - _DIGITS for found in _SEAL.finditer(content)]
    if len(places) != 1:
        raise CheckpointError(
            f"{path} holds {len(places) or 'no'} seals of this package, wanted one: it is cut off or damaged, or "
            "something else wrote it; write it with van export"
        )
    return places[0]


def _digest(path: Path, place: int, others: Iterable[Path]) -> str:
    with _mapped(path) as content, memoryview(content) as view:
        digest = hashlib.sha256(view[:place])
        digest.update(b"0" * _DIGITS)
        digest.update(view[place + _DIGITS :])
    for other in others:
        digest.update(bytes.fromhex(file_sha256(other)))
    return digest.hexdigest()


def _digest_of_parts(header: str, parts: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, content in parts:
        digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _mapped(path: Path) -> Generator[mmap.mmap, None, None]:
    if path.stat().st_size == 0:
        raise TruncatedFile(f"{path} is empty; export or copy it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
