"""Weight decay, layer-wise learning rates, freezing and the validation of settings."""

import pytest
import timm
import torch
from torch import nn

from van.errors import UsageError
from van.training.optimizer import freeze, gradient_norm, make_optimizer, train_mode
from van.training.settings import TrainSettings


@pytest.fixture(scope="module")
def van_b0() -> nn.Module:
    return timm.create_model("van_b0", num_classes=3)


def groups_by_name(model: nn.Module, **settings: float) -> dict[str, dict]:
    optimizer = make_optimizer(model, TrainSettings(**settings))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_only_norms_biases_and_layer_scales_have_no_weight_decay(van_b0: nn.Module, layer_decay: float):
    groups = groups_by_name(van_b0, weight_decay=0.05, layer_decay=layer_decay)
    assert groups.keys() == {name for name, _ in van_b0.named_parameters()}
    for name, group in groups.items():
        exempt = name.endswith(".bias") or "norm" in name or "layer_scale" in name
        assert group["weight_decay"] == (0.0 if exempt else 0.05), name


def test_layer_decay_gives_each_block_a_lower_learning_rate_than_the_next_one(van_b0: nn.Module):
    groups = groups_by_name(van_b0, layer_decay=0.7, lr=1.0)
    order = [f"block{s}.{j}.mlp.fc1.weight" for s, depth in enumerate((3, 3, 5, 2), 1) for j in range(depth)]
    scales = [groups[name]["lr_scale"] for name in ("patch_embed1.proj.weight", *order, "head.weight")]
    assert scales == sorted(scales)
    assert len(set(scales)) == len(scales)
    assert scales[-1] == 1.0


def test_layer_decay_without_group_matcher_raises():
    with pytest.raises(UsageError, match=r"--layer-decay 0\.5.*group_matcher.*Linear"):
        make_optimizer(nn.Linear(2, 2), TrainSettings(layer_decay=0.5))


def test_a_model_without_trainable_parameters_raises():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UsageError, match="frozen"):
        make_optimizer(model, TrainSettings())


def test_a_frozen_backbone_trains_only_the_classifier_and_stays_in_evaluation_mode():
    model = timm.create_model("van_b0", num_classes=3)
    settings = TrainSettings(freeze_backbone=True)
    freeze(model, settings)
    train_mode(model, settings)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert not any(module.training for module in model.modules())


def test_the_gradient_norm_covers_all_parameters_and_clipping_scales_it_to_the_limit():
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
        ({"epochs": 0}, r"--epochs.*at least 1.*0$"),
        ({"lr": 0.0}, r"--lr.*more than 0.*0\.0$"),
        ({"ema_decay": 1.0}, r"--ema-decay.*at least 0 and below 1.*1\.0$"),
        ({"layer_decay": 0.0}, r"--layer-decay.*more than 0 and at most 1.*0\.0$"),
        ({"clip_grad": -1.0}, r"--clip-grad.*at least 0.*-1\.0$"),
    ],
)
def test_invalid_settings_name_the_flag_the_expected_range_and_the_value(settings: dict, message: str):
    with pytest.raises(UsageError, match=message):
        TrainSettings(**settings)
