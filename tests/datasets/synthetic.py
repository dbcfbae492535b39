"""Small generated class folders, and a model of three classes that needs no training."""

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
from van.preprocess import CenterCropPreprocess

COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 40, 50)}
"""Three classes that a model learns in a few updates."""


def make_image(color: tuple[int, int, int], seed: int, image_size: tuple[int, int] = (40, 36)) -> Image.Image:
    """Return a noisy image of one color, different for every seed."""
    width, height = image_size
    noise = np.random.default_rng(seed).integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))


def write_classes(root: Path, counts: Mapping[str, int], *, first_seed: int = 0) -> Path:
    """Write ``counts`` images of each class in its color as ``root/CLASS/CLASS-0.png`` ...; return ``root``."""
    for class_index, (label, count) in enumerate(counts.items()):
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = make_image(
                COLORS.get(label, (90, 20 * class_index, 120)), seed=first_seed + 1000 * class_index + index
            )
            image.save(root / label / f"{label}-{index}.png")
    return root


def write_checkpoint(path: Path, class_names: tuple[str, ...] = tuple(COLORS), image_size: int = 32) -> Path:
    """Write a van_b0 checkpoint whose tensors are determined by their names; return ``path``."""
    model = timm.create_model("van_b0", num_classes=len(class_names))
    state = filled({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    Checkpoint(
        task="classify",
        model="van_b0",
        class_names=class_names,
        preprocess=CenterCropPreprocess(image_size=image_size, crop_fraction=1.0),
        state=state,
    ).save(path)
    return path


def process_state() -> dict[str, object]:
    """Return the state that a command must restore: signal handlers, threads, process group, gradient mode."""
    return {
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "process group": torch.distributed.is_initialized(),
        "gradients": torch.is_grad_enabled(),
    }
