"""Predictions with class activation maps.

Shapes: a map is (h, w) at the resolution of its layer; its extent is in pixels of the original image.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from van.backbones.van import VAN
from van.device import place_network, resolve_device
from van.errors import ImageError, UsageError
from van.explain.cam import ELEMENTWISE, METHODS, activation_map, record_activations
from van.explain.layers import Layer, find_layer
from van.explain.targets import (
    Target,
    class_score_maps,
    classification_targets,
    detection_targets,
    resolve_class_indices,
    segmentation_targets,
)
from van.images import Box, ImageInput, is_one_image, open_images, read_chunks
from van.model import Model
from van.predictions import Classification, Detections, Segmentation
from van.tasks.base import ImageMeta, Task
from van.visualization.heatmap import Heatmap
from van.visualization.image_grid import concat_horizontally

_STRIDES = (64, 32, 16, 8, 4, 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The prediction for an image, and a heatmap for each class or detection that was explained.

    ``maps`` is empty if nothing was detected.
    """

    prediction: Classification | Detections | Segmentation
    maps: tuple[Heatmap, ...]

    @property
    def name(self) -> str:
        """Path or other name of the image."""
        return self.prediction.name

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the maps over copies of ``image``, side by side; the drawn prediction if there are none."""
        return (
            concat_horizontally([heatmap.draw(image) for heatmap in self.maps])
            if self.maps
            else self.prediction.draw(image)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values of the prediction, and of the maps under ``maps``."""
        return {**self.prediction.to_dict(), "maps": [heatmap.to_dict() for heatmap in self.maps]}


