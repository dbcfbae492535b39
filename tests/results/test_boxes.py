"""A detector's answer: best first, plain as JSON, read back from COCO's result files, and drawn on any picture."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as peer

from van.data.digits import LABELS
from van.data.scenes import Scene, digit_scenes
from van.errors import ShapeError
from van.results import Boxes, FoundThing
from van.results.drawing import blend, class_colour, magnified

peer_is_old = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools decodes in a way that NumPy 2 warns of."""
HOSTILE = ["", "x" * 5000, "two\nlines", "\udce9\x00", "犬🐶", "собака", "\u202eright to left", "$x$"]


def thing(score: float = 0.5, box: tuple = (1.0, 2.0, 5.0, 4.0), index: int = 0, mask=None) -> FoundThing:
    return FoundThing("abc"[index], index, score, box, mask)


def answer(*found: FoundThing, size: tuple[int, int] = (20, 30), **others) -> Boxes:
    return Boxes(labels=tuple("abc"), found=found, size=size, **others)


def scene_answer(scene: Scene, *, masks: bool = True) -> Boxes:
    found = tuple(
        FoundThing(LABELS[seen.label], seen.label, 0.9 - place / 10, seen.box, seen.mask if masks else None)
        for place, seen in enumerate(scene.things)
    )
    return Boxes(labels=LABELS, found=found, size=scene.picture.size[::-1], name="scene")


def test_the_best_come_first_and_equal_ones_as_they_came():
    found = [thing(0.2), thing(0.9, index=1), thing(0.2, index=2), thing(0.9, index=2)]
    assert [(one.score, one.index) for one in answer(*found).found] == [(0.9, 1), (0.9, 2), (0.2, 0), (0.2, 2)]


def test_a_threshold_keeps_what_reaches_it():
    found = answer(thing(0.2), thing(0.5), thing(0.7), category_ids=(4, 5, 6), name="a.png")
    kept = found.above(0.5)
    assert [one.score for one in kept.found] == [0.7, 0.5]
    assert (kept.size, kept.name, kept.category_ids) == ((20, 30), "a.png", (4, 5, 6))
    assert len(found.above(0).found) == 3
    assert found.above(1).found == ()
    for score in (math.nan, -0.1, 50):
        with pytest.raises(ShapeError, match=f"score is {score}; wanted 0 to 1"):
            found.above(score)


def test_the_top_are_the_best():
    found = answer(thing(0.2), thing(0.5), thing(0.7))
    assert [one.score for one in found.top(2).found] == [0.7, 0.5]
    assert len(found.top(10**9).found) == 3
    for k in (0, -1):
        with pytest.raises(ShapeError, match=f"k is {k}; wanted at least 1"):
            found.top(k)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (thing(box=(1, 2, math.nan, 4)), r"the box of thing 1 is \(1.0, 2.0, nan, 4.0\); wanted finite x1, y1, x2, y2"),
        (thing(box=(1, 2, math.inf, 4)), "the box of thing 1 is"),
        (thing(box=(5, 2, 1, 4)), "x1 <= x2 and y1 <= y2"),
        (thing(box=(1, 4, 5, 2)), "x1 <= x2 and y1 <= y2"),
        (thing(box=(1, 2, 5)), "the box of thing 1 is"),
        (thing(score=math.nan), "the score of thing 1 is nan; wanted 0 to 1"),
        (thing(score=-0.1), "the score of thing 1 is -0.1; wanted 0 to 1"),
        (thing(score=1.1), "the score of thing 1 is 1.1; wanted 0 to 1"),
        (FoundThing("d", 3, 0.5, (0, 0, 1, 1)), "the index of thing 1 is 3; wanted 0 to 2"),
        (FoundThing("d", -1, 0.5, (0, 0, 1, 1)), "the index of thing 1 is -1; wanted 0 to 2"),
        (thing(mask=np.zeros((30, 20), bool)), r"the mask of thing 1 is bool \(30, 20\); wanted bool \(20, 30\)"),
        (thing(mask=np.zeros((20, 30), np.uint8)), r"the mask of thing 1 is uint8 \(20, 30\); wanted bool"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(found, message):
    with pytest.raises(ShapeError, match=message):
        answer(thing(0.1), found)


def test_an_answer_needs_a_picture_and_a_number_for_every_class():
    for size in ((0, 5), (5, 0), (5,), (5, 5, 3)):
        with pytest.raises(ShapeError, match="wanted rows and columns of the picture, each at least 1"):
            answer(size=size)
    with pytest.raises(ShapeError, match="2 category_ids for 3 labels"):
        answer(category_ids=(1, 2))


def test_a_score_that_rounding_took_over_1_is_1():
    assert answer(thing(np.float32(1.0000001))).found[0].score == 1.0


def test_an_answer_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer().found = ()  # type: ignore[misc]


@peer_is_old
def test_numbers_of_any_kind_become_plain_json():
    mask = np.zeros((20, 30), bool)
    mask[2:4, 1:5] = True
    box = tuple(np.float32(side) for side in (1, 2, 5, 4))
    found = answer(FoundThing("b", np.int64(1), np.float32(0.5), box, mask), thing(0.25))  # type: ignore[arg-type]
    record = found.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["picture"], record["width"], record["height"]) == ("picture", 30, 20)
    assert record["things"][1] == {"label": "a", "index": 0, "score": 0.25, "box": [1.0, 2.0, 5.0, 4.0]}
    masked = record["things"][0]
    assert (masked["label"], masked["index"], masked["score"], masked["area"]) == ("b", 1, 0.5, 8)
    assert np.array_equal(peer.decode(masked["mask"]).astype(bool), mask)


