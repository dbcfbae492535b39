"""Maps over pictures: each value lies where the network looked, and a drawing shows it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.errors import ShapeError
from van.results.heat import HeatMap, heat_colours


def heat(cells, *, size=(40, 60), covers=None, seen=None, **others) -> HeatMap:
    whole = (0.0, 0.0, float(size[1]), float(size[0]))
    return HeatMap(
        cells=np.asarray(cells, np.float32),
        covers=covers or whole,
        seen=seen or whole,
        size=size,
        method="grad-cam",
        layer="stage4",
        label="cat",
        **others,
    )


@settings(max_examples=60, deadline=None)
@given(
    cells=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 99),
)
def test_over_the_whole_picture_it_is_pytorch_s_bilinear_enlargement(cells, size, seed):
    values = np.random.default_rng(seed).normal(size=cells).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False)
    if size[0] >= cells[0] and size[1] >= cells[1]:
        np.testing.assert_allclose(heat(values, size=size).on_picture(), wanted[0, 0].numpy(), rtol=0, atol=1e-5)
    assert heat(values, size=size).on_picture().shape == size


def test_a_crop_s_map_lies_in_the_crop_and_nothing_is_said_outside():
    cells = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    window = (14.0, 4.0, 46.0, 36.0)
    values = heat(cells, covers=window, seen=window).on_picture()
    enlarged = F.interpolate(torch.from_numpy(cells)[None, None], size=(32, 32), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(values[4:36, 14:46], enlarged[0, 0].numpy(), rtol=0, atol=1e-5)
    outside = np.ones(values.shape, bool)
    outside[4:36, 14:46] = False
    assert np.isnan(values[outside]).all()
    assert not np.isnan(values[~outside]).any()


def test_cells_that_reach_over_the_edge_of_the_picture_keep_their_size():
    """A picture of 100 pixels that is seen in four cells of 32: the last one shows 4 of its pixels only."""
    values = heat([[0, 1, 2, 3]], size=(1, 100), covers=(0.0, 0.0, 128.0, 1.0)).on_picture()[0]
    assert values[15:17] == pytest.approx([0, 1 / 64], abs=1e-5)  # the middle of the first cell is at 16
    assert values[79:81] == pytest.approx([2 - 1 / 64, 2 + 1 / 64], abs=1e-5)
    stretched = heat([[0, 1, 2, 3]], size=(1, 100)).on_picture()[0]
    assert np.abs(values - stretched).max() > 0.5


def test_the_peak_is_a_pixel_of_the_picture():
    cells = np.zeros((4, 4))
    cells[1, 2] = 5
    row, column = heat(cells, size=(40, 60), covers=(10.0, 0.0, 50.0, 40.0), seen=(10.0, 0.0, 50.0, 40.0)).peak()
    assert (row, column) in {(14, 34), (14, 35), (15, 34), (15, 35)}


def test_a_map_of_one_value_is_flat_and_its_drawing_says_so():
    flat = heat(np.full((3, 3), 0.25))
    assert flat.is_flat
    assert not heat([[0, 1]]).is_flat
    picture = Image.new("RGB", (60, 40), "gray")
    drawn = np.asarray(flat.draw(picture))[:320]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1  # every pixel in one colour
    zero = np.asarray(heat(np.zeros((3, 3))).draw(picture))[:320]
    assert zero.mean() < drawn.mean()  # and zero is not drawn as the highest


def test_a_drawing_is_brightest_where_the_map_is_highest_and_pale_where_nothing_was_seen():
    cells = np.zeros((4, 4))
    cells[0, 3] = 1
    window = (10.0, 0.0, 50.0, 40.0)
    drawn = np.asarray(heat(cells, covers=window, seen=window).draw(Image.new("RGB", (60, 40), (90, 90, 90))))
    scale = 8  # 480 pixels at least
    assert drawn.shape[1] == 60 * scale
    hot, cold, unseen = drawn[3 * scale, 47 * scale], drawn[35 * scale, 15 * scale], drawn[20 * scale, 3 * scale]
    assert hot.sum() > 2 * cold.sum()
    brightest = 0.4 * 90 + 0.6 * heat_colours()[-1]
    np.testing.assert_allclose(hot.astype(float), brightest, atol=3)
    assert unseen.min() > 150
    assert (drawn[20 * scale, round(10 * scale) + 1] != drawn[20 * scale, 12 * scale]).any()  # the crop's edge


def test_the_whole_picture_seen_has_no_edge_drawn():
    drawn = np.asarray(heat(np.zeros((4, 4))).draw(Image.new("RGB", (60, 40), "gray")))[:320]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (700, 900)])
def test_pictures_of_any_shape_are_drawn_with_a_legend_that_can_be_read(size):
    drawn = heat([[0, 1], [2, 3]], size=size, score=0.5).draw(Image.new("RGB", size[::-1], "navy"))
    scale = -(-480 // max(size))
    assert drawn.width == max(300, size[1] * scale)
    legend = np.asarray(drawn)[size[0] * scale :]
    assert len(legend) >= 3 * 12
    assert (legend < 60).all(-1).any()  # letters


def test_a_box_is_framed_in_its_class_s_colour():
    picture = Image.new("RGB", (60, 40), "gray")
    plain = np.asarray(heat(np.zeros((2, 2))).draw(picture))
    framed = np.asarray(heat(np.zeros((2, 2)), box=(20.0, 10.0, 40.0, 30.0), index=2).draw(picture))
    rows, columns = np.nonzero((plain != framed).any(-1))
    assert abs(columns.min() - 20 * 8) < 12
    assert abs(rows.max() - 30 * 8) < 12


def test_a_smaller_copy_says_the_same_of_a_smaller_picture():
    window = (140.0, 0.0, 460.0, 400.0)
    large = heat([[0, 1], [2, 3]], size=(400, 600), covers=window, seen=window, box=(200.0, 100.0, 300.0, 300.0))
    small = large.on_smaller(60)
    assert small.size == (40, 60)
    assert small.box == pytest.approx((20, 10, 30, 30))
    np.testing.assert_allclose(small.on_picture(), large.on_picture()[5::10, 5::10], atol=0.02)
    assert large.on_smaller(4_000).size == (400, 600)


def test_plain_values_hold_the_cells():
    plain = heat([[0, 1], [2, 3]], score=0.5).to_dict()
    assert plain["cells"] == [[0, 1], [2, 3]]
    assert plain["covers"] == [0, 0, 60, 40]
    assert (plain["label"], plain["method"], plain["layer"], plain["score"]) == ("cat", "grad-cam", "stage4", 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": np.zeros((0, 3))}, r"cells are \(0, 3\); wanted rows and columns"),
        ({"cells": np.zeros((1, 2, 3))}, r"cells are \(1, 2, 3\)"),
        ({"cells": np.array([[np.nan]])}, "the map of picture is not finite everywhere"),
        ({"cells": np.zeros((2, 2)), "seen": (5.0, 0.0, 5.0, 9.0)}, r"seen is \(5.0, 0.0, 5.0, 9.0\)"),
    ],
)
def test_what_is_no_map_is_refused(change, message):
    with pytest.raises(ShapeError, match=message):
        heat(**change)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="picture is 61x40, the answer is about one of 60x40"):
        heat([[1, 2]]).draw(Image.new("RGB", (61, 40)))
