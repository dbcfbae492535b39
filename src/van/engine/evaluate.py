"""Measuring a network on a data set, exactly, over one process or several."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from van.engine.job import SampleSet
from van.engine.loader import EvaluationOrder, make_loader
from van.errors import DataError
from van.tasks.base import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Args:
        metrics: fractions and losses by name.
        samples: how many samples the metrics count.
        unreadable: names and reasons of samples that could not be read; they are in no metric.
        details: whatever else the task's meter tells, such as a confusion matrix.
    """

    metrics: dict[str, float]
    samples: int
    unreadable: tuple[tuple[str, str], ...]
    details: dict[str, Any]


def evaluate(
    task: Task,
    model: nn.Module,
    samples: SampleSet,
    accelerator: Accelerator,
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure ``model`` on ``samples``; every sample counts once, whatever the number of processes.

    Args:
        batch_size: samples at once in each process.
        on_batch: called with batches done and batches in all.

    Raises:
        DataError: there is nothing to evaluate on, or none of it can be read.
    """
    if len(samples) == 0:
        raise DataError("there are no pictures to evaluate on")
    rank, world = accelerator.process_index, accelerator.num_processes
    order = EvaluationOrder(len(samples), batch_size=batch_size, rank=rank, world=world)
    meter = task.meter().to(accelerator.device)
    unreadable: list[tuple[str, str]] = []
    counted = 0
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for done, loaded in enumerate(make_loader(samples, order, task.collate, workers=workers), start=1):
            batch = loaded.to(accelerator.device)
            unreadable += batch.unreadable
            if len(batch):
                meter.update(model(batch.pictures), batch)
                counted += int(batch.valid.sum())
            if on_batch is not None:
                on_batch(done, len(order))
    counted = sum(gather_object([counted]))
    every = sorted(set(gather_object(unreadable)))
    if counted == 0:
        raise DataError(f"none of the {len(samples)} pictures can be read; the first: {every[0][0]}: {every[0][1]}")
    details = meter.compute()
    return Evaluation(metrics=details.pop("metrics"), samples=counted, unreadable=tuple(every), details=details)
