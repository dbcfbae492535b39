"""How wrong an answer is for one picture, by the task, and what is to be said of it.

Shapes: outputs and targets are those of ``van.tasks``; answers and truths lie in the pixels of the picture's file.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from van.errors import DataError
from van.report.matching import Matched, match
from van.results import Boxes, Classes, FoundThing, Masks, Region
from van.results.svg import share
from van.tasks.base import Batch, Frame, Task
from van.tasks.detect import Detect, in_own_pixels
from van.tasks.panoptic import Panoptic
from van.tasks.segment import own_map

_MOST_LISTED = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
    """A picture and what the network makes of it.

    Args:
        name: of the picture.
        wrong: whether it is a mistake at all, or only less good than the others.
        says: the mistake in words, and ``details`` the rest of it.
        answer: what the network says.
        truth: what is marked; the place of the class in the label list, for classification.
        suspects: places of the classes whose Grad-CAM is worth a look, the network's own first.
        box: of the thing that the first of them is about.
    """

    name: str
    wrong: bool
    says: str
    answer: Classes | Boxes | Masks
    truth: int | Boxes | Masks
    details: tuple[str, ...] = ()
    suspects: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None


class Judge(Protocol):
    """Ranks the pictures of one task."""

    def severities(self, outputs: Any, batch: Batch) -> Sequence[float]:
        """How wrong each answer is: more is worse, and NaN is no answer. From 1 on it is wrong, below only unsure."""
        ...

    def tell(self, output: Any, target: Any, frame: Frame) -> Mistake:
        """What is to be said of one of them."""
        ...


def judge_of(task: Task) -> Judge:
    """The judge of a task."""
    if isinstance(task, Detect):
        return DetectJudge(task)
    if isinstance(task, Panoptic):
        return PanopticJudge(task)
    return ClassifyJudge(task) if task.name == "classify" else SegmentJudge(task)


class ClassifyJudge:
    """Wrong answers, the surest first; then right ones, those with the least probability first."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def severities(self, outputs: Tensor, batch: Batch) -> list[float]:
        """1 and the answer's probability where it is wrong, else what the true class lacks of certainty."""
        probabilities = outputs.float().softmax(dim=1)
        best, answers = probabilities.max(dim=1)
        own = probabilities.gather(1, batch.targets[:, None])[:, 0]
        return torch.where(answers == batch.targets, 1 - own, 1 + best).tolist()

    def tell(self, output: Tensor, target: Tensor, frame: Frame) -> Mistake:
        """The true class beside the answer's."""
        (answer,) = self.task.decode(output[None], [frame])
        truth, (first, second) = int(target), (*answer.top(2), None)[:2]
        wrong = first.index != truth
        rival = second.index if second is not None else truth
        return Mistake(
            name=frame.name,
            wrong=wrong,
            says=f"{answer.labels[truth]} taken for {first.label}" if wrong else f"{first.label}, but unsure",
            answer=answer,
            truth=truth,
            suspects=(first.index, truth if wrong else rival),
        )


class DetectJudge:
    """Pictures with the most marks that are missed or taken for others, and answers where nothing is marked."""

    def __init__(self, task: Detect) -> None:
        self.task = task

    def severities(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> list[float]:
        """The number of mistakes and, below the point, their share of all there is."""
        numbers = []
        for output, target, frame in zip(outputs, batch.targets, batch.frames, strict=True):
            matched = match(self._sure(output, frame), target)
            part = matched.mistakes / max(1, matched.mistakes + len(matched.right))
            numbers.append(matched.mistakes + 0.9 * part)
        return numbers

    def tell(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor], frame: Frame) -> Mistake:
        """What is missed, confused or too many."""
        found = self._sure(output, frame)
        matched = match(found, target)
        (answer,) = self.task.decode([output], [frame])
        told = _in_words(matched, found, target, self.task.labels)
        blamed = sorted(
            [pair[0] for pair in matched.confused] + matched.wrong, key=lambda i: -float(found["scores"][i])
        )
        box = tuple(found["boxes"][blamed[0]].tolist()) if blamed else None
        return Mistake(
            name=frame.name,
            wrong=matched.mistakes > 0,
            says="; ".join(told) or "All as marked",
            answer=answer,
            truth=self._marks(target, frame),
            suspects=tuple(int(found["labels"][place]) for place in blamed[:1]),
            box=box,
        )

    def _sure(self, output: Mapping[str, Tensor], frame: Frame) -> dict[str, Tensor]:
        sure = output["scores"] >= self.task.min_score
        return in_own_pixels({name: values[sure] for name, values in output.items()}, frame)

    def _marks(self, target: Mapping[str, Tensor], frame: Frame) -> Boxes:
        masks = target["masks"].cpu().numpy() if self.task.masks else [None] * len(target["labels"])
        rows = zip(target["boxes"].tolist(), target["labels"].tolist(), masks, strict=True)
        found = tuple(FoundThing(self.task.labels[label], label, 1.0, tuple(box), mask) for box, label, mask in rows)
        return Boxes(labels=self.task.labels, found=found, size=frame.size, name=frame.name)


