"""The frozen convolution against the plain one: every fused follower, and every case that must take the plain way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.models.frozen import FrozenConv2d
from van.ops import use_backend

FLOAT32 = 2e-5  # sums of some hundred products, relative to the largest


def made(channels: int, out: int, side: int = 1, stride: int = 1) -> tuple[nn.Conv2d, FrozenConv2d]:
    torch.manual_seed(channels * out)
    conv = nn.Conv2d(channels, out, side, stride=stride, padding=side // 2).requires_grad_(False)
    return conv, FrozenConv2d.of(copy.deepcopy(conv))


def picture(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=FLOAT32 * max(1.0, wanted.abs().max().item()))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12),
    st.sampled_from([(1, 1), (3, 2), (7, 4)]),
)  # fmt: skip
def test_any_size_agrees_with_the_plain_convolution(pictures, channels, out, rows, columns, window):
    conv, frozen = made(channels, out, *window)
    x = picture(pictures, channels, rows, columns)
    assert_near(frozen(x), conv(x))


def test_what_follows_is_fused_in():
    conv, frozen = made(24, 37)
    x, other = picture(2, 24, 9, 7), picture(2, 37, 9, 7)
    assert_near(frozen(x, gelu=True), F.gelu(conv(x)))
    assert_near(frozen(x, times=other), conv(x) * other)
    assert_near(frozen(x, plus=other), conv(x) + other)
    assert (frozen(x, plus=other) - conv(x)).abs().max() > 0.1


def test_sizes_that_come_in_turn_are_served():
    conv, frozen = made(16, 32)
    for shape in [(1, 16, 7, 7), (16, 16, 28, 28), (2, 16, 1, 3), (1, 16, 7, 7)]:
        assert_near(frozen(picture(*shape)), conv(picture(*shape)))
        assert len(frozen._packed) <= 2


def test_two_sizes_keep_a_layout_each():
    """A layout made for another batch size is put in order again in every call, which takes longer than convolving."""
    _, frozen = made(16, 32)
    for shape in [(1, 16, 7, 7), (16, 16, 7, 7)]:
        frozen(picture(*shape))
    kept = [blocks for _, blocks in frozen._packed]
    frozen(picture(1, 16, 7, 7))
    assert len(kept) == 2
    assert all(blocks is before for (_, blocks), before in zip(frozen._packed, kept, strict=True))


def is_packed(frozen: FrozenConv2d) -> bool:
    return bool(frozen._packed)


def test_the_fast_way_is_taken_and_only_where_it_may_be():
    _, frozen = made(8, 8)
    x = picture(1, 8, 6, 6)
    plain = [x.double(), x.contiguous(), x[:0], x.clone().requires_grad_()]
    for given_x in plain:
        copy.deepcopy(frozen).to(given_x.dtype)(given_x)
        assert not is_packed(frozen)
    with use_backend("reference"):
        frozen(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frozen(x).dtype == torch.bfloat16
    assert not is_packed(frozen)
    frozen(x)
    assert is_packed(frozen)


def test_a_picture_that_wants_gradients_gets_them():
    conv, frozen = made(8, 4)
    x = picture(1, 8, 6, 6).requires_grad_()
    (found,) = torch.autograd.grad(frozen(x, gelu=True).sum(), x)
    (wanted,) = torch.autograd.grad(F.gelu(conv(x)).sum(), x)
    assert_near(found, wanted)


def test_a_weight_changed_in_place_or_replaced_is_laid_out_again():
    _, frozen = made(8, 4)
    x = picture(1, 8, 6, 6)
    before = frozen(x)
    with torch.no_grad():
        frozen.weight.mul_(2)
    assert_near(frozen(x) - frozen.bias[:, None, None], 2 * (before - frozen.bias[:, None, None]))
    frozen.load_state_dict({"weight": torch.zeros(4, 8, 1, 1), "bias": torch.ones(4)})
    assert_near(frozen(x), torch.ones(1, 4, 6, 6))


def test_it_can_be_copied_and_saved_after_use(tmp_path):
    _, frozen = made(8, 4)
    x = picture(1, 8, 6, 6)
    wanted = frozen(x)
    assert is_packed(frozen)
    assert_near(copy.deepcopy(frozen)(x), wanted)
    torch.save(frozen, tmp_path / "frozen.pt")
    assert_near(torch.load(tmp_path / "frozen.pt", weights_only=False)(x), wanted)


@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_vmap_takes_the_plain_way():
    conv, frozen = made(8, 4)
    x = torch.randn(3, 2, 8, 5, 5)
    assert_near(torch.func.vmap(frozen)(x), torch.stack([conv(one) for one in x]))


def test_inference_mode_is_served():
    conv, frozen = made(8, 4)
    x = picture(2, 8, 5, 5)
    with torch.inference_mode():
        assert_near(frozen(x), conv(x))
        made_inside = copy.deepcopy(frozen)
        assert_near(made_inside(x), conv(x))
