"""Every chart and drawing equals its pinned image, and visible changes are detected."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageDraw

from van.predictions import Classification, Detection, Detections, Segment, Segmentation
from van.visualization.charts import draw_parameter_counts, draw_training_curves
from van.visualization.drawing import class_color
from van.visualization.image_grid import draw_image_grid
from van.visualization.metric_charts import (
    draw_confusion_matrix,
    draw_per_class_metric,
    draw_precision_recall_curves,
    draw_reliability_diagram,
)
from visualization import explanations
from visualization.renderings import LONG_SIDE_PX, PINNED, assert_looks_like, compare, pin

LABELS = ("ant", "собака", "Ωμέγα", "a rather long name of a class, truncated", "שלום", "fox")
DRAWN = (*LABELS[:4], "owl", "fox")
"""Without right-to-left letters: Pillow needs an optional library to lay them out."""


def curves(path: Path, *, without: str = "", monitor: str = "top1") -> None:
    train = [
        {"kind": "train", "step": 10 * n, "loss": 2.3 * math.exp(-n / 40) + 0.03 * (n % 7), "lr": 1e-3 * (1 - n / 150)}
        for n in range(150)
    ]
    validation = [
        {"kind": "eval", "step": 100 * n, "loss": 2.2 * math.exp(-n / 4) + 0.3, "top1": 0.9 - 0.9 * math.exp(-n / 3)}
        for n in range(15)
    ]
    records = [{key: value for key, value in one.items() if key != without} for one in train + validation]
    draw_training_curves(records, path, monitor=monitor)


def confusion(path: Path) -> None:
    counts = np.array([[90, 5, 3, 2, 0, 0], [1, 88, 0, 0, 9, 2], [0, 0, 20, 20, 0, 0], [0, 0, 0, 99, 0, 1],
                       [30, 0, 0, 0, 60_000, 10], [0, 0, 0, 0, 0, 0]])  # fmt: skip
    draw_confusion_matrix(counts, LABELS, path)


def image_grid(path: Path) -> None:
    tiles = [Image.new("RGB", (90 + 10 * (n % 3), 70 + 12 * (n % 2)), class_color(n)) for n in range(8)]
    draw_image_grid(tiles, path, columns=3)


def parameter_counts(path: Path) -> None:
    sizes = list(range(3, 42, 2))
    costs = {"standard": [64**2 * k * k for k in sizes], "depth-wise": [64 * k * k for k in sizes]}
    draw_parameter_counts(
        sizes, {**costs, "large kernel attention": [64 * (25 + k * k // 9) + 64**2 for k in sizes]}, path, highlight=21
    )


def reliability(path: Path) -> None:
    count = [0, 0, 2, 5, 9, 14, 20, 20, 31, 40, 33, 47, 80, 150, 604]
    means = [(place + 0.6) / 15 for place in range(15)]
    correct = [
        round(number * max(0.0, mean - 0.13 + 0.02 * (place % 3)))
        for place, (number, mean) in enumerate(zip(count, means, strict=True))
    ]
    confidence = [number * mean for number, mean in zip(count, means, strict=True)]
    draw_reliability_diagram({"count": count, "correct": correct, "confidence": confidence}, path)


def per_class(path: Path) -> None:
    values = zip(LABELS, (0.91, 0.0, 0.62, 1.0, 0.335, math.nan), strict=True)
    draw_per_class_metric(
        {label: {"pixels": 3, "iou": value} for label, value in values}, "iou", path, class_names=LABELS
    )


def per_class_of_few_samples(path: Path) -> None:
    counts = {"ant": (0, 3), "bee": (4, 9), "cat": (12, 30), "dog": (41, 60), "eel": (8, 8)}
    draw_per_class_metric({n: {"samples": total, "top1": k / total} for n, (k, total) in counts.items()}, "top1", path)


def per_class_of_many(path: Path) -> None:
    draw_per_class_metric({f"class {n}": {"top1": n * 37 % 991 / 991} for n in range(991)}, "top1", path)


def precisions(reach: float) -> dict[str, list[float]]:
    recall = np.linspace(0, 1, 101)
    factors = {"0.50": 1.0, "0.75": 0.8, "0.50:0.95": 0.6}
    return {
        name: np.where(recall < reach * factor, 1 - 0.4 * recall / reach / factor, 0).tolist()
        for name, factor in factors.items()
    }


def precision_recall(path: Path) -> None:
    kinds = {
        kind: {
            "all": precisions(reach),
            "per_class": {label: precisions(reach - 0.12 * n) for n, label in enumerate(LABELS)},
        }
        for kind, reach in (("box", 0.95), ("mask", 0.8))
    }
    draw_precision_recall_curves({"recall": np.linspace(0, 1, 101).tolist(), **kinds}, path, class_names=LABELS)


def precision_recall_of_many(path: Path) -> None:
    classes = {f"class {n}": precisions(0.1 + 0.85 * (n * 37 % 80) / 80) for n in range(80)}
    curves = {"recall": np.linspace(0, 1, 101).tolist(), "box": {"all": precisions(0.5), "per_class": classes}}
    draw_precision_recall_curves(curves, path, class_names=list(classes))


def scene() -> Image.Image:
    """A meadow under a sky, with two objects on it."""
    rows, columns = np.mgrid[:360, :480]
    pixels = np.stack([90 + rows // 4, 170 - rows // 6, np.where(rows < 150, 220, 60) + columns // 20], axis=-1)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 120, 220, 300), fill=(200, 190, 180))
    draw.rectangle((300, 180, 420, 320), fill=(120, 60, 50))
    return image


def object_masks() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:360, :480]
    ellipse = ((columns - 140) / 80) ** 2 + ((rows - 210) / 90) ** 2 <= 1
    return ellipse, (columns >= 300) & (columns <= 420) & (rows >= 180) & (rows <= 320)


def boxes() -> Image.Image:
    ellipse, rectangle = object_masks()
    detections = (
        Detection("ant", 0, 0.97, (60, 120, 220, 300), ellipse),
        Detection("собака", 1, 0.62, (300, 180, 420, 320), rectangle),
        Detection("fox", 5, 0.31, (400, 20, 470, 80)),
    )
    return Detections(class_names=DRAWN, detections=detections, image_size=(360, 480)).draw(scene())


def masks(*, panoptic: bool = False) -> Image.Image:
    ellipse, rectangle = object_masks()
    ids = np.where(np.arange(360)[:, None] < 150, 2, 3) * np.ones((1, 480), int)
    ids[ellipse], ids[rectangle] = 4, 5
    ids[:20, :60] = -1
    regions = [Segment(index, DRAWN[index], index, 0.9 if panoptic else None, index > 3) for index in (2, 3, 4, 5)]
    if panoptic:
        regions[3] = Segment(5, DRAWN[4], 4, 0.5, True)
    return Segmentation(class_names=DRAWN, segment_ids=ids, segments=tuple(regions), panoptic=panoptic).draw(scene())


def classes() -> Image.Image:
    return Classification(class_names=DRAWN, scores=(0.1, 0.55, 0.02, 0.3, 0.02, 0.01)).draw(scene(), k=4)


CHARTS: list[Callable[[Path], None]] = [
    curves, confusion, image_grid, parameter_counts, reliability, per_class, per_class_of_few_samples,
    per_class_of_many, precision_recall,
    precision_recall_of_many, explanations.receptive_fields,
    explanations.receptive_field_sizes, explanations.faithfulness,
]  # fmt: skip
DRAWINGS: dict[str, Callable[[], Image.Image]] = {
    "boxes": boxes,
    "masks": masks,
    "masks_panoptic": lambda: masks(panoptic=True),
    "classes": classes,
    "heatmap": lambda: explanations.heatmap_drawing(scene()),
    "heatmap_of_detection": lambda: explanations.heatmap_of_detection(scene()),
    "comparison": lambda: explanations.comparison(scene()),
    "lka_attention": lambda: explanations.lka_attention(scene()),
}


def test_charts_equal_their_pinned_images(subtests, tmp_path_factory):
    for draw in CHARTS:
        with subtests.test(draw=str(draw)):
            tmp_path = tmp_path_factory.mktemp("case")
            draw(tmp_path / "drawn.png")
            assert_looks_like(tmp_path / "drawn.png", draw.__name__, tmp_path)


def test_drawings_equal_their_pinned_images(subtests, tmp_path_factory):
    for name in DRAWINGS:
        with subtests.test(name=str(name)):
            tmp_path = tmp_path_factory.mktemp("case")
            assert_looks_like(DRAWINGS[name](), name, tmp_path)


def test_every_pinned_image_is_small_and_has_a_drawing():
    paths = sorted(PINNED.iterdir())
    assert [path.stem for path in paths] == sorted([*(draw.__name__ for draw in CHARTS), *DRAWINGS])
    for path in paths:
        assert path.stat().st_size < 15_000
        with Image.open(path) as image:
            assert max(image.size) <= LONG_SIDE_PX


def drawn(draw: Callable[..., None], folder: Path, **others: Any) -> Image.Image:
    draw(folder / "drawn.png", **others)
    with Image.open(folder / "drawn.png") as image:
        return image.convert("RGB")


def assert_differs(image: Image.Image, name: str, folder: Path, reason: str) -> None:
    with pytest.raises(AssertionError, match=f"{name} differs: .*{reason}"):
        compare(image, PINNED / f"{name}.png", folder)
    assert (folder / f"{name}.actual.png").is_file()
    assert (folder / f"{name}.differences.png").is_file()


def test_a_missing_curve_is_detected(subtests, tmp_path_factory):
    for without in ["loss", "top1", "lr"]:
        with subtests.test(without=str(without)):
            tmp_path = tmp_path_factory.mktemp("case")
            assert_differs(drawn(curves, tmp_path, without=without), "curves", tmp_path, r"\d+ pixels differ")


@pytest.mark.parametrize("without", ["standard", "large kernel attention"])
def test_a_missing_line_among_others_is_detected(tmp_path, monkeypatch, without):
    """Where the axes and their letters stay the same."""
    plot = Axes.semilogy

    def all_but_one(self: Axes, *values: Any, **style: Any) -> list[Any]:
        return [] if style["label"] == without else plot(self, *values, **style)

    monkeypatch.setattr(Axes, "semilogy", all_but_one)
    assert_differs(drawn(parameter_counts, tmp_path), "parameter_counts", tmp_path, r"\d+ pixels differ")


@pytest.mark.parametrize("color", ["BLUE", "ORANGE", "GRAY"])
def test_another_color_of_a_thin_line_is_detected(tmp_path, monkeypatch, color):
    monkeypatch.setattr(f"van.visualization.charts.{color}", "#009e73")
    assert_differs(drawn(curves, tmp_path), "curves", tmp_path, r"the amount of hue \d+")


@pytest.mark.parametrize("draw", [per_class, precision_recall])
def test_swapped_names_are_detected(tmp_path, monkeypatch, draw):
    monkeypatch.setattr(f"{__name__}.LABELS", (LABELS[1], LABELS[0], *LABELS[2:]))
    assert_differs(drawn(draw, tmp_path), draw.__name__, tmp_path, r"\d+ pixels differ")


def test_swapped_class_colors_are_detected(tmp_path):
    pixels = np.array(boxes())
    ant, dog = ((pixels == class_color(index)).all(-1) for index in (0, 1))
    assert ant.any()
    assert dog.any()
    pixels[ant], pixels[dog] = class_color(1), class_color(0)
    assert_differs(Image.fromarray(pixels), "boxes", tmp_path, r"\d+ pixels differ")


def test_another_image_size_is_detected(tmp_path):
    image = classes()
    assert_differs(
        image.resize((image.width, image.height + 12)), "classes", tmp_path, r"size: expected 480x\d+, got 480x"
    )
    compare(image.resize((image.width, image.height + 3)), PINNED / "classes.png", tmp_path)


def test_a_moved_label_is_detected_beyond_a_tolerance_of_pixels(tmp_path):
    """Text of 20 pixels on a sheet of 800, where a pixel of the small image is 4."""

    def sheet(x: int, text: str = "a label") -> Image.Image:
        image = Image.new("RGB", (800, 600), "white")
        ImageDraw.Draw(image).text((x, 300), text, fill="black", font_size=20)
        return image

    pinned = tmp_path / "label.png"
    pin(sheet(300), pinned)
    for moved_px in (0, 1, 3):
        compare(sheet(300 + moved_px), pinned, tmp_path)
    for other in (sheet(318), sheet(360), sheet(300, "a la"), sheet(300, "")):
        with pytest.raises(AssertionError, match="label differs"):
            compare(other, pinned, tmp_path)


def test_noise_of_one_level_is_tolerated(subtests, tmp_path_factory):
    for name in [*DRAWINGS, "parameter_counts"]:
        with subtests.test(name=str(name)):
            tmp_path = tmp_path_factory.mktemp("case")
            image = DRAWINGS[name]() if name in DRAWINGS else drawn(parameter_counts, tmp_path)
            noise = np.random.default_rng(0).integers(-1, 2, np.asarray(image).shape)
            noisy = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
            compare(Image.fromarray(noisy), PINNED / f"{name}.png", tmp_path)
