"""The GELU of ``van::depthwise_gelu``: values and derivatives over the whole range of float32.

With a kernel of zeros the bias of a channel is the input of GELU.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from van.ops import native, operators

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=f"no native library: {native.unavailable_reason()}"
)

ABSOLUTE = 2.5e-7  # four roundings of a number of order one; PyTorch's own code is up to 8e-7 away
TAIL = 5e-3  # relative, where GELU is down to 1e-30: the exponent v * v / 2, near 60 there, is rounded in float32


def gelu_and_derivative(inputs: Tensor, *, in_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return GELU of ``inputs`` (V,) by the operator, and its derivative."""
    bias = inputs.detach().clone().requires_grad_()
    x, weight = torch.zeros(1, len(inputs), 1, 1, dtype=in_dtype), torch.zeros(len(inputs), 1, 3, 3)
    out = operators.depthwise_gelu(x, weight, bias)
    (slope,) = torch.autograd.grad(out.sum(), bias)
    return out.flatten().detach(), slope


def exact_gelu(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same by the formula in float64, with erfc, because the tail cancels in 1 + erf."""
    v = inputs.double()
    below = torch.special.erfc(-v / 2**0.5) / 2
    return v * below, below + v * (-v * v / 2).exp() / (2 * torch.pi) ** 0.5


def test_gelu_and_its_derivative_are_accurate_between_minus_12_and_12():
    inputs = torch.linspace(-12, 12, 20_011)
    for found, expected in zip(gelu_and_derivative(inputs), exact_gelu(inputs), strict=True):
        assert ((found.double() - expected).abs() <= ABSOLUTE * expected.abs().clamp(min=1)).all()


def test_comparison_detects_the_tanh_approximation():
    """The control: the tanh approximation exceeds the tolerance by far."""
    inputs = torch.linspace(-12, 12, 20_011)
    found, _ = gelu_and_derivative(inputs)
    assert (found - F.gelu(inputs, approximate="tanh")).abs().max() > 500 * ABSOLUTE


def test_left_tail_is_negative_and_decays():
    inputs = torch.linspace(-14, -1, 5_003)
    found, _ = gelu_and_derivative(inputs)
    expected, _ = exact_gelu(inputs)
    assert (found <= 0).all()
    tail = expected < -1e-30
    assert ((found.double() / expected)[tail] - 1).abs().max() < TAIL


def test_large_inputs_give_the_identity_or_zero(subtests):
    for size in [20.0, 100.0, 1e4, 1e10, 1e20, 1e30, 1e36, 1e37, 3.4e38]:
        with subtests.test(size=str(size)):
            found, slope = gelu_and_derivative(torch.tensor([size, -size]))
            assert found[0] == torch.tensor(size)
            assert abs(found[1]) < 1e-30
            assert abs(slope[0] - 1) < ABSOLUTE
            assert abs(slope[1]) < ABSOLUTE


def test_small_inputs_give_half_the_input():
    inputs = torch.tensor([0.0, -0.0, 1e-3, -1e-3, 1e-10, -1e-10, 1e-30, -1e-30, 2e-38])
    found, slope = gelu_and_derivative(inputs)
    expected, expected_slope = exact_gelu(inputs)
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=0)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=3e-7, atol=0)


def test_infinity_and_nan_give_non_finite_outputs(subtests):
    """As in PyTorch, where infinity gives infinity or NaN depending on the implementation, and NaN gives NaN."""
    for dtype in [torch.float32, torch.bfloat16, torch.float16]:
        with subtests.test(dtype=str(dtype)):
            inputs = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
            found, slope = gelu_and_derivative(inputs, in_dtype=dtype)
            assert found.isfinite().tolist() == slope.isfinite().tolist() == [False, False, False, True]
            assert found[0] == torch.inf
            assert found[2].isnan()
            assert slope[2].isnan()


def test_nan_propagates_only_to_neighboring_pixels():
    x = torch.ones(1, 19, 7, 8)
    x[0, 17, 3, 4] = torch.nan
    lost = operators.depthwise_gelu(x, torch.ones(19, 1, 3, 3), None).isnan().nonzero()
    assert len(lost) == 9
    assert lost.min(0).values.tolist() == [0, 17, 2, 3]
    assert lost.max(0).values.tolist() == [0, 17, 4, 5]
