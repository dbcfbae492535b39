"""Segmentation: arrays, JSON values, PNG round trips, and drawings with labels that fit."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.datasets.digits import LABELS
from van.datasets.scenes import Scene, generate_digit_scenes
from van.errors import ShapeError
from van.predictions import Segment, Segmentation
from van.visualization.drawing import blend, class_color, repeat_pixels


def semantic(ids: np.ndarray, class_names: int | tuple[str, ...] = 3, **others) -> Segmentation:
    names = tuple(f"class {n}" for n in range(class_names)) if isinstance(class_names, int) else class_names
    present = [int(value) for value in np.unique(ids) if value >= 0]
    return Segmentation(
        class_names=names,
        segment_ids=ids,
        segments=tuple(Segment(index, names[index], index) for index in present),
        **others,
    )


def panoptic(ids: np.ndarray, *, class_names: int = 3) -> Segmentation:
    present = [int(value) for value in np.unique(ids) if value >= 0]
    segments = [Segment(value, f"class {value % class_names}", value % class_names, 0.9, True) for value in present]
    return Segmentation(
        class_names=tuple(f"class {n}" for n in range(class_names)),
        segment_ids=ids,
        segments=tuple(segments),
        panoptic=True,
    )


def scene_segmentation(scene: Scene) -> Segmentation:
    return semantic(scene.semantic_mask().astype(np.int64), ("background", *LABELS))


def save_and_load(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="png")
    return Image.open(file)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_dictionary_has_the_area_and_fraction_of_every_segment():
    ids = np.zeros((4, 5), np.int64)
    ids[:2] = 7
    ids[3, 4] = -1
    segments = (Segment(7, "b", 1, np.float32(0.5), True), Segment(0, "a", 0), Segment(2, "c", 2))
    with pytest.raises(ShapeError, match=r"'b': id.*0 to 2.*7"):
        Segmentation(class_names=tuple("abc"), segment_ids=ids, segments=segments)
    ids[ids == 0] = 9
    segments = (Segment(7, "b", np.int64(1), np.float32(0.5), True), Segment(9, "a", 0), Segment(2, "c", 2))
    record = Segmentation(
        class_names=tuple("abc"), segment_ids=ids, segments=segments, name="x.png", panoptic=True
    ).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record == {
        "image": "x.png",
        "width": 5,
        "height": 4,
        "segments": [
            {"id": 7, "label": "b", "index": 1, "score": 0.5, "area": 10, "fraction": 0.5},
            {"id": 9, "label": "a", "index": 0, "score": None, "area": 9, "fraction": 0.45},
            {"id": 2, "label": "c", "index": 2, "score": None, "area": 0, "fraction": 0.0},
        ],
    }


def test_class_indices_round_trip_through_a_palette_with_class_colors(subtests):
    for class_names in [3, 16, 17, 254, 255]:
        with subtests.test(class_names=str(class_names)):
            ids = np.random.default_rng(0).integers(-1, class_names, (61, 47))
            ids[0, :3] = (-1, 0, class_names - 1)
            image = save_and_load(semantic(ids, class_names).to_image())
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), np.where(ids < 0, 255, ids))
            colors = np.asarray(image.convert("RGB"))
            for index in (0, class_names // 2, class_names - 1):
                assert (colors[ids == index] == class_color(index)).all()
            assert (colors[ids < 0] == 0).all()


def test_more_than_255_classes_round_trip_through_16_bits(subtests):
    for class_names in [256, 21_841]:
        with subtests.test(class_names=str(class_names)):
            ids = np.random.default_rng(0).integers(-1, class_names, (31, 47))
            ids[0, :3] = (-1, 0, class_names - 1)
            image = save_and_load(semantic(ids, class_names).to_image())
            assert image.mode.startswith("I")
            assert np.array_equal(np.asarray(image).astype(int), np.where(ids < 0, 65_535, ids))


def test_more_than_65535_classes_are_rejected():
    with pytest.raises(ShapeError, match=r"65535.*65536"):
        semantic(np.zeros((2, 2), int), 65_536).to_image()


def test_panoptic_ids_round_trip_through_rgb():
    ids = np.array([[1, 255, 256, 257], [65_535, 65_536, 256**3 - 1, -1]])
    image = save_and_load(panoptic(ids).to_image())
    assert image.mode == "RGB"
    red, green, blue = np.moveaxis(np.asarray(image).astype(int), -1, 0)
    assert np.array_equal(red + 256 * green + 65_536 * blue, np.where(ids < 0, 0, ids))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 300), st.integers(0, 99))
def test_any_map_round_trips(rows, columns, class_names, seed):
    ids = np.random.default_rng(seed).integers(-1, class_names, (rows, columns))
    prediction = semantic(ids, class_names)
    back = np.asarray(save_and_load(prediction.to_image())).astype(int)
    assert np.array_equal(np.where(back == (255 if class_names <= 255 else 65_535), -1, back), ids)
    fractions = sum(segment["fraction"] for segment in prediction.to_dict()["segments"])
    assert fractions == pytest.approx((ids >= 0).mean())


def test_invalid_segmentations_are_rejected(subtests):
    for ids, segments, panoptic, message in [
        (np.zeros((2, 2)), (Segment(0, "a", 0),), False, r"segment_ids.*float64 \(2, 2\)"),
        (np.zeros((2, 2), bool), (Segment(0, "a", 0),), False, r"segment_ids.*bool \(2, 2\)"),
        (np.zeros((2, 2, 3), int), (Segment(0, "a", 0),), False, r"segment_ids.*int64 \(2, 2, 3\)"),
        (np.zeros((0, 2), int), (), False, r"segment_ids.*int64 \(0, 2\)"),
        (np.ones((2, 2), int), (Segment(0, "a", 0),), False, r"segment_ids.*\[1\]"),
        (
            np.full((2, 2), -2),
            (Segment(0, "a", 0),),
            False,
            r"segment_ids.*-1.*\[-2\]",
        ),
        (
            np.zeros((2, 2), int),
            (Segment(0, "a", 0), Segment(0, "a", 0)),
            False,
            r"segments.*\[0, 0\]",
        ),
        (np.zeros((2, 2), int), (Segment(0, "a", 1),), False, "'a': id.*1.*0"),
        (np.zeros((2, 2), int), (Segment(0, "a", 5),), False, "segment 0: index.*0 to 1.*5"),
        (np.zeros((2, 2), int), (Segment(0, "a", 0),), True, "'a': id.*1 to 16777215.*0"),
        (np.full((2, 2), 256**3), (Segment(256**3, "a", 0),), True, "'a': id.*16777216"),
        (
            np.zeros((2, 2), int),
            (Segment(0, "a", 0, float("nan")),),
            False,
            "segment 0: score.*nan",
        ),
        (np.zeros((2, 2), int), (Segment(0, "a", 0, 1.5),), False, r"segment 0: score.*1\.5"),
    ]:
        with subtests.test(message=message), pytest.raises(ShapeError, match=message):
            Segmentation(class_names=("a", "b"), segment_ids=ids, segments=segments, panoptic=panoptic)


def test_arrays_equal_the_segments_one_by_one():
    ids = np.array([[4, 4, 9], [9, -1, 4]])
    segments = (Segment(9, "b", 1, 0.5, True), Segment(4, "a", 0), Segment(7, "b", 1, 0.25, True))
    prediction = Segmentation(class_names=("a", "b"), segment_ids=ids, segments=segments, panoptic=True)
    assert np.array_equal(prediction.masks, [ids == 9, ids == 4, np.zeros_like(ids, bool)])
    assert prediction.labels.tolist() == [1, 0, 1]
    assert np.array_equal(prediction.scores, [0.5, np.nan, 0.25], equal_nan=True)
    empty = Segmentation(class_names=("a",), segment_ids=np.full((2, 3), -1), segments=())
    assert (empty.masks.shape, empty.labels.shape, empty.scores.shape) == ((0, 2, 3), (0,), (0,))


def test_ids_of_any_integer_type_are_accepted():
    for kind in (np.uint8, np.int16, np.uint16, np.int64, np.uint64):
        assert semantic(np.ones((2, 3), kind)).segment_ids.dtype == np.int32


def test_every_segment_is_blended_with_its_color_and_other_pixels_are_unchanged():
    """Three bands in an image of 600x480, the lowest unlabeled; labels cover a few percent."""
    ids = np.zeros((480, 600), int)
    ids[160:320], ids[320:] = 2, -1
    image = noise(600, 480)
    before, drawn = np.asarray(image), np.asarray(semantic(ids).draw(image))[:480]
    for index, rows in ((0, np.s_[5:155]), (2, np.s_[165:315])):
        expected = blend(before[rows], class_color(index))
        assert (drawn[rows] == expected).all(-1).mean() > 0.95
        assert (drawn[rows] == blend(before[rows], class_color(1))).all(-1).mean() < 0.01, "negative control"
    assert (drawn[159] == class_color(0)).all()
    assert (drawn[[160, 319]] == class_color(2)).all()
    assert np.array_equal(drawn[320:], before[320:])


def test_the_label_of_a_concave_segment_is_within_it():
    """A letter C, whose center is outside; its label is found by its solid color."""
    ids = np.zeros((480, 600), int)
    ids[60:420, 80:520] = 1
    ids[150:330, 180:] = 0
    drawn = np.asarray(semantic(ids, ("background", "letter")).draw(noise(600, 480)))[:480]
    solid = (drawn == class_color(1)).all(-1)
    lines = np.flatnonzero(solid.sum(1) > 30)
    lines = lines[(lines > 70) & (lines < 140) | (lines > 340) & (lines < 410) | (lines > 160) & (lines < 320)]
    assert len(lines) > 8
    columns = np.flatnonzero(solid[lines[len(lines) // 2]])
    assert (ids[lines[len(lines) // 2], columns] == 1).mean() > 0.9


def test_the_legend_has_the_present_classes_largest_first():
    ids = np.zeros((480, 600), int)
    ids[:300], ids[300:302] = 3, -1
    sheet = np.asarray(semantic(ids, 5).draw(noise(600, 480)))
    legend = sheet[480:]
    assert legend.shape[1] == 600
    places = [np.argwhere((legend == class_color(index)).all(-1)) for index in (3, 0)]
    assert all(len(place) > 100 for place in places)
    assert places[0][:, 1].max() < places[1][:, 1].min()
    for absent in (1, 2, 4):
        assert not (legend == class_color(absent)).all(-1).any()


def test_a_legend_of_many_classes_is_limited():
    ids = np.arange(150).repeat(40).reshape(60, 100)
    sheet = semantic(ids, 150).draw(noise(100, 60))
    assert sheet.width == 500
    assert sheet.height < 300 + 42 * 22


def test_the_map_of_a_scene_is_drawn_at_its_digits():
    for scene in generate_digit_scenes("val", count=5, seed=2):
        drawn = np.asarray(scene_segmentation(scene).draw(scene.image))[:512]
        before = repeat_pixels(np.asarray(scene.image), 4)
        ids = repeat_pixels(scene.semantic_mask(), 4)
        for index in np.unique(ids).tolist():
            color = np.array(class_color(index))
            right = (drawn == blend(before, class_color(index))).all(-1) | (drawn == color).all(-1)
            assert (
                right[ids == index].mean() > 0.6
            )  # the rest is covered by labels, which are about as large as the digits
            assert right[ids != index].mean() < 0.1


def test_images_of_any_size_are_drawn(subtests):
    for size in [(1, 1), (1, 5000), (5000, 1), (10_000, 100), (128, 128), (100, 3000)]:
        for make in [semantic, panoptic]:
            with subtests.test(size=str(size), make=str(make)):
                width, height = size
                ids = 1 + np.arange(width * height).reshape(height, width) * 2 // (width * height)
                sheet = make(ids).draw(noise(width, height))
                scale = -(-480 // max(size))
                assert sheet.width >= max(240 if height <= 1.25 * width else 0, width * scale)
                assert sheet.height >= height * scale
                assert (np.asarray(sheet) == class_color(1)).all(-1).any()


def test_labels_of_any_kind_are_drawn(subtests):
    for label in ["", "x" * 5000, "two\nlines", "\udce9\x00", "犬🐶", "\u202eright to left"]:
        with subtests.test(label=str(label)):
            sheet = semantic(np.zeros((20, 30), int), (label,)).draw(noise(30, 20))
            assert sheet.width == 480
            assert np.asarray(sheet)[320:, -1].min() == 255


def test_unlabeled_pixels_leave_the_image_unchanged():
    image = noise(600, 500)
    prediction = semantic(np.full((500, 600), -1))
    assert np.array_equal(np.asarray(prediction.draw(image))[:500], np.asarray(image))
    assert prediction.to_dict()["segments"] == []


def test_drawing_is_deterministic_and_changes_neither_image_nor_prediction():
    (scene,) = generate_digit_scenes("val", count=1)
    prediction, before = scene_segmentation(scene), scene.image.tobytes()
    ids = prediction.segment_ids.copy()
    assert prediction.draw(scene.image).tobytes() == prediction.draw(scene.image).tobytes()
    assert scene.image.tobytes() == before
    assert np.array_equal(prediction.segment_ids, ids)


def test_an_image_of_another_size_is_rejected():
    with pytest.raises(ShapeError, match=r"30x20.*20x30"):
        semantic(np.zeros((20, 30), int)).draw(Image.new("RGB", (20, 30)))
