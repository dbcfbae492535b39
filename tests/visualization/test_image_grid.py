"""Grids and tables have every image at its place, with titles."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from van.errors import ShapeError
from van.visualization.image_grid import concat_horizontally, draw_image_grid, image_table


def read(path: Path) -> np.ndarray:
    """Return the pixels (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def tile(width: int, height: int, color: str) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def test_a_grid_without_images_is_a_note(tmp_path):
    draw_image_grid([], tmp_path / "a")
    assert read(tmp_path / "a").shape[:2] == (56, 176)


def test_a_grid_of_one_image_is_the_image_with_a_margin(tmp_path):
    draw_image_grid([tile(40, 30, "red")], tmp_path / "a")
    image = read(tmp_path / "a")
    assert image.shape[:2] == (30 + 16, 40 + 16)
    assert (image[8:38, 8:48] == (255, 0, 0)).all()


def test_a_grid_has_every_image_in_order(tmp_path):
    grays = [3 * n for n in range(50)]
    draw_image_grid((tile(20, 10 + n % 3, (gray, 0, 0)) for n, gray in enumerate(grays)), tmp_path / "a", columns=6)
    image = read(tmp_path / "a")
    assert image.shape[1] == 6 * 28 + 8
    top, found = 8, []
    for row in range(9):
        found += [int(image[top, 8 + 28 * column + 5, 0]) for column in range(min(6, 50 - 6 * row))]
        top += max(10 + n % 3 for n in range(6 * row, min(6 * row + 6, 50))) + 8
    assert found == grays
    assert image.shape[0] == top
    assert (image[image.shape[0] - 12, -30:] == 255).all()  # after the last image the sheet is empty


def test_the_same_images_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        draw_image_grid([tile(9, 9, "red")] * 3, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def text_columns(image: Image.Image, rows: slice) -> np.ndarray:
    """Columns with dark pixels in the given rows."""
    return np.flatnonzero((np.asarray(image.convert("L"))[rows] < 100).any(axis=0))


def test_a_table_has_each_image_in_its_row_and_column_and_blank_cells():
    red, blue = tile(40, 30, "red"), tile(60, 50, "blue")
    table = np.asarray(image_table(["a", "b"], [[red, blue], [None, red]]))
    assert table.shape == (32 + 50 + 30 + 24, 40 + 60 + 24, 3)
    assert (table[40:70, 8:48] == (255, 0, 0)).all()
    assert (table[40:90, 56:116] == (0, 0, 255)).all()
    assert (table[98:128, 56:96] == (255, 0, 0)).all()
    assert (table[98:128, 8:48] == 255).all()


def test_row_titles_are_left_of_the_images_and_column_titles_above():
    rows = [[tile(80, 60, "white")], [tile(80, 60, "white")]]
    plain = image_table(["name"], rows)
    titled = image_table(["name"], rows, row_titles=["cat.png", "a" * 200])
    extra = titled.width - plain.width
    assert 100 < extra <= 208  # a long title is truncated
    for top in (40, 108):
        columns = text_columns(titled, slice(top, top + 60))
        assert len(columns)
        assert columns.max() < extra
    assert text_columns(titled, slice(0, 36)).min() > extra
    np.testing.assert_array_equal(np.asarray(titled)[:, extra:][:, 8:], np.asarray(plain)[:, 8:])


@pytest.mark.parametrize(
    ("rows", "row_titles", "message"),
    [
        ([], (), "rows.*2.*no rows"),
        ([[tile(2, 2, "red")]], (), "rows.*2.*1"),
        ([[tile(2, 2, "red")] * 2], ("a", "b"), "row_titles.*1.*2"),
    ],
)
def test_rows_and_titles_that_do_not_fit_are_rejected(rows, row_titles, message):
    with pytest.raises(ShapeError, match=message):
        image_table(["a", "b"], rows, row_titles=row_titles)


def test_images_are_concatenated_from_left_to_right():
    row = np.asarray(concat_horizontally([tile(4, 3, "red"), tile(2, 5, "blue")]))
    assert row.shape == (5, 4 + 8 + 2, 3)
    assert (row[:3, :4] == (255, 0, 0)).all()
    assert (row[:, -2:] == (0, 0, 255)).all()
    with pytest.raises(ShapeError, match=r"images.*0"):
        concat_horizontally([])
