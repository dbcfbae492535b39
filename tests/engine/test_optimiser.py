"""What is decayed, how fast each layer learns, and what is frozen."""

import pytest
import timm
import torch
from torch import nn

from van.engine.optimiser import freeze, gradient_norm, make_optimiser, train_mode
from van.engine.settings import TrainSettings
from van.errors import UsageError


@pytest.fixture(scope="module")
def van_b0() -> nn.Module:
    return timm.create_model("van_b0", num_classes=3)


def groups_by_name(model: nn.Module, **settings: float) -> dict[str, dict]:
    optimiser = make_optimiser(model, TrainSettings(**settings))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimiser.param_groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_norms_biases_and_layer_scales_are_not_decayed_and_all_else_is(van_b0: nn.Module, layer_decay: float):
    groups = groups_by_name(van_b0, weight_decay=0.05, layer_decay=layer_decay)
    assert groups.keys() == {name for name, _ in van_b0.named_parameters()}
    for name, group in groups.items():
        plain = name.endswith(".bias") or "norm" in name or "layer_scale" in name
        assert group["weight_decay"] == (0.0 if plain else 0.05), name


def test_layer_decay_makes_each_block_learn_slower_than_the_one_after_it(van_b0: nn.Module):
    groups = groups_by_name(van_b0, layer_decay=0.7, lr=1.0)
    order = [f"block{s}.{j}.mlp.fc1.weight" for s, depth in enumerate((3, 3, 5, 2), 1) for j in range(depth)]
    scales = [groups[name]["lr_scale"] for name in ("patch_embed1.proj.weight", *order, "head.weight")]
    assert scales == sorted(scales)
    assert len(set(scales)) == len(scales)
    assert scales[-1] == 1.0


def test_layer_decay_without_an_order_of_layers_is_refused():
    with pytest.raises(UsageError, match=r"--layer-decay is 0.5, but Linear has no group_matcher"):
        make_optimiser(nn.Linear(2, 2), TrainSettings(layer_decay=0.5))


def test_freezing_everything_is_refused():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UsageError, match="nothing is left to train"):
        make_optimiser(model, TrainSettings())


def test_a_frozen_backbone_trains_the_classifier_alone_and_keeps_evaluating():
    model = timm.create_model("van_b0", num_classes=3)
    settings = TrainSettings(freeze_backbone=True)
    freeze(model, settings)
    train_mode(model, settings)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert not any(module.training for module in model.modules())


def test_the_gradient_norm_is_that_of_all_parameters_and_clipping_scales_to_the_limit():
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    assert gradient_norm(model, 0.0).item() == pytest.approx((8 * 4.0) ** 0.5)
    assert model.weight.grad is not None
    assert model.weight.grad[0, 0].item() == 2.0
    gradient_norm(model, 1.0)
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert flat.norm().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "--epochs is 0; wanted at least 1"),
        ({"lr": 0.0}, "--lr is 0.0; wanted more than 0"),
        ({"ema_decay": 1.0}, "--ema-decay is 1.0; wanted at least 0 and below 1"),
        ({"layer_decay": 0.0}, "--layer-decay is 0.0; wanted more than 0"),
        ({"clip_grad": -1.0}, "--clip-grad is -1.0; wanted at least 0"),
    ],
)
def test_impossible_settings_name_the_flag_the_value_and_what_is_wanted(settings: dict, message: str):
    with pytest.raises(UsageError, match=message):
        TrainSettings(**settings)
