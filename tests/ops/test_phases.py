"""Dilated convolutions by phases against the definition, in float64 and float32."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ops.definition import attention_by_taps, output_and_gradients, random_kernels, random_map
from van.ops import Kernel, phases, reference

FLOAT64 = 1e-12  # the same products in another order, each rounded at 1e-16
FLOAT32 = 2e-5  # in float32 a rounding is 6e-8; sums of some hundred terms of order one, relative to the largest
SHAPES = [
    (1, 1, 1, 1), (2, 3, 7, 7), (1, 5, 1, 31), (1, 2, 29, 1), (3, 1, 13, 11),
    (1, 4, 23, 2), (0, 3, 5, 5), (2, 7, 9, 37), (2, 8, 14, 14), (1, 3, 56, 12),
]  # fmt: skip


def attention_by_phases(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Large kernel attention whose depth-wise pair runs by phases."""
    return x * F.conv2d(phases.lka_pair_by_phases(x, local, dilated), mix.weight, mix.bias)


def assert_same(found: dict, wanted: dict, tolerance: float) -> None:
    for name, value in wanted.items():
        scale = max(1.0, value.abs().max().item()) if value.numel() else 1.0
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_every_gradient_equal_the_reference(dtype, tolerance, shape, memory_format):
    kernels = random_kernels(shape[1], dtype=dtype)
    x = random_map(*shape, dtype=dtype).detach().contiguous(memory_format=memory_format).requires_grad_()
    wanted = output_and_gradients(reference.large_kernel_attention, x, kernels)
    assert_same(output_and_gradients(attention_by_phases, x, kernels), wanted, tolerance)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5)),
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 17), st.integers(1, 17)),
)
def test_any_kernel_and_any_map_equal_the_definition(sizes, shape):
    local_size, dilated_size, dilation = sizes
    kernels = random_kernels(shape[1], local_size=local_size, dilated_size=dilated_size, dilation=dilation)
    x = random_map(*shape)
    wanted = output_and_gradients(attention_by_taps, x, kernels)
    assert_same(output_and_gradients(attention_by_phases, x, kernels), wanted, FLOAT64)


def test_a_phase_mixed_up_would_be_seen():
    """The control: joining the phases by columns and rows swapped is far outside the tolerance."""
    x, kernel = random_map(1, 2, 9, 9, dtype=torch.float32).detach(), random_kernels(2, dtype=torch.float32)[1]
    right = reference.depthwise(x, kernel)
    swapped = phases.join_phases(phases.split_phases(right, 3).unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1), 3)
    assert (swapped - right).abs().max() > 1000 * FLOAT32


@pytest.mark.parametrize("dilation", [1, 2, 3, 5])
def test_joining_undoes_splitting(dilation):
    x = torch.arange(2 * 3 * 10 * 15 * dilation**2).reshape(2, 3, 10 * dilation, 15 * dilation)
    split = phases.split_phases(x, dilation)
    assert split.shape == (2 * dilation**2, 3, 10, 15)
    assert phases.join_phases(split, dilation).equal(x)
    assert split[dilation * dilation - 1].equal(x[0, :, dilation - 1 :: dilation, dilation - 1 :: dilation])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(9, 12), (7, 11)])
def test_the_memory_format_is_kept(memory_format, size):
    x = torch.randn(2, 4, *size).contiguous(memory_format=memory_format)
    kernels = random_kernels(4, dtype=torch.float32)
    for out in (phases.depthwise_by_phases(x, kernels[1]), attention_by_phases(x, *kernels)):
        assert out.is_contiguous(memory_format=memory_format)
        assert out.stride() == x.stride()


def non_contiguous_maps() -> dict[str, torch.Tensor]:
    base = torch.randn(2, 6, 22, 18, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {
        "transposed": base.transpose(2, 3),
        "every second pixel": base[:, :, ::2, 1::2],
        "every second channel": base[:, ::2],
        "cut out": base[:, 1:4, 3:16, 2:13],
        "flipped batch": base.transpose(0, 1),
        "expanded": base[:1, :1, :7, :1].expand(2, 3, 7, 9),
    }


@pytest.mark.parametrize("name", non_contiguous_maps())
def test_non_contiguous_maps_give_the_same(name):
    x = non_contiguous_maps()[name]
    assert not x.is_contiguous()
    kernels = random_kernels(x.shape[1])
    wanted = reference.large_kernel_attention(x.contiguous(), *kernels)
    torch.testing.assert_close(attention_by_phases(x, *kernels), wanted, rtol=FLOAT64, atol=FLOAT64)


def test_no_cell_is_left_unwritten():
    """Fresh memory is filled with NaN, so a cell that nobody wrote shows."""
    x, kernels = random_map(2, 3, 8, 10, dtype=torch.float32), random_kernels(3, dtype=torch.float32)
    wanted = output_and_gradients(reference.large_kernel_attention, x, kernels)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(8).isnan().all()
        found = output_and_gradients(attention_by_phases, x, kernels)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found, wanted, FLOAT32)


