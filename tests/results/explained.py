"""The figures of ``van explain``, drawn from made-up numbers, for the pinned pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from van.results.faith_charts import draw_faithfulness
from van.results.field_charts import draw_fields, draw_sides
from van.results.fields import ReceptiveField, Span
from van.results.heat import HeatMap
from van.results.sheets import table
from van.results.strips import Strip, draw_strips


def heat(*, label: str = "ant", peak: tuple[int, int] = (2, 1), cropped: bool = True) -> HeatMap:
    rows, columns = np.mgrid[:7, :7]
    cells = 0.02 * np.exp(-((rows - peak[0]) ** 2 + (columns - peak[1]) ** 2) / 3)
    window = (60.0, 0.0, 420.0, 360.0) if cropped else (0.0, 0.0, 480.0, 360.0)
    return HeatMap(
        cells=cells.astype(np.float32), covers=window, seen=window, size=(360, 480), method="grad-cam", layer="stage4",
        label=label, score=0.871, box=None if cropped else (300.0, 180.0, 420.0, 320.0), index=1,
    )  # fmt: skip


def heat_drawing(scene: Image.Image) -> Image.Image:
    return heat().draw(_grey(scene))


def heat_of_a_thing(scene: Image.Image) -> Image.Image:
    return heat(peak=(5, 5), cropped=False).draw(_grey(scene))


def comparison(scene: Image.Image) -> Image.Image:
    small = _grey(scene).resize((240, 180))
    tiles = [
        heat(label=label, peak=peak).on_smaller(240).draw(small) for label, peak in (("ant", (2, 1)), ("fox", (5, 5)))
    ]
    return table(
        ["picture", "van_b2", "a model with a rather long name that is cut"], [[small, *tiles], [small, *tiles[::-1]]]
    )


def strips(scene: Image.Image) -> Image.Image:
    random = np.random.default_rng(0)
    made = []
    for stage, side in ((1, 24), (2, 12), (4, 3)):
        rows, columns = np.mgrid[:side, :side] / side - 0.5
        maps = np.stack([rows + columns, rows**2 - columns**2, 0.3 * random.normal(size=(side, side))])
        names = ("channel 3", "channel 17", "channel 5")
        made.append(Strip(name=f"stage{stage}.block0", maps=maps, captions=names, cell_px=96 / side))
    return draw_strips(scene.resize((96, 96)), made, title="large kernel attention of van_b0")


def field(network: str, stage: int) -> ReceptiveField:
    reach = (12 if network == "van" else 4) * stage
    rows, columns = np.mgrid[:96, :96] - 48
    far = np.maximum(abs(rows), abs(columns))
    values = np.exp(-far / reach) * (far <= 2 * reach)
    span = Span(48 - 2 * reach, 48 + 2 * reach)
    return ReceptiveField(
        network=network, layer=f"stage{stage}", size=(96, 96), cells=(24 // stage, 24 // stage),
        cell=(12 // stage, 12 // stage), rows=span, columns=span, how="traced", heat=values / values.sum(),
    )  # fmt: skip


FIELDS = [field(network, stage) for network in ("van", "resnet") for stage in (1, 2, 3)]


def fields(path: Path) -> None:
    draw_fields(FIELDS, path, title="receptive fields at 96 px")


def sides(path: Path) -> None:
    draw_sides(FIELDS, path, title="receptive fields at 96 px")


def faithfulness(path: Path) -> None:
    steps = np.linspace(0, 1, 33)
    curves = {
        "grad-cam": {"deletion": 0.9 * np.exp(-5 * steps), "insertion": 0.9 - 0.8 * np.exp(-6 * steps)},
        "layer-cam": {"deletion": 0.9 * np.exp(-4 * steps), "insertion": 0.9 - 0.8 * np.exp(-4 * steps)},
        "random": {"deletion": 0.9 * np.exp(-2 * steps), "insertion": 0.9 - 0.8 * np.exp(-2 * steps)},
    }
    draw_faithfulness(curves, path, errors={"grad-cam": {"deletion": 0.012}}, control="random")


def _grey(scene: Image.Image) -> Image.Image:
    """Without its colours: of a picture with those of a map, too, a pinned one could not keep all."""
    return scene.convert("L").convert("RGB")
