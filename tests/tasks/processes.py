"""Script of one of several processes: evaluates every task on whole images and writes the results for the test to read.

Targets and outputs are random, partly equal, and depend on a seed. The network finds its output by the value that an
image is filled with.
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

from van.tasks.base import Task
from van.tasks.registry import make_task
from van.training.distributed import accelerator_context
from van.training.evaluate import evaluate

LABELS = ("a", "b", "c")
OPTIONS: dict[str, dict[str, Any]] = {
    "detect": {"category_ids": [1, 2, 3]},
    "instances": {},
    "segment": {},
    "panoptic": {"things": [True, True, False]},
}
COUNT = 7
"""Odd, so that the last sample of the second process is padding."""
INPUT_SIZE = (12, 16)
SIZE = (24, 48)


class RandomDataset:
    """A dataset of ``count`` images with targets and network outputs; image 4 is unreadable."""

    def __init__(self, task: str, count: int) -> None:
        make = {"segment": _map, "panoptic": _segments}.get(task, _objects)
        random = np.random.default_rng(5)
        pairs = [make(random) for _ in range(count)]
        self.outputs = [output for output, _ in pairs]
        self.targets = [target for _, target in pairs]

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 4:
            return {"name": "image 4", "unreadable": "is damaged"}
        image = torch.full((3, *INPUT_SIZE), float(index))
        return {"image": image, "target": self.targets[index], "original_size": SIZE, "name": f"image {index}"}


class FixedOutputs(nn.Module):
    """A network that returns the given output of each image."""

    def __init__(self, outputs: list[Any]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: list[Tensor]) -> list[Any]:
        return [self.outputs[int(image[0, 0, 0])] for image in images]


def evaluate_task(name: str, accelerator: Any, *, count: int, twice: bool = False) -> dict[str, Any]:
    """Return the results of an evaluation; ``twice`` appends the first image again."""
    task: Task = make_task(name, LABELS, OPTIONS[name])
    samples = RandomDataset(name, count)
    if twice:
        samples.outputs.append(samples.outputs[0])
        samples.targets.append(samples.targets[0])
    results = evaluate(task, FixedOutputs(samples.outputs), samples, accelerator, batch_size=2)
    return {"metrics": results.metrics, "per_class": results.details["per_class"], "samples": results.samples}


def _blocks(random: np.random.Generator, least: int) -> np.ndarray:
    """Return a map in blocks of 6 x 8 pixels with values from ``least`` to 2."""
    return random.integers(least, 3, (4, 6)).repeat(6, 0).repeat(8, 1)


def _map(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    logits = torch.from_numpy(random.standard_normal((3, *INPUT_SIZE))).float()
    return logits, torch.from_numpy(_blocks(random, -1))


def _segments(random: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    labels, ids = torch.from_numpy(random.integers(0, 3, 3)), torch.from_numpy(_blocks(random, -1))
    masks = ids == torch.arange(3)[:, None, None]
    predicted = masks ^ torch.from_numpy(random.random((3, *SIZE)) < 0.15)
    classes = torch.full((3, 4), -9.0)
    classes[torch.arange(3), torch.where(torch.from_numpy(random.random(3)) < 0.8, labels, 0)] = 9.0
    return {"class_logits": classes, "mask_logits": 18.0 * predicted.float() - 9}, {"labels": labels, "masks": masks}


def _objects(random: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    corners = np.sort(random.integers(0, [48, 24], (3, 2, 2)), axis=1) + np.array([[0, 0], [1, 1]])
    boxes = torch.from_numpy(corners.reshape(3, 4)).float()
    y, x = np.mgrid[:24, :48]
    masks = np.array([(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in corners.reshape(3, 4).tolist()])
    labels = torch.from_numpy(random.integers(0, 3, 3))
    target = {"boxes": boxes, "labels": labels, "masks": torch.from_numpy(masks)}
    output = {
        "boxes": (boxes + torch.from_numpy(random.integers(0, 2, (3, 4)))) / torch.tensor([3.0, 2, 3, 2]),
        "labels": torch.where(torch.from_numpy(random.random(3)) < 0.8, labels, 0),
        "scores": torch.from_numpy(random.integers(1, 4, 3) / 4).float(),  # many are equal
        "masks": torch.from_numpy(masks[:, None, ::2, ::3]).float(),
    }
    return output, target


def main(out: Path) -> None:
    """Evaluate all tasks and write the results of this process."""
    with accelerator_context(device="cpu") as accelerator, warnings.catch_warnings():
        warnings.simplefilter("error")
        results = {
            f"{name} {count}": evaluate_task(name, accelerator, count=count) for name in OPTIONS for count in (COUNT, 1)
        }
        record = {"results": results, "world_size": accelerator.num_processes}
        (out / f"{accelerator.process_index}.json").write_text(json.dumps(record))
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # torch with gloo sometimes aborts while the interpreter shuts down
