"""The GELU within ``van::depthwise_gelu``: its values and slopes for every kind of number.

A kernel of zeros makes the bias of a channel what GELU is given there.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from van.ops import native, operators

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"no native library: {native.why_not()}")

ABSOLUTE = 2.5e-7  # four roundings of a number of order one; PyTorch's own code is up to 8e-7 away
TAIL = 5e-3  # relative, where GELU is down to 1e-30: the exponent v * v / 2, near 60 there, is rounded in float32


def gelu_and_slope(given: Tensor, *, in_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """GELU of ``given`` (V,) in the operator, and its slope there."""
    bias = given.detach().clone().requires_grad_()
    x, weight = torch.zeros(1, len(given), 1, 1, dtype=in_dtype), torch.zeros(len(given), 1, 3, 3)
    out = operators.depthwise_gelu(x, weight, bias)
    (slope,) = torch.autograd.grad(out.sum(), bias)
    return out.flatten().detach(), slope


def exactly(given: Tensor) -> tuple[Tensor, Tensor]:
    """The same by its formula in float64, with erfc, which keeps the tail that 1 + erf cancels."""
    v = given.double()
    below = torch.special.erfc(-v / 2**0.5) / 2
    return v * below, below + v * (-v * v / 2).exp() / (2 * torch.pi) ** 0.5


def test_gelu_and_its_slope_are_right_to_float32_between_minus_12_and_12():
    given = torch.linspace(-12, 12, 20_011)
    for found, wanted in zip(gelu_and_slope(given), exactly(given), strict=True):
        assert ((found.double() - wanted).abs() <= ABSOLUTE * wanted.abs().clamp(min=1)).all()


def test_the_tanh_form_would_be_seen():
    """The control: the other form of GELU is far outside the tolerance."""
    given = torch.linspace(-12, 12, 20_011)
    found, _ = gelu_and_slope(given)
    assert (found - F.gelu(given, approximate="tanh")).abs().max() > 500 * ABSOLUTE


def test_the_left_tail_is_small_negative_and_dies_out():
    given = torch.linspace(-14, -1, 5_003)
    found, _ = gelu_and_slope(given)
    wanted, _ = exactly(given)
    assert (found <= 0).all()
    tail = wanted < -1e-30
    assert ((found.double() / wanted)[tail] - 1).abs().max() < TAIL


@pytest.mark.parametrize("size", [20.0, 100.0, 1e4, 1e10, 1e20, 1e30, 1e36, 1e37, 3.4e38])
def test_far_out_it_is_the_number_itself_or_nothing(size: float):
    found, slope = gelu_and_slope(torch.tensor([size, -size]))
    assert found[0] == torch.tensor(size)
    assert abs(found[1]) < 1e-30
    assert abs(slope[0] - 1) < ABSOLUTE
    assert abs(slope[1]) < ABSOLUTE


def test_near_zero_it_is_half_the_number():
    given = torch.tensor([0.0, -0.0, 1e-3, -1e-3, 1e-10, -1e-10, 1e-30, -1e-30, 2e-38])
    found, slope = gelu_and_slope(given)
    wanted, wanted_slope = exactly(given)
    torch.testing.assert_close(found.double(), wanted, rtol=3e-7, atol=0)
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_finite_comes_of_infinity_or_nan(dtype: torch.dtype):
    """As in PyTorch, where infinity gives infinity or NaN by the code that serves it, and NaN gives NaN."""
    given = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    found, slope = gelu_and_slope(given, in_dtype=dtype)
    assert found.isfinite().tolist() == slope.isfinite().tolist() == [False, False, False, True]
    assert found[0] == torch.inf
    assert found[2].isnan()
    assert slope[2].isnan()


def test_a_nan_in_the_map_reaches_its_neighbours_alone():
    x = torch.ones(1, 19, 7, 8)
    x[0, 17, 3, 4] = torch.nan
    lost = operators.depthwise_gelu(x, torch.ones(19, 1, 3, 3), None).isnan().nonzero()
    assert len(lost) == 9
    assert lost.min(0).values.tolist() == [0, 17, 2, 3]
    assert lost.max(0).values.tolist() == [0, 17, 4, 5]
