"""Sheets hold every picture, in order and in its place."""

from pathlib import Path

import numpy as np
from PIL import Image

from van.results.sheets import draw_contact_sheet


def read(path: Path) -> np.ndarray:
    """(rows, columns, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def tile(width: int, height: int, colour: str) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_a_contact_sheet_without_pictures_says_so(tmp_path):
    draw_contact_sheet([], tmp_path / "a")
    assert read(tmp_path / "a").shape[:2] == (56, 176)


def test_a_contact_sheet_of_one_is_the_picture_with_a_margin(tmp_path):
    draw_contact_sheet([tile(40, 30, "red")], tmp_path / "a")
    picture = read(tmp_path / "a")
    assert picture.shape[:2] == (30 + 16, 40 + 16)
    assert (picture[8:38, 8:48] == (255, 0, 0)).all()


def test_a_contact_sheet_holds_every_picture_in_order(tmp_path):
    greys = [3 * n for n in range(50)]
    draw_contact_sheet((tile(20, 10 + n % 3, (grey, 0, 0)) for n, grey in enumerate(greys)), tmp_path / "a", columns=6)
    picture = read(tmp_path / "a")
    assert picture.shape[1] == 6 * 28 + 8
    top, seen = 8, []
    for row in range(9):
        seen += [int(picture[top, 8 + 28 * column + 5, 0]) for column in range(min(6, 50 - 6 * row))]
        top += max(10 + n % 3 for n in range(6 * row, min(6 * row + 6, 50))) + 8
    assert seen == greys
    assert picture.shape[0] == top
    assert (picture[picture.shape[0] - 12, -30:] == 255).all()  # after the last picture the sheet is empty


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        draw_contact_sheet([tile(9, 9, "red")] * 3, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
