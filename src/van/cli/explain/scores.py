"""``van explain MODEL... --score --data SET``: how far maps can be believed, beside a random map."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from van.checkpoint import atomic_path
from van.cli.explain.maps import models_and_pictures, tell_notes, tell_unreadable, title_of
from van.cli.explain.settings import ExplainSettings
from van.data.find import read_part
from van.data.folder import evaluation_items
from van.data.marks import Problems
from van.errors import DataError, NoSuchMarks, PictureError, UsageError
from van.explain.explainer import Explainer
from van.explain.faithfulness import CONTROL, MEASURES, Faithfulness, Wanted, score_maps
from van.pictures import read_picture
from van.results.faith_charts import draw_faithfulness

_METHODS = ("grad-cam", "grad-cam++", "layer-cam", "eigen-cam", "xgrad-cam")
_PICTURES = 200


class Sample(NamedTuple):
    """One picture and one of its classes, with the boxes of that class (K, 4), where the set has boxes."""

    source: Path | Image.Image
    label: int
    boxes: np.ndarray | None


def score(settings: ExplainSettings) -> int:
    """Score each model on the same pictures, print tables, draw curves; status 1 if a picture could not be read."""
    models, pictures = models_and_pictures(settings.words)
    assert settings.data is not None
    if pictures:
        raise UsageError(f"--score takes its pictures from --data, and is given {pictures[0]}, too; leave that out")
    titles = [title_of(model) for model in models]
    if len(set(titles)) < len(titles):
        raise UsageError(f"two of the models are called alike: {', '.join(titles)}; name each once")
    unreadable: dict[str, PictureError] = {}
    for model, title in zip(models, titles, strict=True):
        explainer = Explainer.load(model, device=settings.device)
        tell_notes(explainer.notes)
        samples = _spread(_samples(settings.data, explainer.labels), settings.limit or _PICTURES)
        found = score_maps(
            explainer,
            _readable(samples, unreadable),
            settings.method or _METHODS,
            layer=settings.layer,
            progress=_progress(len(samples), title),
        )
        if settings.json:
            print(json.dumps({"model": model, "data": str(settings.data), **found.to_dict()}), flush=True)
        else:
            _print_table(title, found)
        if any(found.curves.values()):
            _draw(found, settings.out / f"{title}-curves.png")
    for error in unreadable.values():
        tell_unreadable(error, as_json=settings.json)
    return 1 if unreadable else 0


def _samples(data: Path, labels: Sequence[str]) -> list[Sample]:
    """Every picture with each of its classes that the network knows; those of class folders without boxes.

    Raises:
        DataError: the network knows none of the set's classes, or the set is damaged.
    """
    problems = Problems(collect=True)
    try:
        marked = read_part(data, "val", want="boxes", problems=problems)
    except NoSuchMarks:
        return [Sample(item.source, item.target, None) for item in evaluation_items(data, labels)]
    problems.tolerate(marks=sum(len(picture.marks) for picture in marked.pictures))
    places = {label: labels.index(label) for label in marked.labels if label in labels}
    if not places:
        theirs, ours = ", ".join(marked.labels[:5]), ", ".join(labels[:5])
        raise DataError(f"{data} has classes ({theirs}) of which the network knows none; its own are {ours}")
    samples = []
    for picture in marked.pictures:
        of_class: dict[int, list[tuple[float, ...]]] = {}
        for mark in picture.marks:
            if not mark.crowd and marked.labels[mark.label] in places:
                of_class.setdefault(places[marked.labels[mark.label]], []).append(mark.box)
        samples += [Sample(picture.path, label, np.array(boxes)) for label, boxes in of_class.items()]
    return samples


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many, from all over."""
    if len(samples) <= most:
        return list(samples)
    return [samples[int(place)] for place in np.linspace(0, len(samples) - 1, most)]


def _readable(samples: Sequence[Sample], unreadable: dict[str, PictureError]) -> Iterator[Wanted]:
    """Each with its picture; what cannot be read is put into ``unreadable``."""
    for sample in samples:
        try:
            picture = sample.source if isinstance(sample.source, Image.Image) else read_picture(sample.source)
        except PictureError as error:
            unreadable[error.name] = error
            continue
        yield Wanted(picture=picture, label=sample.label, boxes=sample.boxes)


def _progress(total: int, title: str) -> Callable[[int], None]:
    def show(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{title}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _print_table(title: str, found: Faithfulness) -> None:
    measures = [name for name in MEASURES if any(name in scores for scores in found.scores.values())]
    print(f"{title:<24}" + "".join(f"{name:>20}" for name in measures))
    print(f"{'':<24}" + "".join(f"{MEASURES[name] + ' is better':>20}" for name in measures))
    for method, scores in found.scores.items():
        cells = []
        for name in measures:
            one = scores.get(name)
            error = "" if one is None or one.standard_error is None else f" ± {one.standard_error:.3f}"
            cells.append("-" if one is None else f"{one.mean:.3f}{error}")
        print(f"{method + ' of ' + found.layers[method]:<24}" + "".join(f"{cell:>20}" for cell in cells))
    counted = max(one.pictures for scores in found.scores.values() for one in scores.values())
    print(f"{counted} pictures" + (f", {found.passed_over} passed over" if found.passed_over else ""))


def _draw(found: Faithfulness, path: Path) -> None:
    errors = {
        method: {name: one.standard_error for name, one in scores.items()} for method, scores in found.scores.items()
    }
    with atomic_path(path) as temporary:
        draw_faithfulness(found.curves, temporary, errors=errors, control=CONTROL)
    print(f"curves: {path}", file=sys.stderr)
