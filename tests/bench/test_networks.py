"""The networks that are compared are the same each time, and every part of them shows in their answers."""

import pytest
import timm
import torch
from torch import nn

from van.bench.networks import CHANNELS_LAST, NCHW, NETWORKS, build
from van.models.catalogue import VARIANTS

SMALL_PX = 64


def answer(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pictures)


def test_every_network_names_its_family_its_layout_and_where_its_top1_is_from():
    for network in NETWORKS.values():
        assert network.family
        assert network.layout in (CHANNELS_LAST, NCHW)
        assert "arXiv:" in network.source
        assert timm.is_model(network.timm_name)


def test_the_published_top1_of_a_van_is_the_catalogue_s():
    assert {name: NETWORKS[name].top1 for name in VARIANTS} == {name: v.top1 for name, v in VARIANTS.items()}


@pytest.mark.parametrize("name", ["van_b0", "swin_tiny", "resnet50"])
def test_a_network_is_the_same_each_time_and_leaves_the_random_state_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (build(NETWORKS[name], size_px=SMALL_PX).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "part"),
    [("van_b0", "block4.1.mlp"), ("van_b0", "block1.0.attn"), ("convnext_tiny", "stages.3.blocks.2.mlp"),
     ("inception_next_tiny", "stages.3.blocks.2.mlp"), ("resnet50", "layer4.2.bn3")],
)  # fmt: skip
def test_a_part_that_is_left_out_changes_the_answer_by_percents(name, part):
    """As timm initialises them, some of these would change it by less than rounding does."""
    model = build(NETWORKS[name], size_px=SMALL_PX)
    pictures = torch.randn(2, 3, SMALL_PX, SMALL_PX, generator=torch.Generator().manual_seed(1))
    whole = answer(model, pictures)
    with torch.no_grad():
        for parameter in model.get_submodule(part).parameters():
            parameter.zero_()
    change = (answer(model, pictures) - whole).abs().max() / whole.abs().max()
    assert change > 0.01


@pytest.mark.parametrize("name", ["van_b0", "resnet50"])
def test_norms_normalise_what_the_network_sees(name):
    """Else the values of a deep network grow, and gradients in float32 are all rounding."""
    model = build(NETWORKS[name], size_px=SMALL_PX)
    sizes: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda norm, _, out: sizes.append((out / norm.weight[:, None, None]).std().item())
            )
    answer(model, torch.randn(2, 3, SMALL_PX, SMALL_PX, generator=torch.Generator().manual_seed(1)))
    assert len(sizes) > 20
    assert min(sizes) > 0.3
    assert max(sizes) < 3


@pytest.mark.parametrize("name", ["van_b0", "swin_tiny", "pvt_v2_b2"])
def test_a_network_takes_pictures_of_the_size_it_was_built_for(name):
    for size_px in (64, 96, 320):
        model = build(NETWORKS[name], size_px=size_px, device="meta")
        assert model(torch.empty(1, 3, size_px, size_px, device="meta")).shape == (1, 1000)


def test_another_kernel_size_is_another_van():
    state = build(NETWORKS["van_b0"], size_px=SMALL_PX, kernel_size=35, device="meta").state_dict()
    assert state["block1.0.attn.spatial_gating_unit.conv_spatial.weight"].shape[-2:] == (9, 9)
