"""The worst answers of an evaluation, kept while it runs."""

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from van.report.judges import Judge, Mistake, judge_of
from van.tasks.base import Batch, Frame, Meter, Sample, Task


class Watched:
    """A task whose meter also keeps the worst answers, as ``mistakes`` in its details.

    Args:
        task: what it is otherwise.
        most: how many answers to keep.
    """

    def __init__(self, task: Task, *, most: int) -> None:
        self._task, self._most = task, most
        self.name, self.headline, self.labels = task.name, task.headline, task.labels
        self.options: Mapping[str, Any] = task.options

    def stack(self, pictures: Sequence[Tensor]) -> Any:
        """As the task does."""
        return self._task.stack(pictures)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """As the task does."""
        return self._task.collate(samples)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """As the task has it."""
        return self._task.loss(model, batch)

    def meter(self) -> "WatchedMeter":
        """The task's meter, watched."""
        return WatchedMeter(self._task.meter(), judge_of(self._task), most=self._most)

    def decode(self, outputs: Any, frames: Sequence[Frame]) -> Sequence[Any]:
        """As the task does."""
        return self._task.decode(outputs, frames)


class WatchedMeter:
    """Another meter, and the worst of what passes through it."""

    def __init__(self, meter: Meter, judge: Judge, *, most: int) -> None:
        self._meter, self._judge, self._most = meter, judge, most
        self._kept: list[tuple[float, int, Mistake]] = []
        self._seen, self._wrong = 0, 0

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count one batch, and keep what is worse than the best of those kept."""
        self._meter.update(outputs, batch)
        for place, (severity, valid) in enumerate(
            zip(self._judge.severities(outputs, batch), batch.valid.tolist(), strict=True)
        ):
            if not valid:
                continue
            self._seen += 1
            self._wrong += severity >= 1
            full = len(self._kept) == self._most
            if self._most and not math.isnan(severity) and not (full and severity <= self._kept[0][0]):
                mistake = self._judge.tell(outputs[place], batch.targets[place], batch.frames[place])
                heapq.heappush(self._kept, (severity, -self._seen, mistake))  # of equal ones the first is worse
                if full:
                    heapq.heappop(self._kept)

    def compute(self) -> dict[str, Any]:
        """What the meter tells; ``mistakes``, the worst first; ``wrong``, how many answers are not quite right."""
        kept = tuple(mistake for _, _, mistake in sorted(self._kept, key=lambda one: one[:2], reverse=True))
        return {**self._meter.compute(), "mistakes": kept, "wrong": self._wrong}

    def to(self, device: torch.device) -> "WatchedMeter":
        """Itself, with the meter's counts on ``device``."""
        self._meter = self._meter.to(device)
        return self
