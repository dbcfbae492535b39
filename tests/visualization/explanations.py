"""Drawings and charts of ``van explain`` from synthetic numbers, for the pinned images."""

from pathlib import Path

import numpy as np
from PIL import Image

from van.visualization.attention_grids import AttentionMaps, draw_attention_grid
from van.visualization.faithfulness_charts import draw_faithfulness
from van.visualization.heatmap import Heatmap
from van.visualization.image_grid import image_table
from van.visualization.receptive_field_charts import draw_receptive_field_sizes, draw_receptive_fields
from van.visualization.receptive_fields import ReceptiveField, Span


def heatmap(*, label: str = "ant", peak: tuple[int, int] = (2, 1), cropped: bool = True) -> Heatmap:
    rows, columns = np.mgrid[:7, :7]
    values = 0.02 * np.exp(-((rows - peak[0]) ** 2 + (columns - peak[1]) ** 2) / 3)
    window = (60.0, 0.0, 420.0, 360.0) if cropped else (0.0, 0.0, 480.0, 360.0)
    return Heatmap(
        values=values.astype(np.float32), extent=window, crop_box=window, image_size=(360, 480), method="grad-cam",
        layer="stage4", label=label, score=0.871, box=None if cropped else (300.0, 180.0, 420.0, 320.0), index=1,
    )  # fmt: skip


def heatmap_drawing(scene: Image.Image) -> Image.Image:
    return heatmap().draw(_gray(scene))


def heatmap_of_detection(scene: Image.Image) -> Image.Image:
    return heatmap(peak=(5, 5), cropped=False).draw(_gray(scene))


def comparison(scene: Image.Image) -> Image.Image:
    small = _gray(scene).resize((240, 180))
    tiles = [
        heatmap(label=label, peak=peak).resized(240).draw(small) for label, peak in (("ant", (2, 1)), ("fox", (5, 5)))
    ]
    titles = ["input", "van_b2", "a model with a rather long name that is truncated"]
    rows = [[small, *tiles], [small, tiles[1], None]]
    return image_table(titles, rows, row_titles=["scene.png", "a file with a rather long name.png"])


def lka_attention(scene: Image.Image) -> Image.Image:
    random = np.random.default_rng(0)
    groups = []
    for stage, side in ((1, 24), (2, 12), (4, 3)):
        rows, columns = np.mgrid[:side, :side] / side - 0.5
        maps = np.stack([rows + columns, rows**2 - columns**2, 0.3 * random.normal(size=(side, side))])
        names = ("channel 3", "channel 17", "channel 5")
        groups.append(AttentionMaps(name=f"stage{stage}.block0", maps=maps, captions=names, stride=96 / side))
    return draw_attention_grid(scene.resize((96, 96)), groups, title="LKA attention of van_b0")


def field(network: str, stage: int) -> ReceptiveField:
    reach = (12 if network == "van" else 4) * stage
    rows, columns = np.mgrid[:96, :96] - 48
    distance = np.maximum(abs(rows), abs(columns))
    values = np.exp(-distance / reach) * (distance <= 2 * reach)
    span = Span(48 - 2 * reach, 48 + 2 * reach)
    return ReceptiveField(
        network=network, layer=f"stage{stage}", image_size=(96, 96), map_size=(24 // stage, 24 // stage),
        cell=(12 // stage, 12 // stage), rows=span, columns=span, method="traced",
        effective=values / values.sum(),
    )  # fmt: skip


FIELDS = [field(network, stage) for network in ("van", "resnet") for stage in (1, 2, 3)]


def receptive_fields(path: Path) -> None:
    draw_receptive_fields(FIELDS, path, title="receptive fields at 96 px")


def receptive_field_sizes(path: Path) -> None:
    draw_receptive_field_sizes(FIELDS, path, title="receptive fields at 96 px")


def faithfulness(path: Path) -> None:
    steps = np.linspace(0, 1, 33)
    curves = {
        "grad-cam": {"deletion": 0.9 * np.exp(-5 * steps), "insertion": 0.9 - 0.8 * np.exp(-6 * steps)},
        "layer-cam": {"deletion": 0.9 * np.exp(-4 * steps), "insertion": 0.9 - 0.8 * np.exp(-4 * steps)},
        "random": {"deletion": 0.9 * np.exp(-2 * steps), "insertion": 0.9 - 0.8 * np.exp(-2 * steps)},
    }
    draw_faithfulness(curves, path, errors={"grad-cam": {"deletion": 0.012}}, control="random")


def _gray(scene: Image.Image) -> Image.Image:
    """Remove colors: a pinned image has too few for those of a scene and of a map."""
    return scene.convert("L").convert("RGB")
