"""The images of each error: input, ground truth, prediction, and class activation maps."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import torch
from PIL import Image

from van.errors import MissingExtra, VanError
from van.explain.explainer import Explainer
from van.model import Model
from van.predictions import Classification, Detections
from van.report.error_ranking import ErrorCase
from van.report.validation_data import ValidationDataset, read_image_by_name
from van.visualization.drawing import upscale_small_image

_MAX_SIZE_PX = 560
"""Longer side of a view: sharp on a high-density screen, with a file of about 10 kB."""
_METHOD_TITLES = {"grad-cam": "Grad-CAM", "layer-cam": "Layer-CAM"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class IllustratedError:
    """An error with its views; ``problem`` is the reason if views are missing."""

    error: ErrorCase
    views: tuple[View, ...]
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the views."""
        error = self.error
        plain: dict[str, Any] = {"image": error.name, "is_error": error.is_error, "summary": error.summary}
        plain["details"] = list(error.details)
        if isinstance(error.target, int):
            plain["target"] = error.prediction.class_names[error.target]
        prediction = error.prediction
        return plain | {
            "prediction": prediction.to_dict(3) if isinstance(prediction, Classification) else prediction.to_dict()
        }


def illustrate(
    errors: Sequence[ErrorCase], samples: ValidationDataset, loaded: Model, *, device: torch.device
) -> tuple[tuple[IllustratedError, ...], str]:
    """Return every error with its views, and why there are no class activation maps if their package is missing."""
    explainer, missing = Explainer(loaded, device=device), ""
    illustrated = []
    for error in errors:
        views: list[View] = []
        problem = ""
        try:
            image = read_image_by_name(samples, error.name)
            views += _prediction_views(error, image)
            if not missing:
                views += _cam_views(error, image, explainer)
        except MissingExtra as exception:
            missing = str(exception)
        except (VanError, RuntimeError) as exception:  # such as an image that was deleted after the evaluation
            problem = str(exception).splitlines()[0]
        illustrated.append(IllustratedError(error=error, views=tuple(views), problem=problem))
    return tuple(illustrated), missing


def _prediction_views(error: ErrorCase, image: Image.Image) -> list[View]:
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
    if not error.cam_classes:
        return []
    file = PurePath(error.name).name
    explanation = explainer(image, classes=list(dict.fromkeys(error.cam_classes)), box=error.box)
    views = []
    for heatmap in explanation.maps:
        method = _METHOD_TITLES.get(heatmap.method, heatmap.method)
        row, column = heatmap.peak()
        vertical = _third(row, heatmap.image_size[0], ("top", "middle", "bottom"))
        horizontal = _third(column, heatmap.image_size[1], ("left", "middle", "right"))
        position = vertical if vertical == horizontal else f"{vertical} {horizontal}"
        peak = "constant" if heatmap.is_constant else f"maximum at the {position}"
        drawn = heatmap.draw(image, legend=False)  # its text would be too small on a phone; the page has a legend
        view = _make_view(
            drawn,
            f"{method}, {heatmap.label}{_class_role(error, heatmap.index)}: {file}",
            f"{method} of {heatmap.label} on {error.name}: {peak}",
        )
        views.append(dataclasses.replace(view, method=method, layer=heatmap.layer))
    return views


def _class_role(error: ErrorCase, index: int) -> str:
    """Return the role of an explained class in a classification, as an addition to its name."""
    if not isinstance(error.target, int):
        return ""
    if index == error.cam_classes[0]:
        return " (predicted)"
    return " (true class)" if index == error.target else " (second)"


def _third(position: int, length: int, names: tuple[str, str, str]) -> str:
    return names[min(2, 3 * position // length)]


def _make_view(image: Image.Image, caption: str, alt: str) -> View:
    image = image.convert("RGB")
    if max(image.size) > _MAX_SIZE_PX:
        image.thumbnail((_MAX_SIZE_PX, _MAX_SIZE_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="webp", quality=82, method=4)
    return View(webp=file.getvalue(), size=image.size, caption=caption, alt=alt)
