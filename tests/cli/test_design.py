"""``van design``: table 2 of the paper and its best dilations."""

import json

import pytest
from PIL import Image

TABLE_2 = {
    32: (451_584, 15_136, 3_392),
    64: (1_806_336, 32_320, 8_832),
    128: (7_225_344, 72_832, 25_856),
    256: (28_901_376, 178_432, 84_480),
    512: (115_605_504, 487_936, 300_032),
}
"""arXiv:2202.09741: channels, then parameters of a standard convolution, MobileNet's decomposition, and LKA; K = 21."""


@pytest.mark.parametrize("channels", TABLE_2)
def test_json_has_the_parameters_and_macs_of_table_2(van, channels):
    ran = van("design", "--channels", channels, "--size", 7, "--json")
    assert (ran.status, ran.err) == (0, "")
    record = json.loads(ran.out)
    weights = dict(zip(("standard", "mobilenet", "lka"), TABLE_2[channels], strict=True))
    assert record["parameters"] == weights
    assert record["macs"] == {name: count * 49 for name, count in weights.items()}
    shape = {"kernel_size": 21, "dilation": 3, "local_size": 5, "dilated_size": 7, "receptive_field": 23}
    assert {name: record[name] for name in shape} == shape


@pytest.mark.parametrize(("kernel", "dilation"), [(7, 2), (14, 3), (21, 3), (28, 4), (35, 4), (53, 5), (1, 1)])
def test_the_best_dilation_is_that_of_the_paper(van, kernel, dilation):
    assert json.loads(van("design", "--kernel", kernel, "--json").out)["dilation"] == dilation
    assert f"best dilation {dilation}: " in van("design", "--kernel", kernel).out


def test_the_table_has_the_same_numbers_and_labels_the_best(van):
    text = van("design", "--channels", "32").out
    for count in TABLE_2[32]:
        assert f"{count:,}" in text
    best = [line for line in text.splitlines() if "<- best" in line]
    assert len(best) == 1
    assert best[0].split()[0] == "d=3:"


def test_the_plot_is_a_png_and_json_is_not_mixed_with_notes(van, tmp_path):
    target = tmp_path / "plots" / "costs.png"
    ran = van("design", "--kernel", "35", "--plot", target, "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["kernel_size"] == 35
    assert ran.err == f"plot: {target}\n"
    with Image.open(target) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 200


def test_the_largest_kernel_is_plotted(van, tmp_path):
    assert van("design", "--kernel", "10000", "--plot", tmp_path / "costs.png").status == 0
    assert (tmp_path / "costs.png").stat().st_size > 1000
