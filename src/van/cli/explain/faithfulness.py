"""``van explain MODEL... --faithfulness --data DATASET``: attribution methods, evaluated beside a random control."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from van.checkpoint import atomic_path
from van.cli.explain.maps import model_title, models_and_images, print_notes, report_unreadable
from van.cli.explain.settings import ExplainSettings
from van.datasets.folder import load_validation_items
from van.datasets.formats import load_split
from van.errors import DataError, ImageError, MissingAnnotations, UsageError
from van.explain.explainer import Explainer
from van.explain.faithfulness import CONTROL, METRICS, EvaluationSample, Faithfulness, evaluate_faithfulness
from van.images import read_image
from van.model import Model
from van.visualization.faithfulness_charts import draw_faithfulness

_METHODS = ("grad-cam", "grad-cam++", "layer-cam", "eigen-cam", "xgrad-cam")
_DEFAULT_LIMIT = 200


class Sample(NamedTuple):
    """One image and one of its classes, with the boxes of that class (K, 4) if the dataset has boxes."""

    source: Path | Image.Image
    label: int
    boxes: np.ndarray | None


def run_faithfulness(settings: ExplainSettings) -> int:
    """Evaluate each model on the same images, print tables, draw curves; return status 1 if an image is unreadable."""
    models, images = models_and_images(settings.model_and_images)
    assert settings.data is not None
    if images:
        raise UsageError(f"--faithfulness: expected images from --data only, got {images[0]}; remove it")
    titles = [model_title(model) for model in models]
    if len(set(titles)) < len(titles):
        raise UsageError(f"expected models with distinct names, got {', '.join(titles)}")
    unreadable: dict[str, ImageError] = {}
    for model, title in zip(models, titles, strict=True):
        explainer = Explainer(Model.load(model), device=settings.device)
        print_notes(explainer.notes)
        samples = _subsample(_load_samples(settings.data, explainer.class_names), settings.limit or _DEFAULT_LIMIT)
        result = evaluate_faithfulness(
            explainer,
            _read_samples(samples, unreadable),
            settings.method or _METHODS,
            layer=settings.layer,
            progress=_make_progress(len(samples), title),
        )
        if settings.json:
            print(json.dumps({"model": model, "data": str(settings.data), **result.to_dict()}), flush=True)
        else:
            _print_table(title, result)
        if any(result.curves.values()):
            _draw_curves(result, settings.out / f"{title}-curves.png")
    for error in unreadable.values():
        report_unreadable(error, as_json=settings.json)
    return 1 if unreadable else 0


def _load_samples(data: Path, class_names: Sequence[str]) -> list[Sample]:
    """List every image with each of its classes that the model knows; class folders have no boxes.

    Raises:
        DataError: the model knows none of the dataset's classes, or the dataset is invalid.
    """
    try:
        dataset = load_split(data, "val", target_type="boxes")
    except MissingAnnotations:
        return [Sample(item.source, item.target, None) for item in load_validation_items(data, class_names)]
    indices = {label: class_names.index(label) for label in dataset.class_names if label in class_names}
    if not indices:
        got, expected = ", ".join(dataset.class_names[:5]), ", ".join(class_names[:5])
        raise DataError(f"{data}: expected at least 1 class of the model ({expected}), got {got}")
    samples = []
    for image in dataset.images:
        boxes_by_class: dict[int, list[tuple[float, ...]]] = {}
        for annotation in image.annotations:
            if not annotation.crowd and dataset.class_names[annotation.label] in indices:
                index = indices[dataset.class_names[annotation.label]]
                boxes_by_class.setdefault(index, []).append(annotation.box)
        samples += [Sample(image.path, label, np.array(boxes)) for label, boxes in boxes_by_class.items()]
    return samples


def _subsample(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Return at most ``limit`` samples, spread evenly over all."""
    if len(samples) <= limit:
        return list(samples)
    return [samples[int(place)] for place in np.linspace(0, len(samples) - 1, limit)]


def _read_samples(samples: Sequence[Sample], unreadable: dict[str, ImageError]) -> Iterator[EvaluationSample]:
    """Yield each sample with its image; errors of unreadable images are added to ``unreadable``."""
    for sample in samples:
        try:
            image = sample.source if isinstance(sample.source, Image.Image) else read_image(sample.source)
        except ImageError as error:
            unreadable[error.name] = error
            continue
        yield EvaluationSample(image=image, label=sample.label, boxes=sample.boxes)


def _make_progress(total: int, title: str) -> Callable[[int], None]:
    def show(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{title}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _print_table(title: str, result: Faithfulness) -> None:
    metrics = [name for name in METRICS if any(name in scores for scores in result.scores.values())]
    print(f"{title:<24}" + "".join(f"{name:>22}" for name in metrics))
    print(f"{'':<24}" + "".join(f"{METRICS[name] + ' is better':>22}" for name in metrics))
    for method, scores in result.scores.items():
        cells = []
        for name in metrics:
            score = scores.get(name)
            error = "" if score is None or score.standard_error is None else f" ± {score.standard_error:.3f}"
            cells.append("-" if score is None else f"{score.mean:.3f}{error}")
        row_title = f"{method}, {result.layers[method]}"
        print(f"{row_title:<24}" + "".join(f"{cell:>22}" for cell in cells))
    count = max(score.num_images for scores in result.scores.values() for score in scores.values())
    print(f"{count} images, mean ± standard error" + (f", {result.skipped} skipped" if result.skipped else ""))


def _draw_curves(result: Faithfulness, path: Path) -> None:
    errors = {
        method: {name: score.standard_error for name, score in scores.items()}
        for method, scores in result.scores.items()
    }
    with atomic_path(path) as temporary:
        draw_faithfulness(result.curves, temporary, errors=errors, control=CONTROL)
    print(f"curves: {path}", file=sys.stderr)
