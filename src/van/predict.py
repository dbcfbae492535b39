"""``Predictor``: a network with its preprocessing and post-processing, from images to predictions."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import nn

from van.errors import ImageError, UsageError
from van.export.formats import is_exported, open_session
from van.export.session import ExportedNetwork
from van.images import ImageInput, open_images, read_chunks
from van.models.fusion import can_fuse, fuse
from van.models.load import LoadedModel, load, resolve_device, to_channels_last
from van.models.sliding_window import wrap_inference
from van.predictions import Classification, Detections, Segmentation
from van.preprocess import CenterCropPreprocess, ResizePreprocess
from van.tasks.base import ImageMeta, Task
from van.tasks.build import make_task

Prediction = Classification | Detections | Segmentation
"""The prediction for one image, by the network's task."""


def load_network(
    source: str | Path, *, device: str | torch.device | None = None, threads: int | None = None
) -> LoadedModel:
    """Load a network with ``van.models.load.load``, or an exported file with its session in place of the network.

    Args:
        source: see ``Predictor.load``.
        device, threads: for an exported file's runtime; the CPU if ``device`` is None or ``auto``.

    Raises:
        CheckpointError, HubError, MissingExtra, UsageError: see ``Predictor.load``.
    """
    if not is_exported(source):
        if threads is not None:
            raise UsageError(
                f"threads: expected None for {source}, which is not an exported file, got {threads}; "
                "use torch.set_num_threads"
            )
        return load(source)
    session = open_session(source, threads=threads, device="cpu" if device in (None, "auto") else str(device))
    header = session.header
    assert isinstance(session, ExportedNetwork)
    return LoadedModel(
        model=session,
        name=header.model,
        options=header.model_options,
        task=header.task,
        class_names=header.class_names,
        preprocess=header.preprocess,
        task_options=header.task_options,
        notes=header.notes,
    )


class Predictor:
    """A network with its preprocessing and post-processing; call it with images to get predictions.

    ``model`` is the network as loaded; predictions use a copy fused for speed. For an exported file ``model`` is the
    session.

    Args:
        loaded: from ``load_network``; most callers use ``Predictor.load``.
        device: the GPU if available if None or ``auto``; ignored for an exported file, whose session has a device.
        min_score: detection only: minimum score of a detection; 0.3 if None.
        tile_size: semantic segmentation only: side of the tiles of sliding-window inference at the image's original
            size, in pixels. The memory it takes does not grow with the image's height; 0 predicts the whole image at
            once.
        multi_scale: semantic segmentation only: average over six scales with horizontal flips.

    Raises:
        UsageError: the network has no classes, an argument does not apply to its task, or the device is not available.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        device: str | torch.device | None = None,
        min_score: float | None = None,
        tile_size: int = 0,
        multi_scale: bool = False,
    ) -> None:
        loaded.check_can_predict()
        self.device = torch.device("cpu") if isinstance(loaded.model, ExportedNetwork) else resolve_device(device)
        self.model: nn.Module = to_channels_last(loaded.model.eval(), self.device)
        fused = to_channels_last(fuse(self.model), self.device) if can_fuse(self.model) else self.model
        self._network = wrap_inference(fused, task=loaded.task, tile_size=tile_size, multi_scale=multi_scale).eval()
        self.preprocess: CenterCropPreprocess | ResizePreprocess = loaded.preprocess
        self.class_names = loaded.class_names
        self.notes = loaded.notes
        options = dict(loaded.task_options)
        if min_score is not None:
            if loaded.task not in ("detect", "instances"):
                raise UsageError(f"min_score: expected a network for detect or instances, got one for {loaded.task}")
            options["min_score"] = min_score
        self.task: Task = make_task(loaded.task, loaded.class_names, options)
        self._without_resize = tile_size > 0

    @classmethod
    def load(cls, source: str | Path, *, threads: int | None = None, **options: Any) -> "Predictor":
        """Load from a checkpoint, a public weights file, an exported file, or a model name such as ``van_b2``.

        Args:
            source: path or name.
            threads: for an exported file's runtime; its default if None.
            options: keyword arguments of ``Predictor``.

        Raises:
            CheckpointError: the file cannot be used.
            HubError: the weights cannot be downloaded.
            MissingExtra: the runtime of an exported file is not installed.
            UsageError: there is neither a file nor a model of that name; or see ``Predictor``.
        """
        return cls(load_network(source, device=options.get("device"), threads=threads), **options)

    @overload
    def __call__(self, images: ImageInput) -> Any: ...
    @overload
    def __call__(self, images: Iterable[ImageInput]) -> list[Any]: ...

    def __call__(self, images: ImageInput | Iterable[ImageInput]) -> Any:
        """Predict one image, or several images in one batch; return one prediction, or a list in the same order.

        A prediction is a ``Classification``, ``Detections`` or ``Segmentation`` of ``van.predictions``, by the
        network's task.

        Args:
            images: paths, file contents or PIL images.

        Raises:
            ImageError: one of them cannot be read.
            UsageError: one of them has another type, such as an array.
        """
        if isinstance(images, ImageInput):
            return self([images])[0]
        opened = open_images(images)
        return self._predict([image for _, image in opened], [name for name, _ in opened])

    def stream(self, paths: Iterable[Path | str], *, batch_size: int = 16) -> Iterator[Prediction | ImageError]:
        """Yield predictions of many files in order, in batches; yield the error in place of an unreadable file.

        Raises:
            UsageError: ``batch_size`` is less than 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size: expected at least 1, got {batch_size}")
        # A generator would check its arguments only when it is first iterated.
        return self._stream(paths, batch_size)

    def _stream(self, paths: Iterable[Path | str], batch_size: int) -> Iterator[Prediction | ImageError]:
        for chunk in read_chunks(paths, batch_size):
            readable = [(name, image) for name, image in chunk if not isinstance(image, ImageError)]
            predictions = iter(self._predict([image for _, image in readable], [name for name, _ in readable]))
            for _, image in chunk:
                yield image if isinstance(image, ImageError) else next(predictions)

    def _predict(self, images: list[Image.Image], names: list[str]) -> list[Prediction]:
        if not images:
            return []
        tensors = [self._preprocess(image) for image in images]
        image_metas = [
            ImageMeta(name, (image.height, image.width), (tensor.shape[1], tensor.shape[2]))
            for name, image, tensor in zip(names, images, tensors, strict=True)
        ]
        return self.predict_tensors(tensors, image_metas)

    def predict_tensors(
        self, tensors: Sequence[torch.Tensor] | torch.Tensor, image_metas: Sequence[ImageMeta]
    ) -> list[Prediction]:
        """Predict preprocessed images in one batch; return the predictions in the same order.

        Args:
            tensors: outputs of ``preprocess``, float32, (3, H, W) each; for a classifier also one batch (N, 3, H, W).
            image_metas: name of each image and, except for classification, its original size and its input size.
        """
        batch = tensors if isinstance(tensors, torch.Tensor) else self.task.stack(tensors)
        with torch.inference_mode():
            if isinstance(batch, torch.Tensor):
                outputs = self._network(batch.to(self.device, memory_format=torch.channels_last))
            else:
                outputs = self._network([tensor.to(self.device) for tensor in batch])
        return list(self.task.decode(outputs, image_metas))

    def _preprocess(self, image: Image.Image) -> torch.Tensor:
        if self._without_resize and isinstance(self.preprocess, ResizePreprocess):
            return self.preprocess.without_resize(image)
        return self.preprocess(image)
