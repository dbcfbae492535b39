"""A job so small that a run takes a second, with every source of randomness switched on."""

import random
from pathlib import Path
from typing import Any

import torch

from van.checkpoint import load_checkpoint
from van.engine.job import Job
from van.engine.settings import TrainSettings
from van.models.van import VAN
from van.preprocess import Preprocess
from van.tasks.classify import Classify
from van.tasks.mix import MixSettings

OPTIONS = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "drop_path_rate": 0.2, "drop_rate": 0.2}


class Squares:
    """Noisy pictures of three colours; ``jitter`` makes every reading random."""

    def __init__(self, count: int, *, jitter: float = 0.0, broken: tuple[int, ...] = ()) -> None:
        self.count, self.jitter, self.broken = count, jitter, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            return {"name": f"square-{index}", "unreadable": "is damaged"}
        picture = 0.5 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        picture[index % 3] += 1.0
        picture += self.jitter * (torch.randn(3, 1, 1) + random.random())
        return {"picture": picture, "target": index % 3, "name": f"square-{index}"}


def tiny_job(
    *,
    train_set: Any = None,
    validation_set: Any = None,
    mix: MixSettings | None = None,
    model: torch.nn.Module | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Job:
    """A job with a four-block VAN; ``settings`` replace those of its short training."""
    chosen = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "ema_decay": 0.9, "clip_grad": 5.0, "save_every": 2} | settings
    torch.manual_seed(chosen.get("seed", 0))
    options = OPTIONS if options is None else options
    return Job(
        task=Classify(("red", "green", "blue"), mix or MixSettings(mixup=0.4, cutmix=0.5)),
        model=model or VAN(num_classes=3, **options),
        model_name="van_b0",
        model_options=options,
        preprocess=Preprocess(size_px=32, crop_fraction=1.0),
        train_set=train_set or Squares(40, jitter=0.3),
        validation_set=validation_set or Squares(13),
        settings=TrainSettings(**{"device": "cpu", "warmup_epochs": 1, "log_every": 1, **chosen}),
        recipe={"recipe": "tiny", **chosen},
    )


def exact_settings() -> dict[str, Any]:
    """Settings under which the number of processes cannot matter: no chance, BatchNorm frozen."""
    return {
        "mix": MixSettings(label_smoothing=0.1),
        "train_set": Squares(40),
        "options": {**OPTIONS, "drop_path_rate": 0.0, "drop_rate": 0.0},
        "batch_norm": "frozen",
        "epochs": 2,
    }


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint: weights, and under ``training/`` the rest."""
    checkpoint = load_checkpoint(path, with_training=True)
    return {**checkpoint.state, **{f"training/{name}": tensor for name, tensor in checkpoint.training.items()}}


def same_bits(one: Path, other: Path) -> list[str]:
    """Names of tensors whose bits differ between two checkpoints; NaN equals NaN."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    return [name for name in a if a[name].numpy().tobytes() != b[name].numpy().tobytes()]
