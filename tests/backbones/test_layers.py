import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from van.backbones.design import best_dilation
from van.backbones.layers import LKA, Attention, Block, FeedForward, OverlapPatchEmbed, init_weights
from van.errors import ShapeError

FLOAT64 = 1e-12  # the same sums in another order


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dense_kernel(module: nn.Conv2d, reach: int) -> torch.Tensor:
    """Return a depth-wise kernel as a dense (2*reach+1) square with zeros between and around its taps."""
    size, d = module.kernel_size[0], module.dilation[0]
    dense = torch.zeros(module.out_channels, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    first = reach - d * (size - 1) // 2
    stop = first + d * (size - 1) + 1
    dense[:, first:stop:d, first:stop:d] = module.weight[:, 0]
    return dense


def attention_from_patches(module: LKA, x: torch.Tensor) -> torch.Tensor:
    """Compute LKA by its definition, with unfolded neighborhoods; no dilation, no groups."""
    out = x
    for convolution in (module.conv0, module.conv_spatial):
        reach = convolution.dilation[0] * convolution.kernel_size[0]
        patches = nn.functional.unfold(out, 2 * reach + 1, padding=reach)
        patches = patches.unflatten(1, (x.shape[1], -1))
        out = torch.einsum("nctp,ct->ncp", patches, dense_kernel(convolution, reach).flatten(1))
        out = (out + convolution.bias[:, None]).unflatten(2, x.shape[2:])
    gate = torch.einsum("oc,nchw->nohw", module.conv1.weight[:, :, 0, 0], out) + module.conv1.bias[:, None, None]
    return x * gate


@settings(max_examples=40, deadline=None)
@given(
    kernel_size=st.integers(1, 24),
    dilation=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 13), st.integers(1, 13)),
)
def test_any_kernel_and_dilation_equal_the_definition(kernel_size, dilation, shape):
    torch.manual_seed(0)
    module = LKA(shape[1], kernel_size=kernel_size, dilation=dilation, dtype=torch.float64)
    x = image(*shape).requires_grad_()
    inputs = [x, *module.parameters()]
    out, expected = module(x), attention_from_patches(module, x)
    torch.testing.assert_close(out, expected, rtol=FLOAT64, atol=FLOAT64)
    weights = image(*shape)
    actual_grads, expected_grads = (
        torch.autograd.grad((o * weights).sum(), inputs, materialize_grads=True) for o in (out, expected)
    )
    for actual, reference in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-10)  # sums over the whole map


def test_one_output_pixel_depends_on_exactly_the_receptive_field(subtests):
    for kernel_size, dilation, reads in [
        (21, 3, 23),
        (7, 2, 9),
        (11, 3, 14),
        (14, 3, 17),
        (28, 4, 31),
        (35, 4, 39),
        (6, 2, 7),
        (5, 1, 5),
        (1, 1, 1),
    ]:
        with subtests.test(kernel_size=str(kernel_size), dilation=str(dilation), reads=str(reads)):
            module = LKA(1, kernel_size=kernel_size, dilation=dilation, dtype=torch.float64)
            assert module.plan.receptive_field == reads
            for parameter in module.parameters():
                nn.init.ones_(parameter)
            x = torch.ones(1, 1, 91, 91, dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(module(x)[0, 0, 45, 45], x)
            rows, columns = (gradient[0, 0].abs().sum(dim).nonzero().flatten() for dim in (1, 0))
            for line in (rows, columns):
                assert (line[-1] - line[0] + 1).item() == reads
                assert (45 - line[0]).item() == (reads - 1) // 2  # an even square reaches one further after than before


def test_k_11_by_3_has_an_even_dilated_kernel_of_4_by_4():
    module = LKA(8, kernel_size=11, dilation=3)
    assert tuple(module.conv_spatial.weight.shape) == (8, 1, 4, 4)
    assert module(torch.randn(2, 8, 9, 5)).shape == (2, 8, 9, 5)


def test_the_default_kernel_is_the_papers_21_dilated_by_3():
    module = LKA(8)
    assert tuple(module.conv0.weight.shape) == (8, 1, 5, 5)
    assert tuple(module.conv_spatial.weight.shape) == (8, 1, 7, 7)
    assert module.conv_spatial.dilation == (3, 3)
    assert list(module.state_dict()) == [
        f"{name}.{kind}" for name in ("conv0", "conv_spatial", "conv1") for kind in ("weight", "bias")
    ]


def test_the_default_dilation_has_the_fewest_weights(subtests):
    for kernel_size in [7, 13, 21, 35, 53]:
        with subtests.test(kernel_size=str(kernel_size)):
            assert LKA(2, kernel_size=kernel_size).plan.dilation == best_dilation(kernel_size)


def test_sizes_below_one_are_refused(subtests):
    for wrong in [{"kernel_size": 0}, {"dilation": 0}, {"kernel_size": -7, "dilation": 2}]:
        with subtests.test(wrong=str(wrong)), pytest.raises(ShapeError, match="expected at least 1"):
            LKA(4, **wrong)


def test_an_input_of_other_channels_is_refused():
    with pytest.raises(ShapeError, match=r"x\b.*5"):
        LKA(4)(torch.ones(1, 5, 8, 8))


def test_repr_shows_kernel_dilation_and_receptive_field():
    assert "kernel_size=21, dilation=3, receptive_field=23" in repr(LKA(4))


def test_attention_has_an_inner_shortcut():
    torch.manual_seed(0)
    module, x = Attention(3, dtype=torch.float64), image(2, 3, 6, 5)
    gate = attention_from_patches(module.spatial_gating_unit, nn.functional.gelu(module.proj_1(x)))
    torch.testing.assert_close(module(x), module.proj_2(gate) + x, rtol=FLOAT64, atol=FLOAT64)


def test_gelu_is_exact():
    """Negative control: the tanh approximation differs by far more than the tolerance."""
    torch.manual_seed(0)
    module, x = FeedForward(3, 24, dtype=torch.float64), image(2, 3, 6, 5)

    def by_hand(approximate):
        return module.fc2(nn.functional.gelu(module.dwconv.dwconv(module.fc1(x)), approximate=approximate))

    torch.testing.assert_close(module(x), by_hand("none"), rtol=FLOAT64, atol=FLOAT64)
    assert (module(x) - by_hand("tanh")).abs().max() > 1e-6


def test_a_block_scales_both_branches_and_adds_them():
    torch.manual_seed(0)
    block = Block(4, mlp_ratio=2.0, dtype=torch.float64).eval()
    with torch.no_grad():
        block.layer_scale_1.copy_(torch.linspace(0.5, 1, 4))
        block.layer_scale_2.copy_(torch.linspace(-1, 1, 4))
        block.norm1.running_mean.fill_(0.3)
        block.norm2.running_var.fill_(2.0)
    x = image(2, 4, 7, 7)
    middle = x + block.layer_scale_1.reshape(1, 4, 1, 1) * block.attn(block.norm1(x))
    expected = middle + block.layer_scale_2.reshape(1, 4, 1, 1) * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(x), expected, rtol=FLOAT64, atol=FLOAT64)


