"""A classifier's answer: ranked as its probabilities say, plain as JSON, and drawn without ever overflowing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.errors import ShapeError
from van.results import Classes, RankedClass
from van.results.drawing import one_line

ANSWER = Classes(labels=("cat", "dog", "eel", "fox"), probabilities=(0.1, 0.6, 0.2, 0.1), name="a.png")
LABELS = [
    "dog", "a very long label " * 30, "собака", "Ωμέγα", "كلب", "犬", "🐶", "e\u0301", "$x$", "two\nlines", "tab\there",
    "\x00\x07", "\udce9", "", " ", "\u202eright to left", "W" * 10_000,
]  # fmt: skip


def test_the_best_come_first_with_their_place_in_the_labels():
    assert ANSWER.top(2) == [RankedClass("dog", 0.6, 1), RankedClass("eel", 0.2, 2)]


def test_equal_probabilities_keep_the_order_of_the_labels():
    answer = Classes(labels=tuple("abcdef"), probabilities=(0.1, 0.2, 0.2, 0.1, 0.2, 0.2))
    assert [ranked.index for ranked in answer.top(6)] == [1, 2, 4, 5, 0, 3]


def test_asking_for_more_classes_than_there_are_gives_all():
    assert len(ANSWER.top(5)) == 4
    assert len(ANSWER.top(10**9)) == 4
    assert Classes(labels=(), probabilities=()).top() == []


@pytest.mark.parametrize("k", [0, -1])
def test_asking_for_no_class_is_refused(k):
    for ask in (ANSWER.top, ANSWER.to_dict, lambda k: ANSWER.draw(Image.new("RGB", (9, 9)), k=k)):
        with pytest.raises(ShapeError, match=f"k is {k}; wanted at least 1"):
            ask(k)


def test_labels_and_probabilities_must_pair_up():
    with pytest.raises(ShapeError, match="2 labels for 1 probabilities"):
        Classes(labels=("a", "b"), probabilities=(1.0,))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1])
def test_what_is_no_probability_is_refused_with_its_label(value):
    """A network with a NaN in it must not answer as if it knew something."""
    with pytest.raises(ShapeError, match=f"the probability of 'b' is {value}"):
        Classes(labels=("a", "b"), probabilities=(0.5, value))


@st.composite
def answers(draw) -> Classes:
    weights = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
    total = max(sum(weights), 1)
    labels = draw(st.lists(st.text(max_size=20), min_size=len(weights), max_size=len(weights)))
    return Classes(
        labels=tuple(labels), probabilities=tuple(weight / total for weight in weights), name=draw(st.text())
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(answers(), st.integers(1, 40))
def test_the_ranking_is_a_sorted_part_of_the_answer_and_is_plain_json(answer, k):
    best = answer.top(k)
    assert len(best) == min(k, len(answer.labels))
    assert all((r.label, r.probability) == (answer.labels[r.index], answer.probabilities[r.index]) for r in best)
    assert len({ranked.index for ranked in best}) == len(best)
    left_out = set(range(len(answer.labels))) - {ranked.index for ranked in best}
    ranks = [(-answer.probabilities[i], i) for i in (*(ranked.index for ranked in best), *sorted(left_out))]
    assert ranks[: len(best)] == sorted(ranks)[: len(best)]
    record = answer.to_dict(k)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record == {"picture": answer.name, "classes": [ranked._asdict() for ranked in best]}


def gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (columns * 255 // max(width - 1, 1), rows * 255 // max(height - 1, 1), (rows + columns) % 256)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


SIZES = [(1, 1), (8, 8), (239, 3), (640, 480), (3000, 20), (20, 3000), (1, 5000)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_picture_of_any_size_is_shown_above_its_bars(size):
    picture = gradient(*size)
    sheet = ANSWER.draw(picture)
    scale = max(1, 240 // max(size))
    assert sheet.mode == "RGB"
    assert sheet.width == max(240, size[0] * scale)
    left = (sheet.width - size[0] * scale) // 2
    shown = sheet.crop((left, 0, left + size[0] * scale, size[1] * scale))
    assert np.array_equal(np.asarray(shown)[::scale, ::scale], np.asarray(picture))
    panel = np.asarray(sheet)[size[1] * scale :]
    assert 50 < len(panel) < 0.7 * sheet.width  # readable, and no wall of text
    assert (panel == 0).all(axis=-1).any()  # black text
    blue_px = [(row == (158, 202, 225)).all(axis=-1).sum() for row in panel]
    assert abs(max(blue_px) - 0.6 * sheet.width) <= 2  # the best bar ends where its probability says


@pytest.mark.parametrize("label", LABELS, ids=lambda label: ascii(label[:12]))
@pytest.mark.parametrize("size", [(1, 1), (3000, 20), (640, 480)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_no_label_runs_into_the_percentage(label, size):
    """The column of pixels before the percentage stays free of ink, whatever the label."""
    answer = Classes(labels=(label, "x"), probabilities=(0.0, 0.0))
    blank = Classes(labels=("", "x"), probabilities=(0.0, 0.0))
    panel, free = (np.asarray(a.draw(gradient(*size), k=1).convert("L")) for a in (answer, blank))
    assert panel.shape == free.shape
    first_ink = np.argwhere((free[-20:] < 128).any(axis=0)).min()
    assert panel[-20:, first_ink - 2].min() > 200
    assert np.array_equal(panel[-20:, first_ink:], free[-20:, first_ink:])


def test_a_label_that_fits_is_drawn_whole_and_a_longer_one_is_cut():
    def ink(label: str) -> int:
        sheet = Classes(labels=(label,), probabilities=(0.0,)).draw(Image.new("RGB", (240, 240), "white"))
        return int((np.asarray(sheet.convert("L"))[240:] < 128).sum())

    assert ink("") < ink("a") < ink("a dog") < ink("a dog, not a cat")
    assert ink("m" * 200) == ink("m" * 5000)


def test_greek_and_cyrillic_letters_are_told_apart():
    """A font without them would draw the same box for each."""
    sheets = {Classes(labels=(c,), probabilities=(0.0,)).draw(gradient(9, 9)).tobytes() for c in "δжΩЮאب"}
    assert len(sheets) == 6


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_is_drawn(mode):
    assert ANSWER.draw(Image.new(mode, (30, 20))).mode == "RGB"


def test_the_same_answer_is_drawn_the_same_twice_and_the_picture_is_left_alone():
    picture = gradient(50, 40)
    before = picture.tobytes()
    assert ANSWER.draw(picture).tobytes() == ANSWER.draw(picture).tobytes()
    assert picture.tobytes() == before


def test_more_rows_are_drawn_when_asked_for():
    assert ANSWER.draw(gradient(50, 40), k=4).height > ANSWER.draw(gradient(50, 40), k=1).height


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=60))
def test_any_text_becomes_one_line_that_can_be_drawn(text):
    line = one_line(text)
    assert line.isprintable()
    Classes(labels=(text,), probabilities=(1.0,)).draw(Image.new("RGB", (5, 5)))
