"""The C++ operators in float32 against the definition in float64: outputs and every gradient."""

from collections.abc import Iterator

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

SHAPES = [  # primes, sides of one pixel, maps smaller than the reach, channels that fill no vector, many, no image
    (1, 1, 1, 1), (2, 16, 7, 7), (3, 5, 13, 11), (1, 37, 1, 31), (1, 33, 29, 1), (2, 64, 9, 24), (1, 17, 23, 2),
    (2, 3, 8, 50), (17, 2, 5, 6), (1, 19, 3, 3), (2, 300, 5, 9), (1, 530, 4, 7), (1, 8, 56, 57), (0, 3, 5, 5),
]  # fmt: skip
KERNELS = [((1, 1), 1), ((3, 3), 1), ((5, 5), 1), ((9, 9), 2), ((3, 3), 4), ((21, 21), 1), ((1, 7), 2), ((11, 3), 1),
           ((7, 5), 2), ((13, 1), 5), ((1, 65), 1)]  # fmt: skip
LOCAL_KERNELS = [(1, 1), (3, 3), (7, 7), (1, 5), (9, 3), (11, 13), (35, 1)]


def gelu_case(sides: tuple[int, int], shape: tuple[int, ...] = (2, 21, 13, 17)) -> Case:
    return Case("depthwise_gelu", shape, sides, 1)


CASES = [
    *(Case("depthwise", shape) for shape in SHAPES),
    *(Case("depthwise", (2, 21, 13, 17), *kernel) for kernel in KERNELS),
    *(Case("lka_pair", shape) for shape in SHAPES),
    *(Case("lka_pair", (2, 21, 13, 17), *kernel) for kernel in KERNELS),
    *(Case("lka_pair", (2, 21, 13, 17), local_sides=sides) for sides in LOCAL_KERNELS),
    *(gelu_case((3, 3), shape) for shape in SHAPES),
    *(gelu_case(sides) for sides in [(1, 1), (5, 5), (1, 3), (7, 1), (15, 37)]),
]
REPRESENTATIVE = [
    Case(operator, (3, 21, 13, 11), *kernel) for operator, kernel in zip(OPERATORS, [(), (), ((3, 3), 1)], strict=True)
]


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(8).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_output_and_gradients_match_the_reference(subtests):
    for case in CASES:
        for layout in LAYOUTS:
            with subtests.test(case=str(case), layout=str(layout)):
                inputs = draw(case, layout=layout)
                assert_near(output_and_gradients(run_operator, case, inputs), run_reference_float64(case, inputs))


def test_comparison_detects_shifted_weights_and_missing_biases(subtests):
    """The control: both exceed the tolerance by far, in the output and in every gradient but those of biases."""
    for case in REPRESENTATIVE:
        with subtests.test(case=str(case)):
            inputs = draw(case)
            expected = run_reference_float64(case, inputs)
            for name in inputs:
                wrong = {
                    **inputs,
                    name: inputs[name].roll(1, dims=-1) if "weight" in name else torch.zeros_like(inputs[name]),
                }
                with pytest.raises(AssertionError):
                    assert_near(output_and_gradients(run_operator, case, wrong), expected, 1000 * FLOAT32)


SIDES = st.sampled_from([1, 3, 5, 7, 9, 11])


@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 80), st.integers(1, 26), st.integers(1, 26)),
    sides=st.one_of(st.just((3, 3)), st.tuples(SIDES, SIDES)),  # GELU after 3 x 3 takes a path of its own
    dilation=st.integers(1, 5),
    local_sides=st.tuples(SIDES, SIDES),
    layout=st.sampled_from(LAYOUTS),
    with_bias=st.booleans(),
)
def test_random_sizes_match_the_reference(operator, shape, sides, dilation, local_sides, layout, with_bias):
    case = Case(operator, shape, sides, 1 if operator == "depthwise_gelu" else dilation, local_sides)
    inputs = draw(case, layout=layout, with_bias=with_bias)
    assert_near(output_and_gradients(run_operator, case, inputs), run_reference_float64(case, inputs))


@pytest.mark.usefixtures("fresh_memory_is_nan")
def test_every_element_is_written(subtests):
    """New memory is filled with NaN, so that an element that is not written is detected."""
    for case in CASES:
        for dtype in [torch.float32, torch.bfloat16, torch.float16]:
            with subtests.test(case=str(case), dtype=str(dtype)):
                for name, tensor in output_and_gradients(run_operator, case, draw(case, dtype=dtype)).items():
                    assert tensor.isfinite().all(), name


def surround_with_nan(tensor: Tensor) -> Tensor:
    """Return the same values in the same layout, surrounded by NaN."""
    margin = 4096  # floats; beyond any row of the cases here
    memory = torch.full((tensor.numel() + 2 * margin,), torch.nan, dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride(), margin).copy_(tensor)


