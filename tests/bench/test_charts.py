"""Charts are drawn whatever was measured: read back, in colour, nothing cut off, no name on another."""

import itertools
from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from van.bench import charts
from van.bench.cases import growing, side_by_side
from van.bench.charts import draw_growth, draw_speed
from van.bench.machine import Machine
from van.bench.networks import NETWORKS
from van.bench.rows import Case, Row
from van.bench.timing import Timing
from van.results.charts import BLUE, GREY, ORANGE

MACHINE = Machine(name="a machine", threads=2, flops_per_s=1e11, bytes_per_s=1e10)
MS = {"van_b0": 240, "van_b1": 560, "van_b2": 976, "van_b3": 1680, "convnext_tiny": 856, "convnext_small": 1568,
      "swin_tiny": 920, "swin_small": 1744, "pvt_v2_b2": 800, "inception_next_tiny": 800, "resnet50": 608}  # fmt: skip
TIMES = {"van": 1, "eager": 1, "reference": 2, "compile": 0.9, "onnxruntime": 0.7, "openvino": 0.65}


def timed(case: Case) -> Row:
    pixels = (case.size_px / 224) ** 2 * (1 + (case.kernel_size or 0) / 50)
    return Row(case=case, batch=Timing(MS[case.network] * TIMES[case.way] * case.batch_size * pixels / 8, 1.0))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        assert file.format == "PNG"
        picture = np.asarray(file.convert("RGB"))
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3), picture[:, :3].reshape(-1, 3)])
    assert border.min() == 255, "something is cut off at the edge"
    return picture


def has(picture: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((picture == wanted).all(axis=-1).sum()) > 20


def test_speed_is_drawn_in_a_colour_for_each_family(tmp_path):
    path = tmp_path / "speed.png"
    draw_speed(MACHINE, [timed(case) for case in side_by_side(list(MS), batch_size=8, size_px=224)], path)
    picture = read(path)
    assert picture.shape[0] > 700
    assert picture.shape[1] > 1000
    assert all(has(picture, charts._FAMILIES[network.family]) for network in NETWORKS.values())


def test_the_same_table_is_drawn_as_the_same_bytes(tmp_path):
    for name in "ab":
        draw_speed(
            MACHINE, [timed(case) for case in side_by_side(["van_b0"], batch_size=8, size_px=224)], tmp_path / name
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("spread", [1.0, 0.35])
def test_no_name_lies_on_another_or_on_a_point(tmp_path, monkeypatch, spread):
    """Also where everything is nearly as fast as everything else."""
    axes: list[matplotlib.axes.Axes] = []
    save = charts.save_figure
    monkeypatch.setattr(charts, "save_figure", lambda figure, path: (axes.extend(figure.axes), save(figure, path)))
    rows = [
        Row(case=case, batch=Timing(timed(case).batch.median_ms ** spread, 1.0))
        for case in side_by_side(list(MS), batch_size=8, size_px=224)
    ]
    draw_speed(MACHINE, rows, tmp_path / "speed.png")
    (axis,) = axes
    renderer = FigureCanvasAgg(axis.figure).get_renderer()
    names = {text.get_text(): text.get_window_extent(renderer) for text in axis.texts}
    assert set(names) == set(MS)
    for (_, one), (_, other) in itertools.combinations(names.items(), 2):
        assert not one.overlaps(other)
    points = [place for line in axis.get_lines() if line.get_marker() != "None" for place in line.get_xydata()]
    assert len(points) == len(rows)
    for x, y in axis.transData.transform(points):
        assert not any(box.contains(x, y) for box in names.values())


@pytest.mark.parametrize("over", ["batch", "resolution", "kernel"])
def test_growth_is_drawn_with_a_line_for_each_network_and_way(tmp_path, over):
    networks = ["van_b0", "van_b1"] if over == "kernel" else ["van_b0", "swin_tiny"]
    path = tmp_path / "growth.png"
    draw_growth(MACHINE, [timed(case) for case in growing(over, networks, batch_size=8, size_px=224)], path, over=over)
    picture = read(path)
    assert has(picture, BLUE)
    assert has(picture, ORANGE)


def test_rows_without_a_speed_leave_a_gap(tmp_path):
    rows = [timed(case) for case in growing("batch", ["van_b0"], batch_size=8, size_px=224)]
    rows[2:4] = [Row(case=row.case, outcome="failed", reason="none") for row in rows[2:4]]
    draw_growth(MACHINE, rows, tmp_path / "gap.png", over="batch")
    draw_speed(MACHINE, rows, tmp_path / "speed.png")
    assert has(read(tmp_path / "gap.png"), BLUE)
    assert has(read(tmp_path / "speed.png"), BLUE)


@pytest.mark.parametrize("rows", [[], [Row(case=Case(network="van_b0", way="van", batch_size=1), outcome="failed")]])
def test_nothing_measured_is_said_on_the_chart(tmp_path, rows):
    draw_speed(MACHINE, rows, tmp_path / "speed.png")
    draw_growth(MACHINE, rows, tmp_path / "growth.png", over="batch")
    for name in ("speed.png", "growth.png"):
        picture = read(tmp_path / name)
        assert has(picture, GREY)
        assert not has(picture, BLUE)
