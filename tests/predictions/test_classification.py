"""Classification: ranking by score, JSON values, and drawings without overlap."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.errors import ShapeError
from van.predictions import Classification, ClassScore
from van.visualization.drawing import strip_unprintable

PREDICTION = Classification(class_names=("cat", "dog", "eel", "fox"), scores=(0.1, 0.6, 0.2, 0.1), name="a.png")
LABELS = [
    "dog", "a very long label " * 30, "собака", "Ωμέγα", "كلب", "犬", "🐶", "e\u0301", "$x$", "two\nlines", "tab\there",
    "\x00\x07", "\udce9", "", " ", "\u202eright to left", "W" * 10_000,
]  # fmt: skip


def test_the_best_classes_are_first_with_their_index():
    assert PREDICTION.top(2) == [ClassScore("dog", 0.6, 1), ClassScore("eel", 0.2, 2)]


def test_equal_scores_keep_the_class_order():
    prediction = Classification(class_names=tuple("abcdef"), scores=(0.1, 0.2, 0.2, 0.1, 0.2, 0.2))
    assert [ranked.index for ranked in prediction.top(6)] == [1, 2, 4, 5, 0, 3]


def test_k_beyond_the_number_of_classes_gives_all():
    assert len(PREDICTION.top(5)) == 4
    assert len(PREDICTION.top(10**9)) == 4
    assert Classification(class_names=(), scores=()).top() == []


def test_k_below_one_is_rejected(subtests):
    for k in [0, -1]:
        with subtests.test(k=str(k)):
            for method in (
                PREDICTION.top,
                PREDICTION.to_dict,
                lambda k: PREDICTION.draw(Image.new("RGB", (9, 9)), k=k),
            ):
                with pytest.raises(ShapeError, match=rf"k.*{k}"):
                    method(k)


def test_different_numbers_of_classes_and_scores_are_rejected():
    with pytest.raises(ShapeError, match=r"scores.*2.*1"):
        Classification(class_names=("a", "b"), scores=(1.0,))


def test_invalid_scores_are_rejected_with_their_label(subtests):
    """A network with NaN weights must not give a prediction."""
    for value in [float("nan"), float("inf"), -0.1, 1.1]:
        with subtests.test(value=str(value)), pytest.raises(ShapeError, match=rf"'b'.*{value}"):
            Classification(class_names=("a", "b"), scores=(0.5, value))


@st.composite
def predictions(draw) -> Classification:
    weights = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
    total = max(sum(weights), 1)
    class_names = draw(st.lists(st.text(max_size=20), min_size=len(weights), max_size=len(weights)))
    return Classification(
        class_names=tuple(class_names), scores=tuple(weight / total for weight in weights), name=draw(st.text())
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(predictions(), st.integers(1, 40))
def test_the_ranking_is_sorted_and_json_serializable(prediction, k):
    best = prediction.top(k)
    assert len(best) == min(k, len(prediction.class_names))
    assert all((r.label, r.score) == (prediction.class_names[r.index], prediction.scores[r.index]) for r in best)
    assert len({ranked.index for ranked in best}) == len(best)
    remaining = set(range(len(prediction.class_names))) - {ranked.index for ranked in best}
    ranks = [(-prediction.scores[i], i) for i in (*(ranked.index for ranked in best), *sorted(remaining))]
    assert ranks[: len(best)] == sorted(ranks)[: len(best)]
    record = prediction.to_dict(k)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record == {"image": prediction.name, "classes": [ranked._asdict() for ranked in best]}


def gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (columns * 255 // max(width - 1, 1), rows * 255 // max(height - 1, 1), (rows + columns) % 256)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


SIZES = [(1, 1), (8, 8), (239, 3), (640, 480), (3000, 20), (20, 3000), (1, 5000)]


def test_an_image_of_any_size_is_drawn_above_its_bars(subtests):
    for size in SIZES:
        with subtests.test(size=str(size)):
            image = gradient(*size)
            sheet = PREDICTION.draw(image)
            scale = max(1, 240 // max(size))
            assert sheet.mode == "RGB"
            assert sheet.width == max(240, size[0] * scale)
            left = (sheet.width - size[0] * scale) // 2
            shown = sheet.crop((left, 0, left + size[0] * scale, size[1] * scale))
            assert np.array_equal(np.asarray(shown)[::scale, ::scale], np.asarray(image))
            panel = np.asarray(sheet)[size[1] * scale :]
            assert 50 < len(panel) < 0.7 * sheet.width  # a legible size
            assert (panel == 0).all(axis=-1).any()  # black text
            blue_px = [(row == (158, 202, 225)).all(axis=-1).sum() for row in panel]
            assert abs(max(blue_px) - 0.6 * sheet.width) <= 2  # the bar of the best class ends at its score


def test_no_label_overlaps_the_percentage(subtests):
    """The pixels left of the percentage are blank for any label."""
    for label in LABELS:
        for size in [(1, 1), (3000, 20), (640, 480)]:
            with subtests.test(label=str(label), size=str(size)):
                prediction = Classification(class_names=(label, "x"), scores=(0.0, 0.0))
                blank = Classification(class_names=("", "x"), scores=(0.0, 0.0))
                panel, empty = (np.asarray(a.draw(gradient(*size), k=1).convert("L")) for a in (prediction, blank))
                assert panel.shape == empty.shape
                first_ink = np.argwhere((empty[-20:] < 128).any(axis=0)).min()
                assert panel[-20:, first_ink - 2].min() > 200
                assert np.array_equal(panel[-20:, first_ink:], empty[-20:, first_ink:])


def test_long_labels_are_truncated():
    def ink(label: str) -> int:
        sheet = Classification(class_names=(label,), scores=(0.0,)).draw(Image.new("RGB", (240, 240), "white"))
        return int((np.asarray(sheet.convert("L"))[240:] < 128).sum())

    assert ink("") < ink("a") < ink("a dog") < ink("a dog, not a cat")
    assert ink("m" * 200) == ink("m" * 5000)


def test_greek_cyrillic_and_hebrew_letters_are_distinct():
    """A font without these letters would draw the same box for each."""
    sheets = {Classification(class_names=(c,), scores=(0.0,)).draw(gradient(9, 9)).tobytes() for c in "δжΩЮאب"}
    assert len(sheets) == 6


def test_an_image_of_any_mode_is_drawn(subtests):
    for mode in ["L", "RGBA", "P", "1", "CMYK", "I;16", "F"]:
        with subtests.test(mode=str(mode)):
            assert PREDICTION.draw(Image.new(mode, (30, 20))).mode == "RGB"


def test_drawing_is_deterministic_and_does_not_change_the_image():
    image = gradient(50, 40)
    before = image.tobytes()
    assert PREDICTION.draw(image).tobytes() == PREDICTION.draw(image).tobytes()
    assert image.tobytes() == before


def test_k_sets_the_number_of_rows():
    assert PREDICTION.draw(gradient(50, 40), k=4).height > PREDICTION.draw(gradient(50, 40), k=1).height


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=60))
def test_any_text_becomes_one_printable_line(text):
    line = strip_unprintable(text)
    assert line.isprintable()
    Classification(class_names=(text,), scores=(1.0,)).draw(Image.new("RGB", (5, 5)))
