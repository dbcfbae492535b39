import pytest
from hypothesis import given
from hypothesis import strategies as st

from van.errors import ShapeError
from van.models.design import best_dilation, decompose

TABLE_2 = {  # K=21, d=3: channels -> standard convolution, MobileNet's split, LKA
    32: (451_584, 15_136, 3_392),
    64: (1_806_336, 32_320, 8_832),
    128: (7_225_344, 72_832, 25_856),
    256: (28_901_376, 178_432, 84_480),
    512: (115_605_504, 487_936, 300_032),
}


@pytest.mark.parametrize("channels", TABLE_2)
def test_parameters_are_those_of_the_papers_table_2(channels):
    plan = decompose(21, dilation=3, channels=channels)
    assert (plan.parameters["standard"], plan.parameters["mobilenet"], plan.parameters["lka"]) == TABLE_2[channels]


@pytest.mark.parametrize(("kernel_size", "dilation"), [(7, 2), (14, 3), (21, 3), (28, 4), (35, 4), (53, 5)])
def test_the_best_dilation_is_the_papers(kernel_size, dilation):
    assert best_dilation(kernel_size) == dilation
    assert decompose(kernel_size).dilation == dilation


@given(kernel_size=st.integers(1, 80), channels=st.integers(1, 64))
def test_no_dilation_needs_fewer_weights_than_the_best(kernel_size, channels):
    best = decompose(kernel_size, channels=channels)
    every = [decompose(kernel_size, dilation=d, channels=channels) for d in range(1, kernel_size + 3)]
    assert best.parameters["lka"] == min(plan.parameters["lka"] for plan in every)


def test_21_by_3_reads_23_by_23():
    plan = decompose(21, dilation=3)
    assert (plan.local_size, plan.dilated_size, plan.reach_px) == (5, 7, 23)


def test_an_even_dilated_kernel():
    plan = decompose(11, dilation=3)
    assert (plan.local_size, plan.dilated_size, plan.reach_px) == (5, 4, 14)


@given(kernel_size=st.integers(1, 80), dilation=st.integers(1, 9))
def test_the_reach_is_never_below_the_kernel(kernel_size, dilation):
    assert decompose(kernel_size, dilation=dilation).reach_px >= kernel_size


def test_macs_are_the_weights_at_every_pixel():
    plan = decompose(21, channels=32, size_px=14)
    assert plan.macs["lka"] == 3_392 * 14 * 14
    assert plan.macs["standard"] == 451_584 * 14 * 14


@pytest.mark.parametrize("name", ["kernel_size", "dilation", "channels", "size_px"])
def test_a_size_below_one_is_named(name):
    sizes = {"kernel_size": 21, "dilation": 3, "channels": 8, "size_px": 7, name: 0}
    with pytest.raises(ShapeError, match=f"{name} is 0; wanted at least 1"):
        decompose(sizes.pop("kernel_size"), **sizes)


def test_no_dilation_is_best_for_no_kernel():
    with pytest.raises(ShapeError, match="kernel_size is 0"):
        best_dilation(0)
    with pytest.raises(ShapeError, match="kernel_size is -3"):
        decompose(-3)
