"""An answer for every pixel: plain as JSON, the same when its PNG is read again, and drawn with labels that fit."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.data.digits import LABELS
from van.data.scenes import Scene, digit_scenes
from van.errors import ShapeError
from van.results import Masks, Region
from van.results.drawing import blend, class_colour, magnified


def semantic(ids: np.ndarray, labels: int | tuple[str, ...] = 3, **others) -> Masks:
    names = tuple(f"class {n}" for n in range(labels)) if isinstance(labels, int) else labels
    present = [int(value) for value in np.unique(ids) if value >= 0]
    return Masks(
        labels=names, ids=ids, regions=tuple(Region(index, names[index], index) for index in present), **others
    )


def panoptic(ids: np.ndarray, *, labels: int = 3) -> Masks:
    present = [int(value) for value in np.unique(ids) if value >= 0]
    regions = [Region(value, f"class {value % labels}", value % labels, 0.9, True) for value in present]
    return Masks(labels=tuple(f"class {n}" for n in range(labels)), ids=ids, regions=tuple(regions), panoptic=True)


def scene_answer(scene: Scene) -> Masks:
    return semantic(scene.semantic_map().astype(np.int64), ("ground", *LABELS))


def read_again(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, format="png")
    return Image.open(file)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_answer_is_plain_json_with_the_pixels_of_every_region():
    ids = np.zeros((4, 5), np.int64)
    ids[:2] = 7
    ids[3, 4] = -1
    regions = (Region(7, "b", 1, np.float32(0.5), True), Region(0, "a", 0), Region(2, "c", 2))
    with pytest.raises(ShapeError, match="the id of region 'b' is 7; wanted 0 to 2"):
        Masks(labels=tuple("abc"), ids=ids, regions=regions)
    ids[ids == 0] = 9
    regions = (Region(7, "b", np.int64(1), np.float32(0.5), True), Region(9, "a", 0), Region(2, "c", 2))
    record = Masks(labels=tuple("abc"), ids=ids, regions=regions, name="x.png", panoptic=True).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record == {
        "picture": "x.png",
        "width": 5,
        "height": 4,
        "regions": [
            {"id": 7, "label": "b", "index": 1, "score": 0.5, "pixels": 10, "share": 0.5},
            {"id": 9, "label": "a", "index": 0, "score": None, "pixels": 9, "share": 0.45},
            {"id": 2, "label": "c", "index": 2, "score": None, "pixels": 0, "share": 0.0},
        ],
    }


@pytest.mark.parametrize("labels", [3, 16, 17, 254, 255])
def test_class_indices_come_back_from_a_palette_in_the_colours_of_the_drawing(labels):
    ids = np.random.default_rng(0).integers(-1, labels, (61, 47))
    ids[0, :3] = (-1, 0, labels - 1)
    picture = read_again(semantic(ids, labels).to_picture())
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), np.where(ids < 0, 255, ids))
    colours = np.asarray(picture.convert("RGB"))
    for index in (0, labels // 2, labels - 1):
        assert (colours[ids == index] == class_colour(index)).all()
    assert (colours[ids < 0] == 0).all()


@pytest.mark.parametrize("labels", [256, 21_841])
def test_class_indices_above_255_come_back_from_16_bits(labels):
    ids = np.random.default_rng(0).integers(-1, labels, (31, 47))
    ids[0, :3] = (-1, 0, labels - 1)
    picture = read_again(semantic(ids, labels).to_picture())
    assert picture.mode.startswith("I")
    assert np.array_equal(np.asarray(picture).astype(int), np.where(ids < 0, 65_535, ids))


def test_more_classes_than_a_picture_has_numbers_for_are_refused():
    with pytest.raises(ShapeError, match="65536 labels; a picture of 16 bits has numbers for 65535"):
        semantic(np.zeros((2, 2), int), 65_536).to_picture()


def test_panoptic_ids_come_back_from_the_colours():
    ids = np.array([[1, 255, 256, 257], [65_535, 65_536, 256**3 - 1, -1]])
    picture = read_again(panoptic(ids).to_picture())
    assert picture.mode == "RGB"
    red, green, blue = np.moveaxis(np.asarray(picture).astype(int), -1, 0)
    assert np.array_equal(red + 256 * green + 65_536 * blue, np.where(ids < 0, 0, ids))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 300), st.integers(0, 99))
def test_any_map_comes_back_whole(rows, columns, labels, seed):
    ids = np.random.default_rng(seed).integers(-1, labels, (rows, columns))
    answer = semantic(ids, labels)
    back = np.asarray(read_again(answer.to_picture())).astype(int)
    assert np.array_equal(np.where(back == (255 if labels <= 255 else 65_535), -1, back), ids)
    shares = sum(region["share"] for region in answer.to_dict()["regions"])
    assert shares == pytest.approx((ids >= 0).mean())


@pytest.mark.parametrize(
    ("ids", "regions", "panoptic", "message"),
    [
        (np.zeros((2, 2)), (Region(0, "a", 0),), False, r"ids are float64 \(2, 2\); wanted a whole number"),
        (np.zeros((2, 2), bool), (Region(0, "a", 0),), False, r"ids are bool \(2, 2\)"),
        (np.zeros((2, 2, 3), int), (Region(0, "a", 0),), False, r"ids are int64 \(2, 2, 3\)"),
        (np.zeros((0, 2), int), (), False, r"ids are int64 \(0, 2\)"),
        (np.ones((2, 2), int), (Region(0, "a", 0),), False, r"ids \[1\] have no region"),
        (
            np.full((2, 2), -2),
            (Region(0, "a", 0),),
            False,
            r"ids \[-2\] have no region; wanted those of regions, or -1",
        ),
        (np.zeros((2, 2), int), (Region(0, "a", 0), Region(0, "a", 0)), False, r"region ids are \[0, 0\]; wanted each"),
        (np.zeros((2, 2), int), (Region(0, "a", 1),), False, "the id of region 'a' is 0; wanted its class's, 1"),
        (np.zeros((2, 2), int), (Region(0, "a", 5),), False, "the index of region 0 is 5; wanted 0 to 1"),
        (np.zeros((2, 2), int), (Region(0, "a", 0),), True, "the id of region 'a' is 0; wanted 1 to 16777215"),
        (np.full((2, 2), 256**3), (Region(256**3, "a", 0),), True, "is 16777216; wanted 1 to 16777215"),
        (np.zeros((2, 2), int), (Region(0, "a", 0, float("nan")),), False, "the score of region 0 is nan; wanted 0 to"),
        (np.zeros((2, 2), int), (Region(0, "a", 0, 1.5),), False, "the score of region 0 is 1.5; wanted 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(ids, regions, panoptic, message):
    with pytest.raises(ShapeError, match=message):
        Masks(labels=("a", "b"), ids=ids, regions=regions, panoptic=panoptic)


def test_ids_of_any_whole_type_are_taken():
    for kind in (np.uint8, np.int16, np.uint16, np.int64, np.uint64):
        assert semantic(np.ones((2, 3), kind)).ids.dtype == np.int32


def test_every_region_lies_under_its_colour_with_an_outline_and_nothing_else_does():
    """Three bands in a picture of 600x480, where the lower says nothing; the labels cover a few per cent."""
    ids = np.zeros((480, 600), int)
    ids[160:320], ids[320:] = 2, -1
    picture = noise(600, 480)
    before, drawn = np.asarray(picture), np.asarray(semantic(ids).draw(picture))[:480]
    for index, rows in ((0, np.s_[5:155]), (2, np.s_[165:315])):
        expected = blend(before[rows], class_colour(index))
        assert (drawn[rows] == expected).all(-1).mean() > 0.95
        assert (drawn[rows] == blend(before[rows], class_colour(1))).all(-1).mean() < 0.01, "the control"
    assert (drawn[159] == class_colour(0)).all()
    assert (drawn[[160, 319]] == class_colour(2)).all()
    assert np.array_equal(drawn[320:], before[320:])


def test_the_label_of_a_region_that_is_hollow_lies_within_it():
    """A letter C, whose own middle is outside; its label is found by its solid colour."""
    ids = np.zeros((480, 600), int)
    ids[60:420, 80:520] = 1
    ids[150:330, 180:] = 0
    drawn = np.asarray(semantic(ids, ("ground", "letter")).draw(noise(600, 480)))[:480]
    solid = (drawn == class_colour(1)).all(-1)
    lines = np.flatnonzero(solid.sum(1) > 30)
    lines = lines[(lines > 70) & (lines < 140) | (lines > 340) & (lines < 410) | (lines > 160) & (lines < 320)]
    assert len(lines) > 8
    columns = np.flatnonzero(solid[lines[len(lines) // 2]])
    assert (ids[lines[len(lines) // 2], columns] == 1).mean() > 0.9


def test_the_legend_names_the_classes_that_are_there_largest_first_and_no_other():
    ids = np.zeros((480, 600), int)
    ids[:300], ids[300:302] = 3, -1
    sheet = np.asarray(semantic(ids, 5).draw(noise(600, 480)))
    legend = sheet[480:]
    assert legend.shape[1] == 600
    places = [np.argwhere((legend == class_colour(index)).all(-1)) for index in (3, 0)]
    assert all(len(place) > 100 for place in places)
    assert places[0][:, 1].max() < places[1][:, 1].min()
    for absent in (1, 2, 4):
        assert not (legend == class_colour(absent)).all(-1).any()


def test_a_legend_of_very_many_classes_ends():
    ids = np.arange(150).repeat(40).reshape(60, 100)
    sheet = semantic(ids, 150).draw(noise(100, 60))
    assert sheet.width == 500
    assert sheet.height < 300 + 42 * 22


def test_the_map_of_a_scene_is_drawn_where_its_digits_are():
    for scene in digit_scenes("val", count=5, seed=2):
        drawn = np.asarray(scene_answer(scene).draw(scene.picture))[:512]
        before = magnified(np.asarray(scene.picture), 4)
        seen = magnified(scene.semantic_map(), 4)
        for index in np.unique(seen).tolist():
            colour = np.array(class_colour(index))
            right = (drawn == blend(before, class_colour(index))).all(-1) | (drawn == colour).all(-1)
            assert right[seen == index].mean() > 0.6  # the rest is labels, here of hardly more than their digits
            assert right[seen != index].mean() < 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (10_000, 100), (128, 128), (100, 3000)], ids=str)
@pytest.mark.parametrize("make", [semantic, panoptic])
def test_pictures_of_any_size_are_drawn(make, size):
    width, height = size
    ids = 1 + np.arange(width * height).reshape(height, width) * 2 // (width * height)
    sheet = make(ids).draw(noise(width, height))
    scale = -(-480 // max(size))
    assert sheet.width >= max(240 if height <= 1.25 * width else 0, width * scale)
    assert sheet.height >= height * scale
    assert (np.asarray(sheet) == class_colour(1)).all(-1).any()


@pytest.mark.parametrize(
    "label", ["", "x" * 5000, "two\nlines", "\udce9\x00", "犬🐶", "\u202eright to left"], ids=ascii
)
def test_labels_of_any_kind_are_drawn(label):
    sheet = semantic(np.zeros((20, 30), int), (label,)).draw(noise(30, 20))
    assert sheet.width == 480
    assert np.asarray(sheet)[320:, -1].min() == 255


def test_an_answer_that_says_nothing_leaves_the_picture_as_it_is():
    picture = noise(600, 500)
    answer = semantic(np.full((500, 600), -1))
    assert np.array_equal(np.asarray(answer.draw(picture))[:500], np.asarray(picture))
    assert answer.to_dict()["regions"] == []


def test_drawing_is_the_same_twice_and_leaves_picture_and_answer_alone():
    (scene,) = digit_scenes("val", count=1)
    answer, before = scene_answer(scene), scene.picture.tobytes()
    ids = answer.ids.copy()
    assert answer.draw(scene.picture).tobytes() == answer.draw(scene.picture).tobytes()
    assert scene.picture.tobytes() == before
    assert np.array_equal(answer.ids, ids)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="picture is 20x30, the answer is about one of 30x20"):
        semantic(np.zeros((20, 30), int)).draw(Image.new("RGB", (20, 30)))
