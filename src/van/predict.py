"""Pictures in, answers out: the one object that most users need."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import nn

from van.errors import PictureError, UsageError
from van.export.formats import is_exported, open_session
from van.export.session import ExportedNetwork
from van.models.deploy import can_fuse, fuse
from van.models.load import Loaded, in_channels_last, load, usable_device
from van.models.tiles import in_view
from van.pictures import Picture, open_pictures, read_chunks
from van.preprocess import Preprocess, WholePreprocess
from van.results import Boxes, Classes, Masks
from van.tasks.base import Frame, Task
from van.tasks.build import make_task

Answer = Classes | Boxes | Masks
"""What a network says of a picture: by its task classes, things, or a region for every pixel."""


def load_network(source: str | Path, *, device: str | torch.device | None = None, threads: int | None = None) -> Loaded:
    """What ``van.models.load.load`` gives of any network, or of an exported file with its session for a network.

    Args:
        source: see ``Predictor.load``.
        device, threads: of an exported file's runtime; the CPU if ``device`` is None or ``auto``.

    Raises:
        CheckpointError, HubError, MissingExtra, UsageError: see ``Predictor.load``.
    """
    if not is_exported(source):
        if threads is not None:
            raise UsageError(f"threads is {threads}, and {source} is no exported file; use torch.set_num_threads")
        return load(source)
    session = open_session(source, threads=threads, device="cpu" if device in (None, "auto") else str(device))
    header = session.header
    assert isinstance(session, ExportedNetwork)
    return Loaded(
        model=session,
        name=header.model,
        options=header.model_options,
        task=header.task,
        labels=header.labels,
        preprocess=header.preprocess,
        task_options=header.task_options,
        notes=header.notes,
    )


class Predictor:
    """Answers what is in pictures, by a network and the preprocessing that belongs to it.

    ``model`` is the network as it was loaded; pictures go through a copy fused for speed. Of an exported file it is
    the session, which is asked as it is.

    Args:
        loaded: what ``load_network`` gave; most callers use ``Predictor.load``.
        device: where to run; the GPU where there is one if None or ``auto``. A session was told when it was opened.
        min_score: detection only: what scores less is no answer; 0.3 if None.
        tile_px: semantic segmentation only: see pictures at their own size through a sliding window of so many
            pixels. What is held in memory does not grow with the picture's height; 0 sees the whole at once.
        multi_scale: semantic segmentation only: the mean over six scales and their mirror images.

    Raises:
        UsageError: the network has no classes, its task cannot be seen so, or the device is not here.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        device: str | torch.device | None = None,
        min_score: float | None = None,
        tile_px: int = 0,
        multi_scale: bool = False,
    ) -> None:
        loaded.want_answers()
        self.device = torch.device("cpu") if isinstance(loaded.model, ExportedNetwork) else usable_device(device)
        self.model: nn.Module = in_channels_last(loaded.model.eval(), self.device)
        fused = in_channels_last(fuse(self.model), self.device) if can_fuse(self.model) else self.model
        self._network = in_view(fused, task=loaded.task, tile_px=tile_px, multi_scale=multi_scale).eval()
        self.preprocess: Preprocess | WholePreprocess = loaded.preprocess
        self.labels = loaded.labels
        self.notes = loaded.notes
        options = dict(loaded.task_options)
        if min_score is not None:
            if loaded.task not in ("detect", "instances"):
                raise UsageError(f"min_score is for networks that give boxes; this one's task is {loaded.task}")
            options["min_score"] = min_score
        self.task: Task = make_task(loaded.task, loaded.labels, options)
        self._own_size = tile_px > 0

    @classmethod
    def load(cls, source: str | Path, *, threads: int | None = None, **options: Any) -> "Predictor":
        """Load from a checkpoint, a public weights file, an exported file, or a model name such as ``van_b2``.

        Args:
            source: which of them.
            threads: of an exported file's runtime; as many as it likes if None.
            options: those of ``Predictor``.

        Raises:
            CheckpointError: the file cannot be used.
            HubError: the weights cannot be downloaded.
            MissingExtra: the runtime of an exported file is not installed.
            UsageError: there is no file and no model of that name; or see ``Predictor``.
        """
        return cls(load_network(source, device=options.get("device"), threads=threads), **options)

    @overload
    def __call__(self, pictures: Picture) -> Any: ...
    @overload
    def __call__(self, pictures: Iterable[Picture]) -> list[Any]: ...

    def __call__(self, pictures: Picture | Iterable[Picture]) -> Any:
        """What is in one picture, or in several seen in one batch, in their order.

        The answer is a ``Classes``, a ``Boxes`` or a ``Masks`` of ``van.results``, by the network's task.

        Args:
            pictures: paths, file contents or PIL pictures.

        Raises:
            PictureError: one of them cannot be read.
            UsageError: one of them is something else, such as an array.
        """
        if isinstance(pictures, Picture):
            return self([pictures])[0]
        named = open_pictures(pictures)
        return self._answer([picture for _, picture in named], [name for name, _ in named])

    def stream(self, paths: Iterable[Path | str], *, batch_size: int = 16) -> Iterator[Answer | PictureError]:
        """Answer for many files in batches, in order; an unreadable one gives its error instead of an answer.

        Raises:
            UsageError: ``batch_size`` is less than 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; wanted at least 1")
        return self._stream(paths, batch_size)

    def _stream(self, paths: Iterable[Path | str], batch_size: int) -> Iterator[Answer | PictureError]:
        for chunk in read_chunks(paths, batch_size):
            readable = [(name, picture) for name, picture in chunk if not isinstance(picture, PictureError)]
            answers = iter(self._answer([picture for _, picture in readable], [name for name, _ in readable]))
            for _, picture in chunk:
                yield picture if isinstance(picture, PictureError) else next(answers)

    def _answer(self, pictures: list[Image.Image], names: list[str]) -> list[Answer]:
        if not pictures:
            return []
        seen = [self._seen(picture) for picture in pictures]
        frames = [
            Frame(name, (picture.height, picture.width), (tensor.shape[1], tensor.shape[2]))
            for name, picture, tensor in zip(names, pictures, seen, strict=True)
        ]
        return self.of_tensors(seen, frames)

    def of_tensors(self, tensors: Sequence[torch.Tensor] | torch.Tensor, frames: Sequence[Frame]) -> list[Answer]:
        """What is in pictures that are preprocessed already, seen in one batch, in their order.

        Args:
            tensors: as ``preprocess`` gives them, float32, (3, H, W) each; for a network that classifies, several of
                one size may come as one (N, 3, H, W).
            frames: the name of each and, where answers lie in the picture, its sizes.
        """
        batch = tensors if isinstance(tensors, torch.Tensor) else self.task.stack(tensors)
        with torch.inference_mode():
            if isinstance(batch, torch.Tensor):
                outputs = self._network(batch.to(self.device, memory_format=torch.channels_last))
            else:
                outputs = self._network([tensor.to(self.device) for tensor in batch])
        return list(self.task.decode(outputs, frames))

    def _seen(self, picture: Image.Image) -> torch.Tensor:
        if self._own_size and isinstance(self.preprocess, WholePreprocess):
            return self.preprocess.at_own_size(picture)
        return self.preprocess(picture)
