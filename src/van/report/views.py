"""The images of each error: input, ground truth, prediction, and class activation maps."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from PIL import Image

from van.datasets.dense_dataset import DenseDataset
from van.datasets.image_dataset import ImageDataset
from van.errors import MissingExtra, VanError
from van.explain.explainer import Explainer
from van.images import read_image, to_rgb
from van.model import Model
from van.predictions import Detections
from van.report.errors import ErrorCase
from van.visualization.drawing import upscale_small_image

_MAX_SIZE_PX = 560
"""Longer side of a view: sharp on a high-density screen, with a file of about 10 kB."""
_METHOD_TITLES = {"grad-cam": "Grad-CAM", "layer-cam": "Layer-CAM"}


class View(NamedTuple):
    """One image of an error.

    Args:
        webp, size: the bytes of its file, and its width and height in pixels.
        caption: what it shows, and the name of the image's file.
        alt: the description for screen readers.
        method, layer: of a class activation map, the attribution method and the layer.
    """

    webp: bytes
    size: tuple[int, int]
    caption: str
    alt: str
    method: str = ""
    layer: str = ""

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/webp;base64," + base64.b64encode(self.webp).decode("ascii")


def illustrate(
    errors: Sequence[ErrorCase], samples: ImageDataset | DenseDataset, model: Model, *, device: torch.device
) -> tuple[tuple[ErrorCase, ...], str]:
    """Return every error with its views, and why there are no class activation maps if their package is missing.

    The shown images are read again: to keep every candidate in full size would take too much memory.
    """
    if isinstance(samples, DenseDataset):
        sources: dict[str, Any] = {record.name: record.path for record in samples.dataset.images}
    else:
        sources = {item.name: item.source for item in samples.items}
    explainer, missing = Explainer(model, device=device), ""
    illustrated = []
    for error in errors:
        views: list[View] = []
        problem = ""
        try:
            source = sources[error.name]
            image = read_image(source) if isinstance(source, Path) else to_rgb(source)
            views += _prediction_views(error, image)
            if error.cam_classes and not missing:
                views += _cam_views(error, image, explainer)
        except MissingExtra as exception:
            missing = str(exception)
        except (VanError, RuntimeError) as exception:  # such as an image that was deleted after the evaluation
            problem = str(exception).splitlines()[0]
        illustrated.append(dataclasses.replace(error, views=tuple(views), problem=problem))
    return tuple(illustrated), missing


def _prediction_views(error: ErrorCase, image: Image.Image) -> list[View]:
    """Return the image; for dense tasks, the image under its ground truth and under the prediction."""
    file = PurePath(error.name).name
    if isinstance(error.target, int):
        pixels, _ = upscale_small_image(image, (image.height, image.width))
        label = error.prediction.class_names[error.target]
        return [_make_view(Image.fromarray(pixels), f"Image: {file}", f"{error.name}, true class {label}")]
    if isinstance(error.target, Detections):
        target = error.target.draw(image, show_scores=False)  # annotations have no scores
    else:
        target = error.target.draw(image)
    return [
        _make_view(target, f"Ground truth: {file}", f"Ground truth of {error.name}"),
        _make_view(error.prediction.draw(image), f"Prediction: {file}", f"Prediction for {error.name}"),
    ]


def _cam_views(error: ErrorCase, image: Image.Image, explainer: Explainer) -> list[View]:
    """Return a class activation map for each class in ``cam_classes``."""
    explanation = explainer(image, classes=list(dict.fromkeys(error.cam_classes)), box=error.box)
    views = []
    for heatmap in explanation.maps:
        method = _METHOD_TITLES.get(heatmap.method, heatmap.method)
        role = ""
        if isinstance(error.target, int):
            other = " (true class)" if heatmap.index == error.target else " (second)"
            role = " (predicted)" if heatmap.index == error.cam_classes[0] else other
        (row, column), (rows, columns) = heatmap.peak(), heatmap.image_size
        vertical = ("top", "middle", "bottom")[min(2, 3 * row // rows)]
        horizontal = ("left", "middle", "right")[min(2, 3 * column // columns)]
        position = vertical if vertical == horizontal else f"{vertical} {horizontal}"
        peak = "constant" if heatmap.is_constant else f"maximum at the {position}"
        view = _make_view(
            heatmap.draw(image, legend=False),  # its text would be too small on a phone; the page has a legend
            f"{method}, {heatmap.label}{role}: {PurePath(error.name).name}",
            f"{method} of {heatmap.label} on {error.name}: {peak}",
        )
        views.append(view._replace(method=method, layer=heatmap.layer))
    return views


def _make_view(image: Image.Image, caption: str, alt: str) -> View:
    image = image.convert("RGB")
    image.thumbnail((_MAX_SIZE_PX, _MAX_SIZE_PX), Image.Resampling.LANCZOS)  # never enlarges
    file = io.BytesIO()
    image.save(file, format="webp", quality=82, method=4)
    return View(webp=file.getvalue(), size=image.size, caption=caption, alt=alt)
