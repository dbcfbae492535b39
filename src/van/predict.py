"""``Predictor``: a network with its preprocessing and post-processing, from images to predictions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from PIL import Image

from van.callable_module import make_callable
from van.device import place_network, resolve_device
from van.errors import ImageError, UsageError
from van.images import ImageInput, is_one_image, open_images, read_chunks
from van.model import Model
from van.predictions import Classification, Detections, Segmentation
from van.preprocess import ResizePreprocess
from van.tasks.base import ImageMeta, Task

make_callable(__name__)  # van.predict(...) is van.api.predict

Prediction = Classification | Detections | Segmentation
"""The prediction for one image, by the network's task."""


class Predictor:
    """A network with its preprocessing and post-processing; call it with images to get predictions.

    Predictions use the model's deploy form, on ``device``. Most callers use ``Model.predict``.

    Args:
        model: the model.
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
        model: Model,
        *,
        device: str | torch.device | None = None,
        min_score: float | None = None,
        tile_size: int = 0,
        multi_scale: bool = False,
    ) -> None:
        model.check_can_predict()
        self.device = torch.device("cpu") if model.is_exported else resolve_device(device)
        self.model = model
        self._network = place_network(model.deployed, self.device)
        if tile_size or multi_scale:
            from van.heads.sliding_window import wrap_inference

            options = {"task": model.task, "tile_size": tile_size, "multi_scale": multi_scale}
            self._network = wrap_inference(self._network, **options).eval()
        self.preprocess = model.preprocess
        self.class_names = model.class_names
        if min_score is not None and model.task not in ("detect", "instances"):
            raise UsageError(f"min_score: expected a network for detect or instances, got one for {model.task}")
        self.task: Task = model.make_task(**({} if min_score is None else {"min_score": min_score}))
        self._without_resize = tile_size > 0

    @overload
    def __call__(self, images: ImageInput) -> Any: ...
    @overload
    def __call__(self, images: Iterable[ImageInput]) -> list[Any]: ...

    def __call__(self, images: ImageInput | Iterable[ImageInput]) -> Any:
        """Predict one image, or several images in one batch; return one prediction, or a list in the same order.

        Raises:
            ImageError: one of them cannot be read.
            UsageError: one of them has another type.
        """
        if is_one_image(images):
            return self([images])[0]
        opened = open_images(images)
        return self._predict([image for _, image in opened], [name for name, _ in opened])

    def stream(self, images: Iterable[ImageInput], *, batch_size: int = 16) -> Iterator[Prediction | ImageError]:
        """Yield predictions of many images in order, in batches; yield the error in place of an unreadable one.

        Raises:
            UsageError: ``batch_size`` is less than 1, or an image has another type.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size: expected at least 1, got {batch_size}")
        # A generator would check its arguments only when it is first iterated.
        return self._stream(images, batch_size)

    def _stream(self, images: Iterable[ImageInput], batch_size: int) -> Iterator[Prediction | ImageError]:
        for chunk in read_chunks(images, batch_size):
            readable = [(name, image) for name, image in chunk if not isinstance(image, ImageError)]
            predictions = iter(self._predict([image for _, image in readable], [name for name, _ in readable]))
            for _, image in chunk:
                yield image if isinstance(image, ImageError) else next(predictions)

    def _predict(self, images: list[Image.Image], names: list[str]) -> list[Prediction]:
        if not images:
            return []
        # a sliding window takes the image at its original size
        rule = self.preprocess
        full_size = self._without_resize and isinstance(rule, ResizePreprocess)
        tensors = [rule.without_resize(image) if full_size else rule(image) for image in images]
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
