"""Some pictures of a data set with everything that is marked in them, to be looked at before training.

Shapes: sizes (rows, columns); boxes x1, y1, x2, y2 in pixels; maps and masks (H, W).
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from van.data.coco import read_panoptic_ids
from van.data.maps import load_map
from van.data.marks import Marked, MarkedPicture
from van.data.offers import CLASSES, Offer
from van.errors import DataError, PictureError
from van.pictures import read_picture
from van.results.boxes import Boxes, FoundThing
from van.results.drawing import font, shortened
from van.results.masks import NOTHING, Masks, Region
from van.results.sheets import draw_contact_sheet

_SIDE_PX = 480
_COLUMNS = 4
_CAPTION_PX = 14


def draw_offers(offers: Sequence[Offer], path: Path, *, most: int = 24) -> None:
    """Draw up to ``most`` pictures onto one sheet, of each offer as many, from all over it; unreadable ones are not.

    Args:
        offers: what a set can be read as.
        path: a PNG.
    """
    outlined = {offer.part for offer in offers if offer.kind == "masks"}
    offers = [offer for offer in offers if offer.kind != "boxes" or offer.part not in outlined]  # masks show boxes, too
    tiles: list[Image.Image] = []
    for place, offer in enumerate(offers):
        share = (most - len(tiles)) // (len(offers) - place)
        tiles += itertools.islice(_drawn(offer, spread=max(1, share)), share)
    draw_contact_sheet(tiles, path, columns=_COLUMNS)


def _drawn(offer: Offer, *, spread: int) -> Iterator[Image.Image]:
    """Pictures with their marks: first ``spread`` of them from all over the offer, then those between."""
    pictures = offer.marked.pictures
    step = max(1, len(pictures) // spread)
    for place in sorted(range(len(pictures)), key=lambda place: (place % step, place)):
        said = pictures[place]
        try:
            picture = read_picture(said.path)
            tile = _with_marks(offer.kind, offer.marked, said, picture)
        except (PictureError, DataError):
            continue
        caption = f"{offer.part}, {offer.kind}: {said.name}"
        if offer.kind == CLASSES:
            caption = f"{offer.part}, {offer.marked.labels[said.marks[0].label]}: {said.name}"
        yield _captioned(tile, caption)


def _with_marks(kind: str, marked: Marked, said: MarkedPicture, picture: Image.Image) -> Image.Image:
    size = (picture.height, picture.width)
    scale = min(1.0, _SIDE_PX / max(size))
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    picture = picture.resize(small[::-1], Image.Resampling.BOX)
    if kind == CLASSES:
        larger = max(1, _SIDE_PX // max(small))
        return picture.resize((small[1] * larger, small[0] * larger), Image.Resampling.NEAREST)
    if kind == "map":
        assert said.map_path is not None
        labels = _fitting(load_map(said.map_path, marked.map_values), size, small)
        regions = [Region(index, marked.labels[index], index) for index in np.unique(labels).tolist() if index >= 0]
        return Masks(labels=marked.labels, ids=labels.astype(np.int32), regions=tuple(regions)).draw(picture)
    if kind == "panoptic":
        assert said.map_path is not None
        ids = _fitting(read_panoptic_ids(said.map_path), size, small)
        regions = [Region(segment.id, marked.labels[segment.label], segment.label) for segment in said.segments]
        ids = np.where(np.isin(ids, [region.id for region in regions]), ids, NOTHING)
        return Masks(labels=marked.labels, ids=ids, regions=tuple(regions), panoptic=True).draw(picture)
    down, right = small[0] / size[0], small[1] / size[1]
    found = []
    for mark in said.marks:
        x1, y1, x2, y2 = mark.box
        mask = _fitting(mark.mask(size), size, small) if kind == "masks" and mark.outline is not None else None
        found.append(
            FoundThing(marked.labels[mark.label], mark.label, 1.0, (x1 * right, y1 * down, x2 * right, y2 * down), mask)
        )
    return Boxes(labels=marked.labels, found=tuple(found), size=small).draw(picture, scores=False)


def _fitting(values: np.ndarray, size: tuple[int, int], small: tuple[int, int]) -> np.ndarray:
    """A map or mask of a picture of ``size``, made as small as the picture; each pixel is the one in its middle."""
    if values.shape != size:
        raise DataError(f"the map is {values.shape}, its picture {size}")
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(small, size, strict=True))
    return values[np.ix_(rows, columns)]


def _captioned(tile: Image.Image, caption: str) -> Image.Image:
    letters = font(_CAPTION_PX)
    bar_px = round(1.6 * _CAPTION_PX)
    sheet = Image.new("RGB", (max(tile.width, _SIDE_PX), tile.height + bar_px), "white")
    sheet.paste(tile, (0, bar_px))
    text = shortened(caption, sheet.width, letters)
    ImageDraw.Draw(sheet).text((0, bar_px / 2), text, fill="black", font=letters, anchor="lm")
    return sheet