@peer_is_old
def test_result_files_hold_the_same_boxes_and_masks():
    """Read with the field's own tool, for real masks, one without a pixel and one with all."""
    for number, scene in enumerate(digit_scenes("val", count=4)):
        entries = json.loads(json.dumps(scene_answer(scene).to_coco(number)))
        assert len(entries) == len(scene.things)
        for entry, seen in zip(entries, scene.things, strict=True):
            assert np.array_equal(peer.decode(entry["segmentation"]).astype(bool), seen.mask)
            assert peer.toBbox(entry["segmentation"]).tolist() == entry["bbox"]
            assert (entry["image_id"], entry["category_id"]) == (number, seen.label)
    for full in (False, True):
        (entry,) = answer(thing(mask=np.full((20, 30), full))).to_coco(1)
        assert (peer.decode(entry["segmentation"]) == full).all()


def test_result_files_use_the_numbers_of_the_data_set():
    found = answer(thing(0.5, index=2), category_ids=(7, 8, 90))
    assert found.to_coco(12) == [{"image_id": 12, "category_id": 90, "bbox": [1.0, 2.0, 4.0, 2.0], "score": 0.5}]
    assert answer(thing(index=2)).to_coco(12)[0]["category_id"] == 2
    assert answer().to_coco(12) == []


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_box_is_framed_in_its_colour_and_nothing_else_is_changed(index):
    """On a picture of 600x500, where lines are 4 pixels wide."""
    picture = noise(600, 500)
    drawn = np.asarray(answer(thing(0.5, (100, 120, 400, 420), index), size=(500, 600)).draw(picture))
    colour, before = class_colour(index), np.asarray(picture)
    for line in (drawn[121, 150:390], drawn[418, 110:390], drawn[150:410, 101], drawn[130:410, 398]):
        assert (line == colour).all()
    assert np.array_equal(drawn[130:410, 110:390], before[130:410, 110:390])
    changed = np.argwhere((drawn != before).any(-1))
    assert (changed.min(0) >= (95, 99)).all()  # the label stands above
    assert (changed.max(0) <= (420, 400)).all()


def test_a_mask_is_a_glass_of_its_class_over_the_picture():
    picture = noise(600, 500)
    rows, columns = np.mgrid[0:500, 0:600]
    mask = (rows - 250) ** 2 + (columns - 300) ** 2 < 120**2
    drawn = np.asarray(answer(thing(0.5, (100, 50, 500, 450), 1, mask), size=(500, 600)).draw(picture))
    before = np.asarray(picture)
    inside = (rows - 250) ** 2 + (columns - 300) ** 2 < 110**2
    assert np.array_equal(drawn[inside], blend(before[inside], class_colour(1)))
    assert not np.array_equal(drawn[inside], blend(before[inside], class_colour(2))), "the control"
    assert (drawn[250, 181] == class_colour(1)).all()  # its outline
    outside = ((rows - 250) ** 2 + (columns - 300) ** 2 > 125**2) & (abs(columns - 300) < 180) & (abs(rows - 250) < 150)
    assert np.array_equal(drawn[outside], before[outside])


def test_a_box_of_one_pixel_can_be_seen_and_its_label_does_not_hide_it():
    for x, y in ((0, 0), (899, 599), (450, 300), (0, 599)):
        found = answer(thing(0.5, (x, y, x + 1, y + 1)), size=(600, 900))
        drawn = np.asarray(found.draw(Image.new("RGB", (900, 600))))
        near = drawn[max(y - 8, 0) : y + 9, max(x - 8, 0) : x + 9]
        assert (near == class_colour(0)).all(-1).sum() > 40
        assert (near == (0, 0, 0)).all(-1).any()  # a frame, not a part of the label


