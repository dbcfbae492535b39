"""The preview grid draws annotations at their positions, with images spread over every view."""

from pathlib import Path

import numpy as np
from PIL import Image

from van.datasets.annotations import CLASSES, AnnotatedDataset, Annotation, DatasetView, ImageRecord, SegmentAnnotation
from van.datasets.preview import draw_preview
from van.visualization.drawing import class_color

BAR_PX, MARGIN_PX, SIDE_PX = 22, 8, 480
GRAY = (128, 128, 128)


def save(path: Path, image: Image.Image | np.ndarray) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def preview(tmp_path: Path, *views: DatasetView, max_images: int = 24) -> np.ndarray:
    draw_preview(views, tmp_path / "preview.png", max_images=max_images)
    with Image.open(tmp_path / "preview.png") as grid:
        return np.asarray(grid.convert("RGB")).astype(int)


def view_of(target_type: str, *images: ImageRecord, split: str = "train") -> DatasetView:
    values = (0, 1) if target_type == "semantic" else ()
    dataset = AnnotatedDataset(class_names=("cat", "dog"), category_ids=(1, 2), images=images, mask_values=values)
    return DatasetView(split, target_type, dataset)


def extent(grid: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the pixels of that color in the first tile."""
    tile = grid[MARGIN_PX + BAR_PX :, MARGIN_PX:]
    rows, columns = np.nonzero((tile == color).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_boxes_are_drawn_at_their_positions_in_large_and_small_images(subtests, new_folder):
    for size, scale in [((960, 1920), 0.25), ((480, 480), 1.0), ((60, 120), 4.0), ((97, 480), 1.0)]:
        folder = new_folder()
        with subtests.test(size=str(size), scale=str(scale)):
            rows, columns = size
            path = save(folder / "a.png", Image.new("RGB", (columns, rows), GRAY))
            box = (columns / 2, rows / 2, columns * 3 / 4, rows * 3 / 4)
            annotations = (Annotation(label=1, box=box),)
            grid = preview(
                folder, view_of("boxes", ImageRecord(path=path, name="a.png", id=1, annotations=annotations))
            )
            left, _, right, bottom = extent(grid, class_color(1))
            for drawn, expected in ((left, box[0]), (right, box[2]), (bottom, box[3])):  # the label is above the box
                assert abs(drawn - expected * scale) <= 3


def halves(size: tuple[int, int]) -> np.ndarray:
    values = np.zeros(size, np.uint8)
    values[:, size[1] // 2 :] = 1
    return values


def test_masks_are_drawn_at_their_positions(subtests, new_folder):
    for target_type in ["semantic", "panoptic", "masks"]:
        for size in [(300, 1000), (480, 480), (33, 70)]:
            folder = new_folder()
            with subtests.test(size=str(size), target_type=str(target_type)):
                path = save(folder / "a.png", Image.new("RGB", size[::-1], GRAY))
                values = halves(size)
                stored = np.stack([values + 1, values * 0, values * 0], -1) if target_type == "panoptic" else values
                whole = (size[1] // 2, 0, size[1], size[0])
                segmentation = [[float(n) for n in (whole[0], 0, whole[2], 0, whole[2], whole[3], whole[0], whole[3])]]
                image = ImageRecord(
                    path=path,
                    name="a.png",
                    id=1,
                    mask_path=save(folder / "mask.png", stored),
                    segments=(SegmentAnnotation(id=1, label=0), SegmentAnnotation(id=2, label=1)),
                    annotations=(Annotation(label=1, box=tuple(map(float, whole)), segmentation=segmentation),),
                )
                grid = preview(folder, view_of(target_type, image))
                row = grid[MARGIN_PX + BAR_PX + 40, MARGIN_PX : MARGIN_PX + SIDE_PX]
                inner = {x: tuple(row[x].tolist()) for x in (60, 180, 300, 420)}
                assert inner[60] == inner[180] != inner[300] == inner[420]
                towards = np.array(class_color(1)) - GRAY
                assert (np.array(inner[300]) - GRAY) @ towards > 0


def test_every_view_has_equally_many_images_spread_over_all_of_it(tmp_path):
    images = [
        ImageRecord(path=save(tmp_path / f"{n}.png", Image.new("RGB", (480, 100), (n, 200, 0))), name=str(n), id=n)
        for n in range(100)
    ]
    views = [view_of("boxes", *images), view_of("boxes", *images[:2], split="val")]
    grid = preview(tmp_path, *views, max_images=12)
    green = grid[(grid[..., 1] == 200) & (grid[..., 2] == 0)]
    assert np.unique(green[:, 0]).tolist() == [0, 1, 16, 32, 48, 64, 80]  # six of the first view, both of the second
    assert grid.shape[0] == MARGIN_PX + 2 * (100 + BAR_PX + MARGIN_PX)


def test_unreadable_images_are_replaced_by_the_next(tmp_path):
    (tmp_path / "0.png").write_text("no image")
    save(tmp_path / "1.png", Image.new("RGB", (480, 100), (1, 200, 0)))
    images = [ImageRecord(path=tmp_path / f"{n}.png", name=str(n), id=n) for n in range(3)]
    grid = preview(tmp_path, view_of("boxes", *images), max_images=1)
    assert ((grid == (1, 200, 0)).all(-1)).sum() == 480 * 100


def test_boxes_are_not_drawn_separately_where_there_are_masks(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (480, 100), GRAY))
    image = ImageRecord(path=path, name="a.png", id=1, annotations=(Annotation(label=0, box=(9, 9, 99, 99)),))
    both = preview(tmp_path, view_of("boxes", image), view_of("masks", image))
    assert both.shape[1] == SIDE_PX + 2 * MARGIN_PX
    val = preview(tmp_path, view_of("boxes", image, split="val"), view_of("masks", image))
    assert val.shape[1] == 2 * SIDE_PX + 3 * MARGIN_PX


def test_images_of_class_folders_are_upscaled_with_their_class_as_caption(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (8, 8), GRAY))
    image = ImageRecord(path=path, name="dog/a.png", id=1, annotations=(Annotation(label=1, box=(0, 0, 0, 0)),))
    grid = preview(tmp_path, view_of(CLASSES, image))
    assert (grid[MARGIN_PX + BAR_PX : -MARGIN_PX, MARGIN_PX:-MARGIN_PX] == GRAY).all()
    caption = grid[MARGIN_PX : MARGIN_PX + BAR_PX]
    assert (caption.sum(-1) < 100).sum() > 50


def test_preview_without_images_is_drawn(tmp_path):
    assert preview(tmp_path).size > 0
