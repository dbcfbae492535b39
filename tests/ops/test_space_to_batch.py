"""Space-to-batch convolutions against the reference, in float64 and float32."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ops.definition import naive_attention, output_and_gradients, random_feature_map, random_kernels
from van.ops import Kernel, reference, space_to_batch

FLOAT64 = 1e-12  # the same products in another order, each rounded at 1e-16
FLOAT32 = 2e-5  # in float32 a rounding is 6e-8; sums of some hundred terms of order one, relative to the largest
SHAPES = [
    (1, 1, 1, 1), (2, 3, 7, 7), (1, 5, 1, 31), (1, 2, 29, 1), (3, 1, 13, 11),
    (1, 4, 23, 2), (0, 3, 5, 5), (2, 7, 9, 37), (2, 8, 14, 14), (1, 3, 56, 12),
]  # fmt: skip


def attention_space_to_batch(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Run large kernel attention with the space-to-batch pair."""
    return x * F.conv2d(space_to_batch.lka_pair_space_to_batch(x, local, dilated), mix.weight, mix.bias)


def assert_same(found: dict, expected: dict, tolerance: float) -> None:
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item()) if value.numel() else 1.0
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_output_and_gradients_match_the_reference(subtests):
    for memory_format in [torch.contiguous_format, torch.channels_last]:
        for shape in SHAPES:
            for dtype, tolerance in [(torch.float32, FLOAT32), (torch.float64, FLOAT64)]:
                with subtests.test(
                    memory_format=str(memory_format), shape=str(shape), dtype=str(dtype), tolerance=str(tolerance)
                ):
                    kernels = random_kernels(shape[1], dtype=dtype)
                    x = (
                        random_feature_map(*shape, dtype=dtype)
                        .detach()
                        .contiguous(memory_format=memory_format)
                        .requires_grad_()
                    )
                    expected = output_and_gradients(reference.large_kernel_attention, x, kernels)
                    assert_same(output_and_gradients(attention_space_to_batch, x, kernels), expected, tolerance)


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
    assert_same(output_and_gradients(attention_space_to_batch, x, kernels), expected, FLOAT64)


def test_comparison_detects_swapped_rows_and_columns():
    """The control: swapping row and column sub-maps exceeds the tolerance by far."""
    x, kernel = random_feature_map(1, 2, 9, 9, dtype=torch.float32).detach(), random_kernels(2, dtype=torch.float32)[1]
    right = reference.depthwise(x, kernel)
    swapped = space_to_batch.batch_to_space(
        space_to_batch.space_to_batch(right, 3).unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1), 3
    )
    assert (swapped - right).abs().max() > 1000 * FLOAT32


def test_batch_to_space_inverts_space_to_batch(subtests):
    for dilation in [1, 2, 3, 5]:
        with subtests.test(dilation=str(dilation)):
            x = torch.arange(2 * 3 * 10 * 15 * dilation**2).reshape(2, 3, 10 * dilation, 15 * dilation)
            split = space_to_batch.space_to_batch(x, dilation)
            assert split.shape == (2 * dilation**2, 3, 10, 15)
            assert space_to_batch.batch_to_space(split, dilation).equal(x)
            assert split[dilation * dilation - 1].equal(x[0, :, dilation - 1 :: dilation, dilation - 1 :: dilation])


def test_memory_format_is_preserved(subtests):
    for size in [(9, 12), (7, 11)]:
        for memory_format in [torch.contiguous_format, torch.channels_last]:
            with subtests.test(size=str(size), memory_format=str(memory_format)):
                x = torch.randn(2, 4, *size).contiguous(memory_format=memory_format)
                kernels = random_kernels(4, dtype=torch.float32)
                for out in (
                    space_to_batch.depthwise_space_to_batch(x, kernels[1]),
                    attention_space_to_batch(x, *kernels),
                ):
                    assert out.is_contiguous(memory_format=memory_format)
                    assert out.stride() == x.stride()


def non_contiguous_inputs() -> dict[str, torch.Tensor]:
    base = torch.randn(2, 6, 22, 18, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {
        "transposed": base.transpose(2, 3),
        "every second pixel": base[:, :, ::2, 1::2],
        "every second channel": base[:, ::2],
        "cut out": base[:, 1:4, 3:16, 2:13],
        "flipped batch": base.transpose(0, 1),
        "expanded": base[:1, :1, :7, :1].expand(2, 3, 7, 9),
    }


def test_non_contiguous_inputs_match_contiguous_ones(subtests):
    for name in non_contiguous_inputs():
        with subtests.test(name=str(name)):
            x = non_contiguous_inputs()[name]
            assert not x.is_contiguous()
            kernels = random_kernels(x.shape[1])
            expected = reference.large_kernel_attention(x.contiguous(), *kernels)
            torch.testing.assert_close(attention_space_to_batch(x, *kernels), expected, rtol=FLOAT64, atol=FLOAT64)


def test_every_element_is_written():
    """New memory is filled with NaN, so that an element that is not written is detected."""
    x, kernels = random_feature_map(2, 3, 8, 10, dtype=torch.float32), random_kernels(3, dtype=torch.float32)
    expected = output_and_gradients(reference.large_kernel_attention, x, kernels)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(8).isnan().all()
        found = output_and_gradients(attention_space_to_batch, x, kernels)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found, expected, FLOAT32)


