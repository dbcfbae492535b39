"""The settings of a training run.

Nothing here needs torch, so that --help answers at once. ``Suppress`` gives a seldom used setting
no flag of its own; ``van train ... --set NAME=VALUE`` reaches it.
"""

import dataclasses
from typing import Literal

import tyro

from van.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
BatchNorm = Literal["train", "frozen", "sync"]
Strategy = Literal["ddp", "fsdp2"]
Schedule = Literal["cosine", "poly", "step"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long, how fast, and on what to train."""

    epochs: int = 30
    """Passes over the training pictures, warm-up and cool-down included."""
    batch_size: int = 64
    """Pictures in one update, over all processes and accumulated steps."""
    lr: float = 1e-3
    """Highest learning rate of AdamW; it warms up linearly, then falls by the schedule."""
    schedule: Schedule = "cosine"
    """How the learning rate falls: by a cosine, a power of what is left, or tenfold after --set milestones=8,11."""
    milestones: tyro.conf.Suppress[tuple[int, ...]] = ()
    """Epochs after which the learning rate falls tenfold, under the schedule step."""
    poly_power: tyro.conf.Suppress[float] = 1.0
    """The power, under the schedule poly."""
    weight_decay: float = 0.05
    """Of weights; norms, biases and layer scales have none."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one before it; 1 switches it off."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises; at most half of all."""
    warmup_updates: tyro.conf.Suppress[int] = 0
    """Updates over which it rises, instead of epochs, where above 0; at most half of all."""
    cooldown_epochs: tyro.conf.Suppress[float] = 0.0
    """Epochs at the lowest learning rate at the end; at most half of all."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    accumulate: int = 1
    """Steps whose gradients add up to one update."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights that is evaluated and kept; 0 keeps none."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass; fp16 needs a GPU."""
    freeze_backbone: bool = False
    """Train the classifier, or whatever stands on the backbone, alone."""
    batch_norm: BatchNorm = "train"
    """Batch statistics: learnt, frozen (of the backbone, where there is more), or (GPU only) synchronised."""
    strategy: Strategy = "ddp"
    """How several processes share the work: copies of the model, or shards of it."""
    seed: int = 0
    """Of weights, order and augmentation."""
    workers: int = 0
    """Processes that read pictures, for each training process."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the first there is."""
    max_unreadable: tyro.conf.Suppress[float] = 0.05
    """Share of unreadable pictures above which training stops."""
    save_every: tyro.conf.Suppress[int] = 500
    """Updates between two savings inside an epoch; every epoch's end is saved too."""
    log_every: tyro.conf.Suppress[int] = 10
    """Updates between two lines of the log."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "save_every", "log_every"):
            self._want(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "poly_power"):
            self._want(name, getattr(self, name) > 0, "more than 0")
        self._want("milestones", all(0 < epoch < self.epochs for epoch in self.milestones), "epochs of the run")
        counts = ("warmup_updates", "warmup_epochs", "cooldown_epochs", "workers", "seed")
        for name in (*counts, "weight_decay", "clip_grad"):
            self._want(name, getattr(self, name) >= 0, "at least 0")
        self._want("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1")
        self._want("layer_decay", 0 < self.layer_decay <= 1, "more than 0 and at most 1")
        self._want("max_unreadable", 0 <= self.max_unreadable <= 1, "a share, 0 to 1")

    def _want(self, name: str, ok: bool, wanted: str) -> None:
        if not ok:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; wanted {wanted}")


MAY_CHANGE = ("workers", "save_every", "log_every", "device", "max_unreadable")
"""Settings that a resumed run may have differently: none of them changes what is learnt."""
