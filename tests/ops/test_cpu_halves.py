"""The C++ operators on bfloat16 and float16: computed in float32 and rounded once at the end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ops.cases import (
    FLOAT32,
    LAYOUTS,
    OPERATORS,
    Case,
    assert_near,
    draw,
    output_and_gradients,
    run_operator,
    run_reference,
    run_reference_float64,
)
from van.ops import native

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=f"no native library: {native.unavailable_reason()}"
)

HALVES = [torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1, 1), (2, 16, 7, 7), (3, 5, 13, 11), (1, 37, 1, 31), (1, 33, 29, 1), (17, 2, 5, 6), (2, 300, 5, 9),
          (0, 3, 5, 5)]  # fmt: skip
CASES = [
    *(Case("depthwise", shape) for shape in SHAPES),
    *(Case("depthwise", (2, 21, 13, 17), sides, 1) for sides in [(3, 3), (5, 5), (1, 7)]),
    *(Case("lka_pair", shape) for shape in SHAPES),
    *(Case("lka_pair", (2, 21, 13, 17), (3, 5), 2, sides) for sides in [(3, 3), (9, 1)]),
    *(Case("depthwise_gelu", shape, (3, 3), 1) for shape in SHAPES),
]
EXAMPLES = [Case("depthwise", (2, 21, 13, 17)), Case("lka_pair", (2, 21, 13, 17)),
        Case("depthwise_gelu", (2, 21, 13, 17), (3, 3), 1)]  # fmt: skip


def error_in_half_ulps(found: Tensor, expected: Tensor) -> float:
    """Return the largest error, in units of half a unit in the last place of the dtype."""
    if not expected.numel():
        return 0.0
    form = torch.finfo(found.dtype)
    half_a_unit = expected.abs().clamp(min=form.smallest_normal) * form.eps / 2
    in_float32 = FLOAT32 * max(1.0, expected.abs().max().item())
    return ((found.double() - expected).abs() / (half_a_unit + in_float32)).max().item()


def test_outputs_equal_float64_results_rounded_once(subtests):
    """The exact result is that of float64 for the same rounded inputs."""
    for case in CASES:
        for dtype in HALVES:
            for weight_dtype in ["float32", "half"]:
                with subtests.test(case=str(case), dtype=str(dtype), weight_dtype=str(weight_dtype)):
                    inputs = draw(case, dtype=dtype, weight_dtype=torch.float32 if weight_dtype == "float32" else dtype)
                    expected = run_reference_float64(case, inputs)
                    for name, tensor in output_and_gradients(run_operator, case, inputs).items():
                        assert tensor.dtype == (dtype if name == "output" else inputs[name].dtype)
                        assert error_in_half_ulps(tensor, expected[name]) <= 1, name


def test_gradients_of_float32_weights_are_not_rounded_to_half(subtests):
    for case in EXAMPLES:
        with subtests.test(case=str(case)):
            inputs = draw(case, dtype=torch.bfloat16)
            found, expected = (
                {name: tensor for name, tensor in all_of_them.items() if name not in ("output", "x")}
                for all_of_them in (
                    output_and_gradients(run_operator, case, inputs),
                    run_reference_float64(case, inputs),
                )
            )
            assert len(found) == (4 if case.operator == "lka_pair" else 2)
            assert_near(found, expected)


def test_comparison_detects_rounding_of_intermediates(subtests):
    """The control: PyTorch's separate operators round the intermediates, which is detected forward and backward."""
    for case in EXAMPLES[1:]:
        for dtype in HALVES:
            with subtests.test(case=str(case), dtype=str(dtype)):
                inputs = draw(case, dtype=dtype, weight_dtype=dtype)
                expected = run_reference_float64(case, inputs)
                step_by_step = output_and_gradients(run_reference, case, inputs)
                assert error_in_half_ulps(step_by_step["output"], expected["output"]) > 1.3
                assert error_in_half_ulps(step_by_step["x"], expected["x"]) > 1.3


def test_float32_weights_are_not_rounded_to_half(subtests):
    """The control: with weights rounded to half, outputs exceed the tolerance."""
    for case in EXAMPLES:
        for dtype in HALVES:
            with subtests.test(case=str(case), dtype=str(dtype)):
                inputs = draw(case, dtype=dtype)
                expected = run_reference_float64(case, inputs)
                rounded = {name: tensor if name == "x" else tensor.to(dtype).float() for name, tensor in inputs.items()}
                assert (
                    error_in_half_ulps(output_and_gradients(run_operator, case, rounded)["output"], expected["output"])
                    > 1.3
                )


@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    sides=st.one_of(st.just((3, 3)), st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7]))),
    dilation=st.integers(1, 4),
    dtypes=st.tuples(st.sampled_from(HALVES), st.sampled_from([torch.float32, *HALVES])),
    layout=st.sampled_from(LAYOUTS),
    with_bias=st.booleans(),
)
def test_random_sizes_are_rounded_once(operator, shape, sides, dilation, dtypes, layout, with_bias):
    case = Case(operator, shape, sides, 1 if operator == "depthwise_gelu" else dilation, (3, 5))
    inputs = draw(case, dtype=dtypes[0], weight_dtype=dtypes[1], layout=layout, with_bias=with_bias)
    expected = run_reference_float64(case, inputs)
    for name, tensor in output_and_gradients(run_operator, case, inputs).items():
        assert error_in_half_ulps(tensor, expected[name]) <= 1, name


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_to_nearest_even_and_overflow_gives_infinity(dtype: torch.dtype):
    """Sums that float32 holds exactly, on the border between two halves, as PyTorch rounds them."""
    form = torch.finfo(dtype)
    steps = torch.tensor([0.5, 1.5, 2.5, 3.5, 0.25, 0.75, -0.5, -1.5, -2.5], dtype=torch.float32)
    biases = torch.cat([1 + steps * form.eps, torch.tensor([form.max * 1.01, -form.max * 1.01, torch.inf, -0.0])])
    x = torch.zeros(1, len(biases), 2, 3, dtype=dtype)
    found = torch.ops.van.depthwise(x, torch.zeros(len(biases), 1, 3, 3), biases, 1)
    assert found[0, :, 1, 2].equal(biases.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_nan_propagates_only_within_the_kernel_size(dtype: torch.dtype):
    x = torch.ones(1, 19, 7, 8, dtype=dtype)
    x[0, 17, 3, 4] = torch.nan
    found = torch.ops.van.depthwise(x, torch.ones(19, 1, 3, 3), None, 1)
    lost = found.isnan().nonzero()
    assert len(lost) == 9
    assert lost.min(0).values.tolist() == [0, 17, 2, 3]
    assert lost.max(0).values.tolist() == [0, 17, 4, 5]
