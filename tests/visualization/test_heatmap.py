"""Heatmaps: positions of values on the image, and drawings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.errors import ShapeError
from van.visualization.heatmap import Heatmap, _color_bar, heatmap_colormap


def heatmap(values, *, image_size=(40, 60), extent=None, crop_box=None, **others) -> Heatmap:
    whole = (0.0, 0.0, float(image_size[1]), float(image_size[0]))
    return Heatmap(
        values=np.asarray(values, np.float32),
        extent=extent or whole,
        crop_box=crop_box or whole,
        image_size=image_size,
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
def test_upsampling_over_the_whole_image_equals_pytorch_bilinear(cells, size, seed):
    values = np.random.default_rng(seed).normal(size=cells).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False)
    if size[0] >= cells[0] and size[1] >= cells[1]:
        np.testing.assert_allclose(
            heatmap(values, image_size=size).to_image_size(), expected[0, 0].numpy(), rtol=0, atol=1e-5
        )
    assert heatmap(values, image_size=size).to_image_size().shape == size


def test_the_map_of_a_crop_is_nan_outside_the_crop():
    cells = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    window = (14.0, 4.0, 46.0, 36.0)
    values = heatmap(cells, extent=window, crop_box=window).to_image_size()
    expected = F.interpolate(torch.from_numpy(cells)[None, None], size=(32, 32), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(values[4:36, 14:46], expected[0, 0].numpy(), rtol=0, atol=1e-5)
    outside = np.ones(values.shape, bool)
    outside[4:36, 14:46] = False
    assert np.isnan(values[outside]).all()
    assert not np.isnan(values[~outside]).any()


def test_cells_that_reach_over_the_image_s_edge_keep_their_size():
    """An image of 100 pixels under four cells of 32: only 4 pixels of the last one are in the image."""
    values = heatmap([[0, 1, 2, 3]], image_size=(1, 100), extent=(0.0, 0.0, 128.0, 1.0)).to_image_size()[0]
    assert values[15:17] == pytest.approx([0, 1 / 64], abs=1e-5)  # the center of the first cell is at 16
    assert values[79:81] == pytest.approx([2 - 1 / 64, 2 + 1 / 64], abs=1e-5)
    stretched = heatmap([[0, 1, 2, 3]], image_size=(1, 100)).to_image_size()[0]
    assert np.abs(values - stretched).max() > 0.5


def test_the_peak_is_a_pixel_of_the_image():
    cells = np.zeros((4, 4))
    cells[1, 2] = 5
    row, column = heatmap(
        cells, image_size=(40, 60), extent=(10.0, 0.0, 50.0, 40.0), crop_box=(10.0, 0.0, 50.0, 40.0)
    ).peak()
    assert (row, column) in {(14, 34), (14, 35), (15, 34), (15, 35)}


def test_a_constant_map_is_drawn_in_one_color():
    constant = heatmap(np.full((3, 3), 0.25))
    assert constant.is_constant
    assert not heatmap([[0, 1]]).is_constant
    image = Image.new("RGB", (60, 40), "gray")
    drawn = np.asarray(constant.draw(image))[:320]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1  # every pixel in one color
    zero = np.asarray(heatmap(np.zeros((3, 3))).draw(image))[:320]
    assert zero.mean() < drawn.mean()  # zero is not drawn as the maximum


def test_a_drawing_is_brightest_at_the_maximum_and_pale_outside_the_crop():
    cells = np.zeros((4, 4))
    cells[0, 3] = 1
    window = (10.0, 0.0, 50.0, 40.0)
    drawn = np.asarray(heatmap(cells, extent=window, crop_box=window).draw(Image.new("RGB", (60, 40), (90, 90, 90))))
    scale = 8  # 480 pixels at least
    assert drawn.shape[1] == 60 * scale
    hot, cold, outside = drawn[3 * scale, 47 * scale], drawn[35 * scale, 15 * scale], drawn[20 * scale, 3 * scale]
    assert hot.sum() > 2 * cold.sum()
    brightest = 0.25 * 90 + 0.75 * heatmap_colormap()[-1]
    np.testing.assert_allclose(hot.astype(float), brightest, atol=3)
    assert outside.min() > 150
    assert (drawn[20 * scale, round(10 * scale) + 1] != drawn[20 * scale, 12 * scale]).any()  # the crop's edge


def test_an_input_of_the_whole_image_has_no_crop_edge():
    drawn = np.asarray(heatmap(np.zeros((4, 4))).draw(Image.new("RGB", (60, 40), "gray")))[:320]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


def test_the_image_is_visible_where_the_attribution_is_zero_and_opacity_grows_with_it():
    """On gray, whose saturation cannot change: zero leaves the image unchanged, the weight of the color is linear."""
    image = Image.new("RGB", (480, 480), (90, 90, 90))
    values = np.tile(np.repeat([0.0, 0.5, 1.0], 2), (2, 1))
    drawn = np.asarray(heatmap(values, image_size=(480, 480)).draw(image, legend=False)).astype(float)
    for column, level in ((5, 0.0), (240, 0.5), (475, 1.0)):
        color = heatmap_colormap()[round(255 * level)].astype(float)
        expected = 90 * (1 - 0.75 * level) + color * 0.75 * level
        np.testing.assert_allclose(drawn[240, column], expected, atol=1)


def test_the_color_bar_shows_color_and_opacity_over_a_checkerboard():
    bar = np.asarray(_color_bar(200, 16)).astype(float)
    assert set(np.unique(bar[:, 0])) == {144, 192}  # transparent: only the checkerboard
    solid = heatmap_colormap()[-1].astype(float)
    for board in (144, 192):
        assert np.isclose(bar[:, -1], 0.25 * board + 0.75 * solid, atol=1).all(-1).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (700, 900)])
def test_images_of_any_shape_are_drawn_with_a_legible_legend(size):
    drawn = heatmap([[0, 1], [2, 3]], image_size=size, score=0.5).draw(Image.new("RGB", size[::-1], "navy"))
    scale = -(-480 // max(size))
    assert drawn.width == max(300, size[1] * scale)
    legend = np.asarray(drawn)[size[0] * scale :]
    assert len(legend) >= 3 * 12
    assert (legend < 60).all(-1).any()  # letters


def test_the_box_of_a_detection_is_drawn():
    image = Image.new("RGB", (60, 40), "gray")
    plain = np.asarray(heatmap(np.zeros((2, 2))).draw(image))
    framed = np.asarray(heatmap(np.zeros((2, 2)), box=(20.0, 10.0, 40.0, 30.0), index=2).draw(image))
    rows, columns = np.nonzero((plain != framed).any(-1))
    assert abs(columns.min() - 20 * 8) < 12
    assert abs(rows.max() - 30 * 8) < 12


def test_a_resized_map_has_the_same_values_on_a_smaller_image():
    window = (140.0, 0.0, 460.0, 400.0)
    large = heatmap(
        [[0, 1], [2, 3]], image_size=(400, 600), extent=window, crop_box=window, box=(200.0, 100.0, 300.0, 300.0)
    )
    small = large.resized(60)
    assert small.image_size == (40, 60)
    assert small.box == pytest.approx((20, 10, 30, 30))
    np.testing.assert_allclose(small.to_image_size(), large.to_image_size()[5::10, 5::10], atol=0.02)
    assert large.resized(4_000).image_size == (400, 600)


def test_the_dictionary_has_values_and_extent():
    plain = heatmap([[0, 1], [2, 3]], score=0.5).to_dict()
    assert plain["values"] == [[0, 1], [2, 3]]
    assert plain["extent"] == [0, 0, 60, 40]
    assert (plain["label"], plain["method"], plain["layer"], plain["score"]) == ("cat", "grad-cam", "stage4", 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((0, 3))}, r"values.*\(0, 3\)"),
        ({"values": np.zeros((1, 2, 3))}, r"values.*\(1, 2, 3\)"),
        ({"values": np.array([[np.nan]])}, "image: values.*finite"),
        ({"values": np.zeros((2, 2)), "crop_box": (5.0, 0.0, 5.0, 9.0)}, r"crop_box.*\(5.0, 0.0, 5.0, 9.0\)"),
    ],
)
def test_invalid_maps_are_rejected(change, message):
    with pytest.raises(ShapeError, match=message):
        heatmap(**change)


def test_an_image_of_another_size_is_rejected():
    with pytest.raises(ShapeError, match=r"60x40.*61x40"):
        heatmap([[1, 2]]).draw(Image.new("RGB", (61, 40)))
