"""Checkpoints: one safetensors file whose header holds everything that is needed to use the network.

The header holds the task, the model's name and options, the class names, the preprocessing, the recipe and the
metrics. Writing is atomic: to a temporary file in the same folder, flushed, then renamed, so that a killed process
never leaves half a checkpoint. Training state (optimizer, EMA, random generators) may be stored in the same file
under ``training/``.
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
from van.preprocess import CenterCropPreprocess, ResizePreprocess, read_preprocess

HEADER = "van"
VERSION = 1
_TRAINING = "training/"
_ENTRY_TYPES = {
    "task": str, "model": str, "class_names": list, "preprocess": dict, "model_options": dict, "recipe": dict,
    "metrics": dict, "source": str, "training_state": dict, "task_options": dict,
}  # fmt: skip
"""The type of each header entry in JSON."""
_ENTRY_DEFAULTS: dict[str, Any] = {"task_options": {}}
"""Values of entries that the first files of this version lack."""

_ABANDONED_S = 3600
"""An unfinished file that was not modified for so many seconds belongs to a process that has ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network with everything that is needed to use it, and optionally to resume its training.

    Args:
        task: ``classify``, ``detect``, ``instances``, ``segment`` or ``panoptic``.
        model: a timm model name.
        model_options: keyword arguments of the model beside ``num_classes``; with ``head``, those of the dense network.
        task_options: plain values from which, with the class names, the task is rebuilt.
        class_names: class names, in the order of the outputs.
        preprocess: the conversion from an image to a tensor.
        state: the model's state dict.
        recipe: the training settings, as plain values.
        metrics: fractions, as ``van eval`` prints them.
        source: a description of where the weights came from.
        training: tensors needed only to resume training.
        training_state: plain values needed only to resume training.
    """

    task: str
    model: str
    class_names: tuple[str, ...]
    preprocess: CenterCropPreprocess | ResizePreprocess
    state: Mapping[str, Tensor]
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str = ""
    training: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    training_state: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write the file atomically.

        Raises:
            CheckpointError: the disk is full or the path cannot be written (a previous file stays intact), or the
                header or the tensors hold something that the format cannot store.
        """
        path = Path(path)
        reserved = [name for name in self.state if name.startswith(_TRAINING)]
        if reserved:
            raise CheckpointError(
                f"{path}: tensor {reserved[0]!r}: names that start with {_TRAINING!r} are reserved for training state; "
                "rename that module"
            )
        header = self._to_header(path)
        tensors = {**self.state, **{_TRAINING + name: tensor for name, tensor in self.training.items()}}
        copies = {name: _copy_to_cpu(tensor) for name, tensor in tensors.items()}
        with atomic_path(path) as temporary:
            try:
                safetensors.torch.save_file(copies, temporary, {HEADER: header, "format": "pt"})
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error
            except (KeyError, ValueError) as error:  # complex128, sparse
                raise CheckpointError(f"{path}: safetensors cannot store one of the tensors ({error})") from error

    def _to_header(self, path: Path) -> str:
        values = {name: getattr(self, name) for name in _ENTRY_TYPES} | {"preprocess": self.preprocess.to_dict()}
        texts = [f'"version": {VERSION}']
        for name, value in values.items():
            try:
                texts.append(f'"{name}": {json.dumps(value)}')
            except (TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{path}: header entry {name!r}: expected values that JSON can store, got another type ({error})"
                ) from error
        return "{" + ", ".join(texts) + "}"


def is_checkpoint(path: Path | str) -> bool:
    """Return whether ``path`` is a file that ``Checkpoint.save`` wrote."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return HEADER in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def load_checkpoint(path: Path | str, *, with_training: bool = False) -> Checkpoint:
    """Read a file that ``Checkpoint.save`` wrote, its training state only if ``with_training``.

    Raises:
        CheckpointError: the file is missing, is no checkpoint of this package, or has another version.
        TruncatedFile: the file ends too early.
    """
    path = Path(path)
    if not path.is_file():
        reason = "got a directory" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: expected a checkpoint, {reason}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise CheckpointError(
                    f"{path}: expected a checkpoint of this package, got other weights; "
                    f'convert public VAN weights with "van convert {path} OUT"'
                )
            header = json.loads(metadata[HEADER])
            names = [name for name in file.keys() if with_training or not name.startswith(_TRAINING)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise _open_error(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the checkpoint header is damaged, expected JSON ({error}); copy the file again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: the file cannot be read ({error})") from error
    return _from_header(path, header, tensors)


def _open_error(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that safetensors cannot open: of another format, empty, or truncated."""
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and not start.endswith(b"{"):  # after 8 bytes of length a safetensors header starts with "{"
        return CheckpointError(
            f"{path}: expected a safetensors file, got another format; "
            f'convert public VAN weights with "van convert {path} OUT"'
        )
    reason = f"truncated or damaged ({error})" if start else "empty"
    return TruncatedFile(f"{path}: the file is {reason}; copy it again, or train the network again")


def _from_header(path: Path, header: Any, tensors: Mapping[str, Tensor]) -> Checkpoint:
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: checkpoint header: expected a JSON object, got {type(header).__name__}")
    version = header.pop("version", None)
    if version != VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version: expected {VERSION}, got {version!r}; "
            "update the package if a newer one wrote the file"
        )
    header = {**_ENTRY_DEFAULTS, **header}
    for name, kind in _ENTRY_TYPES.items():
        if not isinstance(header.get(name), kind):
            got = repr(header[name])[:60] if name in header else "no such entry"
            raise CheckpointError(f"{path}: header entry {name!r}: expected a {kind.__name__}, got {got}")
    class_names = tuple(header.pop("class_names"))
    if other := [name for name in class_names if not isinstance(name, str)]:
        raise CheckpointError(f"{path}: header entry 'class_names': expected strings, got {repr(other[0])[:60]}")
    try:
        return Checkpoint(
            preprocess=read_preprocess(header.pop("preprocess")),
            **header,
            class_names=class_names,
            state={name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING)},
            training={n.removeprefix(_TRAINING): t for n, t in tensors.items() if n.startswith(_TRAINING)},
        )
    except (TypeError, VanError) as error:
        raise CheckpointError(f"{path}: the checkpoint header is invalid ({error})") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path in the folder of ``path``, and move it to ``path`` when the block ends without an error.

    The temporary file has the name of ``path``, in a hidden folder of its own, so that writers that depend on the
    suffix work. The folder of a killed process ends in ``.partial``; a save of that name an hour later removes it.

    Raises:
        CheckpointError: writing failed; a previous file at ``path`` is intact.
    """
    folder: Path | None = None
    kept = ""
    try:
        target = path.resolve()  # the target of a link is replaced, not the link
        kept = f" The previous {path.name} is intact." if target.is_file() else ""
        if target.exists() and not kept:
            raise CheckpointError(f"cannot write {path}: it is not a regular file; choose another path")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        _remove_abandoned(target, folder.stat().st_mtime)
        temporary = folder / target.name
        temporary.touch()
        mode = (target if kept else temporary).stat().st_mode  # the permissions that a plain open() would give
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}.{kept} Free disk space or choose another path.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with no other tensor, as safetensors requires."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _remove_abandoned(target: Path, now: float) -> None:
    """Delete the temporary folders of killed saves of ``target``; ``now`` is by the clock of the file system."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with contextlib.suppress(OSError):  # another process may delete it at the same time
            newest = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
            if now - newest > _ABANDONED_S:
                shutil.rmtree(leftover)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
