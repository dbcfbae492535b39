"""AdamW with layer decay, the warm-up and the schedule, and what is frozen."""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW, Optimizer

from van.engine.settings import TrainSettings
from van.errors import UsageError


def make_optimiser(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """AdamW over the trainable parameters; norms, biases and layer scales have no weight decay.

    Raises:
        UsageError: layer decay was asked for and the model has no order of layers.
    """
    network: Any = model
    exempt = network.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if settings.layer_decay == 1.0:
        groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=exempt)
    elif hasattr(model, "group_matcher"):
        groups = param_groups_layer_decay(
            model, settings.weight_decay, no_weight_decay_list=exempt, layer_decay=settings.layer_decay
        )
    else:
        raise UsageError(f"--layer-decay is {settings.layer_decay}, but {type(model).__name__} has no group_matcher()")
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UsageError("nothing is left to train: every parameter is frozen")
    return AdamW(groups, lr=settings.lr, foreach=True)  # on a CPU several times faster than one by one


def make_schedule(optimiser: Optimizer, settings: TrainSettings, updates_per_epoch: int) -> Scheduler:
    """A linear rise, a fall by the schedule and a flat end, counted in updates; rise and end take at most half each."""
    updates = settings.epochs * updates_per_epoch
    rising = settings.warmup_updates or round(settings.warmup_epochs * updates_per_epoch)
    rising = min(rising, round(settings.epochs / 2 * updates_per_epoch))
    warmup = {"warmup_t": rising, "warmup_lr_init": settings.lr * 1e-3, "t_in_epochs": False}
    if settings.schedule == "step":
        steps = [epoch * updates_per_epoch + 1 for epoch in settings.milestones]  # timm counts from the next update
        return MultiStepLRScheduler(optimiser, decay_t=steps, decay_rate=0.1, warmup_prefix=False, **warmup)
    flat = round(min(settings.cooldown_epochs, settings.epochs / 2) * updates_per_epoch)
    falling = {"t_initial": max(2, updates - rising - flat), "warmup_prefix": True, **warmup}
    if settings.schedule == "poly":
        return PolyLRScheduler(optimiser, power=settings.poly_power, lr_min=0.0, **falling)
    return CosineLRScheduler(optimiser, lr_min=settings.lr * 1e-2, **falling)


def freeze(model: nn.Module, settings: TrainSettings) -> None:
    """Stop gradients where the settings say so: in the backbone, or in all but the classifier.

    Raises:
        UsageError: the backbone is to be frozen and the model has nothing else to train.
    """
    if not settings.freeze_backbone:
        return
    network: Any = model
    if isinstance(getattr(model, "backbone", None), nn.Module):
        network.backbone.requires_grad_(False)
        return
    if not hasattr(model, "get_classifier"):
        raise UsageError(f"--freeze-backbone: {type(model).__name__} has no get_classifier()")
    model.requires_grad_(False)
    for parameter in network.get_classifier().parameters():
        parameter.requires_grad_(True)


def train_mode(model: nn.Module, settings: TrainSettings) -> None:
    """``model.train()``, but what is frozen stays as in evaluation."""
    model.train()
    if settings.freeze_backbone:
        _trained_before(model).eval()
    elif settings.batch_norm == "frozen":
        for module in _trained_before(model).modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _trained_before(model: nn.Module) -> nn.Module:
    """What was trained before: the backbone where the network has one, else all of it, wrapped or not."""
    network = getattr(model, "module", model)
    return getattr(network, "backbone", network)


def gradient_norm(model: nn.Module, limit: float) -> torch.Tensor:
    """The norm of all gradients, which are scaled down to ``limit`` if that is above 0."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return torch.nn.utils.clip_grad_norm_(trained, limit if limit > 0 else float("inf"))