def test_gradients_match_finite_differences():
    x, (local, dilated, mix) = (
        random_feature_map(1, 2, 4, 5),
        random_kernels(2, local_size=3, dilated_size=3, dilation=2),
    )

    def flat(x, lw, lb, dw, db, mw, mb):
        return attention_space_to_batch(x, Kernel(lw, lb), Kernel(dw, db, 2), Kernel(mw, mb))

    tensors = (x, local.weight, local.bias, dilated.weight, dilated.bias, mix.weight, mix.bias)
    assert torch.autograd.gradcheck(flat, tensors)
    assert torch.autograd.gradgradcheck(flat, tensors)


def test_bfloat16_is_as_accurate_as_the_reference():
    shape, run_reference_float64 = (2, 8, 21, 17), None
    kernels = random_kernels(8, dtype=torch.bfloat16)
    x = random_feature_map(*shape, dtype=torch.bfloat16)
    exact = tuple(Kernel(k.weight.double(), k.bias.double(), k.dilation) for k in kernels)
    run_reference_float64 = reference.large_kernel_attention(x.double(), *exact)
    errors = [
        (operator(x, *kernels).double() - run_reference_float64).abs().mean().item()
        for operator in (attention_space_to_batch, reference.large_kernel_attention)
    ]
    assert errors[0] <= 1.1 * errors[1]


def test_vmap_of_gradients_matches_a_loop():
    """``torch.func.vmap`` does not support memory format queries; the backend must not use them."""
    x, kernels = random_feature_map(3, 2, 7, 8, dtype=torch.float32).detach(), random_kernels(2, dtype=torch.float32)

    def loss(image):
        return attention_space_to_batch(image[None], *kernels).square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(x)
    one_by_one = torch.stack([torch.func.grad(loss)(image) for image in x])
    torch.testing.assert_close(mapped, one_by_one, rtol=FLOAT32, atol=FLOAT32)


def test_kernels_without_bias_match_the_reference():
    x, (local, dilated, mix) = random_feature_map(1, 2, 9, 7), random_kernels(2)
    bare = tuple(kernel._replace(bias=None) for kernel in (local, dilated, mix))
    expected = output_and_gradients(reference.large_kernel_attention, x, bare)
    assert_same(output_and_gradients(attention_space_to_batch, x, bare), expected, FLOAT64)


def test_weights_that_read_only_padding_are_cropped(subtests):
    """At 7 x 7 a tap three steps of 3 away is outside from every pixel, so 5 x 5 of the 7 x 7 taps are left."""
    for rows, columns, kept in [(56, 56, (7, 7)), (7, 7, (5, 5)), (3, 10, (1, 7)), (1, 4, (1, 3))]:
        with subtests.test(rows=str(rows), columns=str(columns), kept=str(kept)):
            kernel = space_to_batch.crop_weight(Kernel(torch.randn(4, 1, 7, 7), None, 3), rows, columns)
            assert tuple(kernel.weight.shape[2:]) == kept


def test_even_kernels_are_not_cropped():
    kernel = space_to_batch.crop_weight(Kernel(torch.randn(4, 1, 4, 4), None, 3), 2, 2)
    assert tuple(kernel.weight.shape[2:]) == (4, 4)


def test_gradient_of_cropped_weights_is_zero_and_has_the_strides_of_the_weight(subtests):
    for layout in [torch.contiguous_format, torch.channels_last]:
        with subtests.test(layout=str(layout)):
            weight = torch.randn(4, 1, 7, 7).to(memory_format=layout).requires_grad_()
            assert weight.stride() == ((49, 49, 7, 1) if layout == torch.contiguous_format else (49, 1, 7, 1))
            kept = space_to_batch.crop_weight(Kernel(weight, None, 3), 7, 7).weight
            (gradient,) = torch.autograd.grad(kept.sum(), weight)
            assert gradient.stride() == weight.stride()
            assert gradient.sum().item() == 4 * 25
            assert gradient[:, :, 0].abs().sum().item() == 0
