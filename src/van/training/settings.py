"""The settings of a training run.

This module does not import torch, so that --help responds at once.
"""

import dataclasses
from typing import Literal

from van.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
BatchNorm = Literal["train", "frozen", "sync"]
Strategy = Literal["ddp", "fsdp2"]
Schedule = Literal["cosine", "poly", "step"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Optimizer, schedule, precision and distributed settings of a training run."""

    epochs: int = 30
    """Number of epochs, including warm-up and cool-down."""
    batch_size: int = 64
    """Images per update, over all processes and accumulated steps."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, reached after a linear warm-up."""
    schedule: Schedule = "cosine"
    """Learning rate decay: cosine, polynomial, or by a factor of 10 at each epoch of --milestones."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is divided by 10, for --schedule step."""
    poly_power: float = 1.0
    """Exponent of the polynomial decay, for --schedule poly."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases and layer scales have none."""
    layer_decay: float = 1.0
    """Learning rate factor from each layer to the layer before it; 1 disables layer decay."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up; at most half of the run."""
    warmup_updates: int = 0
    """Updates of linear warm-up, instead of --warmup-epochs, if above 0; at most half of the run."""
    cooldown_epochs: float = 0.0
    """Epochs at the lowest learning rate at the end; at most half of the run."""
    clip_grad: float = 0.0
    """Maximum norm of the gradient; 0 disables clipping."""
    grad_accum_steps: int = 1
    """Number of micro-batches whose gradients are accumulated for one update."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, which is evaluated and saved; 0 disables it."""
    precision: Precision = "fp32"
    """Precision of the forward pass; fp16 needs a GPU."""
    freeze_backbone: bool = False
    """Freeze the backbone and train only the classifier or head."""
    batch_norm: BatchNorm = "train"
    """BatchNorm statistics: trained, frozen in the backbone, or synchronized over processes (GPU only)."""
    strategy: Strategy = "ddp"
    """Distributed strategy: ddp replicates the model in every process, fsdp2 shards it."""
    seed: int = 0
    """Random seed of initial weights, sample order and augmentation."""
    workers: int = 0
    """Data loading processes per training process."""
    device: str = "auto"
    """cpu, cuda, mps, or auto, which takes the first one available of cuda, mps and cpu."""
    max_unreadable: float = 0.05
    """Fraction of unreadable training images above which training stops."""
    save_every: int = 500
    """Updates between two checkpoints within an epoch; the end of every epoch is saved too."""
    log_every: int = 10
    """Updates between two training records of the log."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accum_steps", "save_every", "log_every"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "poly_power"):
            self._check(name, getattr(self, name) > 0, "more than 0")
        valid_milestones = all(0 < epoch < self.epochs for epoch in self.milestones)
        self._check("milestones", valid_milestones, f"epochs between 1 and {self.epochs - 1}")
        counts = ("warmup_updates", "warmup_epochs", "cooldown_epochs", "workers", "seed")
        for name in (*counts, "weight_decay", "clip_grad"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1")
        self._check("layer_decay", 0 < self.layer_decay <= 1, "more than 0 and at most 1")
        self._check("max_unreadable", 0 <= self.max_unreadable <= 1, "a fraction from 0 to 1")

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise UsageError(f"--{name.replace('_', '-')}: expected {expected}, got {getattr(self, name)}")


MAY_CHANGE = ("workers", "save_every", "log_every", "device", "max_unreadable")
"""Settings that may differ when a run is resumed: none of them changes the trained weights."""
