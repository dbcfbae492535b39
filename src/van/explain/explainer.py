"""Pictures in, answers and the maps behind them out.

Shapes: a map is (h, w) at the resolution of its layer, and lies in the pixels of the original picture.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from van.errors import PictureError, UsageError
from van.explain.cam import CELL_BY_CELL, METHODS, activation_map, recorded
from van.explain.layers import Layer, find_layer
from van.explain.targets import Target, class_indices, class_maps, of_boxes, of_classes, of_regions
from van.models.load import Loaded, in_channels_last, load, usable_device
from van.models.van import VAN
from van.pictures import Picture, Window, open_pictures, read_chunks
from van.results import Boxes, Classes, Masks
from van.results.heat import HeatMap
from van.results.sheets import beside
from van.tasks.base import Frame, Task
from van.tasks.build import make_task

_STRIDES = (64, 32, 16, 8, 4, 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a network says of a picture, and a map for each class or thing that was asked for.

    ``maps`` is empty where nothing was found.
    """

    answer: Classes | Boxes | Masks
    maps: tuple[HeatMap, ...]

    @property
    def name(self) -> str:
        """The picture's path or other name."""
        return self.answer.name

    def draw(self, picture: Image.Image) -> Image.Image:
        """The maps over copies of ``picture``, side by side; the answer, where there are none."""
        return beside([found.draw(picture) for found in self.maps]) if self.maps else self.answer.draw(picture)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the answer's, and those of the maps."""
        return {**self.answer.to_dict(), "maps": [found.to_dict() for found in self.maps]}


