"""The zip archive that ``torch.export`` writes: adds our header, and validates every entry on reading.

PyTorch's reader trusts these archives: entries may be pickles, sizes are evaluated as Python, names become part of
generated code, and a graph may call any function under ``torch`` (observed in torch 2.15). Our archives need none of
that, so ``check_program`` accepts a graph of ATen operators on plain tensors and rejects everything else.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from van.errors import CheckpointError, UnsafePickle
from van.export.header import Header, header_with_checksum, read_header_with_checksum

HEADER = "extra/van.json"
Entries = Mapping[str, bytes]
"""The contents by name, without the root folder that all names share."""

_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_ENTRIES = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|\.data/version"
)
_VOLATILE = ".data/serialization_id"
"""A random number that PyTorch writes into every file; its reader does not need it."""
_MAX_BYTES = 1 << 34
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|torchvision)\.\w+\.\w+|torch\.sym_\w+|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_FILE_OPERATOR = re.compile(r"from_file|save|load")
"""Operators that access files."""
_IDENTIFIER = re.compile(r"[\w.+:-]*")
_TEXT = re.compile(r"[\w\s.+:()<>=*/%,'-]*")
"""A string argument of an operator, such as the message of an assertion."""
_SIZE_EXPRESSION = re.compile(
    r"(?:Symbol|positive|integer|nonnegative|True|False|Integer|Rational|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv"
    r"|CleanDiv|CeilDiv|CeilToInt|FloorToInt|[su]\d{1,9}|\d{1,18}|\*(?!\*)|[-+(),'= ])*"
)
"""A number of pixels or images, which PyTorch evaluates as Python. Powers are excluded: they may not terminate."""
_DICT_KEY = "a key"
_SPEC_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict", None)


def read_entries(path: Path) -> dict[str, bytes]:
    """Read all entries of the archive except the random serialization id.

    Raises:
        CheckpointError: the file is missing, no archive, damaged, or larger than 16 GiB when unpacked.
    """
    if not path.is_file():
        reason = "is a folder; expected an exported network" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {reason}")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise CheckpointError(f"{path}: expected at most {_MAX_BYTES >> 30} GiB of unpacked entries, got more")
            members = [(_strip_root(entry.filename, path), entry) for entry in archive.infolist()]
            if len({name for name, _ in members}) != len(members):
                raise CheckpointError(f"{path}: contains two entries of the same name; export it again")
            return {name: archive.read(entry) for name, entry in members if name != _VOLATILE}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: is not a .pt2 archive, or damaged ({error}); export or copy it again"
        ) from error


def write_archive(entries: Entries, header: Header, path: Path) -> None:
    """Write an archive of these entries, with ``header`` and a checksum over everything."""
    text = header_with_checksum(header, _sorted_entries(entries))
    path.write_bytes(build_archive({**entries, HEADER: text.encode()}).getvalue())


def read_header(entries: Entries, path: Path) -> Header:
    """Return the header after verifying the checksum over all entries.

    Raises:
        CheckpointError: there is no header.
        HashMismatch: an entry was changed since ``write_archive``.
    """
    if HEADER not in entries:
        raise CheckpointError(f"{path}: contains no {HEADER}, so van did not write it; write it with van export")
    text = entries[HEADER].decode(errors="replace")
    return read_header_with_checksum(text, _sorted_entries(entries), path=path)


def check_program(entries: Entries, path: Path) -> None:
    """Check that PyTorch can do nothing with these entries but build a graph of ATen operators.

    Raises:
        CheckpointError: an entry that such a graph needs is missing or not as PyTorch writes it.
        UnsafePickle: the archive contains anything else.
    """
    for name in entries:
        if not _ENTRIES.fullmatch(name) and name not in (_MODEL, _SAMPLES, _WEIGHTS, _CONSTANTS, HEADER):
            raise UnsafePickle(f"{path}: unexpected entry {name[:80]!r}; nothing was executed")
    model = _parse_json(entries, _MODEL, path)
    for config in (_WEIGHTS, _CONSTANTS):
        _check_tensors(_parse_json(entries, config, path), f"{path}: {config}")
    if entries.get(_SAMPLES):
        raise UnsafePickle(f"{path}: contains sample inputs, which are a pickle; nothing was executed")
    if not isinstance(model, dict) or model.get("guards_code"):
        raise UnsafePickle(f"{path}: contains guards, which are Python code; nothing was executed")
    _check_graph(model, f"{path}: {_MODEL}")


def build_archive(entries: Entries) -> io.BytesIO:
    """Build an archive in memory of exactly the validated entries.

    PyTorch then cannot read anything else from the file, even if it parses zip archives differently than Python.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(f"van/{name}", entry)
    content.seek(0)
    return content


def clear_sample_inputs(entries: Entries) -> dict[str, bytes]:
    """Return the entries with an empty one for the example inputs, which PyTorch stores as a pickle."""
    return {**entries, _SAMPLES: b""}


def _strip_root(name: str, path: Path) -> str:
    root, _, inner = name.partition("/")
    if not root or not inner or ".." in name.split("/") or "\\" in name:
        raise CheckpointError(f"{path}: {name!r} is not a valid entry name of a .pt2 archive; export it again")
    return inner


def _sorted_entries(entries: Entries) -> list[tuple[str, bytes]]:
    """Return what the checksum covers, in a reproducible order."""
    return [(name, entries[name]) for name in sorted(entries) if name != HEADER]


def _parse_json(entries: Entries, name: str, path: Path) -> Any:
    try:
        return json.loads(entries[name])
    except KeyError as error:
        raise CheckpointError(f"{path}: contains no {name}; export it again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {name} is damaged ({error}); export it again") from error


def _check_tensors(config: Any, where: str) -> None:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{where}: is not as PyTorch writes it; export the network again")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise UnsafePickle(f"{where}: {name[:80]!r} is a pickle; expected a plain tensor; nothing was executed")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise UnsafePickle(f"{where}: {name[:80]!r} is not a plain tensor; nothing was executed")


def _check_graph(model: Any, where: str) -> None:
    for key, value in _iterate_strings(model):
        if key == "target":
            allowed = _OPERATOR.fullmatch(value) and not _FILE_OPERATOR.search(value)
        elif key == "expr_str":
            allowed = _SIZE_EXPRESSION.fullmatch(value)
        elif key in ("in_spec", "out_spec"):
            allowed = _is_plain_spec(value)
        elif key == "as_string":
            allowed = _TEXT.fullmatch(value)
        else:
            allowed = _IDENTIFIER.fullmatch(value) or (key == _DICT_KEY and _SIZE_EXPRESSION.fullmatch(value))
        if not allowed:
            raise UnsafePickle(
                f"{where}: expected plain ATen operators, got {key} {value[:80]!r}; nothing was executed"
            )


def _iterate_strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in a JSON value with the key above it, and every key with ``_DICT_KEY``."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _iterate_strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield _DICT_KEY, name
            yield from _iterate_strings(item, name)


def _is_plain_spec(text: str) -> bool:
    """Return whether a tree spec contains only tuples, lists and dictionaries with plain keys."""
    try:
        _, spec = json.loads(text)
        pending = [spec]
        while pending:
            node = pending.pop()
            keys = json.loads(node["context"] or "null")
            names = [] if keys is None else keys
            if set(node) != {"type", "context", "children_spec"} or node["type"] not in _SPEC_TYPES:
                return False
            if not isinstance(names, list) or not all(isinstance(k, str) and _IDENTIFIER.fullmatch(k) for k in names):
                return False
            pending += node["children_spec"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return True
