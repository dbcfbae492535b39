"""The fused network has the outputs of the original, and no module that only training needs."""

import copy

import pytest
import timm
import torch
from torch import nn

from backbones import fuse_cases as cases
from van.backbones.fusion import batch_norm_affine, fold_input_affine, fold_output_affine, fuse
from van.errors import ShapeError, UsageError


def test_the_fused_network_has_the_same_outputs_in_float64(subtests):
    for name in ["van_b0", "van_b1", "van_b2"]:
        for size in [(64, 64), (97, 45)]:
            with subtests.test(name=str(name), size=str(size)):
                model = cases.random_van(name)
                x = torch.randn(2, 3, *size, dtype=torch.float64)
                with torch.no_grad():
                    expected, actual = model(x), fuse(model)(x)
                assert expected.abs().max() > 0.1
                assert ((actual - expected).abs().max() / expected.abs().max()).item() < 1e-9


def test_omitting_the_factor_of_the_inner_shortcut_changes_the_outputs():
    model = cases.random_van("van_b0")
    fused = fuse(model)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    fused.block1[0].shortcut.fill_(1.0)
    with torch.no_grad():
        assert (fused(x) - model(x)).abs().max() > 1e-4


def test_the_fused_network_has_no_training_modules():
    fused = fuse(timm.create_model("van_b0", drop_path_rate=0.2, drop_rate=0.1, proj_drop_rate=0.1).eval())
    kinds = {type(module).__name__ for module in fused.modules()}
    assert kinds.isdisjoint({"BatchNorm2d", "DropPath", "Block"})
    assert not any("layer_scale" in name for name in fused.state_dict())
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def test_fusing_does_not_change_the_original():
    model = cases.random_van("van_b0")
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    for parameter in fused.parameters():
        parameter.zero_()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fusing_twice_changes_nothing():
    once = fuse(cases.random_van("van_b0"))
    twice = fuse(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())


def test_a_features_only_model_is_fused_too():
    backbone = timm.create_model("van_b0", features_only=True).double().eval()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for actual, expected in zip(fuse(backbone)(x), backbone(x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(UsageError, match=r"training mode.*eval\(\)"):
        fuse(timm.create_model("van_b0"))


def test_a_model_with_one_block_in_training_mode_is_refused():
    model = timm.create_model("van_b0").eval()
    model.block2[0].train()
    with pytest.raises(UsageError, match="training mode"):
        fuse(model)


def test_a_model_without_a_van_is_refused():
    with pytest.raises(ShapeError, match="Linear"):
        fuse(nn.Linear(2, 2).eval())


def test_batch_norm_affine_equals_batch_norm_in_evaluation():
    norm = cases.randomize_norm(nn.BatchNorm2d(5)).double().eval()
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    scale, shift = batch_norm_affine(norm)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x), rtol=1e-12, atol=1e-12)


def test_input_and_output_affines_fold_into_a_convolution(subtests):
    for bias in [True, False]:
        with subtests.test(bias=str(bias)):
            conv = nn.Conv2d(4, 6, 1, bias=bias).double()
            x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
            scale_in, shift_in, scale_out, shift_out = (torch.randn(n, dtype=torch.float64) for n in (4, 4, 6, 6))
            column = (slice(None), None, None)
            torch.testing.assert_close(
                fold_input_affine(conv, scale_in, shift_in)(x), conv(x * scale_in[column] + shift_in[column])
            )
            torch.testing.assert_close(
                fold_output_affine(conv, scale_out, shift_out)(x), conv(x) * scale_out[column] + shift_out[column]
            )


def test_an_input_affine_of_a_padded_convolution_is_refused():
    with pytest.raises(ShapeError, match=r"1x1.*\(3, 3\)"):
        fold_input_affine(nn.Conv2d(4, 4, 3, padding=1), torch.ones(4), torch.ones(4))


def test_a_fused_network_can_be_exported_with_a_dynamic_batch():
    fused = fuse(cases.random_van("van_b0").float())
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(fused, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), fused(x), rtol=1e-4, atol=1e-4)
