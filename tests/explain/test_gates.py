"""The gates are the tensors that blocks multiply with, whoever else asks, and looking at them changes nothing."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.explain.gates import Gate, choose_channels, gate_names, lka_gates, lka_maps
from van.models import fuse
from van.models.build import create
from van.models.deploy import FusedBlock
from van.models.layers import LKA
from van.models.van import VAN
from van.ops import can_run, use_backend

DIMS = (8, 16, 24, 32)


def tiny(**options) -> VAN:
    """A VAN whose biases, shifts and layer scales are not the ones of a fresh network."""
    torch.manual_seed(0)
    model = VAN(**{"dims": DIMS, "depths": (2, 1, 1, 1), "num_classes": 4, **options}).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("bias", "running_mean")) or "layer_scale" in name:
            nn.init.uniform_(tensor, -0.3, 0.3)
    return model


def pictures(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def multiplied(model: nn.Module, x: Tensor, kind: type[nn.Module] = LKA) -> list[tuple[Tensor, Tensor]]:
    """What each LKA was given and what it gave."""
    seen = []
    handles = [
        module.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def independent_gate(unit: LKA, x: Tensor) -> Tensor:
    """The paper's words in plain convolutions and float64."""
    convs = copy.deepcopy(unit).double()
    channels, d = x.shape[1], unit.plan.dilation
    local, dilated = convs.conv0.weight, convs.conv_spatial.weight
    reach, wide = local.shape[2] // 2, d * (dilated.shape[2] - 1)
    out = F.conv2d(x.double(), local, convs.conv0.bias, padding=reach, groups=channels)
    out = F.pad(out, (wide // 2, wide - wide // 2) * 2)
    out = F.conv2d(out, dilated, convs.conv_spatial.bias, dilation=d, groups=channels)
    return F.conv2d(out, convs.conv1.weight, convs.conv1.bias)


def same(found: list[Gate], wanted: list[Gate]) -> bool:
    return [g.name for g in found] == [g.name for g in wanted] and all(
        torch.equal(one.values, other.values) for one, other in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "cpu", "phases"])
def test_a_gate_times_what_the_block_was_given_is_what_the_block_gave(backend: str, dtype: torch.dtype):
    """To the last bit: it is the same operators on the same tensors."""
    model, x = tiny().to(dtype), pictures(2, 3, 37, 53).to(dtype)
    verdict = can_run(backend, pictures(1, 8, 5, 5), *model.block1[0].attn.spatial_gating_unit.depthwise_kernels())
    if not verdict.ok:
        pytest.skip(verdict.reason)
    with use_backend(backend):
        gates, blocks = lka_gates(model, x), multiplied(model, x)
    assert len(gates) == len(blocks) == 5
    for gate, (given, out) in zip(gates, blocks, strict=True):
        assert gate.values.dtype == dtype
        assert torch.equal(gate.values * given, out), gate.name
    assert not torch.equal(gates[0].values * blocks[1][0], blocks[1][1])


def test_under_autocast_too():
    model, x = tiny(), pictures(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        gates, blocks = lka_gates(model, x), multiplied(model, x)
    assert gates[0].values.dtype == torch.bfloat16
    assert all(torch.equal(gate.values * given, out) for gate, (given, out) in zip(gates, blocks, strict=True))


@pytest.mark.parametrize(("kernel_size", "dilation"), [(21, 3), (7, 2), (35, 4), (11, 1)])
def test_a_gate_is_what_the_paper_defines(kernel_size: int, dilation: int):
    model, x = tiny(kernel_size=kernel_size, dilation=dilation).double(), pictures(2, 3, 37, 53).double()
    units = [module for module in model.modules() if isinstance(module, LKA)]
    gates, blocks = lka_gates(model, x), multiplied(model, x)
    for gate, unit, (given, _) in zip(gates, units, blocks, strict=True):
        wanted = independent_gate(unit, given)
        assert (gate.values - wanted).abs().max() < 1e-12 * max(1.0, wanted.abs().max().item())
        assert (gate.values - wanted.roll(1, dims=1)).abs().max() > 1e-3, "the control: channels in another order"


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_fused_network_has_the_gates_that_it_multiplies_with(layout: torch.memory_format):
    """In float32, and in channels_last by oneDNN, which multiplies in the convolution: equal to a few roundings."""
    fused = fuse(tiny()).to(memory_format=layout)
    x = pictures(2, 3, 37, 53).contiguous(memory_format=layout)
    seen = []
    for module in fused.modules():
        if isinstance(module, FusedBlock):
            module.spatial_gating_unit.conv1.register_forward_hook(
                lambda conv, given, named, out: seen.append((named["times"], out)), with_kwargs=True
            )
    gates = lka_gates(fused, x)
    assert len(gates) == len(seen) == 5, "the look itself must not call the hooks of others"
    for gate, (given, out) in zip(gates, seen, strict=True):
        assert (gate.values * given - out).abs().max() <= 1e-6 * out.abs().max()
    plain = lka_gates(tiny(), x)
    for one, other in zip(gates, plain, strict=True):
        assert one.name == other.name
        assert (one.values - other.values).abs().max() < 1e-4 * other.values.abs().max()


def test_blocks_are_named_by_stage_and_block_in_every_network_that_holds_a_van():
    names = ["stage1.block0", "stage1.block1", "stage2.block0", "stage3.block0", "stage4.block0"]
    model = tiny()
    assert gate_names(model) == gate_names(fuse(model)) == gate_names(nn.Sequential(model)) == names
    gates = lka_gates(model, pictures(1, 3, 32, 32))
    assert [gate.cell_px for gate in gates] == [4, 4, 8, 16, 32]
    assert gates[2].path == "block2.0.attn.spatial_gating_unit"
    assert gate_names(nn.ModuleList([model, tiny()]))[0] == "0.block1.0.attn.spatial_gating_unit", "two are told apart"
    assert gate_names(nn.ModuleDict({"mixer": LKA(4)})) == ["mixer"]


def test_a_detector_and_a_segmenter_are_looked_at_as_they_see_pictures():
    """The first pads to multiples of 32, and both read pictures of several sizes."""
    sizes = [(37, 53), (64, 40)]
    seen = [pictures(3, *size) for size in sizes]
    small = {"dims": DIMS, "depths": (1, 1, 1, 1), "channels": 64}
    detector = create("van_b0", num_classes=3, options={"head": "retinanet", **small}).eval()
    segmenter = create("van_b0", num_classes=3, options={"head": "semantic_fpn", **small}).eval()
    cells = {detector: [(16, 16), (16, 16)], segmenter: [(10, 14), (16, 10)]}
    for network, wanted in cells.items():
        found = lka_maps(network, seen)
        assert [strips[0].maps.shape[1:] for strips in found] == wanted
        assert [strips[0].name for strips in found] == ["stage1.block0"] * 2
        (alone,) = lka_gates(network, seen[:1], blocks="stage1.block0")
        np.testing.assert_allclose(found[0][0].maps[0], alone.values[0].mean(0), atol=1e-5)
    with pytest.raises(UsageError, match=r"stage1\.block0 ran 2 times; wanted once: give one picture at a time"):
        lka_gates(segmenter, seen)


def test_what_runs_may_be_chosen():
    model, x = tiny(), pictures(1, 3, 32, 32)
    assert same(lka_gates(model, x, run=model.forward_features), lka_gates(model, x))
    with pytest.raises(UsageError, match=r"stage2\.block0 ran 0 times"):
        lka_gates(model, x, run=lambda x: model.block1(model.patch_embed1(x)))
    found = lka_gates(model, x, run=lambda x: model.block1(model.patch_embed1(x)), blocks="stage1")
    assert same(found, lka_gates(model, x, blocks=["stage1"]))


def test_blocks_are_chosen_by_name_stage_or_path_and_come_in_order():
    model, x = tiny(depths=(2, 1, 12, 1)), pictures(1, 3, 32, 32)

    def chosen(*blocks: str) -> list[str]:
        return [gate.name for gate in lka_gates(model, x, blocks=blocks)]

    assert chosen("stage4", "stage1.block1") == ["stage1.block1", "stage4.block0"]
    assert chosen("stage3.block1") == ["stage3.block1"], "and not block10"
    assert len(chosen("stage3")) == len(chosen("block3")) == 12
    assert chosen("block3.11.attn.spatial_gating_unit") == ["stage3.block11"]


def test_other_weights_and_other_blocks_have_other_gates():
    x = pictures(1, 3, 32, 32)
    gates = lka_gates(tiny(), x)
    assert not torch.allclose(gates[0].values, gates[1].values, atol=1e-2)
    other = tiny()
    nn.init.normal_(other.block1[0].attn.spatial_gating_unit.conv0.weight)
    assert not torch.allclose(lka_gates(other, x)[0].values, gates[0].values, atol=1e-2)


def test_a_picture_has_the_same_gates_alone_and_among_others():
    model, x = tiny().double(), pictures(3, 3, 37, 53).double()
    for gate, *alone in zip(lka_gates(model, x), *(lka_gates(model, x[n : n + 1]) for n in range(3)), strict=True):
        assert (gate.values - torch.cat([one.values for one in alone])).abs().max() < 1e-12
        assert (gate.values[0] - gate.values[1]).abs().max() > 1e-3


def state_of(model: nn.Module) -> list:
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    tensors = [(p.requires_grad, p.grad is None, p.detach().clone()) for p in model.parameters()]
    return [hooks, [m.training for m in model.modules()], tensors, [b.clone() for b in model.buffers()]]


def test_the_network_is_left_as_it_was_and_gates_keep_no_graph():
    model, x = tiny(), pictures(1, 3, 32, 32).requires_grad_()
    model.block1[0].mlp.fc1.weight.requires_grad_(False)
    before = state_of(model)
    gates = lka_gates(model, x)
    assert repr(state_of(model)) == repr(before)
    assert x.grad is None
    assert not any(gate.values.requires_grad or gate.values.is_inference() for gate in gates)
    assert torch.is_grad_enabled()


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("half-way")


def test_also_when_it_raises_half_way():
    model, x = tiny(), pictures(1, 3, 32, 32)
    wanted = lka_gates(model, x)
    norm, model.norm2 = model.norm2, Breaks().eval()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="half-way"):
        lka_gates(model, x)
    assert repr(state_of(model)) == repr(before)
    assert torch.is_grad_enabled()
    model.norm2 = norm
    assert same(lka_gates(model, x), wanted)


def test_threads_that_share_a_network_have_each_their_own_gates():
    model = tiny()
    asked = [pictures(1, 3, 32, 32 + 4 * number) for number in range(8)] * 5
    alone = [lka_gates(model, x) for x in asked[:8]] * 5
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda x: lka_gates(model, x), asked))
    finally:
        sys.setswitchinterval(interval)
    assert all(same(one, other) for one, other in zip(found, alone, strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())


GATE = Gate("stage1.block0", "block1.0", torch.tensor([[[[1.0, -5]], [[2, 2]], [[-3, -3]], [[0, 4]]]]), 4)


def test_the_strongest_channels_have_the_largest_mean_magnitude():
    """Of 3, 2, 3 and 2; two alike in the order of their numbers; and not by their signed means."""
    (strip,) = choose_channels(GATE, channels="strongest", count=3)
    assert strip.captions == ("channel 0", "channel 2", "channel 1")
    np.testing.assert_array_equal(strip.maps, GATE.values[0, [0, 2, 1]])
    assert (strip.name, strip.cell_px) == ("stage1.block0", 4)
    (every,) = choose_channels(GATE, channels="strongest", count=9)
    assert len(every.maps) == 4


def test_each_picture_has_its_own_strongest_channels():
    both = GATE._replace(values=torch.cat([GATE.values, GATE.values.flip(1)]))
    found = choose_channels(both, channels="strongest", count=1)
    assert [strip.captions for strip in found] == [("channel 0",), ("channel 1",)]


def test_the_mean_and_numbered_channels():
    (mean,) = choose_channels(GATE)
    np.testing.assert_array_equal(mean.maps, [[[0.0, -0.5]]])
    assert mean.captions == ("mean",)
    (two,) = choose_channels(GATE, channels=(3, 1))
    np.testing.assert_array_equal(two.maps, [[[0.0, 4.0]], [[2.0, 2.0]]])
    assert two.captions == ("channel 3", "channel 1")


def test_maps_are_those_of_the_whole_gates_and_come_in_float32():
    model, x = tiny().bfloat16(), pictures(2, 3, 37, 53).bfloat16()
    gates = lka_gates(model, x)
    for channels in ("mean", "strongest", [7, 0]):
        found = lka_maps(model, x, channels=channels, count=2)
        assert len(found) == 2
        for gate, *strips in zip(gates, *found, strict=True):
            wanted = choose_channels(gate, channels=channels, count=2)
            for one, other in zip(strips, wanted, strict=True):
                assert one.maps.dtype == np.float32
                assert one.captions == other.captions
                np.testing.assert_array_equal(one.maps, other.maps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "stage5"}, r"blocks holds 'stage5'.*known: stage1\.block0, stage1\.block1, stage2\.block0"),
        ({"blocks": ["stage1", 3]}, "blocks holds 3"),
        ({"blocks": [""]}, "blocks holds ''"),
        ({"blocks": []}, "blocks is empty"),
        (
            {"channels": [2, 8]},
            r"channels holds 8, and stage1\.block0 has 8 channels; wanted whole numbers from 0 to 7",
        ),
        ({"channels": [-1]}, "channels holds -1"),
        ({"channels": [True]}, "channels holds True"),
        ({"channels": [1.0]}, r"channels holds 1\.0"),
        ({"channels": []}, r"channels is \[\]"),
        ({"channels": "weakest"}, "channels is 'weakest'; wanted 'mean', 'strongest'"),
        ({"channels": 3}, "channels is 3"),
        ({"channels": "strongest", "count": 0}, "count is 0"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(options: dict, message: str):
    model = tiny()
    with pytest.raises(UsageError, match=message):
        lka_maps(model, pictures(1, 3, 32, 32), **options)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_networks_that_have_no_gates_or_would_change_are_refused():
    with pytest.raises(UsageError, match="Conv2d holds no LKA; wanted a VAN"):
        gate_names(nn.Conv2d(3, 3, 1))
    model = tiny()
    model.block2[0].norm1.train()
    with pytest.raises(UsageError, match=r"block2\.0\.norm1 is in training mode.*call \.eval\(\)"):
        lka_gates(model, pictures(1, 3, 32, 32))
    with pytest.raises(UsageError, match="pictures is a ndarray"):
        lka_maps(tiny(), np.zeros((1, 3, 32, 32)))


def test_a_gate_that_is_not_finite_is_refused_by_name():
    model = tiny()
    nn.init.constant_(model.block2[0].attn.spatial_gating_unit.conv1.bias, float("nan"))
    with pytest.raises(ShapeError, match=r"the maps of stage2\.block0 are not finite"):
        lka_maps(model, pictures(1, 3, 32, 32))
    assert not any(module._forward_pre_hooks for module in model.modules())
