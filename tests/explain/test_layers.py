"""A layer is found by its stage's name, in whatever network, and gives maps."""

import pytest
import timm
import torch
from torch import nn

from explain.small import SMALL_CONVNEXT, SMALL_SWIN, SMALL_VAN, SMALL_VIT
from van.errors import ShapeError, UsageError
from van.explain.layers import backbone_of, find_layer
from van.models.build import create


@pytest.fixture(scope="module")
def van():
    return timm.create_model("van_b0", num_classes=4, **SMALL_VAN).eval()


def shape_of(network: nn.Module, name: str | None, size_px: int = 128) -> tuple[int, ...]:
    layer = find_layer(network, name)
    seen = []
    handle = layer.module.register_forward_hook(lambda module, arguments, output: seen.append(output))
    with torch.no_grad():
        network(torch.zeros(2, 3, size_px, size_px))
    handle.remove()
    return tuple(layer.maps(seen[0]).shape)


def test_a_stage_of_van_is_its_last_block_before_the_norm(van):
    for stage, count in ((1, 1), (2, 2), (3, 1), (4, 2)):
        layer = find_layer(van, f"stage{stage}")
        assert layer.module is getattr(van, f"block{stage}")[count - 1]
        assert layer.stride == 2 ** (stage + 1)
    assert find_layer(van).module is van.block4[1]
    assert find_layer(van, "stage2.block0").module is van.block2[0]
    assert find_layer(van, "norm3").module is van.norm3
    assert find_layer(van, "norm3").stride == 16


@pytest.mark.parametrize(
    ("name", "options", "channels", "strides"),
    [
        ("van_b0", SMALL_VAN, (8, 16, 24, 32), (4, 8, 16, 32)),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, (16, 32, 64, 128), (4, 8, 16, 32)),
        ("convnext_tiny", SMALL_CONVNEXT, (8, 16, 24, 32), (4, 8, 16, 32)),
        ("resnet10t", {}, (64, 128, 256, 512), (4, 8, 16, 32)),
    ],
)
def test_every_stage_gives_maps_with_the_channels_first(name, options, channels, strides):
    network = timm.create_model(name, num_classes=4, **options).eval()
    for stage, (wanted, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        assert shape_of(network, f"stage{stage}") == (2, wanted, 128 // stride, 128 // stride)
    assert shape_of(network, None) == (2, channels[-1], 4, 4)


def test_the_tokens_of_a_vit_become_rows_and_columns_without_the_class_token():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=4, **SMALL_VIT).eval()
    layer = find_layer(network)
    assert layer.name == "blocks.1.norm1"
    assert shape_of(network, None) == (2, 24, 8, 8)
    tokens = torch.arange(65.0)[None, :, None]
    assert layer.maps(tokens)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_small_pictures_are_looked_at_where_there_are_four_cells_a_side(van):
    wanted = {32: "stage2", 33: "stage2", 63: "stage3", 96: "stage3", 97: "stage4", 224: "stage4", 8: "stage1"}
    for side_px, name in wanted.items():
        assert find_layer(van, side_px=side_px).name == name, side_px
    assert find_layer(van, "stage4", side_px=32).name == "stage4"  # who names a layer gets it


def test_the_van_under_a_head_is_found():
    segmenter = create("van_b0", num_classes=3, options={"head": "semantic_fpn"})
    detector = create("van_b0", num_classes=3, options={"head": "retinanet", "channels": 32})
    for network in (segmenter, detector):
        assert find_layer(network).module is backbone_of(network).block4[-1]
    assert find_layer(segmenter, "decode_head.conv_seg").module is segmenter.decode_head.conv_seg


@pytest.mark.parametrize("name", ["stage5", "stage0", "stage2.block7", "nosuch.layer", ""])
def test_a_layer_that_is_not_there_is_refused_by_name(van, name):
    with pytest.raises(UsageError, match=rf"there is no layer '{name}'; known: stage1, stage2, stage3, stage4, or"):
        find_layer(van, name)


def test_what_is_no_map_is_refused():
    layer = find_layer(timm.create_model("van_b0", num_classes=4, **SMALL_VAN), "head")
    with pytest.raises(ShapeError, match=r"layer head gives \(2, 4\); wanted maps"):
        layer.maps(torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="layer head gives list"):
        layer.maps([1])
    with pytest.raises(ShapeError, match="layer head gives 7 tokens, which fill no square"):
        layer.maps(torch.zeros(2, 7, 4))


def test_a_network_without_known_stages_is_told_so():
    with pytest.raises(UsageError, match="Sequential has no stages that are known; name a layer"):
        find_layer(nn.Sequential(nn.Conv2d(3, 4, 1)))
