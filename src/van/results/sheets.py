"""Pictures put together: in a row, in rows, or in a table whose columns have names.

Shapes: pictures of any size; sizes are in pixels.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.results.drawing import font, shortened

_MARGIN_PX = 8
_FONT_PX = 16
_GREY = "#777777"


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in one row on white, their upper edges in line.

    Raises:
        ShapeError: there is none.
    """
    if not pictures:
        raise ShapeError("there are no pictures to put in a row; wanted at least one")
    width = sum(picture.width for picture in pictures) + _MARGIN_PX * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + _MARGIN_PX
    return sheet


def table(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures in rows, each column as wide as its widest picture, under the title of the column.

    Raises:
        ShapeError: there is no row, or one has not a picture for each title.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        counts = ", ".join(str(len(row)) for row in rows) or "none"
        raise ShapeError(f"rows have {counts} pictures for {len(titles)} titles; wanted one for each title")
    widths = [max(picture.width for picture in column) for column in zip(*rows, strict=True)]
    heights = [max(picture.height for picture in row) for row in rows]
    letters, title_px = font(_FONT_PX), 2 * _FONT_PX
    size = (
        sum(widths) + _MARGIN_PX * (len(widths) + 1),
        title_px + sum(heights) + _MARGIN_PX * (len(heights) + 1),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = _MARGIN_PX
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        text = shortened(title, width, letters)
        draw.text((left + width / 2, (_MARGIN_PX + title_px) / 2), text, fill="black", font=letters, anchor="mm")
        top = title_px + _MARGIN_PX
        for row, height in zip(rows, heights, strict=True):
            sheet.paste(row[column], (left, top))
            top += height + _MARGIN_PX
        left += width + _MARGIN_PX
    return sheet


def draw_contact_sheet(
    pictures: Iterable[Image.Image], path: Path, *, columns: int = 6, margin_px: int = _MARGIN_PX
) -> None:
    """Pictures in rows on a white sheet; without any, the sheet says so."""
    tiles = list(pictures) or [_note("no pictures")]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = max(sum(tile.width + margin_px for tile in row) for row in rows) + margin_px
    height = sum(max(tile.height for tile in row) + margin_px for row in rows) + margin_px
    sheet = Image.new("RGB", (width, height), "white")
    top = margin_px
    for row in rows:
        left = margin_px
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width + margin_px
        top += max(tile.height for tile in row) + margin_px
    sheet.save(path, format="png")


def _note(text: str) -> Image.Image:
    tile = Image.new("RGB", (160, 40), "white")
    ImageDraw.Draw(tile).text((80, 20), text, fill=_GREY, font=font(_FONT_PX), anchor="mm")
    return tile
