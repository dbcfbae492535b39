"""Our checkpoint file: one safetensors file whose header says all that is needed to use it.

The header holds the task, the model's name and options, the labels, the preprocessing, the recipe
and the metrics. The file on disk is always whole: it is written beside its place, flushed, and moved.
Training state (optimiser, EMA, random generators) may travel in the same file under ``training/``.
"""

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from van.errors import CheckpointError, TruncatedFile, VanError
from van.preprocess import Preprocess, WholePreprocess, read_preprocess

HEADER = "van"
VERSION = 1
_TRAINING = "training/"
_KINDS = {
    "task": str, "model": str, "labels": list, "preprocess": dict, "model_options": dict, "recipe": dict,
    "metrics": dict, "source": str, "training_state": dict, "task_options": dict,
}  # fmt: skip
"""What each entry of the header is in JSON."""
_LATER: dict[str, Any] = {"task_options": {}}
"""Entries that files of this version did not always have, and what their absence means."""

_ABANDONED_S = 3600
"""A half-written file that nobody has touched for so long belongs to a process that is gone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network with everything that must not be separated from it.

    Args:
        task: ``classify``, ``segment``, ``detect``, ...
        model: a timm model name.
        model_options: keyword arguments of the model beside ``num_classes``; with ``head``, those of the dense network.
        task_options: plain values that make the task again, with the labels.
        labels: class names, in the order of the outputs.
        preprocess: how pictures become tensors.
        state: the model's tensors.
        recipe: the settings it was trained with, as plain values.
        metrics: fractions, as ``van eval`` prints them.
        source: where the weights came from, in words.
        training: tensors needed only to go on with training.
        training_state: plain values needed only to go on with training.
    """

    task: str
    model: str
    labels: tuple[str, ...]
    preprocess: Preprocess | WholePreprocess
    state: Mapping[str, Tensor]
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str = ""
    training: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    training_state: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all.

        Raises:
            CheckpointError: the disk is full or the place cannot be written (a previous file stays), or the
                header or the tensors hold something that the file cannot.
        """
        path = Path(path)
        misnamed = [name for name in self.state if name.startswith(_TRAINING)]
        if misnamed:
            raise CheckpointError(f"{path}: no tensor of a model may be named {misnamed[0]!r}; rename that module")
        header = self._header(path)
        tensors = {**self.state, **{_TRAINING + name: tensor for name, tensor in self.training.items()}}
        plain = {name: _plain(tensor) for name, tensor in tensors.items()}
        with atomic_path(path) as temporary:
            try:
                safetensors.torch.save_file(plain, temporary, {HEADER: header, "format": "pt"})
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error
            except (KeyError, ValueError) as error:  # complex128, sparse
                raise CheckpointError(f"{path}: safetensors cannot hold one of the tensors ({error})") from error

    def _header(self, path: Path) -> str:
        values = {name: getattr(self, name) for name in _KINDS} | {"preprocess": self.preprocess.to_dict()}
        texts = [f'"version": {VERSION}']
        for name, value in values.items():
            try:
                texts.append(f'"{name}": {json.dumps(value)}')
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{path}: {name} must be plain values, as JSON has them ({error})") from error
        return "{" + ", ".join(texts) + "}"


def is_checkpoint(path: Path | str) -> bool:
    """Whether ``path`` is a file that ``Checkpoint.save`` wrote."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return HEADER in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def load_checkpoint(path: Path | str, *, with_training: bool = False) -> Checkpoint:
    """Read what ``Checkpoint.save`` wrote; training state only when asked for.

    Raises:
        CheckpointError: missing, not ours, or of a newer version.
        TruncatedFile: the file ends too early.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: " + ("a folder, not a checkpoint" if path.is_dir() else "no such checkpoint"))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise CheckpointError(f"{path} was not written by this package; van convert {path} OUT makes it ours")
            header = json.loads(metadata[HEADER])
            wanted = [name for name in file.keys() if with_training or not name.startswith(_TRAINING)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in wanted}
    except safetensors.SafetensorError as error:
        raise _unopened(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    return _from_header(path, header, tensors)


def _unopened(path: Path, error: Exception) -> CheckpointError:
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and not start.endswith(b"{"):
        return CheckpointError(f"{path} is no safetensors file; van convert {path} OUT makes weights of others ours")
    return TruncatedFile(f"{path} is {f'cut off or damaged ({error})' if start else 'empty'}; copy or train it again")


def _from_header(path: Path, header: Any, tensors: Mapping[str, Tensor]) -> Checkpoint:
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is a {type(header).__name__} in JSON; wanted an object")
    version = header.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{path} is of version {version!r}, this package reads {VERSION}; update the package")
    header = {**_LATER, **header}
    for name, kind in _KINDS.items():
        if not isinstance(header.get(name), kind):
            seen = repr(header[name])[:60] if name in header else "missing"
            raise CheckpointError(f"{path}: {name} in its header is {seen}; wanted a {kind.__name__}")
    labels = tuple(header.pop("labels"))
    if not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{path}: labels in its header must all be strings")
    try:
        return Checkpoint(
            preprocess=read_preprocess(header.pop("preprocess")),
            **header,
            labels=labels,
            state={name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING)},
            training={n.removeprefix(_TRAINING): t for n, t in tensors.items() if n.startswith(_TRAINING)},
        )
    except (TypeError, VanError) as error:
        raise CheckpointError(f"{path}: its header is not what this package writes ({error})") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside ``path`` and move it into place when the block ends without an error.

    The temporary file has the name of ``path``, in a hidden folder of its own: what a killed process
    leaves behind ends in ``.partial``, and the next save of that name an hour later removes it.

    Raises:
        CheckpointError: writing failed; whatever stood at ``path`` before still stands.
    """
    folder: Path | None = None
    kept = ""
    try:
        target = path.resolve()  # what a link points to is replaced, not the link
        kept = f" The previous {path.name} is whole." if target.is_file() else ""
        if target.exists() and not kept:
            raise CheckpointError(f"cannot write {path}: it is not a file that can be replaced; choose another place.")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        _remove_abandoned(target, folder.stat().st_mtime)
        temporary = folder / target.name
        temporary.touch()
        mode = (target if kept else temporary).stat().st_mode  # as a plain open() leaves or makes it
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error}.{kept} Free some space or choose another place."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(tensor: Tensor) -> Tensor:
    """A copy of its own: packed, on the CPU, sharing memory with no other tensor."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _remove_abandoned(target: Path, now: float) -> None:
    """Delete what killed saves of ``target`` left behind; ``now`` is by the clock of the file system itself."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with contextlib.suppress(OSError):  # another process may be at it, too
            newest = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
            if now - newest > _ABANDONED_S:
                shutil.rmtree(leftover)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