def test_the_initial_layer_scales_are_0_01():
    block = Block(4)
    assert block.layer_scale_1.tolist() == block.layer_scale_2.tolist() == pytest.approx([0.01] * 4)


def test_drop_path_skips_whole_images_in_training_only():
    torch.manual_seed(0)
    block, x = Block(4, drop_path_rate=0.5), torch.randn(64, 4, 3, 3)
    unchanged = (block.train()(x) == x).flatten(1).all(1).sum().item()
    assert 4 <= unchanged <= 32  # both branches dropped: a quarter of 64, within four standard deviations
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_drop_rate_applies_to_the_feed_forward_network():
    torch.manual_seed(0)
    module, x = FeedForward(4, 64, drop_rate=0.5), torch.randn(2, 4, 9, 9)
    assert (module.train()(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert module.eval()(x).equal(module.eval()(x))


def test_patch_embedding_rounds_sizes_up(subtests):
    for patch_size, stride in [(7, 4), (3, 2)]:
        for size in [(32, 32), (33, 47), (7, 5), (1, 1)]:
            with subtests.test(patch_size=str(patch_size), stride=str(stride), size=str(size)):
                embed = OverlapPatchEmbed(3, 8, patch_size=patch_size, stride=stride).eval()
                out = embed(torch.randn(2, 3, *size))
                assert out.shape == (2, 8, *(math.ceil(side / stride) for side in size))


def test_an_input_of_another_shape_is_refused(subtests):
    for shape in [(2, 4, 8, 8), (3, 8, 8)]:
        with subtests.test(shape=str(shape)), pytest.raises(ShapeError, match=r"\(N, 3, H, W\)"):
            OverlapPatchEmbed(3, 8, patch_size=3, stride=2)(torch.ones(shape))


def test_initial_weights_have_the_papers_deviation(subtests):
    for module, deviation in [
        (nn.Conv2d(64, 256, 3), math.sqrt(2 / (9 * 256))),
        (nn.Conv2d(512, 512, 5, groups=512), math.sqrt(2 / 25)),  # fan-out of one group: 25, not 12,800
        (nn.Conv2d(256, 512, 1), math.sqrt(2 / 512)),
        (nn.Linear(512, 256), 0.02),
    ]:
        with subtests.test(module=str(module), deviation=str(deviation)):
            torch.manual_seed(0)
            init_weights(module)
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.05 * deviation
            assert module.bias.count_nonzero() == 0


def test_init_weights_does_not_change_norms():
    norm = nn.BatchNorm2d(4)
    nn.init.constant_(norm.weight, 3.0)
    init_weights(norm)
    assert norm.weight.tolist() == [3.0] * 4
    init_weights(nn.Conv2d(2, 2, 1, bias=False))  # no bias to zero
