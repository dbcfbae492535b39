"""Opening somebody else's weights file without trusting it.

safetensors hold tensors only. Pickles are opened by torch with ``weights_only=True`` and one
allowance, ``argparse.Namespace``, which the released VAN files hold beside their tensors.
Anything else in a pickle refuses the whole file before any of it runs.
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
"""Keys under which training scripts keep the tensors, most wanted first."""

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|safetensors|pth\.tar)$")
_HARMLESS = re.compile(r"torch\.\w*Storage$|torch\._utils\.|collections\.OrderedDict$|argparse\.Namespace$")
_LEGACY_PICKLES = 5
"""Before PyTorch 1.6 a file was these pickles (mark, version, machine, content, keys), then the numbers."""
_DATE = re.compile(r"(?:19|20)\d{6}")
_CUT_OFF = re.compile(
    r"central directory|unexpected EOF|ran out of input|unexpected pos|file read failed|storage has wrong", re.I
)
_EXPORTED = (".onnx", ".xml", ".pt2")
"""Ends of the names that ``van export`` gives."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every named tensor of a ``.safetensors``, ``.pth``, ``.pth.tar``, ``.pt`` or ``.bin`` file, and its header.

    The kind of file is told from its content, not from its name. The header is empty for pickles.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
        HashMismatch: the name carries a hash and the content has another.
        TruncatedFile: the file ends too early.
        UnsafePickle: a pickle holds something other than tensors and plain values.
        UnknownFormat: the file is neither kind, or holds no tensors.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the path of a weights file in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a weights file or a model's name (van models)")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    if not start:
        raise TruncatedFile(f"{path} is empty; fetch or copy it again")
    check_hash(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if path.name.lower().endswith(_EXPORTED):
        raise UnknownFormat(
            f"{path} is an exported network, whose weights are not read back: van predict, van eval and van serve "
            "answer from it; give the checkpoint that it was made of"
        )
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise TruncatedFile(f"{path} is cut off (a zip archive without its end); fetch or copy it again")
    if start.startswith(b"PK") or start[:1] == b"\x80":
        return _named_tensors(path, _read_pickle(path)), {}
    raise UnknownFormat(f"{path} is neither safetensors nor a PyTorch pickle (it starts with {start[:4]!r})")


def check_hash(path: Path) -> None:
    """Compare the sha256 with the digits in a name such as ``van-tiny_20220501-385941af.pth``, if it has any.

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
            f"{path}: the name says its sha256 starts with {match[1]}, the content's starts with {digest[:8]}. "
            "It was damaged or replaced; fetch it again (or rename it, if you made it)."
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        return safetensors.torch.load_file(path), header
    except safetensors.SafetensorError as error:
        raise TruncatedFile(f"{path} is cut off or damaged ({error}); fetch or copy it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it is about to refuse
            with path.open("rb") as file:  # by name, torch would take a pickle called .safetensors for one
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make an unpickler stumble in any way
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> CheckpointError:
    text = str(error).strip() or type(error).__name__
    names, whole = _scan(path)
    if not whole or isinstance(error, EOFError) or _CUT_OFF.search(text):
        return TruncatedFile(f"{path} is cut off; fetch or copy it again")
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", text)
        strange = named[1] if named else ", ".join(name for name in names if not _HARMLESS.match(name))
        if strange:
            return UnsafePickle(
                f"{path} holds {strange}, which is not a tensor or a plain value. Nothing of it was run. "
                "Ask its author for a file with tensors only (safetensors)."
            )
        text = "it is damaged, or torch.save did not write it"
    if "TorchScript" in text:
        return CheckpointError(f"{path} is a TorchScript program; wanted a state dict (torch.save)")
    return CheckpointError(f"{path} cannot be read as a PyTorch file: {text.splitlines()[0]}")


def _scan(path: Path) -> tuple[list[str], bool]:
    """What a pickle refers to, and whether it is whole, read off its instructions without running them."""
    names, texts = [], [""]
    try:
        for instruction, argument, _ in _instructions(path):
            if instruction.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif instruction.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception as error:  # neither tells more than what was read before it
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


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise UnknownFormat(f"{path} holds a {type(content).__name__}; wanted a dictionary of named tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UnknownFormat(f"{path} holds no tensors; its keys: {', '.join(map(str, list(content)[:8])) or 'none'}")
    return tensors
