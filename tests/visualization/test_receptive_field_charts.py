"""Charts of any receptive fields are drawn with every panel, not cut off, and reproducible."""

import math

import numpy as np
import pytest

from van.errors import ShapeError
from van.visualization.charts import BLUE, GREEN, ORANGE
from van.visualization.receptive_field_charts import draw_receptive_field_sizes, draw_receptive_fields
from van.visualization.receptive_fields import ReceptiveField, Span
from visualization.renderings import amount, read

THEORETICAL, BRIGHTEST, DARKEST = "#ffb000", "#fde725", "#440154"
"""The edges of theoretical fields, and the ends of viridis."""


def field(network: str, stage: int, *, image_size: tuple[int, int] = (64, 64), **options) -> ReceptiveField:
    """Return a centered field as wide as the stage's stride, theoretically four times as wide."""
    stride = 2 ** (stage + 1)
    rows, columns = (np.arange(length) - length // 2 for length in image_size)
    effective = np.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / stride**2)
    reach = 4 * stride
    defaults = {
        "network": network, "layer": f"stage{stage}", "image_size": image_size,
        "effective": effective,
        "map_size": (image_size[0] // stride, image_size[1] // stride),
        "cell": (image_size[0] // stride // 2, image_size[1] // stride // 2),
        "rows": Span(image_size[0] // 2 - reach, image_size[0] // 2 + reach), "method": "traced",
        "columns": Span(image_size[1] // 2 - reach, image_size[1] // 2 + reach),
    }  # fmt: skip
    return ReceptiveField(**(defaults | options))


def make_fields(networks: tuple[str, ...] = ("van", "resnet"), stages: int = 2, **options) -> list[ReceptiveField]:
    return [field(name, stage, **options) for name in networks for stage in range(1, stages + 1)]


UNBOUNDED = {"rows": Span(-math.inf, math.inf), "columns": Span(-math.inf, math.inf)}
TABLES = {
    "two networks": make_fields(stages=3),
    "one panel": make_fields(("van",), 1),
    "images that are wide": make_fields(image_size=(32, 96)),
    "images that are high": make_fields(("van",), image_size=(96, 32)),
    "a missing stage": [*make_fields(("van",), 3), field("vit", 2)],
    "unbounded": make_fields(("van",), **UNBOUNDED),
    "probed, all of the image": make_fields(("van",), method="probed", rows=Span(0, 63), columns=Span(0, 63)),
    "names of any kind": make_fields(("$\\frac{van", "سلام 日本 " * 9, "two\nlines"), 1),
    "more networks than colors": make_fields(tuple(f"net{place}" for place in range(8)), 1),
    "one bright pixel": make_fields(("van",), 1, effective=np.eye(64) * (np.arange(64) == 32)),
}


@pytest.mark.parametrize("name", TABLES)
def test_fields_of_any_kind_are_drawn(tmp_path, name):
    draw_receptive_fields(TABLES[name], tmp_path / "fields", title="Fields, $ and all")
    draw_receptive_field_sizes(TABLES[name], tmp_path / "sides", title="Sides, $ and all")
    assert amount(read(tmp_path / "fields"), BRIGHTEST, within=2) > 0
    assert amount(read(tmp_path / "sides"), BLUE, within=2) > 0


def test_the_same_fields_give_the_same_bytes(tmp_path):
    for path, networks in (("a", ("van", "resnet")), ("b", ("van", "resnet")), ("c", ("resnet", "van"))):
        draw_receptive_fields(make_fields(networks, 1), tmp_path / f"{path}1", title="t")
        draw_receptive_field_sizes(make_fields(networks), tmp_path / f"{path}2", title="t")
    for chart in "12":
        one, same, other = ((tmp_path / f"{path}{chart}").read_bytes() for path in "abc")
        assert one == same
        assert one != other


def test_the_theoretical_field_has_edges_unless_it_covers_the_image(tmp_path):
    """Negative control: a field that covers the image has no edges; those of the legend remain."""
    draw_receptive_fields(make_fields(("van",), 1), tmp_path / "within", title="t")
    draw_receptive_fields(
        make_fields(("van",), 1, rows=Span(-9, 99), columns=Span(-9, 99)), tmp_path / "beyond", title="t"
    )
    within, beyond = (amount(read(tmp_path / name), THEORETICAL, within=2) for name in ("within", "beyond"))
    assert within > beyond + 100


def test_a_wider_field_has_more_bright_pixels_at_the_same_scale(tmp_path):
    for stage in (1, 3):
        draw_receptive_fields([field("van", stage)], tmp_path / str(stage), title="t")
    small, large = (amount(read(tmp_path / str(stage)), DARKEST, within=2) for stage in (1, 3))
    assert small > 2 * large


def test_each_network_has_its_own_color(tmp_path):
    draw_receptive_field_sizes(make_fields(("van", "resnet")), tmp_path / "two", title="t")
    draw_receptive_field_sizes(make_fields(("van", "resnet", "swin")), tmp_path / "three", title="t")
    two, three = read(tmp_path / "two"), read(tmp_path / "three")
    assert min(amount(two, BLUE, within=2), amount(two, ORANGE, within=2), amount(three, GREEN, within=2)) > 50
    assert amount(two, GREEN, within=2) == 0


@pytest.mark.parametrize("draw", [draw_receptive_fields, draw_receptive_field_sizes])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "fields.*none"),
        ([field("van", 1), field("van", 1)], "van stage1 twice"),
        ([field("van", 1), field("van", 2, image_size=(32, 32))], r"\(32, 32\), \(64, 64\)"),
    ],
)
def test_inconsistent_fields_are_rejected(tmp_path, draw, fields, message):
    with pytest.raises(ShapeError, match=message):
        draw(fields, tmp_path / "chart", title="t")
    assert not (tmp_path / "chart").exists()