class SegmentJudge:
    """Pictures whose classes overlap least with their maps."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def severities(self, outputs: Sequence[Tensor], batch: Batch) -> list[float]:
        """2 less the mean IoU of the classes that are there or answered; 0 where no pixel is wrong."""
        pairs = zip(outputs, batch.targets, batch.frames, strict=True)
        return [_map_severity(self._counts(output, target, frame)) for output, target, frame in pairs]

    def tell(self, output: Tensor, target: Tensor, frame: Frame) -> Mistake:
        """Which pixels are taken for what."""
        counts = self._counts(output, target, frame)
        (answer,) = self.task.decode([output], [frame])
        wrong = counts.copy()
        np.fill_diagonal(wrong, 0)
        worst = [divmod(int(place), len(wrong)) for place in np.argsort(-wrong, axis=None)[:_MOST_LISTED]]
        told = [
            f"{wrong[true, said]:,} px of {self.task.labels[true]} taken for {self.task.labels[said]}"
            for true, said in worst
            if wrong[true, said]
        ]
        overlap = 2 - _map_severity(counts)
        return Mistake(
            name=frame.name,
            wrong=bool(wrong.any()),
            says=f"Mean IoU {share(overlap, places=0)}" if told else "Every pixel as marked",
            details=tuple(told),
            answer=answer,
            truth=_as_masks(target.cpu().numpy(), self.task.labels, frame.name),
            suspects=tuple(dict.fromkeys(place for place in worst[0][::-1])) if told else (),
        )

    def _counts(self, output: Tensor, target: Tensor, frame: Frame) -> np.ndarray:
        """(classes, classes) pixels by true and answered class."""
        classes = len(self.task.labels)
        found, known = own_map(output, frame, classes=classes).to(target.device), target >= 0
        pairs = target[known] * classes + found[known]
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).cpu().numpy()


class PanopticJudge:
    """Pictures with the least panoptic quality."""

    def __init__(self, task: Panoptic) -> None:
        self.task = task

    def severities(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> list[float]:
        """2 less the picture's own quality; 0 where it is perfect."""
        numbers = []
        for output, target, frame in zip(outputs, batch.targets, batch.frames, strict=True):
            quality = self._qualities(output, target, frame).get("pq", float("nan"))
            numbers.append(2 - quality if quality != 1 else 0.0)
        return numbers

    def tell(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor], frame: Frame) -> Mistake:
        """The picture's own figures."""
        figures = self._qualities(output, target, frame)
        (answer,) = self.task.decode([output], [frame])
        marks = target["labels"].tolist()
        ids = np.full(frame.size, -1, np.int32)
        for number, mask in enumerate(target["masks"].cpu().numpy(), start=1):
            ids[mask] = number
        labels, things = self.task.labels, self.task.things
        regions = tuple(
            Region(number, labels[label], label, None, things[label]) for number, label in enumerate(marks, start=1)
        )
        seen, asked = {region.index for region in answer.regions}, set(marks)
        return Mistake(
            name=frame.name,
            wrong=figures["pq"] < 1,
            says=f"Panoptic quality {share(figures['pq'], places=0)}",
            details=(
                f"recognition quality {share(figures['rq'], places=0)}",
                f"segmentation quality {share(figures['sq'], places=0)}",
            ),
            answer=answer,
            truth=Masks(labels=labels, ids=ids, regions=regions, name=frame.name, panoptic=True),
            suspects=tuple(sorted(seen - asked) or sorted(seen))[:1],
        )

    def _qualities(self, output: Any, target: Any, frame: Frame) -> dict[str, float]:
        meter = self.task.meter()
        valid = torch.ones(1, dtype=torch.bool)
        try:
            meter.update([output], Batch(pictures=[], targets=[target], frames=(frame,), valid=valid))
            return meter.compute()["metrics"]
        except DataError:  # nothing is marked and nothing answered
            return {}


def _in_words(
    matched: Matched, found: Mapping[str, Tensor], target: Mapping[str, Tensor], labels: Sequence[str]
) -> list[str]:
    """What went wrong with the things of a picture, a clause for each kind of mistake."""
    said, true = ([labels[place] for place in part["labels"].tolist()] for part in (found, target))
    told = []
    if matched.missed:
        told.append(f"{len(matched.missed)} missed ({_listed([true[mark] for mark in matched.missed])})")
    if matched.confused:
        pairs = [f"{true[mark]} as {said[answer]}" for answer, mark in matched.confused]
        told.append(f"{len(pairs)} taken for another ({_listed(pairs)})")
    if matched.wrong:
        names = _listed([said[answer] for answer in matched.wrong])
        told.append(f"{len(matched.wrong)} too many ({names})")
    return told


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _MOST_LISTED} more"] if len(names) > _MOST_LISTED else []
    return ", ".join([*names[:_MOST_LISTED], *more])


def _map_severity(counts: np.ndarray) -> float:
    """2 less the mean IoU of the classes that a picture's pixels have or are given; 0 if all are right."""
    right, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    if not union.any():
        return float("nan")
    overlap = float((right[union > 0] / union[union > 0]).mean())
    return 2 - overlap if overlap < 1 else 0.0


def _as_masks(ids: np.ndarray, labels: tuple[str, ...], name: str) -> Masks:
    regions = tuple(Region(index, labels[index], index) for index in np.unique(ids).tolist() if index >= 0)
    return Masks(labels=labels, ids=ids.astype(np.int32), regions=regions, name=name)
