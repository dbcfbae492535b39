"""Benchmark networks are deterministic, and every block affects their outputs."""

import pytest
import timm
import torch
from torch import nn

from van.bench.networks import CHANNELS_LAST, NCHW, NETWORKS, build
from van.weights.published import VARIANTS

SMALL_PX = 64


def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def test_every_network_has_a_family_a_layout_and_a_source():
    for network in NETWORKS.values():
        assert network.family
        assert network.layout in (CHANNELS_LAST, NCHW)
        assert "arXiv:" in network.source
        assert timm.is_model(network.timm_name)


def test_top1_of_vans_equals_the_registry():
    assert {name: NETWORKS[name].top1 for name in VARIANTS} == {name: v.top1 for name, v in VARIANTS.items()}


@pytest.mark.parametrize("name", ["van_b0", "swin_tiny", "resnet50"])
def test_build_is_deterministic_and_preserves_the_random_state(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (build(NETWORKS[name], image_size=SMALL_PX).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "block"),
    [("van_b0", "block4.1.mlp"), ("van_b0", "block1.0.attn"), ("convnext_tiny", "stages.3.blocks.2.mlp"),
     ("inception_next_tiny", "stages.3.blocks.2.mlp"), ("resnet50", "layer4.2.bn3")],
)  # fmt: skip
def test_removing_a_block_changes_the_output_by_percents(name, block):
    """With the initialization of timm, some would change it by less than rounding errors."""
    model = build(NETWORKS[name], image_size=SMALL_PX)
    images = torch.randn(2, 3, SMALL_PX, SMALL_PX, generator=torch.Generator().manual_seed(1))
    whole = predict(model, images)
    with torch.no_grad():
        for parameter in model.get_submodule(block).parameters():
            parameter.zero_()
    change = (predict(model, images) - whole).abs().max() / whole.abs().max()
    assert change > 0.01


@pytest.mark.parametrize("name", ["van_b0", "resnet50"])
def test_norms_normalize_their_inputs(name):
    """Otherwise activations grow with depth, and float32 gradients consist of rounding errors."""
    model = build(NETWORKS[name], image_size=SMALL_PX)
    sizes: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda norm, _, out: sizes.append((out / norm.weight[:, None, None]).std().item())
            )
    predict(model, torch.randn(2, 3, SMALL_PX, SMALL_PX, generator=torch.Generator().manual_seed(1)))
    assert len(sizes) > 20
    assert min(sizes) > 0.3
    assert max(sizes) < 3


@pytest.mark.parametrize("name", ["van_b0", "swin_tiny", "pvt_v2_b2"])
def test_networks_accept_the_image_size_they_were_built_for(name):
    for image_size in (64, 96, 320):
        model = build(NETWORKS[name], image_size=image_size, device="meta")
        assert model(torch.empty(1, 3, image_size, image_size, device="meta")).shape == (1, 1000)


def test_kernel_size_changes_the_weights():
    state = build(NETWORKS["van_b0"], image_size=SMALL_PX, kernel_size=35, device="meta").state_dict()
    assert state["block1.0.attn.spatial_gating_unit.conv_spatial.weight"].shape[-2:] == (9, 9)
