"""Detections: order by score, arrays, JSON values, COCO results, and drawings on any image."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from van.datasets.digits import LABELS
from van.datasets.scenes import Scene, generate_digit_scenes
from van.errors import ShapeError
from van.predictions import Detection, Detections
from van.visualization.drawing import blend, class_color, repeat_pixels

ignore_numpy_warning = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools decodes masks in a way that NumPy 2 deprecates."""
HOSTILE = ["", "x" * 5000, "two\nlines", "\udce9\x00", "犬🐶", "собака", "\u202eright to left", "$x$"]


def detection(score: float = 0.5, box: tuple = (1.0, 2.0, 5.0, 4.0), index: int = 0, mask=None) -> Detection:
    return Detection("abc"[index], index, score, box, mask)


def make(*detections: Detection, size: tuple[int, int] = (20, 30), **others) -> Detections:
    return Detections(class_names=tuple("abc"), detections=detections, image_size=size, **others)


def scene_detections(scene: Scene, *, masks: bool = True) -> Detections:
    found = tuple(
        Detection(LABELS[digit.label], digit.label, 0.9 - place / 10, digit.box, digit.mask if masks else None)
        for place, digit in enumerate(scene.objects)
    )
    return Detections(class_names=LABELS, detections=found, image_size=scene.image.size[::-1], name="scene")


def test_detections_are_sorted_by_score_and_ties_keep_their_order():
    found = [detection(0.2), detection(0.9, index=1), detection(0.2, index=2), detection(0.9, index=2)]
    assert [(one.score, one.index) for one in make(*found).detections] == [(0.9, 1), (0.9, 2), (0.2, 0), (0.2, 2)]


def test_above_keeps_detections_with_at_least_the_score():
    found = make(detection(0.2), detection(0.5), detection(0.7), category_ids=(4, 5, 6), name="a.png")
    kept = found.above(0.5)
    assert [one.score for one in kept.detections] == [0.7, 0.5]
    assert (kept.image_size, kept.name, kept.category_ids) == ((20, 30), "a.png", (4, 5, 6))
    assert len(found.above(0).detections) == 3
    assert found.above(1).detections == ()
    for score in (math.nan, -0.1, 50):
        with pytest.raises(ShapeError, match=rf"min_score.*{score}"):
            found.above(score)


def test_top_keeps_the_best_detections():
    found = make(detection(0.2), detection(0.5), detection(0.7))
    assert [one.score for one in found.top(2).detections] == [0.7, 0.5]
    assert len(found.top(10**9).detections) == 3
    for k in (0, -1):
        with pytest.raises(ShapeError, match=rf"k.*{k}"):
            found.top(k)


def test_invalid_detections_are_rejected_with_their_index(subtests):
    for found, message in [
        (
            detection(box=(1, 2, math.nan, 4)),
            r"detection 1: box.*\(1\.0, 2\.0, nan, 4\.0\)",
        ),
        (detection(box=(1, 2, math.inf, 4)), "detection 1: box"),
        (detection(box=(5, 2, 1, 4)), "detection 1: box.*x1 <= x2"),
        (detection(box=(1, 4, 5, 2)), "detection 1: box.*x1 <= x2"),
        (detection(box=(1, 2, 5)), "detection 1: box"),
        (detection(score=math.nan), "detection 1: score.*nan"),
        (detection(score=-0.1), r"detection 1: score.*-0\.1"),
        (detection(score=1.1), r"detection 1: score.*1\.1"),
        (Detection("d", 3, 0.5, (0, 0, 1, 1)), "detection 1: index.*0 to 2.*3"),
        (Detection("d", -1, 0.5, (0, 0, 1, 1)), "detection 1: index.*0 to 2.*-1"),
        (detection(mask=np.zeros((30, 20), bool)), r"detection 1: mask.*\(20, 30\).*bool \(30, 20\)"),
        (detection(mask=np.zeros((20, 30), np.uint8)), r"detection 1: mask.*bool.*uint8 \(20, 30\)"),
    ]:
        with subtests.test(found=str(found), message=str(message)), pytest.raises(ShapeError, match=message):
            make(detection(0.1), found)


