import pytest
from hypothesis import given
from hypothesis import strategies as st

from van.backbones.design import best_dilation, decompose
from van.errors import ShapeError

TABLE_2 = {  # K=21, d=3: channels -> standard convolution, MobileNet's split, LKA
    32: (451_584, 15_136, 3_392),
    64: (1_806_336, 32_320, 8_832),
    128: (7_225_344, 72_832, 25_856),
    256: (28_901_376, 178_432, 84_480),
    512: (115_605_504, 487_936, 300_032),
}


def test_parameters_equal_the_papers_table_2(subtests):
    for channels in TABLE_2:
        with subtests.test(channels=str(channels)):
            plan = decompose(21, dilation=3, channels=channels)
            assert (plan.parameters["standard"], plan.parameters["mobilenet"], plan.parameters["lka"]) == TABLE_2[
                channels
            ]


def test_best_dilation_equals_the_papers(subtests):
    for kernel_size, dilation in [(7, 2), (14, 3), (21, 3), (28, 4), (35, 4), (53, 5)]:
        with subtests.test(kernel_size=str(kernel_size), dilation=str(dilation)):
            assert best_dilation(kernel_size) == dilation
            assert decompose(kernel_size).dilation == dilation


@given(kernel_size=st.integers(1, 80), channels=st.integers(1, 64))
def test_best_dilation_has_the_fewest_weights(kernel_size, channels):
    best = decompose(kernel_size, channels=channels)
    every = [decompose(kernel_size, dilation=d, channels=channels) for d in range(1, kernel_size + 3)]
    assert best.parameters["lka"] == min(plan.parameters["lka"] for plan in every)


def test_kernel_21_dilation_3_has_a_receptive_field_of_23():
    plan = decompose(21, dilation=3)
    assert (plan.local_size, plan.dilated_size, plan.receptive_field) == (5, 7, 23)


def test_the_dilated_kernel_may_be_even():
    plan = decompose(11, dilation=3)
    assert (plan.local_size, plan.dilated_size, plan.receptive_field) == (5, 4, 14)


@given(kernel_size=st.integers(1, 80), dilation=st.integers(1, 9))
def test_the_receptive_field_is_at_least_the_kernel_size(kernel_size, dilation):
    assert decompose(kernel_size, dilation=dilation).receptive_field >= kernel_size


def test_macs_are_weights_times_pixels():
    plan = decompose(21, channels=32, feature_size=14)
    assert plan.macs["lka"] == 3_392 * 14 * 14
    assert plan.macs["standard"] == 451_584 * 14 * 14


def test_a_size_below_one_is_named(subtests):
    for name in ["kernel_size", "dilation", "channels", "feature_size"]:
        with subtests.test(name=str(name)):
            sizes = {"kernel_size": 21, "dilation": 3, "channels": 8, "feature_size": 7, name: 0}
            with pytest.raises(ShapeError, match=f"{name}: .* 0$"):
                decompose(sizes.pop("kernel_size"), **sizes)


def test_a_kernel_size_below_one_is_refused():
    with pytest.raises(ShapeError, match=r"kernel_size: .* 0$"):
        best_dilation(0)
    with pytest.raises(ShapeError, match=r"kernel_size: .* -3$"):
        decompose(-3)
