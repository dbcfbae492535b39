"""Everything one training run needs, in one object."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from van.checkpoint import Checkpoint
from van.engine.settings import TrainSettings
from van.preprocess import Preprocess, WholePreprocess
from van.tasks.base import Sample, Task


class SampleSet(Protocol):
    """A data set as the engine sees it: it has a length and gives samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """A mapping with ``name`` and what the task's ``collate`` wants, or ``unreadable``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A task, a network, data, and how to train.

    Args:
        model_name, model_options: how the network can be built again from a checkpoint.
        recipe: every resolved setting as plain values; written into the run and its checkpoints.
    """

    task: Task
    model: nn.Module
    model_name: str
    model_options: Mapping[str, Any]
    preprocess: Preprocess | WholePreprocess
    train_set: SampleSet
    validation_set: SampleSet
    settings: TrainSettings
    recipe: Mapping[str, Any]

    def checkpoint(self, state: Mapping[str, Tensor], metrics: Mapping[str, float], **training: Any) -> Checkpoint:
        """The network in ``state`` with all that travels with it."""
        return Checkpoint(
            task=self.task.name,
            model=self.model_name,
            model_options=self.model_options,
            task_options=self.task.options,
            labels=self.task.labels,
            preprocess=self.preprocess,
            state=state,
            recipe=self.recipe,
            metrics=metrics,
            **training,
        )