class Explainer:
    """Computes class activation maps of a network's predictions.

    Hooks, mode and parameter gradients of the network are not changed. Thread-safe.

    Args:
        model: the model; most callers use ``Model.explain``.
        device: the device to run on; if None or ``auto``, the GPU if available.

    Raises:
        UsageError: the network has no classes, or the device is not available.
    """

    def __init__(self, model: Model, *, device: str | torch.device | None = None) -> None:
        model.check_has_weights()
        model.check_can_predict()
        self.device = resolve_device(device)
        self.model: nn.Module = place_network(model.network, self.device)
        self.preprocess = model.preprocess
        self.class_names = model.class_names
        self.notes = model.notes
        self.name = model.name
        self.task: Task = model.make_task()

    @overload
    def __call__(
        self,
        images: ImageInput,
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Box | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> Explanation: ...
    @overload
    def __call__(
        self,
        images: Iterable[ImageInput],
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Box | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> list[Explanation]: ...

    def __call__(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Box | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> Explanation | list[Explanation]:
        """Explain one image, or several in order.

        Args:
            images: paths, file contents or PIL images.
            classes: the classes to explain, by name or index; if None the predicted ones: those with the highest
                scores, the largest segments or the best detections.
            top: number of predicted classes or detections to explain.
            box: detection: explain the detection that overlaps this box of the image most.
            method: one of ``van.explain.cam.METHODS``. If None, Grad-CAM for classification, and Layer-CAM for
                detection and segmentation: Grad-CAM weights a channel equally over the whole image, so that the map
                of one object includes others.
            layer: see ``find_layer``. If None, the last block of stage 4, or of an earlier stage for small inputs; for
                the methods of ``ELEMENTWISE`` and classification, the LayerNorm after it.

        Raises:
            ImageError: an image cannot be read.
            UsageError: class, box, method or layer is unknown; or an image has an unsupported type, such as an array.
        """
        if is_one_image(images):
            return self([images], classes=classes, top=top, box=box, method=method, layer=layer)[0]
        return self._explain_all(open_images(images), classes=classes, top=top, box=box, method=method, layer=layer)

    def _explain_all(
        self,
        named: Sequence[tuple[str, Image.Image]],
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Box | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> list[Explanation]:
        if method is None:
            method = "grad-cam" if self.task.name == "classify" else "layer-cam"
        self._check_arguments(method, top, box)
        indices = None if classes is None else resolve_class_indices(self.class_names, classes)
        if self.task.name == "classify":
            return self._explain_batch(named, indices, top, box, method, layer) if named else []
        # Images of detection and segmentation differ in size, so they are explained one at a time.
        return [self._explain_batch([one], indices, top, box, method, layer)[0] for one in named]

    def stream(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = 8,
        methods: Sequence[str | None] = (None,),
        **options: Any,
    ) -> Iterator[tuple[Image.Image, Explanation] | ImageError]:
        """Explain many images in batches, in order; yield the error of an unreadable one in its place.

        Args:
            images: as for ``__call__``.
            batch_size: images in a batch.
            methods: the methods whose maps each explanation has, in this order.
            options: ``classes``, ``top``, ``box`` and ``layer``, as in ``__call__``.

        Returns:
            An iterator of each image with its explanation.

        Raises:
            UsageError: ``batch_size`` is less than 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size: expected at least 1, got {batch_size}")
        return self._stream(images, batch_size, methods, options)

    def _stream(
        self, images: Iterable[ImageInput], batch_size: int, methods: Sequence[str | None], options: Mapping[str, Any]
    ) -> Iterator[tuple[Image.Image, Explanation] | ImageError]:
        for chunk in read_chunks(images, batch_size):
            readable = [(name, image) for name, image in chunk if not isinstance(image, ImageError)]
            by_method = [self._explain_all(readable, method=method, **options) for method in methods]
            merged = map(_merge_methods, zip(*by_method, strict=True))
            for _, image in chunk:
                yield image if isinstance(image, ImageError) else (image, next(merged))

    def _check_arguments(self, method: str, top: int, box: Box | None) -> None:
        if method not in METHODS:
            raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        if top < 1:
            raise UsageError(f"top: expected at least 1, got {top}")
        if box is not None and self.task.name not in ("detect", "instances"):
            raise UsageError(f"box: expected a detector (detect or instances), got a network of task {self.task.name}")
        if box is not None and not (len(box) == 4 and box[0] < box[2] and box[1] < box[3]):
            raise UsageError(f"box: expected left < right and top < bottom, in pixels of the image, got {tuple(box)}")

    def _explain_batch(
        self,
        named: Sequence[tuple[str, Image.Image]],
        classes: Sequence[int] | None,
        top: int,
        box: Box | None,
        method: str,
        layer_name: str | None,
    ) -> list[Explanation]:
        weight = next(self.model.parameters())
        tensors = [self.preprocess(image).to(weight.dtype) for _, image in named]
        image_metas = [
            ImageMeta(name, (image.height, image.width), (tensor.shape[1], tensor.shape[2]))
            for (name, image), tensor in zip(named, tensors, strict=True)
        ]
        layer = self._choose_layer(layer_name, method, min(image_metas[0].input_size))
        with torch.inference_mode(mode=False), torch.enable_grad(), record_activations(layer) as records:
            outputs = self._forward(tensors)
            if len(records) != 1:
                raise UsageError(
                    f"layer {layer.name}: expected 1 call per image, got {len(records)}; choose another layer"
                )
            predictions = self.task.decode(_detach(outputs), image_metas)
            targets = self._targets(outputs, predictions, image_metas, classes, top, box)
            # Images are independent, so one backward pass yields the maps of the n-th target of all images.
            maps = [self._activation_maps(method, layer, records[0], one) for one in zip(*targets, strict=True)]
        explanations = []
        for place, (prediction, image_meta) in enumerate(zip(predictions, image_metas, strict=True)):
            heatmaps = [
                self._to_heatmap(maps[rank][place], target, image_meta, method, layer)
                for rank, target in enumerate(targets[place])
            ]
            explanations.append(Explanation(prediction=prediction, maps=tuple(heatmaps)))
        return explanations

    def _choose_layer(self, name: str | None, method: str, input_size: int) -> Layer:
        """Return the layer of that name; if None, the one where the method is most faithful."""
        layer = find_layer(self.model, name, input_size=input_size)
        if name is None and method in ELEMENTWISE and self.task.name == "classify" and isinstance(layer.network, VAN):
            return find_layer(self.model, layer.name.replace("stage", "norm"))
        return layer

    def _forward(self, tensors: Sequence[Tensor]) -> Any:
        batch = self.task.stack(tensors)
        if isinstance(batch, Tensor):
            return self.model(batch.to(self.device, memory_format=torch.channels_last))
        return self.model([tensor.to(self.device) for tensor in batch])

    def _targets(
        self,
        outputs: Any,
        predictions: Sequence[Any],
        image_metas: Sequence[ImageMeta],
        classes: Sequence[int] | None,
        top: int,
        box: Box | None,
    ) -> list[list[Target]]:
        """Return the targets of each image."""
        if self.task.name == "classify":
            return classification_targets(outputs.float(), predictions, classes, top)
        if self.task.name in ("detect", "instances"):
            return [detection_targets(outputs[0], predictions[0], image_metas[0], classes, top, box)]
        return [segmentation_targets(class_score_maps(outputs[0]), predictions[0], classes, top)]

    def _activation_maps(self, method: str, layer: Layer, record: Tensor, targets: Sequence[Target]) -> np.ndarray:
        """Return the maps (N, h, w) of one target in each image."""
        score = torch.stack([target.score for target in targets]).sum()
        return activation_map(method, layer, record, score, self.model)

    def _to_heatmap(
        self, values: np.ndarray, target: Target, image_meta: ImageMeta, method: str, layer: Layer
    ) -> Heatmap:
        crop_box = self.preprocess.crop_box(image_meta.original_size)
        return Heatmap(
            values=values,
            extent=_map_extent(values.shape, layer.stride, image_meta.input_size, crop_box),
            crop_box=crop_box,
            image_size=image_meta.original_size,
            method=method,
            layer=layer.name,
            label=self.class_names[target.index],
            score=target.confidence,
            box=target.box,
            index=target.index,
            name=image_meta.name,
        )


def _merge_methods(explanations: Sequence[Explanation]) -> Explanation:
    """Merge the explanations of one image by several methods."""
    maps = tuple(heatmap for explanation in explanations for heatmap in explanation.maps)
    return dataclasses.replace(explanations[0], maps=maps)


def _detach(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):
        return {name: _detach(value) for name, value in outputs.items()}
    return [_detach(value) for value in outputs]


def _map_extent(map_size: tuple[int, ...], stride: int | None, input_size: tuple[int, int], crop_box: Box) -> Box:
    """Return the rectangle of the original image that a layer's cells fill.

    The cells start at the upper left corner of the network's input. They reach over its right and lower edge where its
    size is not a multiple of the stride, or where the network pads.

    Args:
        map_size: height and width of the map.
        stride: stride of the cells in pixels of the input; if None, the largest that results in this map size.
        input_size: height and width of the network's input.
        crop_box: the rectangle of the original image that is the network's input.
    """
    left, top, right, bottom = crop_box
    spans = []
    for count, pixels in zip(map_size, input_size, strict=True):
        candidates = [stride] if stride else [step for step in _STRIDES if -(-pixels // step) == count]
        spans.append(count * candidates[0] / pixels if candidates else 1.0)
    return left, top, left + (right - left) * spans[1], top + (bottom - top) * spans[0]
