"""The pictures beside each mistake: what was shown, what is marked, what was answered, and where the network looked."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from van.errors import MissingExtra, VanError
from van.explain.explainer import Explainer
from van.models.load import Loaded
from van.report.held_out import Pictures, picture_named
from van.report.judges import Mistake
from van.results import Boxes, Classes
from van.results.drawing import enlarged

_MOST_PX = 560
"""Longer side of a view: sharp enough on a dense screen, and some ten thousand bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One picture of a mistake.

    Args:
        webp, size: the bytes of its file, and its width and height.
        caption: what it is.
        says: what a reader is told who cannot see it.
        layer: of a map, that which it is of.
    """

    webp: bytes
    size: tuple[int, int]
    caption: str
    says: str
    layer: str = ""

    @property
    def uri(self) -> str:
        """The picture as a link that holds it."""
        return "data:image/webp;base64," + base64.b64encode(self.webp).decode("ascii")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A mistake with its views; ``problem`` says why it has fewer."""

    mistake: Mistake
    views: tuple[View, ...]
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the views."""
        mistake = self.mistake
        plain: dict[str, Any] = {"picture": mistake.name, "wrong": mistake.wrong, "says": mistake.says}
        plain["details"] = list(mistake.details)
        if isinstance(mistake.truth, int):
            plain["truth"] = mistake.answer.labels[mistake.truth]
        best = mistake.answer.to_dict(3) if isinstance(mistake.answer, Classes) else mistake.answer.to_dict()
        return plain | {"answer": best}


def show(
    mistakes: Sequence[Mistake], samples: Pictures, loaded: Loaded, *, device: torch.device
) -> tuple[tuple[Shown, ...], str]:
    """Views of every mistake, and why none has a Grad-CAM, if the package that makes them is missing."""
    explainer, missing = Explainer(loaded, device=device), ""
    shown = []
    for mistake in mistakes:
        views: list[View] = []
        problem = ""
        try:
            picture = picture_named(samples, mistake.name)
            views += _answer_views(mistake, picture)
            if not missing:
                views += _heat_views(mistake, picture, explainer)
        except MissingExtra as error:
            missing = str(error)
        except (VanError, RuntimeError) as error:  # such as a picture that is gone since it was measured
            problem = str(error).splitlines()[0]
        shown.append(Shown(mistake=mistake, views=tuple(views), problem=problem))
    return tuple(shown), missing


def _answer_views(mistake: Mistake, picture: Image.Image) -> list[View]:
    if isinstance(mistake.truth, int):
        pixels, _ = enlarged(picture, (picture.height, picture.width))
        label = mistake.answer.labels[mistake.truth]
        return [_view(Image.fromarray(pixels), "The picture", f"{mistake.name}, a picture of {label}")]
    marks = (
        mistake.truth.draw(picture, scores=False) if isinstance(mistake.truth, Boxes) else mistake.truth.draw(picture)
    )
    return [
        _view(marks, "What is marked", f"{mistake.name} with what is marked in it"),
        _view(mistake.answer.draw(picture), "What the network says", f"{mistake.name} with the network's answer"),
    ]


def _heat_views(mistake: Mistake, picture: Image.Image, explainer: Explainer) -> list[View]:
    """Grad-CAM of each suspect."""
    if not mistake.suspects:
        return []
    explanation = explainer(picture, classes=list(dict.fromkeys(mistake.suspects)), box=mistake.box)
    views = []
    for heat in explanation.maps:
        caption = f"Where it sees {heat.label}{_role(mistake, heat.index)}"
        row, column = heat.peak()
        where = f"{_third(row, heat.size[0], 'top', 'bottom')} {_third(column, heat.size[1], 'left', 'right')}"
        told = "the same everywhere" if heat.is_flat else f"highest at the {where}".replace("middle middle", "middle")
        map_alone = heat.draw(picture, legend=False)  # on a phone its letters are too small, and the page says it
        view = _view(map_alone, caption, f"Grad-CAM for {heat.label} on {mistake.name}: {told}")
        views.append(dataclasses.replace(view, layer=heat.layer))
    return views


def _role(mistake: Mistake, index: int) -> str:
    """What a class is in a classifier's mistake."""
    if not isinstance(mistake.truth, int):
        return ""
    if index == mistake.suspects[0]:
        return ", its answer"
    return ", the truth" if index == mistake.truth else ", its next guess"


def _third(place: int, length: int, first: str, last: str) -> str:
    return (first, "middle", last)[min(2, 3 * place // length)]


def _view(picture: Image.Image, caption: str, says: str) -> View:
    picture = picture.convert("RGB")
    if max(picture.size) > _MOST_PX:
        picture.thumbnail((_MOST_PX, _MOST_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="webp", quality=82, method=4)
    return View(webp=file.getvalue(), size=picture.size, caption=caption, says=says)
