"""The packed convolution equals the plain one: with every fused operation, and where it must not use packed weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.backbones.packed import PackedConv2d
from van.ops import use_backend

FLOAT32 = 2e-5  # sums of some hundred products, relative to the largest


def make_pair(channels: int, out: int, side: int = 1, stride: int = 1) -> tuple[nn.Conv2d, PackedConv2d]:
    torch.manual_seed(channels * out)
    conv = nn.Conv2d(channels, out, side, stride=stride, padding=side // 2).requires_grad_(False)
    return conv, PackedConv2d.from_conv(copy.deepcopy(conv))


def image(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=FLOAT32 * max(1.0, expected.abs().max().item()))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12),
    st.sampled_from([(1, 1), (3, 2), (7, 4)]),
)  # fmt: skip
def test_any_size_agrees_with_the_plain_convolution(images, channels, out, rows, columns, kernel):
    conv, packed = make_pair(channels, out, *kernel)
    x = image(images, channels, rows, columns)
    assert_near(packed(x), conv(x))


def test_gelu_product_and_sum_are_fused():
    conv, packed = make_pair(24, 37)
    x, other = image(2, 24, 9, 7), image(2, 37, 9, 7)
    assert_near(packed(x, gelu=True), F.gelu(conv(x)))
    assert_near(packed(x, multiplier=other), conv(x) * other)
    assert_near(packed(x, residual=other), conv(x) + other)
    assert (packed(x, residual=other) - conv(x)).abs().max() > 0.1


def test_alternating_input_sizes_are_supported():
    conv, packed = make_pair(16, 32)
    for shape in [(1, 16, 7, 7), (16, 16, 28, 28), (2, 16, 1, 3), (1, 16, 7, 7)]:
        assert_near(packed(image(*shape)), conv(image(*shape)))
        assert len(packed._packed) <= 2


def test_the_packed_weights_of_two_sizes_are_cached():
    """Weights packed for another batch size are reordered in every call, which takes longer than the convolution."""
    _, packed = make_pair(16, 32)
    for shape in [(1, 16, 7, 7), (16, 16, 7, 7)]:
        packed(image(*shape))
    cached = [weights for _, weights in packed._packed]
    packed(image(1, 16, 7, 7))
    assert len(cached) == 2
    assert all(weights is before for (_, weights), before in zip(packed._packed, cached, strict=True))


def is_packed(packed: PackedConv2d) -> bool:
    return bool(packed._packed)


def test_packed_weights_are_used_only_where_supported():
    _, packed = make_pair(8, 8)
    x = image(1, 8, 6, 6)
    plain = [x.double(), x.contiguous(), x[:0], x.clone().requires_grad_()]
    for plain_x in plain:
        copy.deepcopy(packed).to(plain_x.dtype)(plain_x)
        assert not is_packed(packed)
    with use_backend("reference"):
        packed(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
    assert not is_packed(packed)
    packed(x)
    assert is_packed(packed)


def test_an_input_that_requires_gradients_gets_them():
    conv, packed = make_pair(8, 4)
    x = image(1, 8, 6, 6).requires_grad_()
    (actual,) = torch.autograd.grad(packed(x, gelu=True).sum(), x)
    (expected,) = torch.autograd.grad(F.gelu(conv(x)).sum(), x)
    assert_near(actual, expected)


def test_a_weight_changed_in_place_or_replaced_is_packed_again():
    _, packed = make_pair(8, 4)
    x = image(1, 8, 6, 6)
    before = packed(x)
    with torch.no_grad():
        packed.weight.mul_(2)
    assert_near(packed(x) - packed.bias[:, None, None], 2 * (before - packed.bias[:, None, None]))
    packed.load_state_dict({"weight": torch.zeros(4, 8, 1, 1), "bias": torch.ones(4)})
    assert_near(packed(x), torch.ones(1, 4, 6, 6))


def test_a_used_convolution_can_be_copied_and_pickled(tmp_path):
    _, packed = make_pair(8, 4)
    x = image(1, 8, 6, 6)
    expected = packed(x)
    assert is_packed(packed)
    assert_near(copy.deepcopy(packed)(x), expected)
    torch.save(packed, tmp_path / "packed.pt")
    assert_near(torch.load(tmp_path / "packed.pt", weights_only=False)(x), expected)


@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_vmap_uses_the_plain_convolution():
    conv, packed = make_pair(8, 4)
    x = torch.randn(3, 2, 8, 5, 5)
    assert_near(torch.func.vmap(packed)(x), torch.stack([conv(one) for one in x]))


def test_inference_mode_is_supported():
    conv, packed = make_pair(8, 4)
    x = image(2, 8, 5, 5)
    with torch.inference_mode():
        assert_near(packed(x), conv(x))
        copied_inside = copy.deepcopy(packed)
        assert_near(copied_inside(x), conv(x))
