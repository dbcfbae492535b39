"""Benchmark charts: colors, margins and labels that do not overlap."""

import itertools
from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from van.bench import charts
from van.bench.cases import comparison_cases, sweep_cases
from van.bench.charts import plot_accuracy_over_throughput, plot_sweep
from van.bench.machine import Machine
from van.bench.networks import NETWORKS
from van.bench.rows import Case, Row
from van.bench.timing import Timing
from van.visualization.charts import BLUE, GRAY, ORANGE

MACHINE = Machine(name="a machine", threads=2, flops_per_s=1e11, bytes_per_s=1e10)
MS = {"van_b0": 240, "van_b1": 560, "van_b2": 976, "van_b3": 1680, "convnext_tiny": 856, "convnext_small": 1568,
      "swin_tiny": 920, "swin_small": 1744, "pvt_v2_b2": 800, "inception_next_tiny": 800, "resnet50": 608}  # fmt: skip
TIMES = {"van": 1, "eager": 1, "reference": 2, "compile": 0.9, "onnxruntime": 0.7, "openvino": 0.65}


def timed(case: Case) -> Row:
    pixels = (case.image_size / 224) ** 2 * (1 + (case.kernel_size or 0) / 50)
    return Row(case=case, batch=Timing(MS[case.network] * TIMES[case.backend] * case.batch_size * pixels / 8, 1.0))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        assert file.format == "PNG"
        image = np.asarray(file.convert("RGB"))
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3), image[:, :3].reshape(-1, 3)])
    assert border.min() == 255, "content is clipped at the edge"
    return image


def has(image: np.ndarray, color: str) -> bool:
    expected = [int(color[position : position + 2], 16) for position in (1, 3, 5)]
    return int((image == expected).all(axis=-1).sum()) > 20


def test_accuracy_chart_has_a_color_for_each_family(tmp_path):
    path = tmp_path / "speed.png"
    plot_accuracy_over_throughput(
        MACHINE, [timed(case) for case in comparison_cases(list(MS), batch_size=8, image_size=224)], path
    )
    image = read(path)
    assert image.shape[0] > 700
    assert image.shape[1] > 1000
    assert all(has(image, charts._FAMILY_COLORS[network.family]) for network in NETWORKS.values())


def test_charts_are_deterministic(tmp_path):
    for name in "ab":
        plot_accuracy_over_throughput(
            MACHINE,
            [timed(case) for case in comparison_cases(["van_b0"], batch_size=8, image_size=224)],
            tmp_path / name,
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("exponent", [1.0, 0.35])
def test_labels_do_not_overlap_labels_or_points(tmp_path, monkeypatch, exponent):
    """Also if all throughputs are similar."""
    axes: list[matplotlib.axes.Axes] = []
    save = charts.save_figure
    monkeypatch.setattr(charts, "save_figure", lambda figure, path: (axes.extend(figure.axes), save(figure, path)))
    rows = [
        Row(case=case, batch=Timing(timed(case).batch.median_ms ** exponent, 1.0))
        for case in comparison_cases(list(MS), batch_size=8, image_size=224)
    ]
    plot_accuracy_over_throughput(MACHINE, rows, tmp_path / "speed.png")
    (axis,) = axes
    renderer = FigureCanvasAgg(axis.figure).get_renderer()
    names = {text.get_text(): text.get_window_extent(renderer) for text in axis.texts}
    assert set(names) == set(MS)
    for (_, one), (_, other) in itertools.combinations(names.items(), 2):
        assert not one.overlaps(other)
    points = [position for line in axis.get_lines() if line.get_marker() != "None" for position in line.get_xydata()]
    assert len(points) == len(rows)
    for x, y in axis.transData.transform(points):
        assert not any(box.contains(x, y) for box in names.values())


@pytest.mark.parametrize("sweep", ["batch", "resolution", "kernel"])
def test_sweep_chart_has_a_line_for_each_network_and_backend(tmp_path, sweep):
    networks = ["van_b0", "van_b1"] if sweep == "kernel" else ["van_b0", "swin_tiny"]
    path = tmp_path / "growth.png"
    plot_sweep(
        MACHINE, [timed(case) for case in sweep_cases(sweep, networks, batch_size=8, image_size=224)], path, sweep=sweep
    )
    image = read(path)
    assert has(image, BLUE)
    assert has(image, ORANGE)


def test_rows_without_throughput_leave_a_gap(tmp_path):
    rows = [timed(case) for case in sweep_cases("batch", ["van_b0"], batch_size=8, image_size=224)]
    rows[2:4] = [Row(case=row.case, outcome="failed", reason="none") for row in rows[2:4]]
    plot_sweep(MACHINE, rows, tmp_path / "gap.png", sweep="batch")
    plot_accuracy_over_throughput(MACHINE, rows, tmp_path / "speed.png")
    assert has(read(tmp_path / "gap.png"), BLUE)
    assert has(read(tmp_path / "speed.png"), BLUE)


@pytest.mark.parametrize(
    "rows", [[], [Row(case=Case(network="van_b0", backend="van", batch_size=1), outcome="failed")]]
)
def test_charts_without_data_contain_a_note(tmp_path, rows):
    plot_accuracy_over_throughput(MACHINE, rows, tmp_path / "speed.png")
    plot_sweep(MACHINE, rows, tmp_path / "growth.png", sweep="batch")
    for name in ("speed.png", "growth.png"):
        image = read(tmp_path / name)
        assert has(image, GRAY)
        assert not has(image, BLUE)