def test_invalid_image_sizes_and_category_ids_are_rejected():
    for size in ((0, 5), (5, 0), (5,), (5, 5, 3)):
        with pytest.raises(ShapeError, match=re.escape(str(size))):
            make(size=size)
    with pytest.raises(ShapeError, match=r"category_ids.*3.*2"):
        make(category_ids=(1, 2))


def test_arrays_equal_the_detections_one_by_one():
    mask = np.zeros((20, 30), bool)
    mask[2:4, 1:5] = True
    prediction = make(detection(0.25, index=2, mask=mask), detection(0.5, (0.0, 1.0, 2.0, 3.0), 1, ~mask))
    assert prediction.boxes.tolist() == [[0, 1, 2, 3], [1, 2, 5, 4]]
    assert prediction.scores.tolist() == [0.5, 0.25]
    assert prediction.labels.tolist() == [1, 2]
    assert prediction.masks is not None
    assert np.array_equal(prediction.masks, [~mask, mask])
    assert [one.label for one in prediction] == ["b", "c"]
    assert (len(prediction), prediction[1].label) == (2, "c")
    empty = make()
    assert (empty.boxes.shape, empty.scores.shape, empty.labels.shape, empty.masks) == ((0, 4), (0,), (0,), None)
    assert (list(empty), make(detection()).masks) == ([], None)


def test_a_score_rounded_above_1_is_clipped():
    assert make(detection(np.float32(1.0000001))).detections[0].score == 1.0


def test_detections_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().detections = ()  # type: ignore[misc]


@ignore_numpy_warning
def test_numbers_of_any_type_become_json():
    mask = np.zeros((20, 30), bool)
    mask[2:4, 1:5] = True
    box = tuple(np.float32(side) for side in (1, 2, 5, 4))
    found = make(Detection("b", np.int64(1), np.float32(0.5), box, mask), detection(0.25))  # type: ignore[arg-type]
    record = found.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["image"], record["width"], record["height"]) == ("image", 30, 20)
    assert record["detections"][1] == {"label": "a", "index": 0, "score": 0.25, "box": [1.0, 2.0, 5.0, 4.0]}
    masked = record["detections"][0]
    assert (masked["label"], masked["index"], masked["score"], masked["area"]) == ("b", 1, 0.5, 8)
    assert np.array_equal(coco_mask.decode(masked["mask"]).astype(bool), mask)


@ignore_numpy_warning
def test_coco_results_have_the_same_boxes_and_masks():
    """Read with the field's own tool, for real masks, one without a pixel and one with all."""
    for number, scene in enumerate(generate_digit_scenes("val", count=4)):
        entries = json.loads(json.dumps(scene_detections(scene).to_coco(number)))
        assert len(entries) == len(scene.objects)
        for entry, digit in zip(entries, scene.objects, strict=True):
            assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), digit.mask)
            assert coco_mask.toBbox(entry["segmentation"]).tolist() == entry["bbox"]
            assert (entry["image_id"], entry["category_id"]) == (number, digit.label)
    for full in (False, True):
        (entry,) = make(detection(mask=np.full((20, 30), full))).to_coco(1)
        assert (coco_mask.decode(entry["segmentation"]) == full).all()


