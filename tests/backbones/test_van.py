import math
import re

import pytest
import timm
import torch
from torch import nn

from parity import SMALL, distance_from_recorded, filled, filled_b0, image, recorded
from van import VAN
from van.errors import ShapeError
from van.weights.published import VARIANTS

WITHIN = 1e-6  # the contract; a LayerNorm eps of 1e-5 already differs by 3e-6, tanh GELU by 2e-5
TINY = {"dims": (4, 6, 8, 10), "depths": (1, 2, 1, 1)}


def filled_model(name: str, **options) -> nn.Module:
    """Return a float64 model whose tensors are all filled by rule, without initialization."""
    model = timm.create_model(name, device="meta", dtype=torch.float64, **options).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(filled(shapes, torch.float64), assign=True)
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_equal_the_released_networks(name):
    model, record = filled_model(name), recorded("official")[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    assert len(model.state_dict()) == record["state_dict_entries"]
    with torch.no_grad():
        assert distance_from_recorded(name, model(image())) < WITHIN


@pytest.mark.parametrize("name", ["van_b0", "van_b1"])
def test_outputs_at_224_equal_the_released_networks(name):
    shape = (2, 3, 224, 224)
    model, record = filled_model(name), recorded("official")[name]["2x3x224x224"]
    with torch.no_grad():
        features = model.forward_features(image(shape))
        logits = model.forward_head(features)
    assert distance_from_recorded(name, logits, shape) < WITHIN
    pooled = torch.tensor(record["pooled_first8"], dtype=torch.float64)
    assert (features.mean((2, 3))[:, :8] - pooled).abs().max() < WITHIN
    assert logits.mean().item() == pytest.approx(record["logits_mean"], abs=WITHIN)
    assert logits.std().item() == pytest.approx(record["logits_std"], abs=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["van_b2", "van_b3"])
def test_outputs_of_larger_variants_at_224_equal_the_released_networks(name):
    shape = (2, 3, 224, 224)
    with torch.no_grad():
        assert distance_from_recorded(name, filled_model(name)(image(shape)), shape) < WITHIN


def test_a_small_deviation_of_the_network_exceeds_the_tolerance(subtests):
    """Negative control of the parity above."""
    for wrong in ["norm eps", "gelu", "inner shortcut"]:
        with subtests.test(wrong=str(wrong)):
            model = filled_model("van_b0", **({"norm_eps": 1e-5} if wrong == "norm eps" else {}))
            for module in list(model.modules()):
                if wrong == "gelu" and isinstance(module, nn.GELU):
                    module.approximate = "tanh"
                if wrong == "inner shortcut" and hasattr(module, "spatial_gating_unit"):
                    module.forward = lambda x, m=module: m.proj_2(m.spatial_gating_unit(m.activation(m.proj_1(x))))
            with torch.no_grad():
                logits = model(image())
            expected = torch.tensor(recorded("official")["van_b0"]["1x3x97x131"]["logits_first8"], dtype=torch.float64)
            assert (logits[:, :8] - expected).abs().max() > WITHIN


def test_the_state_dict_has_the_official_names_and_shapes_in_order():
    model = timm.create_model("van_b0", device="meta")
    actual = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = recorded("official_keys_b0")
    assert list(actual) == list(expected)
    assert actual == expected


def test_float32_outputs_are_near_float64_outputs():
    model = VAN().eval()
    model.load_state_dict(filled_b0())
    with torch.no_grad():
        logits = model(image().float())
    assert distance_from_recorded("van_b0", logits) < 1e-4  # float32 through 13 blocks


def test_any_image_size_from_32_px_is_supported(subtests):
    for size in [(32, 32), (33, 33), (61, 127), (224, 32), (32, 97), (225, 191)]:
        with subtests.test(size=str(size)):
            model = VAN(num_classes=3, **TINY).eval()
            maps = model.forward_intermediates(torch.randn(2, 3, *size), intermediates_only=True)
            strides = (4, 8, 16, 32)
            assert [tuple(m.shape[2:]) for m in maps] == [tuple(math.ceil(side / s) for side in size) for s in strides]
            assert model(torch.randn(2, 3, *size)).isfinite().all()


def test_small_images_give_finite_gradients(subtests):
    for size in [(32, 32), (35, 41)]:
        with subtests.test(size=str(size)):
            model = VAN(num_classes=3, **TINY).train()
            model(torch.randn(2, 3, *size)).square().sum().backward()
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_drop_path_rises_linearly_over_all_blocks(subtests):
    for name in ["van_b0", "van_b3"]:
        with subtests.test(name=str(name)):
            model = timm.create_model(name, drop_path_rate=0.3, device="meta")
            blocks = [block for stage in (1, 2, 3, 4) for block in getattr(model, f"block{stage}")]
            rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
            count = sum(VARIANTS[name].depths)
            assert rates == pytest.approx([0.3 * index / (count - 1) for index in range(count)])


def test_a_single_block_has_no_drop_path():
    model = VAN(dims=(4, 4, 4, 4), depths=(1, 0, 0, 0), drop_path_rate=0.3)
    assert isinstance(model.block1[0].drop_path, nn.Identity)


def test_the_initial_weights_are_the_papers():
    torch.manual_seed(0)
    model = timm.create_model("van_b0")
    depthwise = model.block4[0].attn.spatial_gating_unit.conv_spatial
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / 49), rel=0.05)
    assert model.block4[0].mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.05)
    assert model.patch_embed2.proj.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert all(bias.count_nonzero() == 0 for bias in biases)
    scales = [p for name, p in model.named_parameters() if "layer_scale" in name]
    assert len(scales) == 2 * sum(VARIANTS["van_b0"].depths)
    assert all((scale == scale.new_tensor(0.01)).all() for scale in scales)


