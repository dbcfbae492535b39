"""Run by ``torchrun``: each process measures its share of sets, for every task that looks at whole pictures.

What it finds is left for the test to read. Targets and answers are random and partly equal, by seed. A network finds
its answer by the number that a picture is filled with.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from van.engine.distributed import started
from van.engine.evaluate import evaluate
from van.tasks.base import Task
from van.tasks.build import make_task

LABELS = ("a", "b", "c")
OPTIONS: dict[str, dict[str, Any]] = {
    "detect": {"category_ids": [1, 2, 3]},
    "instances": {},
    "segment": {},
    "panoptic": {"things": [True, True, False]},
}
COUNT = 7
"""Odd, so that the last place of the second process is padding."""
SEEN = (12, 16)
SIZE = (24, 48)


class Measured:
    """``count`` pictures with targets, one more that cannot be read, and what a network answers."""

    def __init__(self, task: str, count: int) -> None:
        make = {"segment": _map, "panoptic": _segments}.get(task, _things)
        random = np.random.default_rng(5)
        pairs = [make(random) for _ in range(count)]
        self.answers = [answer for answer, _ in pairs]
        self.targets = [target for _, target in pairs]

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 4:
            return {"name": "picture 4", "unreadable": "is damaged"}
        picture = torch.full((3, *SEEN), float(index))
        return {"picture": picture, "target": self.targets[index], "size": SIZE, "name": f"picture {index}"}


class Answers(nn.Module):
    """A network that knows the answer for each picture."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, pictures: list[Tensor]) -> list[Any]:
        return [self.answers[int(picture[0, 0, 0])] for picture in pictures]


def figures(name: str, accelerator: Any, *, count: int, twice: bool = False) -> dict[str, Any]:
    """What an evaluation finds; ``twice`` counts the first picture at the end again."""
    task: Task = make_task(name, LABELS, OPTIONS[name])
    samples = Measured(name, count)
    if twice:
        samples.answers.append(samples.answers[0])
        samples.targets.append(samples.targets[0])
    found = evaluate(task, Answers(samples.answers), samples, accelerator, batch_size=2)
    return {"metrics": found.metrics, "per_class": found.details["per_class"], "samples": found.samples}


def _blocks(random: np.random.Generator, least: int) -> np.ndarray:
    """A map of the picture in blocks of 6 x 8 pixels, numbers from ``least`` to 2."""
    return random.integers(least, 3, (4, 6)).repeat(6, 0).repeat(8, 1)


def _map(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    logits = torch.from_numpy(random.standard_normal((3, *SEEN))).float()
    return logits, torch.from_numpy(_blocks(random, -1))


def _segments(random: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    labels, ids = torch.from_numpy(random.integers(0, 3, 3)), torch.from_numpy(_blocks(random, -1))
    masks = ids == torch.arange(3)[:, None, None]
    shown = masks ^ torch.from_numpy(random.random((3, *SIZE)) < 0.15)
    classes = torch.full((3, 4), -9.0)
    classes[torch.arange(3), torch.where(torch.from_numpy(random.random(3)) < 0.8, labels, 0)] = 9.0
    return {"class_logits": classes, "mask_logits": 18.0 * shown.float() - 9}, {"labels": labels, "masks": masks}


def _things(random: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    corners = np.sort(random.integers(0, [48, 24], (3, 2, 2)), axis=1) + np.array([[0, 0], [1, 1]])
    boxes = torch.from_numpy(corners.reshape(3, 4)).float()
    y, x = np.mgrid[:24, :48]
    masks = np.array([(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in corners.reshape(3, 4).tolist()])
    labels = torch.from_numpy(random.integers(0, 3, 3))
    target = {"boxes": boxes, "labels": labels, "masks": torch.from_numpy(masks)}
    answer = {
        "boxes": (boxes + torch.from_numpy(random.integers(0, 2, (3, 4)))) / torch.tensor([3.0, 2, 3, 2]),
        "labels": torch.where(torch.from_numpy(random.random(3)) < 0.8, labels, 0),
        "scores": torch.from_numpy(random.integers(1, 4, 3) / 4).float(),  # equal in many pictures
        "masks": torch.from_numpy(masks[:, None, ::2, ::3]).float(),
    }
    return answer, target


def main(out: Path) -> None:
    """Each process writes what it found."""
    with started(device="cpu") as accelerator, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {f"{name} {count}": figures(name, accelerator, count=count) for name in OPTIONS for count in (COUNT, 1)}
        record = {"found": found, "world": accelerator.num_processes}
        (out / f"{accelerator.process_index}.json").write_text(json.dumps(record))
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # torch with gloo now and then aborts while the interpreter is taken down