def test_memory_around_the_inputs_is_not_read(subtests):
    for case in REPRESENTATIVE:
        with subtests.test(case=str(case)):
            inputs = {name: surround_with_nan(tensor) for name, tensor in draw(case).items()}
            assert_near(output_and_gradients(run_operator, case, inputs), run_reference_float64(case, inputs))


def test_results_are_bitwise_identical_for_any_number_of_threads(subtests):
    for case in [case._replace(shape=(17, 40, 15, 14)) for case in REPRESENTATIVE]:
        for dtype in [torch.float32, torch.bfloat16]:
            with subtests.test(case=str(case), dtype=str(dtype)):
                inputs, before, runs = draw(case, dtype=dtype), torch.get_num_threads(), []
                try:
                    for threads in (1, 2, 1, 3):
                        torch.set_num_threads(threads)
                        runs.append(output_and_gradients(run_operator, case, inputs))
                finally:
                    torch.set_num_threads(before)
                for run in runs[1:]:
                    for name, tensor in run.items():
                        assert tensor.equal(runs[0][name]), name


def strided_inputs() -> dict[str, Tensor]:
    base = torch.randn(2, 6, 22, 18, generator=torch.Generator().manual_seed(3))
    return {
        "transposed": base.transpose(2, 3),
        "every second pixel": base[:, :, ::2, 1::2],
        "every second channel": base[:, ::2],
        "cut out": base[:, 1:4, 3:16, 2:13],
        "cut out of channels_last": base.contiguous(memory_format=torch.channels_last)[:, 1:4, 3:16, 2:13],
        "images and channels swapped": base.transpose(0, 1),
        "one pixel everywhere": base[:1, :1, :1, :1].expand(2, 3, 7, 9),
    }


def test_inputs_with_arbitrary_strides_match_the_reference(subtests):
    for name in strided_inputs():
        for operator in OPERATORS:
            with subtests.test(name=str(name), operator=str(operator)):
                x = strided_inputs()[name]
                assert not x.is_contiguous()
                assert not x.is_contiguous(memory_format=torch.channels_last)
                case = Case(operator, tuple(x.shape), (3, 3), 1 if operator == "depthwise_gelu" else 2)
                inputs = {**draw(case), "x": x}
                assert_near(output_and_gradients(run_operator, case, inputs), run_reference_float64(case, inputs))


def test_weights_and_biases_with_arbitrary_strides_match_the_reference(subtests):
    for case in REPRESENTATIVE:
        for kind in ["transposed", "every second tap", "one kernel for all", "last channel first"]:
            with subtests.test(case=str(case), kind=str(kind)):

                def restride(tensor: Tensor) -> Tensor:
                    if kind == "transposed":
                        return tensor.mT.contiguous().mT if tensor.ndim == 4 else tensor
                    if kind == "every second tap":
                        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]
                    if kind == "one kernel for all":
                        return tensor[:1].expand(tensor.shape)
                    return tensor.transpose(0, -1).contiguous().transpose(0, -1)

                inputs = {name: tensor if name == "x" else restride(tensor) for name, tensor in draw(case).items()}
                assert not all(tensor.is_contiguous() for tensor in inputs.values() if tensor is not inputs["x"])
                assert_near(output_and_gradients(run_operator, case, inputs), run_reference_float64(case, inputs))


def test_output_and_gradient_keep_the_strides_of_x(subtests):
    for operator in OPERATORS:
        for layout in LAYOUTS:
            for dtype in [torch.float32, torch.bfloat16]:
                for shape in [(2, 5, 9, 8), (2, 1, 4, 6), (2, 5, 1, 1), (1, 5, 4, 6), (2, 5, 1, 6), (2, 5, 6, 1)]:
                    with subtests.test(operator=str(operator), layout=str(layout), dtype=str(dtype), shape=str(shape)):
                        for sides, dilation in [((3, 3), 1), ((5, 3), 1), ((3, 3), 2)]:
                            case = Case(operator, shape, sides, dilation)
                            inputs = draw(case, dtype=dtype, layout=layout)
                            found = output_and_gradients(run_operator, case, inputs)
                            assert found["output"].stride() == found["x"].stride() == inputs["x"].stride()
                            assert found["output"].dtype == found["x"].dtype == dtype


def test_upstream_gradients_with_arbitrary_strides_match_the_reference():
    for case in REPRESENTATIVE:
        inputs = draw(case)
        leaves = [tensor.requires_grad_() for tensor in inputs.values()]
        base = torch.randn(*case.shape[:2], 2 * case.shape[2], case.shape[3])
        exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
        for gradient in (base[:, :, ::2], base[:1, :1, :1, :1].expand(case.shape)):
            found = torch.autograd.grad(run_operator(case, inputs), leaves, gradient)
            named = dict(zip(inputs, exact, strict=True))
            expected = torch.autograd.grad(run_reference(case, named), exact, gradient.double())
            assert_near(dict(zip(inputs, found, strict=True)), dict(zip(inputs, expected, strict=True)))