def test_coco_results_have_the_category_ids_of_the_dataset():
    found = make(detection(0.5, index=2), category_ids=(7, 8, 90))
    assert found.to_coco(12) == [{"image_id": 12, "category_id": 90, "bbox": [1.0, 2.0, 4.0, 2.0], "score": 0.5}]
    assert make(detection(index=2)).to_coco(12)[0]["category_id"] == 2
    assert make().to_coco(12) == []


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_box_is_drawn_in_its_color_and_other_pixels_are_unchanged(subtests):
    """On an image of 600x500, where lines are 4 pixels wide."""
    for index in [0, 1, 2]:
        with subtests.test(index=str(index)):
            image = noise(600, 500)
            drawn = np.asarray(make(detection(0.5, (100, 120, 400, 420), index), size=(500, 600)).draw(image))
            color, before = class_color(index), np.asarray(image)
            for line in (drawn[121, 150:390], drawn[418, 110:390], drawn[150:410, 101], drawn[130:410, 398]):
                assert (line == color).all()
            assert np.array_equal(drawn[130:410, 110:390], before[130:410, 110:390])
            changed = np.argwhere((drawn != before).any(-1))
            assert (changed.min(0) >= (95, 99)).all()  # the label is above
            assert (changed.max(0) <= (420, 400)).all()


def test_a_mask_is_blended_with_its_class_color():
    image = noise(600, 500)
    rows, columns = np.mgrid[0:500, 0:600]
    mask = (rows - 250) ** 2 + (columns - 300) ** 2 < 120**2
    drawn = np.asarray(make(detection(0.5, (100, 50, 500, 450), 1, mask), size=(500, 600)).draw(image))
    before = np.asarray(image)
    inside = (rows - 250) ** 2 + (columns - 300) ** 2 < 110**2
    assert np.array_equal(drawn[inside], blend(before[inside], class_color(1)))
    assert not np.array_equal(drawn[inside], blend(before[inside], class_color(2))), "negative control"
    assert (drawn[250, 181] == class_color(1)).all()  # its border
    outside = ((rows - 250) ** 2 + (columns - 300) ** 2 > 125**2) & (abs(columns - 300) < 180) & (abs(rows - 250) < 150)
    assert np.array_equal(drawn[outside], before[outside])


def test_a_box_of_one_pixel_is_visible_beside_its_label():
    for x, y in ((0, 0), (899, 599), (450, 300), (0, 599)):
        found = make(detection(0.5, (x, y, x + 1, y + 1)), size=(600, 900))
        drawn = np.asarray(found.draw(Image.new("RGB", (900, 600))))
        near = drawn[max(y - 8, 0) : y + 9, max(x - 8, 0) : x + 9]
        assert (near == class_color(0)).all(-1).sum() > 40
        assert (near == (0, 0, 0)).all(-1).any()  # the box, not the label


def test_the_boxes_of_a_scene_are_drawn_at_its_digits(subtests):
    """Most of the box of the best detection has its color, at four pixels for each of the scene's."""
    for masks in [False, True]:
        with subtests.test(masks=str(masks)):
            for scene in generate_digit_scenes("val", count=8, seed=5):
                found = scene_detections(scene, masks=masks)
                drawn = np.asarray(found.draw(scene.image))
                assert drawn.shape == (512, 512, 3)
                x1, y1, x2, y2 = (int(4 * side) for side in found.detections[0].box)
                edge = np.concatenate(
                    [drawn[y1 + 1, x1:x2], drawn[y2 - 2, x1:x2], drawn[y1:y2, x1 + 1], drawn[y1:y2, x2 - 2]]
                )
                assert (edge == class_color(found.detections[0].index)).all(-1).mean() > 0.55
                far = np.ones((512, 512), bool)
                for one in found.detections:
                    a, b, c, d = (int(4 * side) for side in one.box)
                    far[max(b - 50, 0) : d + 50, max(a - 90, 0) : c + 90] = False
                assert np.array_equal(drawn[far], repeat_pixels(np.asarray(scene.image), 4)[far])


def test_images_of_any_size_are_drawn(subtests):
    for size in [(1, 1), (1, 5000), (5000, 1), (10_000, 100), (128, 128), (479, 3)]:
        with subtests.test(size=str(size)):
            width, height = size
            mask = np.ones((height, width), bool)
            found = [
                detection(0.5, (0, 0, width, height), 0, mask),
                detection(0.4, (0, 0, 1, 1), 1),
                detection(0.3, (-5, -5, 9e9, 9e9), 2),
            ]
            drawn = make(*found, size=(height, width)).draw(noise(width, height))
            scale = max(1, math.ceil(480 / max(size)))
            assert drawn.size == (width * scale, height * scale)
            assert (np.asarray(drawn) == class_color(0)).all(-1).any()


