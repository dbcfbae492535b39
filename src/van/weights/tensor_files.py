"""Safe reading of weights files from other sources.

safetensors files hold tensors only. Pickles are opened by torch with ``weights_only=True`` and one more allowed
class, ``argparse.Namespace``, which the released VAN files hold beside their tensors. A pickle with anything else is
refused as a whole, before any code in it runs.
"""

import argparse
import hashlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from van.errors import CheckpointError, HashMismatch, TruncatedFile, UnknownFormat, UnsafePickle

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts store the state dict, in order of preference: EMA weights first."""

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|safetensors|pth\.tar)$")
_ALLOWED = re.compile(r"torch\.\w*Storage$|torch\._utils\.|collections\.OrderedDict$|argparse\.Namespace$")
_LEGACY_PICKLES = 5
"""Before PyTorch 1.6 a file was these pickles (magic number, version, system, content, keys), then the raw tensors."""
_DATE = re.compile(r"(?:19|20)\d{6}")
_TRUNCATION_ERROR = re.compile(
    r"central directory|unexpected EOF|ran out of input|unexpected pos|file read failed|storage has wrong", re.I
)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every named tensor of a ``.safetensors``, ``.pth``, ``.pth.tar``, ``.pt`` or ``.bin`` file, and its header.

    The format is detected from the content, not from the name. The header is empty for pickles.

    Raises:
        CheckpointError: the file does not exist or cannot be read.
        HashMismatch: the name contains a hash and the content has another.
        TruncatedFile: the file ends too early.
        UnsafePickle: a pickle holds something other than tensors and plain values.
        UnknownFormat: the file has another format, or holds no tensors.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a weights file, got a directory; give the path of a file in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a weights file or a model name (van models)")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: the file cannot be opened: {error.strerror}") from error
    if not start:
        raise TruncatedFile(f"{path}: the file is empty; download or copy it again")
    check_hash(path)
    if start[8:9] == b"{":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
            return safetensors.torch.load_file(path), header
        except safetensors.SafetensorError as error:
            raise TruncatedFile(
                f"{path}: the file is truncated or damaged ({error}); download or copy it again"
            ) from error
    if path.name.lower().endswith((".onnx", ".xml", ".pt2")):
        raise UnknownFormat(
            f"{path}: expected a weights file, got an exported network, which only van predict, van eval and van serve "
            "can load; give the checkpoint that it was exported from"
        )
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise TruncatedFile(f"{path}: the file is truncated (a zip archive without its end); download or copy it again")
    if not start.startswith((b"PK", b"\x80")):
        raise UnknownFormat(
            f"{path}: expected safetensors or a PyTorch pickle, got a file that starts with {start[:4]!r}"
        )
    return _find_tensors(path, _read_pickle(path)), {}


def _find_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the tensors of a pickle's content by name, from the first container in ``CONTAINERS`` if there is one."""
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise UnknownFormat(f"{path}: expected a dictionary of named tensors, got {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:8])) or "none"
        raise UnknownFormat(f"{path}: expected named tensors, got a dictionary without any; its keys: {keys}")
    return tensors


def check_hash(path: Path) -> None:
    """Compare the sha256 of the content with the digits in a name such as ``van-tiny_20220501-385941af.pth``.

    A name without digits, or with a date, is not checked.

    Raises:
        HashMismatch: they differ.
    """
    match = _HASH_IN_NAME.search(path.name)
    if match is None or _DATE.fullmatch(match[1]):
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(match[1]):
        raise HashMismatch(
            f"{path}: expected a sha256 that starts with {match[1]} as in the name, got {digest[:8]}. "
            "The file was damaged or replaced; download it again, or rename it if the content is your own."
        )


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about content that it is about to refuse
            with path.open("rb") as file:  # given a path, torch reads a pickle named .safetensors as safetensors
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make an unpickler raise any exception
        raise _unpickling_error(path, error) from error


def _unpickling_error(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a pickle that torch could not load: truncated, unsafe, TorchScript, or damaged."""
    text = str(error).strip() or type(error).__name__
    names, complete = _scan_pickle(path)
    if not complete or isinstance(error, EOFError) or _TRUNCATION_ERROR.search(text):
        return TruncatedFile(f"{path}: the file is truncated; download or copy it again")
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", text)
        unsafe = named[1] if named else ", ".join(name for name in names if not _ALLOWED.match(name))
        if unsafe:
            return UnsafePickle(
                f"{path}: expected tensors and plain values only, got {unsafe}. No code in the file was executed. "
                "Request a file with tensors only (safetensors) from its author."
            )
        text = "the file is damaged, or torch.save did not write it"
    if "TorchScript" in text:
        return CheckpointError(f"{path}: expected a state dict (torch.save), got a TorchScript program")
    return CheckpointError(f"{path}: the file cannot be read as a PyTorch pickle: {text.splitlines()[0]}")


def _scan_pickle(path: Path) -> tuple[list[str], bool]:
    """Return the globals that a pickle refers to, and whether it is complete, without executing it."""
    names, texts = [], [""]
    try:
        for instruction, argument, _ in _instructions(path):
            if instruction.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif instruction.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception as error:  # whatever the damage, the names before it are known
        return names, re.search(r"exhausted|expected \d+ bytes|not enough data|no newline", str(error)) is None
    return list(dict.fromkeys(names)), True


def _instructions(path: Path) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    yield from pickletools.genops(archive.read(name))
        return
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            if not file.peek(1):
                return
            yield from pickletools.genops(file)