def test_gradients_are_the_slopes_of_the_output():
    x, (local, dilated, mix) = random_map(1, 2, 4, 5), random_kernels(2, local_size=3, dilated_size=3, dilation=2)

    def flat(x, lw, lb, dw, db, mw, mb):
        return attention_by_phases(x, Kernel(lw, lb), Kernel(dw, db, 2), Kernel(mw, mb))

    tensors = (x, local.weight, local.bias, dilated.weight, dilated.bias, mix.weight, mix.bias)
    assert torch.autograd.gradcheck(flat, tensors)
    assert torch.autograd.gradgradcheck(flat, tensors)


def test_bfloat16_is_as_near_the_truth_as_the_reference():
    shape, truth = (2, 8, 21, 17), None
    kernels = random_kernels(8, dtype=torch.bfloat16)
    x = random_map(*shape, dtype=torch.bfloat16)
    exact = tuple(Kernel(k.weight.double(), k.bias.double(), k.dilation) for k in kernels)
    truth = reference.large_kernel_attention(x.double(), *exact)
    errors = [
        (operator(x, *kernels).double() - truth).abs().mean().item()
        for operator in (attention_by_phases, reference.large_kernel_attention)
    ]
    assert errors[0] <= 1.1 * errors[1]


def test_one_gradient_per_picture_can_be_mapped_over_the_batch():
    """``torch.func.vmap`` knows no memory formats; the backend must not ask for them."""
    x, kernels = random_map(3, 2, 7, 8, dtype=torch.float32).detach(), random_kernels(2, dtype=torch.float32)

    def loss(picture):
        return attention_by_phases(picture[None], *kernels).square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(x)
    one_by_one = torch.stack([torch.func.grad(loss)(picture) for picture in x])
    torch.testing.assert_close(mapped, one_by_one, rtol=FLOAT32, atol=FLOAT32)


def test_a_kernel_without_bias_serves():
    x, (local, dilated, mix) = random_map(1, 2, 9, 7), random_kernels(2)
    bare = tuple(kernel._replace(bias=None) for kernel in (local, dilated, mix))
    wanted = output_and_gradients(reference.large_kernel_attention, x, bare)
    assert_same(output_and_gradients(attention_by_phases, x, bare), wanted, FLOAT64)


@pytest.mark.parametrize(
    ("rows", "columns", "kept"), [(56, 56, (7, 7)), (7, 7, (5, 5)), (3, 10, (1, 7)), (1, 4, (1, 3))]
)
def test_taps_that_read_only_padding_are_cut_off(rows: int, columns: int, kept: tuple[int, int]):
    """At 7 x 7 a tap three steps of 3 away is outside from every pixel, so 5 x 5 of the 7 x 7 taps are left."""
    kernel = phases.taps_in_reach(Kernel(torch.randn(4, 1, 7, 7), None, 3), rows, columns)
    assert tuple(kernel.weight.shape[2:]) == kept


def test_a_kernel_with_an_even_side_keeps_its_taps():
    kernel = phases.taps_in_reach(Kernel(torch.randn(4, 1, 4, 4), None, 3), 2, 2)
    assert tuple(kernel.weight.shape[2:]) == (4, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_cut_off_taps_is_zero_and_lies_in_memory_like_the_weight(layout: torch.memory_format):
    weight = torch.randn(4, 1, 7, 7).to(memory_format=layout).requires_grad_()
    assert weight.stride() == ((49, 49, 7, 1) if layout == torch.contiguous_format else (49, 1, 7, 1))
    kept = phases.taps_in_reach(Kernel(weight, None, 3), 7, 7).weight
    (gradient,) = torch.autograd.grad(kept.sum(), weight)
    assert gradient.stride() == weight.stride()
    assert gradient.sum().item() == 4 * 25
    assert gradient[:, :, 0].abs().sum().item() == 0