@pytest.mark.parametrize("masks", [False, True])
def test_the_boxes_of_a_scene_are_where_its_digits_are(masks):
    """Most of the frame of the best thing, which lies on top, has its colour, four pixels to each of the scene's."""
    for scene in digit_scenes("val", count=8, seed=5):
        found = scene_answer(scene, masks=masks)
        drawn = np.asarray(found.draw(scene.picture))
        assert drawn.shape == (512, 512, 3)
        x1, y1, x2, y2 = (int(4 * side) for side in found.found[0].box)
        edge = np.concatenate([drawn[y1 + 1, x1:x2], drawn[y2 - 2, x1:x2], drawn[y1:y2, x1 + 1], drawn[y1:y2, x2 - 2]])
        assert (edge == class_colour(found.found[0].index)).all(-1).mean() > 0.55
        far = np.ones((512, 512), bool)
        for one in found.found:
            a, b, c, d = (int(4 * side) for side in one.box)
            far[max(b - 50, 0) : d + 50, max(a - 90, 0) : c + 90] = False
        assert np.array_equal(drawn[far], magnified(np.asarray(scene.picture), 4)[far])


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (10_000, 100), (128, 128), (479, 3)], ids=str)
def test_pictures_of_any_size_are_drawn(size):
    width, height = size
    mask = np.ones((height, width), bool)
    found = [thing(0.5, (0, 0, width, height), 0, mask), thing(0.4, (0, 0, 1, 1), 1), thing(0.3, (-5, -5, 9e9, 9e9), 2)]
    drawn = answer(*found, size=(height, width)).draw(noise(width, height))
    scale = max(1, math.ceil(480 / max(size)))
    assert drawn.size == (width * scale, height * scale)
    assert (np.asarray(drawn) == class_colour(0)).all(-1).any()


@pytest.mark.parametrize("label", HOSTILE, ids=lambda label: ascii(label[:12]))
def test_labels_of_any_kind_are_drawn(label):
    found = FoundThing(label, 0, 0.5, (3, 4, 20, 15))
    drawn = Boxes(labels=(label,), found=(found,) * 3, size=(20, 30)).draw(noise(30, 20))
    assert drawn.size == (480, 320)


def test_an_answer_without_things_is_the_picture():
    picture = noise(600, 500)
    assert np.array_equal(np.asarray(answer(size=(500, 600)).draw(picture)), np.asarray(picture))
    assert answer().to_dict()["things"] == []


def test_drawing_is_the_same_twice_and_leaves_picture_and_answer_alone():
    (scene,) = digit_scenes("val", count=1)
    found, before = scene_answer(scene), scene.picture.tobytes()
    masks = [one.mask.copy() for one in found.found]
    assert found.draw(scene.picture).tobytes() == found.draw(scene.picture).tobytes()
    assert scene.picture.tobytes() == before
    assert all(np.array_equal(one.mask, mask) for one, mask in zip(found.found, masks, strict=True))


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="picture is 20x30, the answer is about one of 30x20"):
        answer(thing()).draw(Image.new("RGB", (20, 30)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_is_drawn(mode):
    assert answer(thing()).draw(Image.new(mode, (30, 20))).mode == "RGB"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_answer_is_drawn_and_written(data):
    """Boxes anywhere, also outside the picture."""
    number = st.floats(-1e9, 1e9, allow_nan=False)
    width, height = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
    found = []
    for _ in range(data.draw(st.integers(0, 8))):
        xs, ys = sorted([data.draw(number), data.draw(number)]), sorted([data.draw(number), data.draw(number)])
        box = (xs[0], ys[0], xs[1], ys[1])
        found.append(thing(data.draw(st.floats(0, 1)), box, data.draw(st.integers(0, 2))))
    boxes = answer(*found, size=(height, width))
    assert boxes.draw(Image.new("RGB", (width, height))).mode == "RGB"
    assert json.loads(json.dumps(boxes.to_dict(), allow_nan=False)) == boxes.to_dict()
    assert len(boxes.to_coco(1)) == len(found)


def test_of_very_many_things_the_best_have_labels():
    """Of 301, the last two by themselves: the last is framed only, so that another name of it changes nothing."""
    corners = [(0, 0)] * 299 + [(700, 100), (700, 400)]
    found = [thing(1 - n / 1000, (x, y, x + 100, y + 50)) for n, (x, y) in enumerate(corners)]

    def drawn_with_another_name_for(place: int | None) -> bytes:
        renamed = [one._replace(label="m") if n == place else one for n, one in enumerate(found)]
        return answer(*renamed, size=(600, 900)).draw(Image.new("RGB", (900, 600))).tobytes()

    plain = drawn_with_another_name_for(None)
    assert drawn_with_another_name_for(300) == plain
    assert drawn_with_another_name_for(299) != plain


def test_a_drawing_without_scores_has_shorter_labels_and_the_same_boxes():
    answer = Boxes(labels=("a",), found=(FoundThing("a", 0, 1.0, (200, 200, 500, 450)),), size=(600, 800))
    picture = Image.new("RGB", (800, 600), "white")
    with_scores, without = (np.asarray(answer.draw(picture, scores=scores)) for scores in (True, False))
    changed = np.argwhere((with_scores != without).any(axis=2))
    assert len(changed)
    assert changed[:, 0].max() < 205  # the label stands above its box
