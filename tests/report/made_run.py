"""Run folders that cost no training: settings, a log of a few lines, and the network of three classes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.made import picture, write_checkpoint
from van.engine.run_folder import create_run

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 2,
    "とても長い名前の分類" * 6,
)
"""Names of classes that would run, or break a narrow page, if they were taken for more than text."""
LOG: tuple[dict[str, Any], ...] = (
    {"kind": "train", "step": 5, "loss": 1.2, "lr": 1e-3, "pictures_per_s": 100.0},
    {"kind": "train", "step": 10, "loss": 0.8, "lr": 2e-3, "pictures_per_s": 110.0},
    {"kind": "eval", "step": 10, "epoch": 1, "loss": 0.9, "top1": 0.5, "top5": 1.0, "samples": 6},
    {"kind": "event", "step": 12, "unreadable": "<b>torn.png</b>", "reason": "is empty"},
    {"kind": "train", "step": 20, "loss": 0.5, "lr": 1e-3, "pictures_per_s": 105.0},
    {"kind": "eval", "step": 20, "epoch": 2, "loss": 0.7, "top1": 0.75, "top5": 1.0, "samples": 6},
)


def write_pictures(root: Path, labels: Sequence[str], *, of_each: int = 4) -> Path:
    """``root/CLASS/0.png`` ... without a split of its own; returns ``root``."""
    for place, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for number in range(of_each):
            colour = [40, 40, 40]
            colour[place % 3] = 200
            picture((colour[0], colour[1], colour[2]), seed=100 * place + number).save(root / label / f"{number}.png")
    return root


def write_run(
    folder: Path,
    *,
    data: Path | None,
    labels: Sequence[str] | None,
    log: Sequence[Mapping[str, Any]] = LOG,
    **recipe: Any,
) -> Path:
    """A run that learnt from ``data`` and held out half of it; without labels it has no checkpoint yet."""
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {"recipe": "finetune", "data": None if data is None else str(data), "model": "van_b0"}
    settings |= {"validation_share": 0.5, "seed": 0, "epochs": 2, "start": "scratch", "training_pictures": 6}
    create_run(folder, settings | recipe)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    if labels is not None:
        write_checkpoint(folder / "best.safetensors", tuple(labels))
    return folder
