"""The inputs of a training run: task, network, datasets and settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from van.checkpoint import Checkpoint
from van.preprocess import CenterCropPreprocess, ResizePreprocess
from van.tasks.base import Sample, Task
from van.training.settings import TrainSettings


class Dataset(Protocol):
    """A map-style dataset: it has a length and returns samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Return a mapping with ``name`` and the keys that the task's ``collate`` reads, or with ``unreadable``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The task, network, datasets and settings of a training run.

    Args:
        model_name, model_options: the registered name and the options that rebuild the network from a checkpoint.
        preprocess: the preprocessing rule that checkpoints store with the network.
        settings: optimizer, schedule and distributed settings.
        recipe: every resolved setting as plain values; written to the run folder and to its checkpoints.
    """

    task: Task
    model: nn.Module
    model_name: str
    model_options: Mapping[str, Any]
    preprocess: CenterCropPreprocess | ResizePreprocess
    train_dataset: Dataset
    val_dataset: Dataset
    settings: TrainSettings
    recipe: Mapping[str, Any]

    def checkpoint(self, state: Mapping[str, Tensor], metrics: Mapping[str, float], **training: Any) -> Checkpoint:
        """Return a checkpoint of ``state`` with the task, model, preprocessing and recipe of this run."""
        return Checkpoint(
            task=self.task.name,
            model=self.model_name,
            model_options=self.model_options,
            task_options=self.task.options,
            class_names=self.task.class_names,
            preprocess=self.preprocess,
            state=state,
            recipe=self.recipe,
            metrics=metrics,
            **training,
        )