def test_labels_of_any_kind_are_drawn(subtests):
    for label in HOSTILE:
        with subtests.test(label=str(label)):
            found = Detection(label, 0, 0.5, (3, 4, 20, 15))
            drawn = Detections(class_names=(label,), detections=(found,) * 3, image_size=(20, 30)).draw(noise(30, 20))
            assert drawn.size == (480, 320)


def test_no_detections_leave_the_image_unchanged():
    image = noise(600, 500)
    assert np.array_equal(np.asarray(make(size=(500, 600)).draw(image)), np.asarray(image))
    assert make().to_dict()["detections"] == []


def test_drawing_is_the_same_twice_and_leaves_image_and_answer_alone():
    (scene,) = generate_digit_scenes("val", count=1)
    found, before = scene_detections(scene), scene.image.tobytes()
    masks = [one.mask.copy() for one in found.detections]
    assert found.draw(scene.image).tobytes() == found.draw(scene.image).tobytes()
    assert scene.image.tobytes() == before
    assert all(np.array_equal(one.mask, mask) for one, mask in zip(found.detections, masks, strict=True))


def test_an_image_of_another_size_is_rejected():
    with pytest.raises(ShapeError, match=r"30x20.*20x30"):
        make(detection()).draw(Image.new("RGB", (20, 30)))


def test_an_image_of_any_mode_is_drawn(subtests):
    for mode in ["L", "RGBA", "P", "1", "CMYK", "I;16", "F"]:
        with subtests.test(mode=str(mode)):
            assert make(detection()).draw(Image.new(mode, (30, 20))).mode == "RGB"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_detections_are_drawn_and_serialized(data):
    """Detections anywhere, also outside the image."""
    number = st.floats(-1e9, 1e9, allow_nan=False)
    width, height = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
    found = []
    for _ in range(data.draw(st.integers(0, 8))):
        xs, ys = sorted([data.draw(number), data.draw(number)]), sorted([data.draw(number), data.draw(number)])
        box = (xs[0], ys[0], xs[1], ys[1])
        found.append(detection(data.draw(st.floats(0, 1)), box, data.draw(st.integers(0, 2))))
    boxes = make(*found, size=(height, width))
    assert boxes.draw(Image.new("RGB", (width, height))).mode == "RGB"
    assert json.loads(json.dumps(boxes.to_dict(), allow_nan=False)) == boxes.to_dict()
    assert len(boxes.to_coco(1)) == len(found)


def test_the_best_of_many_detections_have_labels():
    """Of 301, the last two by themselves: the last is framed only, so that another name of it changes nothing."""
    corners = [(0, 0)] * 299 + [(700, 100), (700, 400)]
    found = [detection(1 - n / 1000, (x, y, x + 100, y + 50)) for n, (x, y) in enumerate(corners)]

    def drawn_with_another_name_for(place: int | None) -> bytes:
        renamed = [one._replace(label="m") if n == place else one for n, one in enumerate(found)]
        return make(*renamed, size=(600, 900)).draw(Image.new("RGB", (900, 600))).tobytes()

    plain = drawn_with_another_name_for(None)
    assert drawn_with_another_name_for(300) == plain
    assert drawn_with_another_name_for(299) != plain


def test_a_drawing_without_scores_has_shorter_labels_and_the_same_boxes():
    prediction = Detections(
        class_names=("a",), detections=(Detection("a", 0, 1.0, (200, 200, 500, 450)),), image_size=(600, 800)
    )
    image = Image.new("RGB", (800, 600), "white")
    with_scores, without = (
        np.asarray(prediction.draw(image, show_scores=show_scores)) for show_scores in (True, False)
    )
    changed = np.argwhere((with_scores != without).any(axis=2))
    assert len(changed)
    assert changed[:, 0].max() < 205  # the label is above its box
