"""Every figure and drawing looks as the pinned picture that somebody looked at; and what looks different is noticed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageDraw

from results import explained
from results.looks import LONG_SIDE_PX, PINNED, assert_looks_like, compare, pin
from van.results import Boxes, Classes, FoundThing, Masks, Region
from van.results.charts import draw_costs, draw_curves
from van.results.drawing import class_colour
from van.results.quality import draw_confusion, draw_per_class, draw_precision_recall, draw_reliability
from van.results.sheets import draw_contact_sheet

LABELS = ("ant", "собака", "Ωμέγα", "a rather long name of a class, cut here", "שלום", "fox")
DRAWN = (*LABELS[:4], "owl", "fox")
"""Pillow sets letters from the right only where a library for that is installed."""


def curves(path: Path, *, without: str = "", headline: str = "top1") -> None:
    train = [
        {"kind": "train", "step": 10 * n, "loss": 2.3 * math.exp(-n / 40) + 0.03 * (n % 7), "lr": 1e-3 * (1 - n / 150)}
        for n in range(150)
    ]
    held_out = [
        {"kind": "eval", "step": 100 * n, "loss": 2.2 * math.exp(-n / 4) + 0.3, "top1": 0.9 - 0.9 * math.exp(-n / 3)}
        for n in range(15)
    ]
    records = [{key: value for key, value in one.items() if key != without} for one in train + held_out]
    draw_curves(records, path, headline=headline)


def confusion(path: Path) -> None:
    counts = np.array([[90, 5, 3, 2, 0, 0], [1, 88, 0, 0, 9, 2], [0, 0, 20, 20, 0, 0], [0, 0, 0, 99, 0, 1],
                       [30, 0, 0, 0, 60_000, 10], [0, 0, 0, 0, 0, 0]])  # fmt: skip
    draw_confusion(counts, LABELS, path)


def contact_sheet(path: Path) -> None:
    tiles = [Image.new("RGB", (90 + 10 * (n % 3), 70 + 12 * (n % 2)), class_colour(n)) for n in range(8)]
    draw_contact_sheet(tiles, path, columns=3)


def costs(path: Path) -> None:
    sizes = list(range(3, 42, 2))
    ways = {"standard": [64**2 * k * k for k in sizes], "depth-wise": [64 * k * k for k in sizes]}
    draw_costs(
        sizes, {**ways, "large kernel attention": [64 * (25 + k * k // 9) + 64**2 for k in sizes]}, path, marked=21
    )


def reliability(path: Path) -> None:
    count = [0, 0, 2, 5, 9, 14, 20, 20, 31, 40, 33, 47, 80, 150, 604]
    sure = [(place + 0.6) / 15 for place in range(15)]
    right = [
        round(number * max(0.0, share - 0.13 + 0.02 * (place % 3)))
        for place, (number, share) in enumerate(zip(count, sure, strict=True))
    ]
    confidence = [number * share for number, share in zip(count, sure, strict=True)]
    draw_reliability({"count": count, "right": right, "confidence": confidence}, path)


def per_class(path: Path) -> None:
    values = zip(LABELS, (0.91, 0.0, 0.62, 1.0, 0.335, math.nan), strict=True)
    draw_per_class({label: {"pixels": 3, "iou": value} for label, value in values}, "iou", path, labels=LABELS)


def per_class_of_many(path: Path) -> None:
    draw_per_class({f"class {n}": {"top1": n * 37 % 991 / 991} for n in range(991)}, "top1", path)


def precisions(reach: float) -> dict[str, list[float]]:
    recall = np.linspace(0, 1, 101)
    parts = {"0.50": 1.0, "0.75": 0.8, "0.50:0.95": 0.6}
    return {
        name: np.where(recall < reach * part, 1 - 0.4 * recall / reach / part, 0).tolist()
        for name, part in parts.items()
    }


def precision_recall(path: Path) -> None:
    kinds = {
        kind: {
            "all": precisions(most),
            "per_class": {label: precisions(most - 0.12 * n) for n, label in enumerate(LABELS)},
        }
        for kind, most in (("box", 0.95), ("mask", 0.8))
    }
    draw_precision_recall({"recall": np.linspace(0, 1, 101).tolist(), **kinds}, path, labels=LABELS)


def precision_recall_of_many(path: Path) -> None:
    classes = {f"class {n}": precisions(0.1 + 0.85 * (n * 37 % 80) / 80) for n in range(80)}
    curves = {"recall": np.linspace(0, 1, 101).tolist(), "box": {"all": precisions(0.5), "per_class": classes}}
    draw_precision_recall(curves, path, labels=list(classes))


def scene() -> Image.Image:
    """A meadow under a sky, with two things on it."""
    rows, columns = np.mgrid[:360, :480]
    pixels = np.stack([90 + rows // 4, 170 - rows // 6, np.where(rows < 150, 220, 60) + columns // 20], axis=-1)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((60, 120, 220, 300), fill=(200, 190, 180))
    draw.rectangle((300, 180, 420, 320), fill=(120, 60, 50))
    return picture


def things() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:360, :480]
    ellipse = ((columns - 140) / 80) ** 2 + ((rows - 210) / 90) ** 2 <= 1
    return ellipse, (columns >= 300) & (columns <= 420) & (rows >= 180) & (rows <= 320)


def boxes() -> Image.Image:
    ellipse, rectangle = things()
    found = (
        FoundThing("ant", 0, 0.97, (60, 120, 220, 300), ellipse),
        FoundThing("собака", 1, 0.62, (300, 180, 420, 320), rectangle),
        FoundThing("fox", 5, 0.31, (400, 20, 470, 80)),
    )
    return Boxes(labels=DRAWN, found=found, size=(360, 480)).draw(scene())


def masks(*, panoptic: bool = False) -> Image.Image:
    ellipse, rectangle = things()
    ids = np.where(np.arange(360)[:, None] < 150, 2, 3) * np.ones((1, 480), int)
    ids[ellipse], ids[rectangle] = 4, 5
    ids[:20, :60] = -1
    regions = [Region(index, DRAWN[index], index, 0.9 if panoptic else None, index > 3) for index in (2, 3, 4, 5)]
    if panoptic:
        regions[3] = Region(5, DRAWN[4], 4, 0.5, True)
    return Masks(labels=DRAWN, ids=ids, regions=tuple(regions), panoptic=panoptic).draw(scene())


def classes() -> Image.Image:
    return Classes(labels=DRAWN, probabilities=(0.1, 0.55, 0.02, 0.3, 0.02, 0.01)).draw(scene(), k=4)


CHARTS: list[Callable[[Path], None]] = [
    curves, confusion, contact_sheet, costs, reliability, per_class, per_class_of_many, precision_recall,
    precision_recall_of_many, explained.fields, explained.sides, explained.faithfulness,
]  # fmt: skip
DRAWINGS: dict[str, Callable[[], Image.Image]] = {
    "boxes": boxes,
    "masks": masks,
    "masks_panoptic": lambda: masks(panoptic=True),
    "classes": classes,
    "heat": lambda: explained.heat_drawing(scene()),
    "heat_of_a_thing": lambda: explained.heat_of_a_thing(scene()),
    "comparison": lambda: explained.comparison(scene()),
    "strips": lambda: explained.strips(scene()),
}


@pytest.mark.parametrize("draw", CHARTS, ids=lambda draw: draw.__name__)
def test_a_chart_looks_as_pinned(tmp_path, draw):
    draw(tmp_path / "drawn.png")
    assert_looks_like(tmp_path / "drawn.png", draw.__name__, tmp_path)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_looks_as_pinned(tmp_path, name):
    assert_looks_like(DRAWINGS[name](), name, tmp_path)


def test_pinned_pictures_are_small_and_each_is_of_something():
    paths = sorted(PINNED.iterdir())
    assert [path.stem for path in paths] == sorted([*(draw.__name__ for draw in CHARTS), *DRAWINGS])
    for path in paths:
        assert path.stat().st_size < 15_000
        with Image.open(path) as picture:
            assert max(picture.size) <= LONG_SIDE_PX


def drawn(draw: Callable[..., None], folder: Path, **others: Any) -> Image.Image:
    draw(folder / "drawn.png", **others)
    with Image.open(folder / "drawn.png") as picture:
        return picture.convert("RGB")


def differ(picture: Image.Image, name: str, folder: Path, reason: str) -> None:
    with pytest.raises(AssertionError, match=f"{name} looks different: .*{reason}"):
        compare(picture, PINNED / f"{name}.png", folder)
    assert (folder / f"{name}.seen.png").is_file()
    assert (folder / f"{name}.differences.png").is_file()


@pytest.mark.parametrize("without", ["loss", "top1", "lr"])
def test_a_missing_curve_is_noticed(tmp_path, without):
    differ(drawn(curves, tmp_path, without=without), "curves", tmp_path, r"\d+ pixels differ")


@pytest.mark.parametrize("without", ["standard", "large kernel attention"])
def test_a_missing_line_among_others_is_noticed(tmp_path, monkeypatch, without):
    """Where the axes and their letters stay the same."""
    plot = Axes.semilogy

    def all_but_one(self: Axes, *values: Any, **style: Any) -> list[Any]:
        return [] if style["label"] == without else plot(self, *values, **style)

    monkeypatch.setattr(Axes, "semilogy", all_but_one)
    differ(drawn(costs, tmp_path), "costs", tmp_path, r"\d+ pixels differ")


@pytest.mark.parametrize("colour", ["BLUE", "ORANGE", "GREY"])
def test_another_colour_of_a_thin_line_is_noticed(tmp_path, monkeypatch, colour):
    monkeypatch.setattr(f"van.results.charts.{colour}", "#009e73")
    differ(drawn(curves, tmp_path), "curves", tmp_path, "of the hue of")


@pytest.mark.parametrize("draw", [per_class, precision_recall])
def test_names_that_change_places_are_noticed(tmp_path, monkeypatch, draw):
    monkeypatch.setattr("results.test_looks.LABELS", (LABELS[1], LABELS[0], *LABELS[2:]))
    differ(drawn(draw, tmp_path), draw.__name__, tmp_path, r"\d+ pixels differ")


def test_two_classes_that_change_colours_are_noticed(tmp_path):
    pixels = np.array(boxes())
    ant, dog = ((pixels == class_colour(index)).all(-1) for index in (0, 1))
    assert ant.any()
    assert dog.any()
    pixels[ant], pixels[dog] = class_colour(1), class_colour(0)
    differ(Image.fromarray(pixels), "boxes", tmp_path, r"\d+ pixels differ")


def test_a_picture_of_another_size_is_noticed(tmp_path):
    picture = classes()
    differ(picture.resize((picture.width, picture.height + 12)), "classes", tmp_path, "it is 480x")
    compare(picture.resize((picture.width, picture.height + 3)), PINNED / "classes.png", tmp_path)


def test_a_label_that_moves_is_noticed_and_a_pixel_is_forgiven(tmp_path):
    """A word of 20 pixels on a sheet of 800, where a pixel of the small picture is 4."""

    def sheet(x: int, text: str = "a label") -> Image.Image:
        picture = Image.new("RGB", (800, 600), "white")
        ImageDraw.Draw(picture).text((x, 300), text, fill="black", font_size=20)
        return picture

    pinned = tmp_path / "label.png"
    pin(sheet(300), pinned)
    for moved_px in (0, 1, 3):
        compare(sheet(300 + moved_px), pinned, tmp_path)
    for other in (sheet(318), sheet(360), sheet(300, "a la"), sheet(300, "")):
        with pytest.raises(AssertionError, match="label looks different"):
            compare(other, pinned, tmp_path)


@pytest.mark.parametrize("name", [*DRAWINGS, "costs"])
def test_noise_of_one_level_is_forgiven(tmp_path, name):
    picture = DRAWINGS[name]() if name in DRAWINGS else drawn(costs, tmp_path)
    noise = np.random.default_rng(0).integers(-1, 2, np.asarray(picture).shape)
    noisy = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    compare(Image.fromarray(noisy), PINNED / f"{name}.png", tmp_path)
