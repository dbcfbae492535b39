"""Charts of any metrics show their values, are not cut off, and reproducible."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from van.errors import ShapeError
from van.visualization import metric_charts
from van.visualization.charts import BLUE, GRAY, ORANGE
from van.visualization.drawing import class_color
from van.visualization.metric_charts import (
    build_metric_charts,
    draw_confusion_matrix,
    draw_per_class_metric,
    draw_precision_recall_curves,
    draw_reliability_diagram,
    plot_mean_precision,
    plot_reliability,
)
from visualization.renderings import amount, read

HOSTILE = [
    "a$b$c", r"$\nosuchcommand$", "犬", "🐶", "собака", "שלום", "x" * 500, "_y", "two\nlines", "", "\udce9", "\x00",
]  # fmt: skip
RECALL = np.linspace(0, 1, 101)


@pytest.fixture
def figures(monkeypatch) -> Iterator[list[Figure]]:
    """Collect the figures, for properties that pixels do not show."""
    kept: list[Figure] = []
    save = metric_charts.save_figure
    monkeypatch.setattr(metric_charts, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def test_a_confusion_matrix_of_any_size_is_drawn(tmp_path):
    for classes in (1, 20, 61, 200):
        counts = np.random.default_rng(0).multinomial(20, np.full(classes, 1 / classes), size=classes)
        counts += np.diag(np.full(classes, 80))
        draw_confusion_matrix(counts, [f"class {n}" for n in range(classes)], tmp_path / "a")
        image = read(tmp_path / "a")
        assert 300 < image.shape[0] < 2000, classes
        assert abs(image.shape[0] - image.shape[1]) < 400, classes
        blues = (image[..., 2].astype(int) - image[..., 0] > 60).mean()
        assert blues > 0.001, classes  # the diagonal
    draw_confusion_matrix(np.zeros((3, 3), dtype=int), ["a", "b", "c"], tmp_path / "a")  # classes without samples
    read(tmp_path / "a")


def test_one_error_in_a_hundred_is_visible(tmp_path):
    counts = np.diag([99, 100])
    draw_confusion_matrix(counts, ["a", "b"], tmp_path / "clean")
    counts[0, 1] = 1
    draw_confusion_matrix(counts, ["a", "b"], tmp_path / "mistaken")
    clean, mistaken = read(tmp_path / "clean"), read(tmp_path / "mistaken")
    assert clean.shape == mistaken.shape
    assert (np.abs(clean.astype(int) - mistaken).max(axis=-1) > 10).sum() > 10_000  # a whole cell, not only its count


def test_counts_and_bins_that_do_not_fit_are_rejected(tmp_path):
    for shape in ((2, 3), (3, 3), (0, 0)):
        names = ["a", "b"][: shape[0]]
        with pytest.raises(ShapeError, match=rf"counts.*\({len(names)}, {len(names)}\).*{re.escape(str(shape))}"):
            draw_confusion_matrix(np.zeros(shape, dtype=int), names, tmp_path / "a")
    for lengths in ((0, 0, 0), (3, 3, 2), (3, 2, 3)):
        with pytest.raises(ShapeError, match="{}, {} and {}".format(*lengths)):
            draw_reliability_diagram(reliability(*([1] * length for length in lengths)), tmp_path / "a")


def reliability(count: list[int], correct: list[int], confidence: list[float]) -> dict[str, Any]:
    return {"count": count, "correct": correct, "confidence": confidence}


def test_the_reliability_diagram_has_accuracy_confidence_and_count_of_each_bin(tmp_path, figures):
    draw_reliability_diagram(reliability([0, 30, 10], [0, 15, 9], [0, 18.0, 8.0]), tmp_path / "a")
    read(tmp_path / "a")
    upper, lower = figures[0].axes
    assert (
        upper.get_title() == "expected calibration error 10.00 %"
    )  # overconfident by 3 of 30 and underconfident by 1 of 10, of 40
    thirds = (100 / 3, 200 / 3)
    bars = [(bar.get_x(), bar.get_height(), bar.get_width()) for bar in upper.patches]
    assert np.allclose(bars, [(thirds[0], 50, thirds[0]), (thirds[1], 90, thirds[0])])
    assert np.allclose(
        upper.collections[0].get_segments(),
        [[(x, y), (x + thirds[0], y)] for x, y in zip(thirds, (60, 80), strict=True)],
    )
    assert np.allclose([bar.get_height() for bar in lower.patches], [75, 25])


def test_the_bar_of_a_bin_is_proportional_to_its_accuracy(tmp_path):
    for name, correct in (("half", 50), ("whole", 100)):
        draw_reliability_diagram(reliability([0, 100], [0, correct], [0, 75.0]), tmp_path / name)
    half, whole = (amount(read(tmp_path / name), BLUE) for name in ("half", "whole"))
    assert 1.9 < whole / half < 2.1


def test_any_reliability_is_drawn(tmp_path, figures):
    for bins, title in (
        (reliability([0] * 15, [0] * 15, [0] * 15), "no predictions"),
        (reliability([2] + [0] * 13 + [3], [0] * 14 + [3], [math.nan] + [0] * 13 + [3]), "some scores are NaN"),
        (reliability([1], [1], [1.0]), "expected calibration error 0.00 %"),
        (reliability([1] * 100, [0] * 100, [n / 100 for n in range(100)]), "expected calibration error 49.50 %"),
    ):
        draw_reliability_diagram(bins, tmp_path / "a")
        read(tmp_path / "a")
        assert figures[-1].axes[0].get_title() == title


def rows_of(figure: Figure) -> dict[str, float]:
    """Return names and lengths of the bars, from the top."""
    (axis,) = figure.axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    return dict(zip(names, [bar.get_width() for bar in axis.patches], strict=True))


def test_classes_are_sorted_worst_first_and_the_worst_is_in_the_title(tmp_path, figures):
    per_class = {"a": {"iou": 0.5, "pixels": 9}, "b": {"iou": 0.25}, "c": {"iou": 1.0}, "d": {"iou": math.nan}, "e": {}}
    draw_per_class_metric(per_class, "iou", tmp_path / "a")
    read(tmp_path / "a")
    assert list(rows_of(figures[0]).items()) == [("b", 25), ("a", 50), ("c", 100)]
    (axis,) = figures[0].axes
    assert axis.get_title() == "iou per class: worst b, 25.0 %"
    assert axis.get_xlabel() == "iou (%)\ndotted: mean of 3 classes, 58.3 %"
    assert axis.get_ylabel() == "class"
    (dotted,) = axis.lines
    assert dotted.get_xdata() == pytest.approx([175 / 3] * 2)
    assert [text.get_text() for text in axis.texts] == ["25.0", "50.0", "100.0"]


def test_many_classes_are_reduced_to_the_worst_and_the_best(tmp_path, figures):
    per_class = {f"c{n}": {"top1": (n * 7 % 1000) / 1000} for n in range(1000)}
    draw_per_class_metric(per_class, "top1", tmp_path / "a")
    assert read(tmp_path / "a").shape[0] < 1500
    rows = rows_of(figures[0])
    assert list(rows.values()) == pytest.approx([n / 10 for n in range(30)] + [0] + [n / 10 for n in range(990, 1000)])
    assert list(rows)[30] == "... 960 classes between ..."
    sixty = {name: per_class[name] for name in list(per_class)[60:0:-1]}
    draw_per_class_metric(sixty, "top1", tmp_path / "b")
    assert list(rows_of(figures[1])) == [*sixty][::-1]


def test_bars_have_the_class_colors_of_drawings(tmp_path, figures):
    per_class = {"b": {"pq": 0.5}, "c": {"pq": 0.6}, "not known": {"pq": 0.7}}
    draw_per_class_metric(per_class, "pq", tmp_path / "a", class_names=("a", "b", "c"))
    read(tmp_path / "a")
    colors = [bar.get_facecolor()[:3] for bar in figures[0].axes[0].patches]
    assert np.allclose(colors, [*(np.array(class_color(index)) / 255 for index in (1, 2)), to_rgb(BLUE)])


def test_proportions_of_few_samples_have_their_wilson_interval_as_error_bar(tmp_path, figures):
    """5 of 10 is 23.7 to 76.3 % (Wilson 1927); classes of more than 30 samples and metrics such as IoU have none."""
    per_class = {"a": {"samples": 10, "top1": 0.5}, "b": {"samples": 31, "top1": 0.6}, "c": {"samples": 3, "top1": 1.0}}
    draw_per_class_metric(per_class, "top1", tmp_path / "a")
    read(tmp_path / "a")
    (axis,) = figures[0].axes
    (bars,) = axis.containers[1].lines[2]
    assert np.allclose(bars.get_segments(), [[(23.66, 0), (76.34, 0)], [(43.85, 2), (100, 2)]], atol=0.01)
    assert [text.get_position()[0] > 76 for text in axis.texts] == [True, False, True]  # beside the error bar
    assert "95 % interval" in axis.get_xlabel()
    draw_per_class_metric({"a": {"samples": 10, "iou": 0.5}}, "iou", tmp_path / "b")
    assert len(figures[1].axes[0].containers) == 1
    assert "interval" not in figures[1].axes[0].get_xlabel()


def test_bins_of_few_samples_have_their_wilson_interval(tmp_path, figures):
    draw_reliability_diagram(reliability([10, 31], [5, 20], [2.5, 23.0]), tmp_path / "a")
    read(tmp_path / "a")
    upper, _ = figures[0].axes
    (bars,) = upper.containers[1].lines[2]
    assert np.allclose(bars.get_segments(), [[(25, 23.66), (25, 76.34)]], atol=0.01)


def test_every_axis_has_a_name_with_its_unit(tmp_path, figures):
    draw_confusion_matrix(np.eye(2, dtype=int), ["a", "b"], tmp_path / "a")
    draw_reliability_diagram(reliability([100, 100], [20, 70], [25.0, 75.0]), tmp_path / "b")
    draw_precision_recall_curves(curves({"a": curve(0.8, 0.1, 0.1)}, "box"), tmp_path / "c")
    labels = [[(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes] for figure in figures]
    assert labels == [
        [("predicted class", "true class"), ("", "fraction of the true class (%)")],
        [("", "accuracy (%)"), ("confidence (%)", "predictions (%)")],
        [("recall (%)", "precision (%)")] * 2,
    ]


def test_few_classes_or_none_are_drawn(tmp_path, figures):
    for per_class, title in (
        ({}, ""),
        ({"a": {"top1": math.nan}}, ""),
        ({"a": {"top1": 0.0}}, ": worst a, 0.0 %"),
        ({"a": {"top1": 0.0}, "b": {"top1": 0.0}}, ": worst a and 1 more, 0.0 %"),
    ):
        draw_per_class_metric(per_class, "top1", tmp_path / "a")
        read(tmp_path / "a")
        assert figures[-1].axes[0].get_title() == "top1 per class" + title


def curve(*levels: float) -> dict[str, list[float]]:
    """Return the precision at each recall, by IoU."""
    return {
        name: np.full(101, level).tolist() for name, level in zip(("0.50", "0.75", "0.50:0.95"), levels, strict=True)
    }


def curves(classes: dict[str, dict[str, list[float]]], *kinds: str) -> dict[str, Any]:
    return {"recall": RECALL.tolist()} | {kind: {"all": curve(0.9, 0.7, 0.6), "per_class": classes} for kind in kinds}


def lines_of(figure: Figure, place: int) -> list[tuple[str, str, float]]:
    """Return name, color and precision of each line in the legend of an axis."""
    axis = figure.axes[place]
    legend = axis.get_legend()
    handles = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    drawn = {line.get_color(): line for line in axis.lines}
    return [(name, line.get_color(), drawn[line.get_color()].get_ydata()[0]) for name, line in handles.items()]


def test_precision_is_drawn_over_recall_for_three_thresholds_and_for_each_class(tmp_path, figures):
    classes = {"b": curve(0.8, 0.1, 0.1), "a": curve(0.4, 0.1, 0.1)}
    draw_precision_recall_curves(curves(classes, "box", "mask"), tmp_path / "a", class_names=("a", "b"))
    read(tmp_path / "a")
    assert [axis.get_title() for axis in figures[0].axes] == [
        f"{kind}, {what}" for kind in ("boxes", "masks") for what in ("mean over classes", "each class at IoU 0.50")
    ]
    for place in (0, 2):
        names = [(name.strip("\u200e"), level) for name, _, level in lines_of(figures[0], place)]
        assert names == [("90.0  IoU 0.50", 90), ("70.0  IoU 0.75", 70), ("60.0  IoU 0.50:0.95", 60)]
        found = [(name.strip("\u200e"), level) for name, _, level in lines_of(figures[0], place + 1)]
        assert found == [("40.0  a", 40), ("80.0  b", 80)]
        colors = [color for _, color, _ in lines_of(figures[0], place + 1)]
        assert np.allclose(np.array(colors) * 255, [class_color(0), class_color(1)])
    assert np.allclose(figures[0].axes[0].lines[0].get_xdata(), 100 * RECALL)


def test_the_worst_of_many_classes_have_names_and_the_rest_is_gray(tmp_path, figures):
    classes = {f"c{n}": curve((n * 7 % 1000) / 1000, 0, 0) for n in range(1000)}
    draw_precision_recall_curves(curves(classes, "box"), tmp_path / "a", class_names=list(classes))
    read(tmp_path / "a")
    legend = [text.get_text().strip("\u200e") for text in figures[0].axes[1].get_legend().get_texts()]
    assert legend == ["0.0  c0", "0.1  c143", "0.2  c286", "0.3  c429", "0.4  c572", "995 other classes"]
    colors = [line.get_color() for line in figures[0].axes[1].lines]
    assert colors[:995] == [GRAY] * 995
    assert GRAY not in colors[995:]


def test_a_chart_without_annotations_has_a_note(tmp_path, figures):
    draw_precision_recall_curves(curves({}, "box"), tmp_path / "a")
    read(tmp_path / "a")
    assert [text.get_text() for text in figures[0].axes[1].texts] == ["no annotations"]


def test_names_of_any_kind_are_drawn_literally(tmp_path):
    draw_confusion_matrix(np.eye(len(HOSTILE), dtype=int) * 12_345_678, HOSTILE, tmp_path / "a")
    blues = (np.ptp(read(tmp_path / "a").astype(int), axis=-1) > 60).mean()
    assert blues > 0.02  # the labels leave room for the matrix
    draw_per_class_metric({label: {"top1": 0.9} for label in HOSTILE}, "top1", tmp_path / "b")
    assert amount(read(tmp_path / "b"), BLUE) > 100_000
    draw_precision_recall_curves(curves({label: curve(0.5, 0.5, 0.5) for label in HOSTILE[4:]}, "box"), tmp_path / "c")
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
MONITORS = {"detect": "box_ap", "segment": "mean_iou", "panoptic": "pq"}
CHARTS = {
    "classify": ["confusion.png", "reliability.png", "per_class.png"],
    "one class": [],
    "detect": ["per_class.png", "precision_recall.png"],
    "segment": ["confusion.png", "per_class.png"],
    "panoptic": ["per_class.png"],
}


def test_a_task_has_the_charts_that_its_details_allow(tmp_path, figures):
    for task, details in DETAILS.items():
        figures.clear()
        charts = build_metric_charts(details, class_names=("a", "b"), monitor=MONITORS.get(task, "top1"))
        assert list(charts) == CHARTS[task]
        for name, draw in charts.items():
            draw(tmp_path / name)
            read(tmp_path / name)
        bars = [figure for figure in figures if "per class" in figure.axes[0].get_title()]
        assert all(list(rows_of(figure)) == ["a"] for figure in bars), task
        is_plain = [np.allclose(figure.axes[0].patches[0].get_facecolor()[:3], to_rgb(BLUE)) for figure in bars]
        assert all(plain is (task == "classify") for plain in is_plain), task


def test_the_same_details_give_the_same_bytes(tmp_path):
    for task, name in [("classify", name) for name in CHARTS["classify"]] + [("detect", "precision_recall.png")]:
        draw = build_metric_charts(DETAILS[task], class_names=("a", "b"), monitor="top1")[name]
        for path in (tmp_path / "one", tmp_path / "two"):
            draw(path)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes(), name


def test_the_charts_of_a_page_have_bars_intervals_and_a_curve_for_each_threshold():
    axis = Figure().subplots()
    plot_reliability(axis, reliability([0, 4, 0, 16], [0, 1, 0, 16], [0, 1.6, 0, 14.4]))
    assert [bar.get_height() for bar in axis.containers[0]] == [25, 100]
    assert axis.get_legend_handles_labels()[1] == [
        "perfect calibration",
        "mean confidence",
        "accuracy",
        "95 % interval",
    ]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("confidence (%)", "accuracy (%)")
    axis = Figure().subplots()
    plot_mean_precision(axis, curves({}, "box"), "box")
    assert [(line.get_label(), line.get_ydata()[0]) for line in axis.lines] == [
        ("IoU 0.50", 90), ("IoU 0.75", 70), ("IoU 0.50:0.95", 60),
    ]  # fmt: skip