class Explainer:
    """Says which parts of a picture an answer rests on.

    The network is left as it is: its hooks, its mode, its parameters' gradients. Several threads may ask at once.

    Args:
        loaded: what ``van.models.load.load`` gave; most callers use ``Explainer.load``.
        device: where to run; the GPU where there is one if None or ``auto``.

    Raises:
        UsageError: the network has no classes, or the device is not here.
    """

    def __init__(self, loaded: Loaded, *, device: str | torch.device | None = None) -> None:
        loaded.want_answers()
        self.device = usable_device(device)
        self.model: nn.Module = in_channels_last(loaded.model.eval(), self.device)
        self.preprocess = loaded.preprocess
        self.labels = loaded.labels
        self.notes = loaded.notes
        self.name = loaded.name
        self.task: Task = make_task(loaded.task, loaded.labels, loaded.task_options)

    @classmethod
    def load(cls, source: str | Path, *, device: str | torch.device | None = None) -> "Explainer":
        """Load from a checkpoint, a public weights file, or a model name such as ``van_b2``.

        Raises:
            CheckpointError: the file cannot be used.
            HubError: the weights cannot be downloaded.
            UsageError: there is no file and no model of that name; or see ``Explainer``.
        """
        return cls(load(source), device=device)

    @overload
    def __call__(
        self,
        pictures: Picture,
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Window | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> Explanation: ...
    @overload
    def __call__(
        self,
        pictures: Iterable[Picture],
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Window | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> list[Explanation]: ...

    def __call__(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Window | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> Explanation | list[Explanation]:
        """Explain one picture, or several in their order.

        Args:
            pictures: paths, file contents or PIL pictures.
            classes: which classes to explain, by name or number; if None what the network says: its most probable
                classes, largest regions or surest things.
            top: how many of those.
            box: detection: explain the found thing that is nearest to this rectangle of the picture.
            method: one of ``van.explain.cam.METHODS``. If None it is Grad-CAM for classes, and for things and regions
                Layer-CAM: Grad-CAM gives a channel one weight for the whole picture, so that its map of one thing
                lights up other places, too.
            layer: see ``find_layer``. If None the last block of stage 4, or on small pictures of an earlier stage; for
                the methods of ``CELL_BY_CELL`` and classes the LayerNorm behind it.

        Raises:
            PictureError: a picture cannot be read.
            UsageError: there is no such class, thing, method or layer; or a picture is something else, an array say.
        """
        if isinstance(pictures, Picture):
            return self([pictures], classes=classes, top=top, box=box, method=method, layer=layer)[0]
        return self._answers(open_pictures(pictures), classes=classes, top=top, box=box, method=method, layer=layer)

    def _answers(
        self,
        named: Sequence[tuple[str, Image.Image]],
        *,
        classes: Sequence[str | int] | None = None,
        top: int = 1,
        box: Window | None = None,
        method: str | None = None,
        layer: str | None = None,
    ) -> list[Explanation]:
        if method is None:
            method = "grad-cam" if self.task.name == "classify" else "layer-cam"
        self._check(method, top, box)
        wanted = None if classes is None else class_indices(self.labels, classes)
        if self.task.name == "classify":
            return self._explain(named, wanted, top, box, method, layer) if named else []
        return [self._explain([one], wanted, top, box, method, layer)[0] for one in named]  # sizes differ

    def stream(
        self, paths: Iterable[Path | str], *, batch_size: int = 8, methods: Sequence[str | None] = (None,), **asked: Any
    ) -> Iterator[tuple[Image.Image, Explanation] | PictureError]:
        """Explain many files in batches, in order; an unreadable one gives its error.

        Args:
            paths: of the pictures.
            batch_size: pictures at once.
            methods: the maps of each of them, one after the other.
            asked: ``classes``, ``top``, ``box`` and ``layer``, as in ``__call__``.

        Returns:
            Each picture with its explanation.

        Raises:
            UsageError: ``batch_size`` is less than 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; wanted at least 1")
        return self._stream(paths, batch_size, methods, asked)

    def _stream(
        self, paths: Iterable[Path | str], batch_size: int, methods: Sequence[str | None], asked: Mapping[str, Any]
    ) -> Iterator[tuple[Image.Image, Explanation] | PictureError]:
        for chunk in read_chunks(paths, batch_size):
            readable = [(name, picture) for name, picture in chunk if not isinstance(picture, PictureError)]
            each = [self._answers(readable, method=method, **asked) for method in methods]
            whole = map(_together, zip(*each, strict=True))
            for _, picture in chunk:
                yield picture if isinstance(picture, PictureError) else (picture, next(whole))

    def _check(self, method: str, top: int, box: Window | None) -> None:
        if method not in METHODS:
            raise UsageError(f"there is no method {method!r}; known: {', '.join(METHODS)}")
        if top < 1:
            raise UsageError(f"top is {top}; wanted at least 1")
        if box is not None and self.task.name not in ("detect", "instances"):
            raise UsageError(f"a box is for networks that find things; this one's task is {self.task.name}")
        if box is not None and not (len(box) == 4 and box[0] < box[2] and box[1] < box[3]):
            raise UsageError(f"box is {tuple(box)}; wanted left, top, right, bottom, in pixels of the picture")

    def _explain(
        self,
        named: Sequence[tuple[str, Image.Image]],
        wanted: Sequence[int] | None,
        top: int,
        box: Window | None,
        method: str,
        layer_name: str | None,
    ) -> list[Explanation]:
        weight = next(self.model.parameters())
        tensors = [self.preprocess(picture).to(weight.dtype) for _, picture in named]
        frames = [
            Frame(name, (picture.height, picture.width), (tensor.shape[1], tensor.shape[2]))
            for (name, picture), tensor in zip(named, tensors, strict=True)
        ]
        layer = self._layer(layer_name, method, min(frames[0].seen))
        with torch.inference_mode(mode=False), torch.enable_grad(), recorded(layer) as records:
            outputs = self._outputs(tensors)
            if len(records) != 1:
                raise UsageError(f"layer {layer.name} runs {len(records)} times in a picture; choose another layer")
            answers = self.task.decode(_detached(outputs), frames)
            targets = self._targets(outputs, answers, frames, wanted, top, box)
            maps = [self._maps(method, layer, records[0], one) for one in _in_turn(targets)]
        found = []
        for place, (answer, frame, mine) in enumerate(zip(answers, frames, targets, strict=True)):
            heat = [self._heat(maps[number][place], target, frame, method, layer) for number, target in enumerate(mine)]
            found.append(Explanation(answer=answer, maps=tuple(heat)))
        return found

    def _layer(self, name: str | None, method: str, side_px: int) -> Layer:
        """The layer of that name; if None the one where the method tells most."""
        layer = find_layer(self.model, name, side_px=side_px)
        if name is None and method in CELL_BY_CELL and self.task.name == "classify" and isinstance(layer.network, VAN):
            return find_layer(self.model, layer.name.replace("stage", "norm"))
        return layer

    def _outputs(self, tensors: Sequence[Tensor]) -> Any:
        batch = self.task.stack(tensors)
        if isinstance(batch, Tensor):
            return self.model(batch.to(self.device, memory_format=torch.channels_last))
        return self.model([tensor.to(self.device) for tensor in batch])

    def _targets(
        self,
        outputs: Any,
        answers: Sequence[Any],
        frames: Sequence[Frame],
        wanted: Sequence[int] | None,
        top: int,
        box: Window | None,
    ) -> list[list[Target]]:
        """For each picture what is to be explained."""
        if self.task.name == "classify":
            return of_classes(outputs.float(), answers, wanted, top)
        if self.task.name in ("detect", "instances"):
            return [of_boxes(outputs[0], answers[0], frames[0], wanted, top, box)]
        return [of_regions(class_maps(outputs[0]), answers[0], wanted, top)]

    def _maps(self, method: str, layer: Layer, record: Tensor, targets: Sequence[Target]) -> np.ndarray:
        """(N, h, w) of one target in each picture."""
        score = torch.stack([target.score for target in targets]).sum()
        return activation_map(method, layer, record, score, self.model)

    def _heat(self, cells: np.ndarray, target: Target, frame: Frame, method: str, layer: Layer) -> HeatMap:
        seen = self.preprocess.window(frame.size)
        return HeatMap(
            cells=cells,
            covers=_covered(cells.shape, layer.stride, frame.seen, seen),
            seen=seen,
            size=frame.size,
            method=method,
            layer=layer.name,
            label=self.labels[target.index],
            score=target.certainty,
            box=target.box,
            index=target.index,
            name=frame.name,
        )


def _together(several: Sequence[Explanation]) -> Explanation:
    """One picture's explanations by several methods as one."""
    return dataclasses.replace(several[0], maps=tuple(found for one in several for found in one.maps))


def _in_turn(targets: Sequence[Sequence[Target]]) -> list[list[Target]]:
    """The first target of every picture, then the second, ...; all have as many."""
    return [list(turn) for turn in zip(*targets, strict=True)]


def _detached(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):
        return {name: _detached(value) for name, value in outputs.items()}
    return [_detached(value) for value in outputs]


def _covered(cells: tuple[int, ...], stride: int | None, seen: tuple[int, int], window: Window) -> Window:
    """The rectangle of the picture that a layer's cells fill, each as wide as the layer's stride.

    They begin at the upper left corner of what the network sees, and reach over its right and lower edge where that
    is no multiple of the stride, or where the network has padded.

    Args:
        cells: rows and columns of the map.
        stride: of the cells in pixels that the network sees; the largest that gives so many if None.
        seen: rows and columns of the picture that the network sees.
        window: where that lies in the original picture.
    """
    left, top, right, bottom = window
    spans = []
    for count, pixels in zip(cells, seen, strict=True):
        fitting = [stride] if stride else [step for step in _STRIDES if -(-pixels // step) == count]
        spans.append(count * fitting[0] / pixels if fitting else 1.0)
    return left, top, left + (right - left) * spans[1], top + (bottom - top) * spans[0]
