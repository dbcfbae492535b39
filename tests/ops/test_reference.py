"""The reference operators against an independent naive implementation and hand-computed examples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.definition import naive_attention, naive_depthwise, output_and_gradients, random_feature_map, random_kernels
from van.errors import ShapeError
from van.ops import Kernel
from van.ops.reference import depthwise, depthwise_gelu, large_kernel_attention, lka_pair, same_padding

FLOAT64 = 1e-12  # sums of at most a few thousand products of order one, each rounded at 1e-16


def assert_same(found: dict, expected: dict, tolerance: float) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def positive_kernels(channels: int, dilation: int = 3) -> tuple[Kernel, Kernel, Kernel]:
    ones = torch.ones(channels, 1, 7, 7, dtype=torch.float64)
    return (
        Kernel(ones[:, :, :5, :5]),
        Kernel(ones, None, dilation),
        Kernel(torch.eye(channels)[:, :, None, None].double()),
    )


def receptive_field_of_center(dilation: int) -> torch.Tensor:
    x = torch.ones(1, 1, 41, 41, dtype=torch.float64, requires_grad=True)
    middle = large_kernel_attention(x, *positive_kernels(1, dilation))[0, 0, 20, 20]
    (gradient,) = torch.autograd.grad(middle, x)
    return gradient[0, 0]


def test_receptive_field_is_exactly_23_by_23_pixels():
    """5x5 reaches 2 and 7x7-by-3 reaches 9 pixels: 11 each way, and all of them are used."""
    read = receptive_field_of_center(dilation=3)
    assert (read[9:32, 9:32] > 0).all()
    assert read.count_nonzero() == 23 * 23


def test_receptive_field_depends_on_the_dilation():
    """The control: another dilation reads another square, so the 23 above is no accident of the map."""
    assert receptive_field_of_center(dilation=2).count_nonzero() == 17 * 17


def test_output_equals_a_hand_computed_example():
    """Local: identity. Dilated: only the tap 3 px to the left. Mix: doubles, plus 1. So out = x * (2 * left(x) + 1)."""
    local, dilated = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 7, 7)
    local[0, 0, 2, 2] = dilated[0, 0, 3, 2] = 1
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 1, 5)
    mix = Kernel(torch.full((1, 1, 1, 1), 2.0), torch.ones(1))
    out = large_kernel_attention(x, Kernel(local), Kernel(dilated, None, 3), mix)
    assert out.flatten().tolist() == [1, 2, 3, 4 * 3, 5 * 5]


def test_output_and_gradients_match_the_naive_implementation(subtests):
    for images, channels, rows, columns in [
        (1, 1, 1, 1),
        (2, 3, 7, 7),
        (1, 5, 1, 31),
        (1, 2, 29, 1),
        (3, 1, 13, 11),
        (1, 4, 23, 2),
        (0, 3, 5, 5),
        (2, 7, 9, 37),
    ]:
        with subtests.test(images=str(images), channels=str(channels), rows=str(rows), columns=str(columns)):
            x, kernels = random_feature_map(images, channels, rows, columns), random_kernels(channels)
            expected = output_and_gradients(naive_attention, x, kernels)
            assert_same(output_and_gradients(large_kernel_attention, x, kernels), expected, FLOAT64)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5)),
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 17), st.integers(1, 17)),
)
def test_random_kernels_and_sizes_match_the_naive_implementation(sizes, shape):
    local_size, dilated_size, dilation = sizes
    kernels = random_kernels(shape[1], local_size=local_size, dilated_size=dilated_size, dilation=dilation)
    x = random_feature_map(*shape)
    expected = output_and_gradients(naive_attention, x, kernels)
    assert_same(output_and_gradients(large_kernel_attention, x, kernels), expected, FLOAT64)


def test_comparison_detects_a_wrong_dilation():
    """The control of the comparisons above."""
    x, (local, dilated, mix) = random_feature_map(1, 2, 9, 9), random_kernels(2)
    wrong = large_kernel_attention(x, local, dilated._replace(dilation=2), mix)
    assert not torch.allclose(wrong, naive_attention(x, local, dilated, mix), atol=1e-3)


def test_gradients_match_finite_differences():
    x, (local, dilated, mix) = (
        random_feature_map(1, 2, 4, 5),
        random_kernels(2, local_size=3, dilated_size=3, dilation=2),
    )

    def flat(x, lw, lb, dw, db, mw, mb):
        return large_kernel_attention(x, Kernel(lw, lb), Kernel(dw, db, 2), Kernel(mw, mb))

    tensors = (x, local.weight, local.bias, dilated.weight, dilated.bias, mix.weight, mix.bias)
    assert torch.autograd.gradcheck(flat, tensors)
    assert torch.autograd.gradgradcheck(flat, tensors)


def test_gradients_of_each_operator_match_finite_differences(subtests):
    for operator in [
        lambda x, lw, lb, dw, db: depthwise(x, Kernel(dw, db, 2)),
        lambda x, lw, lb, dw, db: depthwise_gelu(x, Kernel(lw, lb)),
        lambda x, lw, lb, dw, db: lka_pair(x, Kernel(lw, lb), Kernel(dw, db, 2)),
    ]:
        with subtests.test(operator=str(operator)):
            x, (local, dilated, _) = (
                random_feature_map(2, 2, 4, 5),
                random_kernels(2, local_size=3, dilated_size=3, dilation=2),
            )
            tensors = (x, local.weight, local.bias, dilated.weight, dilated.bias)
            assert torch.autograd.gradcheck(operator, tensors)
            assert torch.autograd.gradgradcheck(operator, tensors)


def test_gelu_is_x_times_the_normal_cdf(subtests):
    for shape in [(1, 1, 1, 1), (2, 3, 7, 5), (1, 2, 29, 1), (0, 3, 5, 5)]:
        with subtests.test(shape=str(shape)):
            x, (local, _, _) = random_feature_map(*shape), random_kernels(shape[1], local_size=3)
            before = naive_depthwise(x, local)
            expected = before * torch.distributions.Normal(0.0, 1.0).cdf(before)
            torch.testing.assert_close(depthwise_gelu(x, local), expected, rtol=FLOAT64, atol=FLOAT64)


def test_pair_equals_two_depthwise_convolutions():
    x, (local, dilated, _) = random_feature_map(2, 3, 11, 13), random_kernels(3)
    expected = naive_depthwise(naive_depthwise(x, local), dilated)
    torch.testing.assert_close(lka_pair(x, local, dilated), expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_equals_same_padding_in_pytorch(subtests):
    for kernel_size, dilation in [(7, 3), (4, 3), (2, 1), (1, 5), (6, 4)]:
        with subtests.test(kernel_size=str(kernel_size), dilation=str(dilation)):
            x, weight = (
                random_feature_map(1, 2, 19, 23),
                random_kernels(2, dilated_size=kernel_size, dilation=dilation)[1].weight,
            )
            expected = torch.nn.functional.conv2d(x, weight, padding="same", dilation=dilation, groups=2)
            torch.testing.assert_close(
                depthwise(x, Kernel(weight, None, dilation)), expected, rtol=FLOAT64, atol=FLOAT64
            )


def test_even_dilated_kernels_are_padded_asymmetrically():
    """K=11 by d=3 has 4 taps, 9 pixels from first to last: 4 zeros before and 5 after."""
    assert same_padding(4, 3) == (4, 5)
    assert same_padding(7, 3) == (9, 9)


def test_kernels_may_be_rectangular():
    weight = random_kernels(2)[1].weight[:, :, :2, :]
    x = random_feature_map(1, 2, 8, 9)
    full = torch.zeros(2, 1, 7, 7, dtype=torch.float64)
    full[:, :, 3:5] = weight  # rows 2 px apart before and after the middle: the even pair reaches down
    rows = depthwise(x, Kernel(weight, None, 1))
    torch.testing.assert_close(rows, naive_depthwise(x, Kernel(full)), rtol=FLOAT64, atol=FLOAT64)


def test_output_dtype_equals_input_dtype(subtests):
    for dtype in [torch.float64, torch.float32, torch.bfloat16, torch.float16]:
        with subtests.test(dtype=str(dtype)):
            out = large_kernel_attention(random_feature_map(1, 3, 6, 6, dtype=dtype), *random_kernels(3, dtype=dtype))
            assert out.dtype == dtype
            assert out.isfinite().all()


def test_mismatched_shapes_raise_shape_error(subtests):
    for argument, value, message in [
        ("x", torch.ones(3, 5, 5), r"x: expected 4 .*3: \(3, 5, 5\)"),
        ("local", Kernel(torch.ones(4, 1, 5, 5)), r"local.weight.*\(3, 1, k, k\).*\(4, 1, 5, 5\).*3 channels"),
        ("dilated", Kernel(torch.ones(3, 3, 7, 7)), r"dilated.weight.*\(3, 1, k, k\).*\(3, 3, 7, 7\).*3 channels"),
        ("dilated", Kernel(torch.ones(3, 7, 7)), r"dilated.weight.*\(3, 7, 7\)"),
        ("mix", Kernel(torch.ones(3, 4, 1, 1)), r"mix.weight.*\(3, 3, 1, 1\).*\(3, 4, 1, 1\)"),
        ("mix", Kernel(torch.ones(3, 3)), r"mix.weight.*\(3, 3, 1, 1\).*\(3, 3\)"),
    ]:
        with subtests.test(argument=str(argument), value=str(value), message=str(message)):
            local, dilated, mix = random_kernels(3)
            arguments = {
                "x": random_feature_map(1, 3, 5, 5),
                "local": local,
                "dilated": dilated,
                "mix": mix,
                argument: value,
            }
            with pytest.raises(ShapeError, match=message):
                large_kernel_attention(**arguments)
