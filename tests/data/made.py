"""Folders of small class pictures, made on the spot, and a network of three classes that costs no training."""

import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from parity import filled
from van.checkpoint import Checkpoint
from van.preprocess import Preprocess

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 40, 50)}
"""Three classes that a network learns to tell apart in a few updates."""


def picture(colour: tuple[int, int, int], seed: int, size_px: tuple[int, int] = (40, 36)) -> Image.Image:
    """A noisy picture of one colour; no two seeds give the same."""
    width, height = size_px
    noise = np.random.default_rng(seed).integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def write_classes(root: Path, counts: Mapping[str, int], *, first_seed: int = 0) -> Path:
    """``root/CLASS/CLASS-0.png`` ...: so many pictures of each class, in its colour; returns ``root``."""
    for place, (label, count) in enumerate(counts.items()):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            made = picture(COLOURS.get(label, (90, 20 * place, 120)), seed=first_seed + 1000 * place + number)
            made.save(root / label / f"{label}-{number}.png")
    return root


def write_checkpoint(path: Path, labels: tuple[str, ...] = tuple(COLOURS), size_px: int = 32) -> Path:
    """A van_b0 checkpoint whose every tensor follows from its name; returns ``path``."""
    model = timm.create_model("van_b0", num_classes=len(labels))
    state = filled({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    Checkpoint(
        task="classify",
        model="van_b0",
        labels=labels,
        preprocess=Preprocess(size_px=size_px, crop_fraction=1.0),
        state=state,
    ).save(path)
    return path


def running() -> dict[str, object]:
    """What a job in this process must leave as it was: signal handlers, threads, process groups, gradients."""
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "process group": torch.distributed.is_initialized(),
        "gradients": torch.is_grad_enabled(),
    }
