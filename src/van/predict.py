"""Pictures in, answers out: the one object that most users need."""

import glob
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import overload

import torch
from PIL import Image
from torch import nn

from van.errors import PictureError, UsageError
from van.models.deploy import can_fuse, fuse
from van.models.load import Loaded, in_channels_last, load
from van.pictures import find_pictures, read_picture, to_rgb
from van.preprocess import Preprocess
from van.results import Classes
from van.tasks.base import Task
from van.tasks.classify import Classify

Picture = str | Path | bytes | Image.Image


class Predictor:
    """Classifies pictures with a network and the preprocessing that belongs to it.

    ``model`` is the network as it was loaded; pictures go through a copy fused for speed.

    Args:
        loaded: what ``van.models.load.load`` gave; most callers use ``Predictor.load``.
        device: where to run; the GPU where there is one if None or ``auto``.

    Raises:
        UsageError: the network classifies nothing, or the device is not here.
    """

    def __init__(self, loaded: Loaded, *, device: str | torch.device | None = None) -> None:
        loaded.want_classifier()
        self.device = _usable(device)
        self.model: nn.Module = in_channels_last(loaded.model.eval(), self.device)
        self._fused = in_channels_last(fuse(self.model), self.device) if can_fuse(self.model) else self.model
        self.preprocess: Preprocess = loaded.preprocess
        self.labels = loaded.labels
        self.notes = loaded.notes
        self.task: Task = Classify(loaded.labels)

    @classmethod
    def load(cls, source: str | Path, *, device: str | torch.device | None = None) -> "Predictor":
        """Load from a checkpoint, a public weights file, or a model name such as ``van_b2``.

        Raises:
            CheckpointError: the file cannot be used.
            HubError: the weights cannot be downloaded.
            UsageError: there is no file and no model of that name; or see ``Predictor``.
        """
        return cls(load(source), device=device)

    @overload
    def __call__(self, pictures: Picture) -> Classes: ...
    @overload
    def __call__(self, pictures: Iterable[Picture]) -> list[Classes]: ...

    def __call__(self, pictures: Picture | Iterable[Picture]) -> Classes | list[Classes]:
        """Classify one picture, or several in one batch, in their order.

        Args:
            pictures: paths, file contents or PIL pictures.

        Raises:
            PictureError: one of them cannot be read.
            UsageError: one of them is something else, such as an array.
        """
        if isinstance(pictures, Picture):
            return self([pictures])[0]
        if isinstance(pictures, bytearray | memoryview) or not isinstance(pictures, Iterable):
            raise UsageError(_no_picture("pictures", pictures))
        pictures = list(pictures)
        names = [str(p) if isinstance(p, str | Path) else f"picture {place}" for place, p in enumerate(pictures)]
        return self._classify([_opened(p, name) for p, name in zip(pictures, names, strict=True)], names)

    def stream(self, paths: Iterable[Path | str], *, batch_size: int = 16) -> Iterator[Classes | PictureError]:
        """Classify many files in batches, in order; an unreadable one gives its error instead of an answer.

        Raises:
            UsageError: ``batch_size`` is less than 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; wanted at least 1")
        return self._stream(iter(paths), batch_size)

    def _stream(self, remaining: Iterator[Path | str], batch_size: int) -> Iterator[Classes | PictureError]:
        while chunk := list(itertools.islice(remaining, batch_size)):
            read: dict[int, Image.Image] = {}
            errors: dict[int, PictureError] = {}
            for place, path in enumerate(chunk):
                try:
                    read[place] = read_picture(path)
                except PictureError as error:
                    errors[place] = error
            names = [str(chunk[place]) for place in read]
            answers = dict(zip(read, self._classify(list(read.values()), names), strict=True))
            for place in range(len(chunk)):
                yield errors[place] if place in errors else answers[place]

    def _classify(self, pictures: list[Image.Image], names: list[str]) -> list[Classes]:
        if not pictures:
            return []
        batch = torch.stack([self.preprocess(picture) for picture in pictures])
        with torch.inference_mode():
            outputs = self._fused(batch.to(self.device, memory_format=torch.channels_last))
        return list(self.task.decode(outputs, names))


def expand_pictures(arguments: Iterable[str]) -> list[Path]:
    """Files, folders and glob patterns to a list of picture files, in the order given.

    Files that do not exist stay in the list, so that each is reported by name.

    Raises:
        UsageError: a folder or pattern holds no pictures.
    """
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = find_pictures(path)
            if not found:
                raise UsageError(f"{argument} holds no pictures")
            paths += found
        elif not path.exists() and glob.has_magic(argument):
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
            if not matches:
                raise UsageError(f"{argument} matches no files")
            paths += matches
        else:
            paths.append(path)
    return paths


def _usable(device: str | torch.device | None) -> torch.device:
    """The device of that name, if PyTorch can use it here."""
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    present += ["mps"] if torch.backends.mps.is_available() else []
    if device in (None, "auto"):
        return torch.device(present[1] if "cuda" in present else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}; wanted auto, cpu, cuda or mps") from error
    if wanted.type not in present or (wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device is {device!r}, and PyTorch sees none here; present: {', '.join(present)}")
    return wanted


def _no_picture(name: str, value: object) -> str:
    return f"{name} is a {type(value).__name__}; wanted a path, the bytes of a file, or a PIL picture"


def _opened(picture: Picture, name: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if not isinstance(picture, Picture):
        raise UsageError(_no_picture(name, picture))
    return read_picture(picture, name=name)
