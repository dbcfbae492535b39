"""Charts of receptive fields show every panel, whatever the fields are: read back, nothing cut off, twice the same."""

import math

import numpy as np
import pytest

from results.looks import amount, read
from van.errors import ShapeError
from van.results.charts import BLUE, GREEN, ORANGE
from van.results.field_charts import draw_fields, draw_sides
from van.results.fields import ReceptiveField, Span

READABLE, BRIGHTEST, DARKEST = "#ffb000", "#fde725", "#440154"
"""The outline of what can be read, and the ends of viridis."""


def field(network: str, stage: int, *, size: tuple[int, int] = (64, 64), **options) -> ReceptiveField:
    """One around the middle, as wide as the stage's stride and as readable as four times that."""
    stride = 2 ** (stage + 1)
    rows, columns = (np.arange(length) - length // 2 for length in size)
    heat = np.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / stride**2)
    reach = 4 * stride
    known = {
        "network": network, "layer": f"stage{stage}", "size": size, "heat": heat,
        "cells": (size[0] // stride, size[1] // stride), "cell": (size[0] // stride // 2, size[1] // stride // 2),
        "rows": Span(size[0] // 2 - reach, size[0] // 2 + reach), "how": "traced",
        "columns": Span(size[1] // 2 - reach, size[1] // 2 + reach),
    }  # fmt: skip
    return ReceptiveField(**(known | options))


def table(networks: tuple[str, ...] = ("van", "resnet"), stages: int = 2, **options) -> list[ReceptiveField]:
    return [field(name, stage, **options) for name in networks for stage in range(1, stages + 1)]


EVERYTHING = {"rows": Span(-math.inf, math.inf), "columns": Span(-math.inf, math.inf)}
TABLES = {
    "two networks": table(stages=3),
    "one panel": table(("van",), 1),
    "pictures that are wide": table(size=(32, 96)),
    "pictures that are high": table(("van",), size=(96, 32)),
    "a stage that one lacks": [*table(("van",), 3), field("vit", 2)],
    "unbounded": table(("van",), **EVERYTHING),
    "probed, all of the picture": table(("van",), how="probed", rows=Span(0, 63), columns=Span(0, 63)),
    "names of any kind": table(("$\\frac{van", "سلام 日本 " * 9, "two\nlines"), 1),
    "more networks than colours": table(tuple(f"net{place}" for place in range(8)), 1),
    "one bright pixel": table(("van",), 1, heat=np.eye(64) * (np.arange(64) == 32)),
}


@pytest.mark.parametrize("name", TABLES)
def test_fields_of_any_kind_are_drawn(tmp_path, name):
    draw_fields(TABLES[name], tmp_path / "fields", title="Fields, $ and all")
    draw_sides(TABLES[name], tmp_path / "sides", title="Sides, $ and all")
    assert amount(read(tmp_path / "fields"), BRIGHTEST, within=2) > 0
    assert amount(read(tmp_path / "sides"), BLUE, within=2) > 0


def test_charts_are_the_same_bytes_for_the_same_fields(tmp_path):
    for path, networks in (("a", ("van", "resnet")), ("b", ("van", "resnet")), ("c", ("resnet", "van"))):
        draw_fields(table(networks, 1), tmp_path / f"{path}1", title="t")
        draw_sides(table(networks), tmp_path / f"{path}2", title="t")
    for chart in "12":
        one, same, other = ((tmp_path / f"{path}{chart}").read_bytes() for path in "abc")
        assert one == same
        assert one != other


def test_what_can_be_read_is_outlined_where_it_ends_within_the_picture(tmp_path):
    """The control: a field that the picture does not hold has no outline; the legend's stays."""
    draw_fields(table(("van",), 1), tmp_path / "within", title="t")
    draw_fields(table(("van",), 1, rows=Span(-9, 99), columns=Span(-9, 99)), tmp_path / "beyond", title="t")
    within, beyond = (amount(read(tmp_path / name), READABLE, within=2) for name in ("within", "beyond"))
    assert within > beyond + 100


def test_a_wider_field_has_more_bright_pixels_at_the_same_scale(tmp_path):
    for stage in (1, 3):
        draw_fields([field("van", stage)], tmp_path / str(stage), title="t")
    small, large = (amount(read(tmp_path / str(stage)), DARKEST, within=2) for stage in (1, 3))
    assert small > 2 * large


def test_each_network_has_a_line_of_its_own_colour(tmp_path):
    draw_sides(table(("van", "resnet")), tmp_path / "two", title="t")
    draw_sides(table(("van", "resnet", "swin")), tmp_path / "three", title="t")
    two, three = read(tmp_path / "two"), read(tmp_path / "three")
    assert min(amount(two, BLUE, within=2), amount(two, ORANGE, within=2), amount(three, GREEN, within=2)) > 50
    assert amount(two, GREEN, within=2) == 0


@pytest.mark.parametrize("draw", [draw_fields, draw_sides])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "fields is empty"),
        ([field("van", 1), field("van", 1)], "stage1 of van twice"),
        ([field("van", 1), field("van", 2, size=(32, 32))], r"\(32, 32\), \(64, 64\) pixels; wanted one size"),
    ],
)
def test_fields_that_fill_no_table_are_refused(tmp_path, draw, fields, message):
    with pytest.raises(ShapeError, match=message):
        draw(fields, tmp_path / "chart", title="t")
    assert not (tmp_path / "chart").exists()