def test_the_normalized_map_feeds_the_next_stage():
    model = VAN(num_classes=0, **TINY).eval()
    stage_inputs = []
    model.patch_embed2.register_forward_pre_hook(lambda _, inputs: stage_inputs.append(inputs[0]))
    _, maps = model.forward_intermediates(torch.randn(1, 3, 32, 32), norm=True)
    assert stage_inputs[0].equal(maps[0])
    assert maps[0].mean(1).abs().max() < 1e-5  # normalized over channels


def test_kernel_and_dilation_reach_every_block():
    model = VAN(num_classes=0, kernel_size=11, dilation=3, **TINY).eval()
    units = [module for module in model.modules() if hasattr(module, "conv_spatial")]
    assert len(units) == sum(TINY["depths"])
    assert all(tuple(unit.conv_spatial.weight.shape[2:]) == (4, 4) for unit in units)
    assert model(torch.randn(1, 3, 33, 35)).shape == (1, 10)


def test_invalid_options_are_refused(subtests):
    for options, message in [
        ({"output_stride": 16}, "output_stride.*32.* 16"),
        ({"global_pool": ""}, "num_classes.* 1000"),
        ({"dims": (4, 8)}, r"dims.*4.*\(4, 8\)"),
        ({"depths": (1, 1, 1, 1, 1)}, r"depths.*4.*\(1, 1, 1, 1, 1\)"),
        ({"kernel_size": 0}, "kernel_size.* 0"),
    ]:
        with subtests.test(options=str(options)), pytest.raises(ShapeError, match=message):
            VAN(**options)


def test_an_input_of_another_shape_is_refused(subtests):
    for shape in [(1, 1, 64, 64), (3, 64, 64), (1, 4, 64, 64)]:
        with subtests.test(shape=str(shape)):
            model = VAN(**TINY).eval()
            with pytest.raises(ShapeError, match=r"\(N, 3, H, W\), got " + re.escape(str(shape))):
                model(torch.ones(shape))


def test_an_empty_batch_gives_empty_outputs():
    assert VAN(num_classes=5, **TINY).eval()(torch.ones(0, 3, 32, 32)).shape == (0, 5)


def test_outputs_do_not_depend_on_the_other_images_of_the_batch():
    model, x = filled_model("van_b0"), torch.cat([image(SMALL), -image(SMALL)])
    with torch.no_grad():
        both, one = model(x), model(x[1:])
    torch.testing.assert_close(both[1:], one, rtol=1e-10, atol=1e-10)
