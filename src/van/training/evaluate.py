"""Evaluation of a network on a dataset; the metrics are the same for one process and for several."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from van.errors import DataError
from van.tasks.base import Metric, Task
from van.training.loader import EvalBatchSampler, make_loader
from van.training.run import Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Args:
        metrics: metric values by name: fractions, and losses.
        samples: number of samples that the metrics count.
        unreadable: names and reasons of samples that could not be read; no metric counts them.
        details: other results of the task's metric, such as a confusion matrix.
    """

    metrics: dict[str, float]
    samples: int
    unreadable: tuple[tuple[str, str], ...]
    details: dict[str, Any]


def evaluate(
    task: Task,
    model: nn.Module,
    samples: Dataset,
    accelerator: Accelerator,
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[int, int], object] | None = None,
    metric: Metric | None = None,
) -> Evaluation:
    """Evaluate ``model`` on ``samples``; every sample counts once, for any number of processes.

    Args:
        batch_size: samples per batch in each process.
        on_batch: called with the number of finished batches and the total number of batches.
        metric: the metric to accumulate; that of the task if None.

    Raises:
        DataError: the dataset is empty, or none of its images can be read.
    """
    if len(samples) == 0:
        raise DataError("validation set: expected at least 1 image, got 0")
    sampler = EvalBatchSampler(
        len(samples), batch_size=batch_size, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    metric = (metric or task.metric()).to(accelerator.device)
    unreadable: list[tuple[str, str]] = []
    num_samples = 0
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for done, loaded in enumerate(make_loader(samples, sampler, task.collate, workers=workers), start=1):
            batch = loaded.to(accelerator.device)
            unreadable += batch.unreadable
            if len(batch):  # a batch is empty if none of its images can be read
                metric.update(model(batch.images), batch)
                num_samples += int(batch.valid.sum())
            if on_batch is not None:
                on_batch(done, len(sampler))
    num_samples = sum(gather_object([num_samples]))
    all_unreadable = sorted(set(gather_object(unreadable)))
    if num_samples == 0:
        name, reason = all_unreadable[0]
        raise DataError(f"none of the {len(samples)} images can be read; the first: {name}: {reason}")
    details = metric.compute()
    return Evaluation(
        metrics=details.pop("metrics"), samples=num_samples, unreadable=tuple(all_unreadable), details=details
    )
