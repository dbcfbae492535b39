"""Effective receptive fields: known values, dependence on weights and images, side effects on the network.

Shapes: images (N, C, H, W); fields (H, W).
"""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from explain.receptive_field_networks import LAYERS, SLOWER, fits, stacked, tiny_van, traced_field
from van.errors import ShapeError, UsageError
from van.explain.receptive_fields import STAGES, effective_receptive_fields, measure_receptive_fields, noise
from van.visualization.receptive_fields import Span


def test_the_field_of_a_1x1_convolution_is_one_pixel():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.GELU(), nn.Conv2d(5, 2, 1)).eval()
    (field,) = measure_receptive_fields({"pixel": model}, image_size=15, count=2, layers=["2"])
    assert (field.rows, field.columns) == (Span(7, 7), Span(7, 7))
    assert field.effective[7, 7] == 1
    assert (field.effective_size(0.99), field.effective_area()) == (1, 1 / 225)


@SLOWER
@given(layers=LAYERS, seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_effective_field_is_within_the_theoretical_one(layers, seed):
    torch.manual_seed(seed)
    model, images = stacked(layers).eval(), torch.randn(2, 1, 41, 43)
    assume(fits(model, images))
    rows, columns = traced_field(model, (41, 43), str(len(layers) - 1))
    (effective,) = effective_receptive_fields(model, [str(len(layers) - 1)], images)
    outside = np.ones_like(effective, bool)
    outside[max(0, int(rows.first)) : int(rows.last) + 1, max(0, int(columns.first)) : int(columns.last) + 1] = False
    assert not effective[outside].any()
    assert effective.sum() == pytest.approx(1)


def test_the_effective_field_of_linear_layers_is_their_kernel():
    convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    (effective,) = effective_receptive_fields(nn.Sequential(convolution).eval(), ["0"], torch.randn(3, 1, 7, 9))
    kernel = convolution.weight.detach()[0, 0].abs().double().numpy()
    np.testing.assert_allclose(effective[2:5, 3:6], kernel / kernel.sum(), rtol=1e-6)
    assert effective[2:5, 3:6].sum() == pytest.approx(1)


def test_effective_fields_grow_with_the_stage_and_depend_on_the_weights():
    one, same, other = (
        measure_receptive_fields({"van": tiny_van(seed)}, image_size=96, count=2, layers=STAGES[:3])
        for seed in (0, 0, 1)
    )
    assert [field.effective_size(0.9) for field in one] == sorted({field.effective_size(0.9) for field in one})
    for actual, again, another in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(actual.effective, again.effective)
        assert np.abs(actual.effective - another.effective).sum() > 0.05


def test_the_effective_field_is_measured_on_the_given_images():
    van, images = tiny_van(), torch.rand(6, 3, 64, 96)
    each = torch.stack([torch.from_numpy(effective_receptive_fields(van, ["stage2"], one[None])[0]) for one in images])
    (together,) = measure_receptive_fields({"van": van}, images=images, layers=["stage2"])
    (another,) = measure_receptive_fields({"van": van}, images=images.flip(1) + 1, layers=["stage2"])
    assert together.image_size == (64, 96)
    np.testing.assert_allclose(together.effective, each.mean(0).numpy(), rtol=0.5, atol=1e-4)
    assert np.abs(together.effective - another.effective).sum() > 0.01


def test_bfloat16_has_nearly_the_same_fields():
    van = tiny_van()
    full = measure_receptive_fields({"van": van}, image_size=96, count=1)
    half = measure_receptive_fields({"van": copy.deepcopy(van).bfloat16()}, image_size=96, count=1)
    for one, other in zip(full, half, strict=True):
        assert (one.rows, one.columns) == (other.rows, other.columns)
        assert np.abs(one.effective - other.effective).sum() < 0.05


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("failure")


@pytest.mark.parametrize("broken", [False, True])
def test_the_network_is_unchanged(broken):
    van = tiny_van()
    van.head.requires_grad_(False)
    if broken:
        van.norm3 = Broken().eval()
    before = copy.deepcopy(van)
    if broken:
        with pytest.raises(ValueError, match="failure"):
            measure_receptive_fields({"van": van}, image_size=32, count=1)
    else:
        measure_receptive_fields({"van": van}, image_size=32, count=1)
    assert all(torch.equal(value, van.state_dict()[name]) for name, value in before.state_dict().items())
    assert [p.requires_grad for p in van.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(parameter.grad is None for parameter in van.parameters())
    assert not any(module.training or module._forward_hooks for module in van.modules())
    assert torch.is_grad_enabled()


def test_fields_of_several_networks_are_plain_values():
    steps: list[str] = []
    models = {"wide": tiny_van(kernel_size=35), "van": tiny_van()}
    fields = measure_receptive_fields(
        models, image_size=64, count=1, layers=["stage1", "stage4"], progress=steps.append
    )
    plain = json.loads(json.dumps([field.to_dict() for field in fields], allow_nan=False))
    assert [(row["network"], row["layer"]) for row in plain] == [
        ("wide", "stage1"), ("wide", "stage4"), ("van", "stage1"), ("van", "stage4"),
    ]  # fmt: skip
    assert plain[2]["theoretical"] == {
        "height": 103, "width": 103, "box": [-19, -19, 84, 84], "method": "traced", "unbounded": False,
        "covers_image": True,
    }  # fmt: skip
    assert list(plain[0]["effective"]["size_px"]) == ["0.5", "0.9", "0.99"]
    assert [step.split(":")[0] for step in steps] == ["wide", "wide", "van", "van"]


def test_noise_has_the_network_s_channels_and_is_reproducible():
    model = nn.Sequential(nn.Conv2d(5, 2, 3))
    one, same, other = (noise(model, (8, 9), count=2, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (2, 5, 8, 9)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 31}, ShapeError, "32x32.*stage4.*31x31"),
        ({"image_size": 0}, ShapeError, "image_size.*at least 1"),
        ({"count": 0}, ShapeError, "count.*0"),
        ({"layers": []}, UsageError, "layers.*none"),
        ({"layers": ["stage9"]}, UsageError, "layer.*'stage9'"),
        ({"layers": ["head"], "image_size": 32}, UsageError, "head"),
        ({"layers": ["norm4"], "image_size": 64}, UsageError, "norm4.*constant"),
        ({"images": torch.zeros(2, 4, 64, 64)}, ShapeError, "64x64 pixels and 4 channels|expected .N, 3, H, W"),
        ({"images": torch.full((1, 3, 64, 64), torch.nan)}, ShapeError, "images.*finite"),
        ({"images": torch.zeros(3, 64, 64)}, ShapeError, r"images.*\(3, 64, 64\)"),
    ],
)
def test_invalid_arguments_are_rejected(options, error, message):
    with pytest.raises(error, match=message):
        measure_receptive_fields({"van": tiny_van()}, **options)


def test_training_mode_is_rejected():
    van = tiny_van()
    van.block2.train()
    with pytest.raises(UsageError, match=r"VAN.*training mode"):
        measure_receptive_fields({"van": van}, image_size=64)


def test_unsupported_image_sizes_are_rejected():
    swin = SwinTransformer(img_size=64, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1)).eval()
    with pytest.raises(ShapeError, match=r"SwinTransformer.*96x96"):
        measure_receptive_fields({"swin": swin}, image_size=96, layers=["stage1"])


def test_a_cell_independent_of_the_image_is_rejected():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()
    nn.init.constant_(model[0].bias, -1e9)
    with pytest.raises(UsageError, match="does not depend on the image"):
        measure_receptive_fields({"dead": model}, image_size=8, layers=["1"])
