"""The attention equals the factors that blocks multiply with, in any thread, and recording has no side effects."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.backbones.fusion import FusedBlock, fuse
from van.backbones.layers import LKA
from van.backbones.van import VAN
from van.errors import ShapeError, UsageError
from van.explain.lka_attention import (
    AttentionMap,
    lka_attention_maps,
    lka_block_names,
    lka_channel_maps,
    select_channels,
)
from van.heads import create_model
from van.ops import can_run, use_backend

DIMS = (8, 16, 24, 32)


def tiny(**options) -> VAN:
    """Return a VAN with random biases, shifts and layer scales."""
    torch.manual_seed(0)
    model = VAN(**{"dims": DIMS, "depths": (2, 1, 1, 1), "num_classes": 4, **options}).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("bias", "running_mean")) or "layer_scale" in name:
            nn.init.uniform_(tensor, -0.3, 0.3)
    return model


def images(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def lka_inputs_and_outputs(model: nn.Module, x: Tensor, kind: type[nn.Module] = LKA) -> list[tuple[Tensor, Tensor]]:
    """Return input and output of each LKA."""
    records = []
    handles = [
        module.register_forward_hook(lambda module, args, out: records.append((args[0], out)))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return records


def reference_attention(unit: LKA, x: Tensor) -> Tensor:
    """Compute the attention of the paper with plain convolutions in float64."""
    convs = copy.deepcopy(unit).double()
    channels, d = x.shape[1], unit.plan.dilation
    local, dilated = convs.conv0.weight, convs.conv_spatial.weight
    reach, wide = local.shape[2] // 2, d * (dilated.shape[2] - 1)
    out = F.conv2d(x.double(), local, convs.conv0.bias, padding=reach, groups=channels)
    out = F.pad(out, (wide // 2, wide - wide // 2) * 2)
    out = F.conv2d(out, dilated, convs.conv_spatial.bias, dilation=d, groups=channels)
    return F.conv2d(out, convs.conv1.weight, convs.conv1.bias)


def same(found: list[AttentionMap], expected: list[AttentionMap]) -> bool:
    return [g.name for g in found] == [g.name for g in expected] and all(
        torch.equal(one.values, other.values) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "cpu", "space_to_batch"])
def test_attention_times_the_input_is_the_output_of_lka(backend: str, dtype: torch.dtype):
    """Bitwise: the same operators on the same tensors."""
    model, x = tiny().to(dtype), images(2, 3, 37, 53).to(dtype)
    verdict = can_run(backend, images(1, 8, 5, 5), *model.block1[0].attn.spatial_gating_unit.depthwise_kernels())
    if not verdict.ok:
        pytest.skip(verdict.reason)
    with use_backend(backend):
        attentions, blocks = lka_attention_maps(model, x), lka_inputs_and_outputs(model, x)
    assert len(attentions) == len(blocks) == 5
    for attention, (x_in, out) in zip(attentions, blocks, strict=True):
        assert attention.values.dtype == dtype
        assert torch.equal(attention.values * x_in, out), attention.name
    assert not torch.equal(attentions[0].values * blocks[1][0], blocks[1][1])


def test_autocast_is_respected():
    model, x = tiny(), images(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        attentions, blocks = lka_attention_maps(model, x), lka_inputs_and_outputs(model, x)
    assert attentions[0].values.dtype == torch.bfloat16
    assert all(
        torch.equal(attention.values * x_in, out) for attention, (x_in, out) in zip(attentions, blocks, strict=True)
    )


@pytest.mark.parametrize(("kernel_size", "dilation"), [(21, 3), (7, 2), (35, 4), (11, 1)])
def test_the_attention_equals_the_definition_in_the_paper(kernel_size: int, dilation: int):
    model, x = tiny(kernel_size=kernel_size, dilation=dilation).double(), images(2, 3, 37, 53).double()
    units = [module for module in model.modules() if isinstance(module, LKA)]
    attentions, blocks = lka_attention_maps(model, x), lka_inputs_and_outputs(model, x)
    for attention, unit, (x_in, _) in zip(attentions, units, blocks, strict=True):
        expected = reference_attention(unit, x_in)
        assert (attention.values - expected).abs().max() < 1e-12 * max(1.0, expected.abs().max().item())
        assert (attention.values - expected.roll(1, dims=1)).abs().max() > 1e-3, (
            "negative control: channels in another order"
        )


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_fused_network_has_the_same_attention(layout: torch.memory_format):
    """In float32, equal up to rounding: with channels_last oneDNN multiplies within the convolution."""
    fused = fuse(tiny()).to(memory_format=layout)
    x = images(2, 3, 37, 53).contiguous(memory_format=layout)
    products = []
    for module in fused.modules():
        if isinstance(module, FusedBlock):
            module.spatial_gating_unit.conv1.register_forward_hook(
                lambda conv, args, kwargs, out: products.append((kwargs["multiplier"], out)), with_kwargs=True
            )
    attentions = lka_attention_maps(fused, x)
    assert len(attentions) == len(products) == 5, "recording must not run other hooks"
    for attention, (times, out) in zip(attentions, products, strict=True):
        assert (attention.values * times - out).abs().max() <= 1e-6 * out.abs().max()
    plain = lka_attention_maps(tiny(), x)
    for one, other in zip(attentions, plain, strict=True):
        assert one.name == other.name
        assert (one.values - other.values).abs().max() < 1e-4 * other.values.abs().max()


def test_blocks_are_named_by_stage_and_block_in_any_network_with_a_van():
    names = ["stage1.block0", "stage1.block1", "stage2.block0", "stage3.block0", "stage4.block0"]
    model = tiny()
    assert lka_block_names(model) == lka_block_names(fuse(model)) == lka_block_names(nn.Sequential(model)) == names
    attentions = lka_attention_maps(model, images(1, 3, 32, 32))
    assert [attention.stride for attention in attentions] == [4, 4, 8, 16, 32]
    assert attentions[2].path == "block2.0.attn.spatial_gating_unit"
    assert lka_block_names(nn.ModuleList([model, tiny()]))[0] == "0.block1.0.attn.spatial_gating_unit", (
        "two VANs have distinct names"
    )
    assert lka_block_names(nn.ModuleDict({"mixer": LKA(4)})) == ["mixer"]


def test_detectors_and_segmenters_have_maps_of_their_input_size():
    """The detector pads to multiples of 32; both accept images of several sizes."""
    sizes = [(37, 53), (64, 40)]
    batch = [images(3, *size) for size in sizes]
    small = {"dims": DIMS, "depths": (1, 1, 1, 1), "channels": 64}
    detector = create_model("van_b0", num_classes=3, options={"head": "retinanet", **small}).eval()
    segmenter = create_model("van_b0", num_classes=3, options={"head": "semantic_fpn", **small}).eval()
    cells = {detector: [(16, 16), (16, 16)], segmenter: [(10, 14), (16, 10)]}
    for network, expected in cells.items():
        found = lka_channel_maps(network, batch)
        assert [groups[0].maps.shape[1:] for groups in found] == expected
        assert [groups[0].name for groups in found] == ["stage1.block0"] * 2
        (alone,) = lka_attention_maps(network, batch[:1], blocks="stage1.block0")
        np.testing.assert_allclose(found[0][0].maps[0], alone.values[0].mean(0), atol=1e-5)
    with pytest.raises(UsageError, match=r"stage1\.block0: expected 1 .*2"):
        lka_attention_maps(segmenter, batch)


def test_a_part_of_the_network_can_be_run():
    model, x = tiny(), images(1, 3, 32, 32)
    assert same(lka_attention_maps(model, x, run=model.forward_features), lka_attention_maps(model, x))
    with pytest.raises(UsageError, match=r"stage2\.block0: expected 1 .*0"):
        lka_attention_maps(model, x, run=lambda x: model.block1(model.patch_embed1(x)))
    found = lka_attention_maps(model, x, run=lambda x: model.block1(model.patch_embed1(x)), blocks="stage1")
    assert same(found, lka_attention_maps(model, x, blocks=["stage1"]))


def test_blocks_are_selected_by_name_stage_or_path_in_order():
    model, x = tiny(depths=(2, 1, 12, 1)), images(1, 3, 32, 32)

    def chosen(*blocks: str) -> list[str]:
        return [attention.name for attention in lka_attention_maps(model, x, blocks=blocks)]

    assert chosen("stage4", "stage1.block1") == ["stage1.block1", "stage4.block0"]
    assert chosen("stage3.block1") == ["stage3.block1"], "not block10"
    assert len(chosen("stage3")) == len(chosen("block3")) == 12
    assert chosen("block3.11.attn.spatial_gating_unit") == ["stage3.block11"]


def test_other_weights_and_blocks_have_other_attention():
    x = images(1, 3, 32, 32)
    attentions = lka_attention_maps(tiny(), x)
    assert not torch.allclose(attentions[0].values, attentions[1].values, atol=1e-2)
    other = tiny()
    nn.init.normal_(other.block1[0].attn.spatial_gating_unit.conv0.weight)
    assert not torch.allclose(lka_attention_maps(other, x)[0].values, attentions[0].values, atol=1e-2)


def test_an_image_has_the_same_attention_alone_and_in_a_batch():
    model, x = tiny().double(), images(3, 3, 37, 53).double()
    for attention, *alone in zip(
        lka_attention_maps(model, x), *(lka_attention_maps(model, x[n : n + 1]) for n in range(3)), strict=True
    ):
        assert (attention.values - torch.cat([one.values for one in alone])).abs().max() < 1e-12
        assert (attention.values[0] - attention.values[1]).abs().max() > 1e-3


def state_of(model: nn.Module) -> list:
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    tensors = [(p.requires_grad, p.grad is None, p.detach().clone()) for p in model.parameters()]
    return [hooks, [m.training for m in model.modules()], tensors, [b.clone() for b in model.buffers()]]


def test_the_network_is_unchanged_and_maps_have_no_graph():
    model, x = tiny(), images(1, 3, 32, 32).requires_grad_()
    model.block1[0].mlp.fc1.weight.requires_grad_(False)
    before = state_of(model)
    attentions = lka_attention_maps(model, x)
    assert repr(state_of(model)) == repr(before)
    assert x.grad is None
    assert not any(attention.values.requires_grad or attention.values.is_inference() for attention in attentions)
    assert torch.is_grad_enabled()


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("failure")


def test_the_network_is_unchanged_after_an_error():
    model, x = tiny(), images(1, 3, 32, 32)
    expected = lka_attention_maps(model, x)
    norm, model.norm2 = model.norm2, Breaks().eval()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="failure"):
        lka_attention_maps(model, x)
    assert repr(state_of(model)) == repr(before)
    assert torch.is_grad_enabled()
    model.norm2 = norm
    assert same(lka_attention_maps(model, x), expected)


def test_threads_that_share_a_network_have_their_own_maps():
    model = tiny()
    inputs = [images(1, 3, 32, 32 + 4 * index) for index in range(8)] * 5
    alone = [lka_attention_maps(model, x) for x in inputs[:8]] * 5
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda x: lka_attention_maps(model, x), inputs))
    finally:
        sys.setswitchinterval(interval)
    assert all(same(one, other) for one, other in zip(found, alone, strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())


ATTENTION = AttentionMap("stage1.block0", "block1.0", torch.tensor([[[[1.0, -5]], [[2, 2]], [[-3, -3]], [[0, 4]]]]), 4)


def test_the_strongest_channels_have_the_largest_mean_magnitude():
    """Of 3, 2, 3 and 2: ties in the order of their indices, and magnitudes instead of signed means."""
    (group,) = select_channels(ATTENTION, channels="strongest", count=3)
    assert group.captions == ("channel 0", "channel 2", "channel 1")
    np.testing.assert_array_equal(group.maps, ATTENTION.values[0, [0, 2, 1]])
    assert (group.name, group.stride) == ("stage1.block0", 4)
    (every,) = select_channels(ATTENTION, channels="strongest", count=9)
    assert len(every.maps) == 4


def test_each_image_has_its_own_strongest_channels():
    both = ATTENTION._replace(values=torch.cat([ATTENTION.values, ATTENTION.values.flip(1)]))
    found = select_channels(both, channels="strongest", count=1)
    assert [group.captions for group in found] == [("channel 0",), ("channel 1",)]


def test_the_mean_and_given_channels_are_selected():
    (mean,) = select_channels(ATTENTION)
    np.testing.assert_array_equal(mean.maps, [[[0.0, -0.5]]])
    assert mean.captions == ("mean",)
    (two,) = select_channels(ATTENTION, channels=(3, 1))
    np.testing.assert_array_equal(two.maps, [[[0.0, 4.0]], [[2.0, 2.0]]])
    assert two.captions == ("channel 3", "channel 1")


def test_channel_maps_equal_those_of_whole_maps_in_float32():
    model, x = tiny().bfloat16(), images(2, 3, 37, 53).bfloat16()
    attentions = lka_attention_maps(model, x)
    for channels in ("mean", "strongest", [7, 0]):
        found = lka_channel_maps(model, x, channels=channels, count=2)
        assert len(found) == 2
        for attention, *groups in zip(attentions, *found, strict=True):
            expected = select_channels(attention, channels=channels, count=2)
            for one, other in zip(groups, expected, strict=True):
                assert one.maps.dtype == np.float32
                assert one.captions == other.captions
                np.testing.assert_array_equal(one.maps, other.maps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "stage5"}, r"blocks.*stage1\.block0, stage1\.block1, stage2\.block0.*'stage5'"),
        ({"blocks": ["stage1", 3]}, "blocks.*got 3"),
        ({"blocks": [""]}, "blocks.*''"),
        ({"blocks": []}, "blocks.*none"),
        (
            {"channels": [2, 8]},
            r"channels.*0 to 7.*stage1\.block0.*8",
        ),
        ({"channels": [-1]}, "channels.*-1"),
        ({"channels": [True]}, "channels.*True"),
        ({"channels": [1.0]}, r"channels.*1\.0"),
        ({"channels": []}, r"channels.*\[\]"),
        ({"channels": "weakest"}, "channels.*'mean', 'strongest'.*'weakest'"),
        ({"channels": 3}, "channels.*3"),
        ({"channels": "strongest", "count": 0}, "count.*0"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str):
    model = tiny()
    with pytest.raises(UsageError, match=message):
        lka_channel_maps(model, images(1, 3, 32, 32), **options)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_networks_without_lka_and_training_mode_are_rejected():
    with pytest.raises(UsageError, match=r"VAN.*Conv2d"):
        lka_block_names(nn.Conv2d(3, 3, 1))
    model = tiny()
    model.block2[0].norm1.train()
    with pytest.raises(UsageError, match=r"block2\.0\.norm1.*training mode"):
        lka_attention_maps(model, images(1, 3, 32, 32))
    with pytest.raises(UsageError, match=r"images.*ndarray"):
        lka_channel_maps(tiny(), np.zeros((1, 3, 32, 32)))


def test_attention_that_is_not_finite_is_rejected():
    model = tiny()
    nn.init.constant_(model.block2[0].attn.spatial_gating_unit.conv1.bias, float("nan"))
    with pytest.raises(ShapeError, match=r"stage2\.block0: maps.*finite"):
        lka_channel_maps(model, images(1, 3, 32, 32))
    assert not any(module._forward_pre_hooks for module in model.modules())
