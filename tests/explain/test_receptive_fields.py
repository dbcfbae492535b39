"""What a cell does read of a picture: where it is known, what changes it, and what is left of the network.

Pictures (N, C, H, W); maps of gradients (H, W).
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

from explain.field_networks import LAYERS, SLOWER, fits, read_by_rule, stacked, tiny_van
from van.errors import ShapeError, UsageError
from van.explain.receptive_fields import STAGES, effective_fields, measure_fields, noise
from van.results.fields import Span


def test_a_1x1_convolution_reads_one_pixel():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.GELU(), nn.Conv2d(5, 2, 1)).eval()
    (field,) = measure_fields({"pixel": model}, size_px=15, count=2, layers=["2"])
    assert (field.rows, field.columns) == (Span(7, 7), Span(7, 7))
    assert field.heat[7, 7] == 1
    assert (field.side(0.99), field.area()) == (1, 1 / 225)


@SLOWER
@given(layers=LAYERS, seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_effective_field_lies_within_the_theoretical_one(layers, seed):
    torch.manual_seed(seed)
    model, pictures = stacked(layers).eval(), torch.randn(2, 1, 41, 43)
    assume(fits(model, pictures))
    rows, columns = read_by_rule(model, (41, 43), str(len(layers) - 1))
    (heat,) = effective_fields(model, [str(len(layers) - 1)], pictures)
    outside = np.ones_like(heat, bool)
    outside[max(0, int(rows.first)) : int(rows.last) + 1, max(0, int(columns.first)) : int(columns.last) + 1] = False
    assert not heat[outside].any()
    assert heat.sum() == pytest.approx(1)


def test_the_effective_field_of_linear_layers_is_their_kernel():
    convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    (heat,) = effective_fields(nn.Sequential(convolution).eval(), ["0"], torch.randn(3, 1, 7, 9))
    kernel = convolution.weight.detach()[0, 0].abs().double().numpy()
    np.testing.assert_allclose(heat[2:5, 3:6], kernel / kernel.sum(), rtol=1e-6)
    assert heat[2:5, 3:6].sum() == pytest.approx(1)


def test_stages_of_a_van_read_ever_more_and_other_weights_read_otherwise():
    one, same, other = (
        measure_fields({"van": tiny_van(seed)}, size_px=96, count=2, layers=STAGES[:3]) for seed in (0, 0, 1)
    )
    assert [field.side(0.9) for field in one] == sorted({field.side(0.9) for field in one})
    for mine, again, another in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(mine.heat, again.heat)
        assert np.abs(mine.heat - another.heat).sum() > 0.05


def test_the_pictures_that_are_given_are_the_ones_that_are_looked_at():
    van, pictures = tiny_van(), torch.rand(6, 3, 64, 96)
    each = torch.stack([torch.from_numpy(effective_fields(van, ["stage2"], one[None])[0]) for one in pictures])
    (together,) = measure_fields({"van": van}, pictures=pictures, layers=["stage2"])
    (another,) = measure_fields({"van": van}, pictures=pictures.flip(1) + 1, layers=["stage2"])
    assert together.size == (64, 96)
    np.testing.assert_allclose(together.heat, each.mean(0).numpy(), rtol=0.5, atol=1e-4)
    assert np.abs(together.heat - another.heat).sum() > 0.01


def test_bfloat16_reads_the_same_pixels_with_nearly_the_same_weight():
    van = tiny_van()
    full = measure_fields({"van": van}, size_px=96, count=1)
    half = measure_fields({"van": copy.deepcopy(van).bfloat16()}, size_px=96, count=1)
    for one, other in zip(full, half, strict=True):
        assert (one.rows, one.columns) == (other.rows, other.columns)
        assert np.abs(one.heat - other.heat).sum() < 0.05


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("as a network may")


@pytest.mark.parametrize("broken", [False, True])
def test_the_network_is_left_as_it_was(broken):
    van = tiny_van()
    van.head.requires_grad_(False)
    if broken:
        van.norm3 = Broken().eval()
    before = copy.deepcopy(van)
    if broken:
        with pytest.raises(ValueError, match="as a network may"):
            measure_fields({"van": van}, size_px=32, count=1)
    else:
        measure_fields({"van": van}, size_px=32, count=1)
    assert all(torch.equal(value, van.state_dict()[name]) for name, value in before.state_dict().items())
    assert [p.requires_grad for p in van.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(parameter.grad is None for parameter in van.parameters())
    assert not any(module.training or module._forward_hooks for module in van.modules())
    assert torch.is_grad_enabled()


def test_networks_stand_side_by_side_as_plain_values():
    steps: list[str] = []
    models = {"wide": tiny_van(kernel_size=35), "van": tiny_van()}
    fields = measure_fields(models, size_px=64, count=1, layers=["stage1", "stage4"], progress=steps.append)
    plain = json.loads(json.dumps([field.to_dict() for field in fields], allow_nan=False))
    assert [(row["network"], row["layer"]) for row in plain] == [
        ("wide", "stage1"), ("wide", "stage4"), ("van", "stage1"), ("van", "stage4"),
    ]  # fmt: skip
    assert plain[2]["theoretical"] == {
        "rows": 103, "columns": 103, "box": [-19, -19, 84, 84], "how": "traced", "unbounded": False,
        "fills_picture": True,
    }  # fmt: skip
    assert list(plain[0]["effective"]["side_px"]) == ["0.5", "0.9", "0.99"]
    assert [step.split(":")[0] for step in steps] == ["wide", "wide", "van", "van"]


def test_noise_has_the_channels_of_the_network_and_is_the_same_for_the_same_seed():
    model = nn.Sequential(nn.Conv2d(5, 2, 3))
    one, same, other = (noise(model, (8, 9), count=2, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (2, 5, 8, 9)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size_px": 31}, ShapeError, "31x31 pixels and one cell of stage4 stands for 32x32"),
        ({"size_px": 0}, ShapeError, "at least 1 pixel"),
        ({"count": 0}, ShapeError, "count is 0; wanted at least 1"),
        ({"layers": []}, UsageError, "layers is empty"),
        ({"layers": ["stage9"]}, UsageError, "no layer 'stage9'"),
        ({"layers": ["head"], "size_px": 32}, UsageError, "does not run head"),
        ({"layers": ["norm4"], "size_px": 64}, UsageError, "norm4: the channels .* add up to a constant"),
        ({"pictures": torch.zeros(2, 4, 64, 64)}, ShapeError, "64x64 pixels and 4 channels|wanted .N, 3, H, W"),
        ({"pictures": torch.full((1, 3, 64, 64), torch.nan)}, ShapeError, "wanted finite numbers"),
        ({"pictures": torch.zeros(3, 64, 64)}, ShapeError, "wanted finite numbers .N, C, H, W"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        measure_fields({"van": tiny_van()}, **options)


def test_a_network_in_training_mode_is_refused():
    van = tiny_van()
    van.block2.train()
    with pytest.raises(UsageError, match=r"training mode.*call \.eval\(\) first"):
        measure_fields({"van": van}, size_px=64)


def test_a_picture_of_another_size_than_the_networks_is_refused():
    swin = SwinTransformer(img_size=64, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1)).eval()
    with pytest.raises(ShapeError, match="SwinTransformer cannot read pictures of 96x96 pixels"):
        measure_fields({"swin": swin}, size_px=96, layers=["stage1"])


def test_a_cell_that_reads_nothing_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()
    nn.init.constant_(model[0].bias, -1e9)
    with pytest.raises(UsageError, match="does not depend on the picture"):
        measure_fields({"dead": model}, size_px=8, layers=["1"])
