"""Charts of how good a network is say what was measured, whatever it was: nothing cut off, twice the same."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from results.looks import amount, read
from van.errors import ShapeError
from van.results import quality
from van.results.charts import BLUE, GREY, ORANGE
from van.results.drawing import class_colour
from van.results.quality import charts_of, draw_confusion, draw_per_class, draw_precision_recall, draw_reliability

HOSTILE = [
    "a$b$c", r"$\nosuchcommand$", "犬", "🐶", "собака", "שלום", "x" * 500, "_y", "two\nlines", "", "\udce9", "\x00",
]  # fmt: skip
RECALL = np.linspace(0, 1, 101)


@pytest.fixture
def figures(monkeypatch) -> Iterator[list[Figure]]:
    """What is drawn, to ask what pixels do not tell."""
    kept: list[Figure] = []
    save = quality.save_figure
    monkeypatch.setattr(quality, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


@pytest.mark.parametrize("classes", [1, 2, 10, 20, 21, 60, 61, 200])
def test_a_confusion_matrix_of_any_size_is_drawn(tmp_path, classes):
    counts = np.random.default_rng(0).multinomial(20, np.full(classes, 1 / classes), size=classes)
    counts += np.diag(np.full(classes, 80))
    draw_confusion(counts, [f"class {n}" for n in range(classes)], tmp_path / "a")
    picture = read(tmp_path / "a")
    assert 300 < picture.shape[0] < 2000
    assert abs(picture.shape[0] - picture.shape[1]) < 400
    blues = (picture[..., 2].astype(int) - picture[..., 0] > 60).mean()
    assert blues > 0.001  # the diagonal


def test_a_mistake_in_a_hundred_is_seen(tmp_path):
    counts = np.diag([99, 100])
    draw_confusion(counts, ["a", "b"], tmp_path / "clean")
    counts[0, 1] = 1
    draw_confusion(counts, ["a", "b"], tmp_path / "mistaken")
    clean, mistaken = read(tmp_path / "clean"), read(tmp_path / "mistaken")
    assert clean.shape == mistaken.shape
    assert (np.abs(clean.astype(int) - mistaken).max(axis=-1) > 10).sum() > 10_000  # a whole cell, not only its number


def test_classes_that_never_occur_are_empty_rows(tmp_path):
    draw_confusion(np.zeros((3, 3), dtype=int), ["a", "b", "c"], tmp_path / "a")
    read(tmp_path / "a")


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (0, 0)])
def test_counts_that_do_not_fit_the_labels_are_refused(tmp_path, shape):
    labels = ["a", "b"][: shape[0]]
    with pytest.raises(ShapeError, match=f"for {len(labels)} labels; wanted a row and a column for each"):
        draw_confusion(np.zeros(shape, dtype=int), labels, tmp_path / "a")


def reliability(count: list[int], right: list[int], confidence: list[float]) -> dict[str, Any]:
    return {"count": count, "right": right, "confidence": confidence}


def test_reliability_shows_how_often_each_bin_is_right_how_sure_it_is_and_how_many_answers_it_has(tmp_path, figures):
    draw_reliability(reliability([0, 30, 10], [0, 15, 9], [0, 18.0, 8.0]), tmp_path / "a")
    read(tmp_path / "a")
    upper, lower = figures[0].axes
    assert upper.get_title() == "expected calibration error 10.00 %"  # 3 of 30 too sure and 1 of 10 too little, of 40
    thirds = (100 / 3, 200 / 3)
    bars = [(bar.get_x(), bar.get_height(), bar.get_width()) for bar in upper.patches]
    assert np.allclose(bars, [(thirds[0], 50, thirds[0]), (thirds[1], 90, thirds[0])])
    assert np.allclose(
        upper.collections[0].get_segments(),
        [[(x, y), (x + thirds[0], y)] for x, y in zip(thirds, (60, 80), strict=True)],
    )
    assert np.allclose([bar.get_height() for bar in lower.patches], [75, 25])


def test_a_bin_that_is_right_twice_as_often_is_twice_as_high(tmp_path):
    for name, right in (("half", 5), ("whole", 10)):
        draw_reliability(reliability([0, 10], [0, right], [0, 7.5]), tmp_path / name)
    half, whole = (amount(read(tmp_path / name), BLUE) for name in ("half", "whole"))
    assert 1.9 < whole / half < 2.1


@pytest.mark.parametrize(
    ("bins", "title"),
    [
        (reliability([0] * 15, [0] * 15, [0] * 15), "no answers"),
        (reliability([2] + [0] * 13 + [3], [0] * 14 + [3], [math.nan] + [0] * 13 + [3]), "some answers are no numbers"),
        (reliability([1], [1], [1.0]), "expected calibration error 0.00 %"),
        (reliability([1] * 100, [0] * 100, [n / 100 for n in range(100)]), "expected calibration error 49.50 %"),
    ],
    ids=["nothing", "nan", "one", "a hundred bins"],
)
def test_reliability_of_anything_is_drawn(tmp_path, figures, bins, title):
    draw_reliability(bins, tmp_path / "a")
    read(tmp_path / "a")
    assert figures[0].axes[0].get_title() == title


@pytest.mark.parametrize("lengths", [(0, 0, 0), (3, 3, 2), (3, 2, 3)])
def test_bins_that_do_not_fit_are_refused(tmp_path, lengths):
    with pytest.raises(ShapeError, match="have {}, {} and {} bins; wanted as many each".format(*lengths)):
        draw_reliability(reliability(*([1] * length for length in lengths)), tmp_path / "a")


def rows_of(figure: Figure) -> dict[str, float]:
    """Names and lengths of the bars, from the top."""
    (axis,) = figure.axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    return dict(zip(names, [bar.get_width() for bar in axis.patches], strict=True))


def test_classes_are_ranked_with_the_worst_first_and_named_in_the_title(tmp_path, figures):
    found = {"a": {"iou": 0.5, "pixels": 9}, "b": {"iou": 0.25}, "c": {"iou": 1.0}, "d": {"iou": math.nan}, "e": {}}
    draw_per_class(found, "iou", tmp_path / "a")
    read(tmp_path / "a")
    assert list(rows_of(figures[0]).items()) == [("b", 25), ("a", 50), ("c", 100)]
    (axis,) = figures[0].axes
    assert axis.get_title() == "iou of each class, %: worst b, 25.0"
    assert axis.get_xlabel() == "dotted: the mean of 3 classes, 58.3 %"
    (dotted,) = axis.lines
    assert dotted.get_xdata() == pytest.approx([175 / 3] * 2)
    assert [text.get_text() for text in axis.texts] == ["25.0", "50.0", "100.0"]
    draw_per_class(found, "iou", tmp_path / "b", in_order=True)
    assert list(rows_of(figures[1])) == ["a", "b", "c"]


def test_of_many_classes_the_worst_and_the_best_are_shown(tmp_path, figures):
    found = {f"c{n}": {"top1": (n * 7 % 1000) / 1000} for n in range(1000)}
    draw_per_class(found, "top1", tmp_path / "a", in_order=True)
    assert read(tmp_path / "a").shape[0] < 1500
    rows = rows_of(figures[0])
    assert list(rows.values()) == pytest.approx([n / 10 for n in range(30)] + [0] + [n / 10 for n in range(990, 1000)])
    assert list(rows)[30] == "... 960 classes between ..."
    sixty = {name: found[name] for name in list(found)[60:0:-1]}
    draw_per_class(sixty, "top1", tmp_path / "b")
    assert list(rows_of(figures[1])) == [*sixty][::-1]


def test_bars_have_the_colours_that_classes_have_in_pictures(tmp_path, figures):
    found = {"b": {"pq": 0.5}, "c": {"pq": 0.6}, "not known": {"pq": 0.7}}
    draw_per_class(found, "pq", tmp_path / "a", labels=("a", "b", "c"))
    read(tmp_path / "a")
    colours = [bar.get_facecolor()[:3] for bar in figures[0].axes[0].patches]
    assert np.allclose(colours, [*(np.array(class_colour(index)) / 255 for index in (1, 2)), to_rgb(BLUE)])


@pytest.mark.parametrize(
    ("found", "title"),
    [
        ({}, ""),
        ({"a": {"top1": math.nan}}, ""),
        ({"a": {"top1": 0.0}}, ": worst a, 0.0"),
        ({"a": {"top1": 0.0}, "b": {"top1": 0.0}}, ": worst a and 1 more, 0.0"),
    ],
    ids=["no class", "nan", "one class", "equal"],
)
def test_bars_of_few_classes_or_none_are_drawn(tmp_path, figures, found, title):
    draw_per_class(found, "top1", tmp_path / "a")
    read(tmp_path / "a")
    assert figures[0].axes[0].get_title() == "top1 of each class, %" + title


def curve(*levels: float) -> dict[str, list[float]]:
    """Precision at each recall, by IoU."""
    return {
        name: np.full(101, level).tolist() for name, level in zip(("0.50", "0.75", "0.50:0.95"), levels, strict=True)
    }


def curves(classes: dict[str, dict[str, list[float]]], *kinds: str) -> dict[str, Any]:
    return {"recall": RECALL.tolist()} | {kind: {"all": curve(0.9, 0.7, 0.6), "per_class": classes} for kind in kinds}


def lines_of(figure: Figure, place: int) -> list[tuple[str, str, float]]:
    """Name, colour and precision of each line that the legend of an axis names."""
    axis = figure.axes[place]
    legend = axis.get_legend()
    handles = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    drawn = {line.get_color(): line for line in axis.lines}
    return [(name, line.get_color(), drawn[line.get_color()].get_ydata()[0]) for name, line in handles.items()]


def test_precision_is_drawn_over_recall_for_three_thresholds_and_for_each_class(tmp_path, figures):
    classes = {"b": curve(0.8, 0.1, 0.1), "a": curve(0.4, 0.1, 0.1)}
    draw_precision_recall(curves(classes, "box", "mask"), tmp_path / "a", labels=("a", "b"))
    read(tmp_path / "a")
    assert [axis.get_title() for axis in figures[0].axes] == [
        f"{kind}, {what}" for kind in ("boxes", "masks") for what in ("mean over classes", "each class at IoU 0.50")
    ]
    for place in (0, 2):
        names = [(name.strip("\u200e"), level) for name, _, level in lines_of(figures[0], place)]
        assert names == [("90.0  IoU 0.50", 90), ("70.0  IoU 0.75", 70), ("60.0  IoU 0.50:0.95", 60)]
        found = [(name.strip("\u200e"), level) for name, _, level in lines_of(figures[0], place + 1)]
        assert found == [("40.0  a", 40), ("80.0  b", 80)]
        colours = [colour for _, colour, _ in lines_of(figures[0], place + 1)]
        assert np.allclose(np.array(colours) * 255, [class_colour(0), class_colour(1)])
    assert np.allclose(figures[0].axes[0].lines[0].get_xdata(), 100 * RECALL)


def test_of_many_classes_the_worst_have_names_and_the_rest_is_grey(tmp_path, figures):
    classes = {f"c{n}": curve((n * 7 % 1000) / 1000, 0, 0) for n in range(1000)}
    draw_precision_recall(curves(classes, "box"), tmp_path / "a", labels=list(classes))
    read(tmp_path / "a")
    legend = [text.get_text().strip("\u200e") for text in figures[0].axes[1].get_legend().get_texts()]
    assert legend == ["0.0  c0", "0.1  c143", "0.2  c286", "0.3  c429", "0.4  c572", "995 other classes"]
    colours = [line.get_color() for line in figures[0].axes[1].lines]
    assert colours[:995] == [GREY] * 995
    assert GREY not in colours[995:]


def test_nothing_to_find_is_said(tmp_path, figures):
    draw_precision_recall(curves({}, "box"), tmp_path / "a")
    read(tmp_path / "a")
    assert [text.get_text() for text in figures[0].axes[1].texts] == ["nothing to find"]


def test_names_of_any_kind_are_written_as_they_are(tmp_path):
    draw_confusion(np.eye(len(HOSTILE), dtype=int) * 12_345_678, HOSTILE, tmp_path / "a")
    blues = (np.ptp(read(tmp_path / "a").astype(int), axis=-1) > 60).mean()
    assert blues > 0.02  # the matrix was not squeezed away by its labels
    draw_per_class({label: {"top1": 0.9} for label in HOSTILE}, "top1", tmp_path / "b")
    assert amount(read(tmp_path / "b"), BLUE) > 100_000
    draw_precision_recall(curves({label: curve(0.5, 0.5, 0.5) for label in HOSTILE[4:]}, "box"), tmp_path / "c")
    assert amount(read(tmp_path / "c"), ORANGE) > 300


DETAILS = {
    "classify": {
        "confusion": np.eye(2, dtype=int), "reliability": reliability([2], [1], [1.5]),
        "per_class": {"a": {"top1": 0.5}},
    },
    "one class": {"confusion": None, "reliability": None, "per_class": {}},
    "detect": {"per_class": {"a": {"box_ap": 0.5}}, "precision_recall": curves({"a": curve(1, 0, 0)}, "box")},
    "segment": {"per_class": {"a": {"iou": 0.5}}, "confusion": np.eye(2, dtype=int)},
    "panoptic": {"per_class": {"a": {"pq": 0.5}}},
}  # fmt: skip
HEADLINES = {"detect": "box_ap", "segment": "mean_iou", "panoptic": "pq"}
CHARTS = {
    "classify": ["confusion.png", "reliability.png", "per_class.png"],
    "one class": [],
    "detect": ["per_class.png", "precision_recall.png"],
    "segment": ["confusion.png", "per_class.png"],
    "panoptic": ["per_class.png"],
}


@pytest.mark.parametrize("task", DETAILS)
def test_a_task_has_the_charts_that_its_details_allow(tmp_path, task, figures):
    charts = charts_of(DETAILS[task], labels=("a", "b"), headline=HEADLINES.get(task, "top1"))
    assert list(charts) == CHARTS[task]
    for name, draw in charts.items():
        draw(tmp_path / name)
        read(tmp_path / name)
    bars = [figure for figure in figures if "of each class" in figure.axes[0].get_title()]
    assert all(list(rows_of(figure)) == ["a"] for figure in bars)
    coloured = [np.allclose(figure.axes[0].patches[0].get_facecolor()[:3], to_rgb(BLUE)) for figure in bars]
    assert all(plain is (task == "classify") for plain in coloured)


@pytest.mark.parametrize(
    ("task", "name"), [("classify", name) for name in CHARTS["classify"]] + [("detect", "precision_recall.png")]
)
def test_the_same_details_give_the_same_bytes(tmp_path, task, name):
    draw = charts_of(DETAILS[task], labels=("a", "b"), headline="top1")[name]
    for path in (tmp_path / "one", tmp_path / "two"):
        draw(path)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
