"""The contact sheet shows marks where they are, of every offer and from all over it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from van.data.contact_sheet import draw_offers
from van.data.marks import Mark, Marked, MarkedPicture, Segment
from van.data.offers import CLASSES, Offer
from van.results.drawing import class_colour

BAR_PX, MARGIN_PX, SIDE_PX = 22, 8, 480
GREY = (128, 128, 128)


def save(path: Path, picture: Image.Image | np.ndarray) -> Path:
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


def sheet_of(tmp_path: Path, *offers: Offer, most: int = 24) -> np.ndarray:
    draw_offers(offers, tmp_path / "sheet.png", most=most)
    with Image.open(tmp_path / "sheet.png") as sheet:
        return np.asarray(sheet.convert("RGB")).astype(int)


def offer_of(kind: str, *pictures: MarkedPicture, part: str = "train") -> Offer:
    values = (0, 1) if kind == "map" else ()
    return Offer(part, kind, Marked(labels=("cat", "dog"), category_ids=(1, 2), pictures=pictures, map_values=values))


def extent(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The smallest rectangle that holds every pixel of that colour in the first tile: left, top, right, bottom."""
    tile = sheet[MARGIN_PX + BAR_PX :, MARGIN_PX:]
    rows, columns = np.nonzero((tile == colour).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(
    ("size", "scale"), [((960, 1920), 0.25), ((480, 480), 1.0), ((60, 120), 4.0), ((97, 480), 1.0)]
)
def test_boxes_lie_where_they_are_in_large_and_in_small_pictures(tmp_path, size, scale):
    rows, columns = size
    path = save(tmp_path / "a.png", Image.new("RGB", (columns, rows), GREY))
    box = (columns / 2, rows / 2, columns * 3 / 4, rows * 3 / 4)
    marks = (Mark(label=1, box=box),)
    sheet = sheet_of(tmp_path, offer_of("boxes", MarkedPicture(path=path, name="a.png", number=1, marks=marks)))
    left, _, right, bottom = extent(sheet, class_colour(1))
    for seen, wanted in ((left, box[0]), (right, box[2]), (bottom, box[3])):  # the label stands above
        assert abs(seen - wanted * scale) <= 3


def halves(size: tuple[int, int]) -> np.ndarray:
    values = np.zeros(size, np.uint8)
    values[:, size[1] // 2 :] = 1
    return values


@pytest.mark.parametrize("size", [(300, 1000), (480, 480), (33, 70)])
@pytest.mark.parametrize("kind", ["map", "panoptic", "masks"])
def test_maps_and_masks_keep_their_sides(tmp_path, kind, size):
    path = save(tmp_path / "a.png", Image.new("RGB", size[::-1], GREY))
    values = halves(size)
    stored = np.stack([values + 1, values * 0, values * 0], -1) if kind == "panoptic" else values
    whole = (size[1] // 2, 0, size[1], size[0])
    outline = [[float(n) for n in (whole[0], 0, whole[2], 0, whole[2], whole[3], whole[0], whole[3])]]
    picture = MarkedPicture(
        path=path,
        name="a.png",
        number=1,
        map_path=save(tmp_path / "map.png", stored),
        segments=(Segment(id=1, label=0), Segment(id=2, label=1)),
        marks=(Mark(label=1, box=tuple(map(float, whole)), outline=outline),),
    )
    sheet = sheet_of(tmp_path, offer_of(kind, picture))
    row = sheet[MARGIN_PX + BAR_PX + 40, MARGIN_PX : MARGIN_PX + SIDE_PX]
    inner = {place: tuple(row[place].tolist()) for place in (60, 180, 300, 420)}
    assert inner[60] == inner[180] != inner[300] == inner[420]
    towards = np.array(class_colour(1)) - GREY
    assert (np.array(inner[300]) - GREY) @ towards > 0


def test_each_offer_has_its_share_spread_over_all_of_it_and_no_more(tmp_path):
    pictures = [
        MarkedPicture(
            path=save(tmp_path / f"{n}.png", Image.new("RGB", (480, 100), (n, 200, 0))), name=str(n), number=n
        )
        for n in range(100)
    ]
    offers = [offer_of("boxes", *pictures), offer_of("boxes", *pictures[:2], part="val")]
    sheet = sheet_of(tmp_path, *offers, most=12)
    green = sheet[(sheet[..., 1] == 200) & (sheet[..., 2] == 0)]
    assert np.unique(green[:, 0]).tolist() == [0, 1, 16, 32, 48, 64, 80]  # six of the first, both of the second
    assert sheet.shape[0] == MARGIN_PX + 2 * (100 + BAR_PX + MARGIN_PX)


def test_what_cannot_be_read_makes_room_for_the_next(tmp_path):
    (tmp_path / "0.png").write_text("no picture")
    save(tmp_path / "1.png", Image.new("RGB", (480, 100), (1, 200, 0)))
    pictures = [MarkedPicture(path=tmp_path / f"{n}.png", name=str(n), number=n) for n in range(3)]
    sheet = sheet_of(tmp_path, offer_of("boxes", *pictures), most=1)
    assert ((sheet == (1, 200, 0)).all(-1)).sum() == 480 * 100


def test_outlines_are_shown_instead_of_boxes_alone(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (480, 100), GREY))
    picture = MarkedPicture(path=path, name="a.png", number=1, marks=(Mark(label=0, box=(9, 9, 99, 99)),))
    both = sheet_of(tmp_path, offer_of("boxes", picture), offer_of("masks", picture))
    assert both.shape[1] == SIDE_PX + 2 * MARGIN_PX
    val = sheet_of(tmp_path, offer_of("boxes", picture, part="val"), offer_of("masks", picture))
    assert val.shape[1] == 2 * SIDE_PX + 3 * MARGIN_PX


def test_pictures_of_class_folders_are_enlarged_under_their_class(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (8, 8), GREY))
    picture = MarkedPicture(path=path, name="dog/a.png", number=1, marks=(Mark(label=1, box=(0, 0, 0, 0)),))
    sheet = sheet_of(tmp_path, offer_of(CLASSES, picture))
    assert (sheet[MARGIN_PX + BAR_PX : -MARGIN_PX, MARGIN_PX:-MARGIN_PX] == GREY).all()
    caption = sheet[MARGIN_PX : MARGIN_PX + BAR_PX]
    assert (caption.sum(-1) < 100).sum() > 50


def test_a_sheet_of_nothing_says_so(tmp_path):
    assert sheet_of(tmp_path).size > 0
