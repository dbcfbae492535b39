"""Grids of images: side by side, wrapped into rows, or as a table with row and column titles.

Shapes: images of any size; sizes are in pixels.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.visualization.drawing import load_font, strip_unprintable, truncate_text

_MARGIN_PX = 8
_FONT_PX = 16
_MAX_ROW_TITLE_PX = 200
_GRAY = "#777777"


def concat_horizontally(images: Sequence[Image.Image]) -> Image.Image:
    """Return the images in one row on white, aligned at their upper edges.

    Raises:
        ShapeError: there are no images.
    """
    if not images:
        raise ShapeError("images: expected at least 1, got 0")
    width = sum(image.width for image in images) + _MARGIN_PX * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + _MARGIN_PX
    return sheet


def image_table(
    column_titles: Sequence[str],
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """Return the images as a table: a title above each column and, if given, one to the left of each row.

    Each column is as wide as its widest image; cells without an image stay white.

    Raises:
        ShapeError: there is no row, a row does not have an image for each column, or rows and their titles differ
            in number.
    """
    if not rows or any(len(row) != len(column_titles) for row in rows):
        counts = ", ".join(str(len(row)) for row in rows) or "no rows"
        raise ShapeError(f"rows: expected {len(column_titles)} images in each row, one per column title, got {counts}")
    if row_titles and len(row_titles) != len(rows):
        raise ShapeError(f"row_titles: expected {len(rows)}, one per row, got {len(row_titles)}")
    widths = [max((image.width for image in column if image), default=0) for column in zip(*rows, strict=True)]
    heights = [max((image.height for image in row if image), default=0) for row in rows]
    font, title_px = load_font(_FONT_PX), 2 * _FONT_PX
    # Row titles are file names: the column is as wide as the longest, within reason.
    lengths = [round(font.getlength(strip_unprintable(title))) + 1 for title in row_titles]
    row_title_px = min(max(lengths, default=-_MARGIN_PX), _MAX_ROW_TITLE_PX) + _MARGIN_PX
    size = (
        row_title_px + sum(widths) + _MARGIN_PX * (len(widths) + 1),
        title_px + sum(heights) + _MARGIN_PX * (len(heights) + 1),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    tops = [title_px + _MARGIN_PX * (row + 1) + sum(heights[:row]) for row in range(len(rows))]
    for title, top, height in zip(row_titles, tops, heights, strict=bool(row_titles)):
        text = truncate_text(title, row_title_px - _MARGIN_PX, font)
        draw.text((_MARGIN_PX, top + height / 2), text, fill="black", font=font, anchor="lm")
    left = row_title_px + _MARGIN_PX
    for column, (title, width) in enumerate(zip(column_titles, widths, strict=True)):
        text = truncate_text(title, width, font)
        draw.text((left + width / 2, (_MARGIN_PX + title_px) / 2), text, fill="black", font=font, anchor="mm")
        for row, top in zip(rows, tops, strict=True):
            if (image := row[column]) is not None:
                sheet.paste(image, (left, top))
        left += width + _MARGIN_PX
    return sheet


def draw_image_grid(
    images: Iterable[Image.Image], path: Path, *, columns: int = 6, margin_px: int = _MARGIN_PX
) -> None:
    """Write the images, wrapped into rows on a white sheet, as PNG; without images the sheet has a note."""
    tiles = list(images) or [_note("no images")]
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
    ImageDraw.Draw(tile).text((80, 20), text, fill=_GRAY, font=load_font(_FONT_PX), anchor="mm")
    return tile
