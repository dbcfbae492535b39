"""The zip archive that ``torch.export`` and AOTInductor write: our header put in, and all that is in it looked at.

PyTorch's reader of these archives does what they say: entries may be pickles, sizes are evaluated as Python, names
end up in generated code, and a graph may name any function under ``torch`` (seen in torch 2.15). An archive of ours
needs none of that, so ``check_program`` allows a graph of ATen operators on plain tensors, and nothing else.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from van.errors import CheckpointError, UnsafePickle
from van.export.header import Header, open_sealed_json, sealed_json

HEADER = "extra/van.json"
CODE = "data/aotinductor/"
"""Where machine code lies."""
Parts = Mapping[str, bytes]
"""The entries by name, without the folder that stands before all of them."""

_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_ENTRIES = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|\.data/version"
)
_VOLATILE = ".data/serialization_id"
"""A number that PyTorch makes up anew for every file; its reader does without."""
_MOST_BYTES = 1 << 34
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|torchvision)\.\w+\.\w+|torch\.sym_\w+|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_FILES = re.compile(r"from_file|save|load")
"""Operators that open files."""
_PLAIN = re.compile(r"[\w.+:-]*")
_TOLD = re.compile(r"[\w\s.+:()<>=*/%,'-]*")
"""A text that is given to an operator, such as the words of an assertion."""
_SIZE = re.compile(
    r"(?:Symbol|positive|integer|nonnegative|True|False|Integer|Rational|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv"
    r"|CleanDiv|CeilDiv|CeilToInt|FloorToInt|[su]\d{1,9}|\d{1,18}|\*(?!\*)|[-+(),'= ])*"
)
"""A number of pixels or pictures, which PyTorch evaluates as Python. Powers are left out: they may take forever."""
_NAME = "a name"
_SPEC_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict", None)


def read_parts(path: Path) -> dict[str, bytes]:
    """Everything in the archive, without what PyTorch keeps for itself.

    Raises:
        CheckpointError: it is missing, no archive, damaged, or unreasonably large once unpacked.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: " + ("a folder, not an exported network" if path.is_dir() else "no such file"))
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise CheckpointError(f"{path} unpacks to more than {_MOST_BYTES >> 30} GiB; wanted less")
            named = [(_inner(entry.filename, path), entry) for entry in archive.infolist()]
            if len({name for name, _ in named}) != len(named):
                raise CheckpointError(f"{path} holds two entries of one name; export it again")
            return {name: archive.read(entry) for name, entry in named if name != _VOLATILE}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is no .pt2 archive, or damaged ({error}); export or copy it again") from error


def write_sealed(parts: Parts, header: Header, path: Path) -> None:
    """Write an archive of these parts, with ``header`` and a seal over all of it."""
    text = sealed_json(header, _sealed(parts))
    path.write_bytes(as_archive({**parts, HEADER: text.encode()}).getvalue())


def header_of(parts: Parts, path: Path) -> Header:
    """The header, if all is as ``write_sealed`` left it.

    Raises:
        CheckpointError: there is none.
        HashMismatch: something was changed since.
    """
    if HEADER not in parts:
        raise CheckpointError(f"{path} was not written by this package: it holds no {HEADER}; write it with van export")
    text = parts[HEADER].decode(errors="replace")
    return open_sealed_json(text, _sealed(parts), path=path)


def check_program(parts: Parts, path: Path) -> None:
    """Refuse what could make PyTorch do anything but build a graph of ATen operators.

    Raises:
        CheckpointError: a part that such a graph needs is missing or not as PyTorch writes it.
        UnsafePickle: there is anything else in the archive.
    """
    for name in parts:
        if not _ENTRIES.fullmatch(name) and name not in (_MODEL, _SAMPLES, _WEIGHTS, _CONSTANTS, HEADER):
            raise UnsafePickle(f"{path} holds {name[:80]!r}, which no exported network of ours does; nothing was run")
    model = _json(parts, _MODEL, path)
    for config in (_WEIGHTS, _CONSTANTS):
        _check_tensors(_json(parts, config, path), f"{path}: {config}")
    if parts.get(_SAMPLES):
        raise UnsafePickle(f"{path} holds sample inputs, which are a pickle; nothing was run")
    if not isinstance(model, dict) or model.get("guards_code"):
        raise UnsafePickle(f"{path} holds guards, which are code in Python; nothing was run")
    _check_graph(model, f"{path}: {_MODEL}")


def as_archive(parts: Parts) -> io.BytesIO:
    """An archive of exactly these parts: PyTorch reads what was looked at, however it would read the file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in parts.items():
            archive.writestr(f"van/{name}", part)
    content.seek(0)
    return content


def without_samples(parts: Parts) -> dict[str, bytes]:
    """The same parts, and an empty place where PyTorch keeps example inputs, a pickle."""
    return {**parts, _SAMPLES: b""}


def _inner(name: str, path: Path) -> str:
    root, _, inner = name.partition("/")
    if not root or not inner or ".." in name.split("/") or "\\" in name:
        raise CheckpointError(f"{path}: {name!r} is no name for an entry of a .pt2 archive; export it again")
    return inner


def _sealed(parts: Parts) -> list[tuple[str, bytes]]:
    return [(name, parts[name]) for name in sorted(parts) if name != HEADER]


def _json(parts: Parts, name: str, path: Path) -> Any:
    try:
        return json.loads(parts[name])
    except KeyError as error:
        raise CheckpointError(f"{path} holds no {name}; export it again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {name} is damaged ({error}); export it again") from error


def _check_tensors(config: Any, where: str) -> None:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{where} is not what PyTorch writes; export it again")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise UnsafePickle(f"{where}: {name[:80]!r} is a pickle; wanted a plain tensor, and nothing was run")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise UnsafePickle(f"{where}: {name[:80]!r} is no plain tensor; nothing was run")


def _check_graph(model: Any, where: str) -> None:
    for key, value in _strings(model):
        if key == "target":
            fine = _OPERATOR.fullmatch(value) and not _FILES.search(value)
        elif key == "expr_str":
            fine = _SIZE.fullmatch(value)
        elif key in ("in_spec", "out_spec"):
            fine = _plain_spec(value)
        elif key == "as_string":
            fine = _TOLD.fullmatch(value)
        else:
            fine = _PLAIN.fullmatch(value) or (key == _NAME and _SIZE.fullmatch(value))
        if not fine:
            raise UnsafePickle(f"{where}: {key} is {value[:80]!r}; wanted plain ATen operators, and nothing was run")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in it, keys too, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield _NAME, name
            yield from _strings(each, name)


def _plain_spec(text: str) -> bool:
    """Whether it speaks of tuples, lists and dictionaries with plain keys alone."""
    try:
        _, spec = json.loads(text)
        waiting = [spec]
        while waiting:
            each = waiting.pop()
            keys = json.loads(each["context"] or "null")
            named = [] if keys is None else keys
            if set(each) != {"type", "context", "children_spec"} or each["type"] not in _SPEC_TYPES:
                return False
            if not isinstance(named, list) or not all(isinstance(k, str) and _PLAIN.fullmatch(k) for k in named):
                return False
            waiting += each["children_spec"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return True
