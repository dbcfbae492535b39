"""Layers are found by their stage's name in any network, and their outputs become feature maps."""

import pytest
import timm
import torch
from torch import nn

from explain.small_models import SMALL_CONVNEXT, SMALL_SWIN, SMALL_VAN, SMALL_VIT
from van.errors import ShapeError, UsageError
from van.explain.layers import find_backbone, find_layer
from van.heads import create_model


@pytest.fixture(scope="module")
def van():
    return timm.create_model("van_b0", num_classes=4, **SMALL_VAN).eval()


def shape_of(network: nn.Module, name: str | None, image_size: int = 128) -> tuple[int, ...]:
    layer = find_layer(network, name)
    outputs = []
    handle = layer.module.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    with torch.no_grad():
        network(torch.zeros(2, 3, image_size, image_size))
    handle.remove()
    return tuple(layer.to_maps(outputs[0]).shape)


def test_the_layer_of_a_van_stage_is_its_last_block(van):
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
def test_every_stage_gives_channels_first_maps(name, options, channels, strides):
    network = timm.create_model(name, num_classes=4, **options).eval()
    for stage, (expected, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        assert shape_of(network, f"stage{stage}") == (2, expected, 128 // stride, 128 // stride)
    assert shape_of(network, None) == (2, channels[-1], 4, 4)


def test_vit_tokens_become_a_grid_without_the_class_token():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=4, **SMALL_VIT).eval()
    layer = find_layer(network)
    assert layer.name == "blocks.1.norm1"
    assert shape_of(network, None) == (2, 24, 8, 8)
    tokens = torch.arange(65.0)[None, :, None]
    assert layer.to_maps(tokens)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_default_layer_has_at_least_four_cells_a_side(van):
    expected = {32: "stage2", 33: "stage2", 63: "stage3", 96: "stage3", 97: "stage4", 224: "stage4", 8: "stage1"}
    for input_size, name in expected.items():
        assert find_layer(van, input_size=input_size).name == name, input_size
    assert find_layer(van, "stage4", input_size=32).name == "stage4"  # an explicit name has priority


def test_the_backbone_of_a_dense_model_is_found():
    segmenter = create_model("van_b0", num_classes=3, options={"head": "semantic_fpn"})
    detector = create_model("van_b0", num_classes=3, options={"head": "retinanet", "channels": 32})
    for network in (segmenter, detector):
        assert find_layer(network).module is find_backbone(network).block4[-1]
    assert find_layer(segmenter, "decode_head.conv_seg").module is segmenter.decode_head.conv_seg


@pytest.mark.parametrize("name", ["stage5", "stage0", "stage2.block7", "nosuch.layer", ""])
def test_unknown_layers_are_rejected(van, name):
    with pytest.raises(UsageError, match=rf"layer.*stage1, stage2, stage3, stage4.*'{name}'"):
        find_layer(van, name)


def test_outputs_that_are_no_maps_are_rejected():
    layer = find_layer(timm.create_model("van_b0", num_classes=4, **SMALL_VAN), "head")
    with pytest.raises(ShapeError, match=r"layer head.*\(2, 4\)"):
        layer.to_maps(torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"layer head.*list"):
        layer.to_maps([1])
    with pytest.raises(ShapeError, match=r"layer head.*7"):
        layer.to_maps(torch.zeros(2, 7, 4))


def test_a_network_without_known_stages_is_rejected():
    with pytest.raises(UsageError, match=r"layer.*Sequential"):
        find_layer(nn.Sequential(nn.Conv2d(3, 4, 1)))
