"""Run folders without training: settings, a short log, and a checkpoint of a network with three classes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.synthetic import make_image, write_checkpoint
from van.training.run_folder import create_run

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 2,
    "とても長い名前の分類" * 6,
)
"""Class names that contain markup, or are too long for a narrow page."""
LOG: tuple[dict[str, Any], ...] = (
    {"kind": "train", "step": 5, "loss": 1.2, "lr": 1e-3, "images_per_s": 100.0},
    {"kind": "train", "step": 10, "loss": 0.8, "lr": 2e-3, "images_per_s": 110.0},
    {"kind": "eval", "step": 10, "epoch": 1, "loss": 0.9, "top1": 0.5, "top5": 1.0, "samples": 6},
    {"kind": "event", "step": 12, "event": "unreadable_image", "image": "<b>torn.png</b>", "reason": "is empty"},
    {"kind": "train", "step": 20, "loss": 0.5, "lr": 1e-3, "images_per_s": 105.0},
    {"kind": "eval", "step": 20, "epoch": 2, "loss": 0.7, "top1": 0.75, "top5": 1.0, "samples": 6},
)


def write_images(root: Path, class_names: Sequence[str], *, of_each: int = 4) -> Path:
    """Write ``root/CLASS/0.png`` ... without splits, and return ``root``."""
    for index, label in enumerate(class_names):
        (root / label).mkdir(parents=True)
        for number in range(of_each):
            color = [40, 40, 40]
            color[index % 3] = 200
            make_image((color[0], color[1], color[2]), seed=100 * index + number).save(root / label / f"{number}.png")
    return root


def write_run(
    folder: Path,
    *,
    data: Path | None,
    class_names: Sequence[str] | None,
    log: Sequence[Mapping[str, Any]] = LOG,
    **recipe: Any,
) -> Path:
    """Write the folder of a run on ``data``, half of it for validation; without class names it has no checkpoint."""
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {"recipe": "classify", "data": None if data is None else str(data), "model": "van_b0"}
    settings |= {"val_fraction": 0.5, "seed": 0, "epochs": 2, "init_from": "scratch", "training_images": 6}
    create_run(folder, settings | recipe)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    if class_names is not None:
        write_checkpoint(folder / "best.safetensors", tuple(class_names))
    return folder
