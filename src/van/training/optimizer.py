"""The optimizer (AdamW with layer-wise learning rate decay), the learning rate schedule, and freezing."""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW, Optimizer

from van.errors import UsageError
from van.training.settings import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Return AdamW over the trainable parameters; norms, biases and layer scales have no weight decay.

    Raises:
        UsageError: layer decay is on and the model defines no order of layers, or every parameter is frozen.
    """
    network: Any = model
    no_decay = network.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if settings.layer_decay == 1.0:
        groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=no_decay)
    elif hasattr(model, "group_matcher"):
        groups = param_groups_layer_decay(
            model, settings.weight_decay, no_weight_decay_list=no_decay, layer_decay=settings.layer_decay
        )
    else:
        raise UsageError(
            f"--layer-decay {settings.layer_decay}: expected a model with group_matcher(), "
            f"got {type(model).__name__}; use --layer-decay 1"
        )
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UsageError("trainable parameters: expected at least 1, got 0; every parameter is frozen")
    return AdamW(groups, lr=settings.lr, foreach=True)  # on a CPU several times faster than the loop over parameters


def make_schedule(optimizer: Optimizer, settings: TrainSettings, updates_per_epoch: int) -> Scheduler:
    """Return the learning rate schedule in updates: linear warm-up, decay, then cool-down at the lowest rate.

    Warm-up and cool-down each take at most half of the run.
    """
    updates = settings.epochs * updates_per_epoch
    warmup_updates = settings.warmup_updates or round(settings.warmup_epochs * updates_per_epoch)
    warmup_updates = min(warmup_updates, round(settings.epochs / 2 * updates_per_epoch))
    warmup = {"warmup_t": warmup_updates, "warmup_lr_init": settings.lr * 1e-3, "t_in_epochs": False}
    if settings.schedule == "step":
        steps = [epoch * updates_per_epoch + 1 for epoch in settings.milestones]  # timm counts from the next update
        return MultiStepLRScheduler(optimizer, decay_t=steps, decay_rate=0.1, warmup_prefix=False, **warmup)
    cooldown_updates = round(min(settings.cooldown_epochs, settings.epochs / 2) * updates_per_epoch)
    decay_updates = max(2, updates - warmup_updates - cooldown_updates)  # timm divides by this number less one
    decay = {"t_initial": decay_updates, "warmup_prefix": True, **warmup}
    if settings.schedule == "poly":
        return PolyLRScheduler(optimizer, power=settings.poly_power, lr_min=0.0, **decay)
    return CosineLRScheduler(optimizer, lr_min=settings.lr * 1e-2, **decay)


def freeze(model: nn.Module, settings: TrainSettings) -> None:
    """Freeze the parameters of the backbone, or of everything except the classifier, if ``freeze_backbone`` is on.

    Raises:
        UsageError: ``freeze_backbone`` is on and the model has neither a backbone nor a classifier.
    """
    if not settings.freeze_backbone:
        return
    network: Any = model
    if isinstance(getattr(model, "backbone", None), nn.Module):
        network.backbone.requires_grad_(False)
        return
    if not hasattr(model, "get_classifier"):
        raise UsageError(f"--freeze-backbone: expected a model with get_classifier(), got {type(model).__name__}")
    model.requires_grad_(False)
    for parameter in network.get_classifier().parameters():
        parameter.requires_grad_(True)


def train_mode(model: nn.Module, settings: TrainSettings) -> None:
    """Set the model to training mode, except for the frozen modules, which stay in evaluation mode."""
    model.train()
    if settings.freeze_backbone:
        _pretrained_part(model).eval()
    elif settings.batch_norm == "frozen":
        for module in _pretrained_part(model).modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _pretrained_part(model: nn.Module) -> nn.Module:
    """Return the backbone if the network has one, otherwise the whole network, without its DDP wrapper."""
    network = getattr(model, "module", model)
    return getattr(network, "backbone", network)


def gradient_norm(model: nn.Module, limit: float) -> torch.Tensor:
    """Return the norm of all gradients and clip it to ``limit`` if that is above 0."""
    with_gradient = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return torch.nn.utils.clip_grad_norm_(with_gradient, limit if limit > 0 else float("inf"))
