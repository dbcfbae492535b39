"""A training run that takes a second, with every source of randomness on."""

import random
from pathlib import Path
from typing import Any

import torch

from van.backbones.van import VAN
from van.checkpoint import load_checkpoint
from van.preprocess import CenterCropPreprocess
from van.tasks.classification import ClassificationTask
from van.tasks.mixup import MixupSettings
from van.training.run import TrainingRun
from van.training.settings import TrainSettings

OPTIONS = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "drop_path_rate": 0.2, "drop_rate": 0.2}


class Squares:
    """A dataset of noisy images of three colors; ``jitter`` adds noise that differs at every access."""

    def __init__(self, count: int, *, jitter: float = 0.0, broken: tuple[int, ...] = ()) -> None:
        self.count, self.jitter, self.broken = count, jitter, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            return {"name": f"square-{index}", "unreadable": "is damaged"}
        image = 0.5 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        image[index % 3] += 1.0
        image += self.jitter * (torch.randn(3, 1, 1) + random.random())
        return {"image": image, "target": index % 3, "name": f"square-{index}"}


def tiny_run(
    *,
    train_dataset: Any = None,
    val_dataset: Any = None,
    mix: MixupSettings | None = None,
    model: torch.nn.Module | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> TrainingRun:
    """Return a run with a four-block VAN; ``settings`` override the defaults of its short training."""
    chosen = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "ema_decay": 0.9, "clip_grad": 5.0, "save_every": 2} | settings
    torch.manual_seed(chosen.get("seed", 0))
    options = OPTIONS if options is None else options
    return TrainingRun(
        task=ClassificationTask(("red", "green", "blue"), mix or MixupSettings(mixup=0.4, cutmix=0.5)),
        model=model or VAN(num_classes=3, **options),
        model_name="van_b0",
        model_options=options,
        preprocess=CenterCropPreprocess(image_size=32, crop_fraction=1.0),
        train_dataset=train_dataset or Squares(40, jitter=0.3),
        val_dataset=val_dataset or Squares(13),
        settings=TrainSettings(**{"device": "cpu", "warmup_epochs": 1, "log_every": 1, **chosen}),
        recipe={"recipe": "tiny", **chosen},
    )


def exact_settings() -> dict[str, Any]:
    """Return settings whose result does not depend on the number of processes: no randomness, BatchNorm frozen."""
    return {
        "mix": MixupSettings(label_smoothing=0.1),
        "train_dataset": Squares(40),
        "options": {**OPTIONS, "drop_path_rate": 0.0, "drop_rate": 0.0},
        "batch_norm": "frozen",
        "epochs": 2,
    }


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint: the weights, and the training state under ``training/``."""
    checkpoint = load_checkpoint(path, with_training=True)
    return {**checkpoint.state, **{f"training/{name}": tensor for name, tensor in checkpoint.training.items()}}


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Return the names of the tensors whose bits differ between two checkpoints; NaN equals NaN."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    return [name for name in a if a[name].numpy().tobytes() != b[name].numpy().tobytes()]
