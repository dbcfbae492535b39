"""Small networks of every kind that is explained, and pictures of odd sizes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

import van  # noqa: F401  registers VAN with timm
from van.checkpoint import Checkpoint
from van.models.build import create
from van.models.load import Loaded
from van.preprocess import Preprocess, WholePreprocess

LABELS = ("ant", "bee", "cat", "dog")
SMALL_VAN: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 2)}
SMALL_SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "img_size": 128}
SMALL_CONVNEXT: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
SMALL_VIT: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 128}


def small(
    name: str = "van_b0", *, size_px: int = 128, seed: int = 0, labels: tuple[str, ...] = LABELS, **options: Any
) -> Loaded:
    """A network with random weights that classifies; layer scales are one, so that every block speaks."""
    torch.manual_seed(seed)
    options = {**(SMALL_VAN if name.startswith("van") else {}), **options}
    model = timm.create_model(name, num_classes=len(labels), **options).eval()
    for parameter_name, parameter in model.named_parameters():
        if "layer_scale" in parameter_name or parameter_name.endswith("gamma"):
            nn.init.ones_(parameter)
    return Loaded(
        model=model,
        name=name,
        options=options,
        task="classify",
        labels=labels,
        preprocess=Preprocess(size_px=size_px, crop_fraction=0.9),
    )


def dense(task: str, head: dict[str, Any], labels: tuple[str, ...], *, short_px: int = 96) -> Loaded:
    """A small network for boxes or regions, with random weights."""
    torch.manual_seed(0)
    model = create("van_b0", num_classes=len(labels), options=head).eval()
    return Loaded(
        model=model,
        name="van_b0",
        options=head,
        task=task,
        labels=labels,
        preprocess=WholePreprocess(short_px=short_px, long_px=2 * short_px),
    )


def in_double(loaded: Loaded) -> Loaded:
    """The same network in float64."""
    return dataclasses.replace(loaded, model=loaded.model.double())


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured noise on slopes."""
    random = np.random.default_rng(seed)
    slopes = np.linspace(0, 120, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    noise = random.integers(0, 76, (height, width, 3))
    return Image.fromarray((slopes + noise).clip(0, 255).astype(np.uint8))


def write_small(path: Path, name: str = "van_b0", **options: Any) -> Path:
    """``small`` as a checkpoint; returns ``path``."""
    loaded = small(name, **options)
    Checkpoint(
        task="classify",
        model=name,
        model_options=loaded.options,
        labels=loaded.labels,
        preprocess=loaded.preprocess,
        state=loaded.model.state_dict(),
    ).save(path)
    return path


def write_peers(folder: Path) -> list[Path]:
    """Checkpoints of a small VAN, a Swin and a ConvNeXt, under the names that users type; returns their paths."""
    swin = write_small(folder / "swin_tiny.safetensors", "swin_tiny_patch4_window7_224", **SMALL_SWIN)
    convnext = write_small(folder / "convnext_tiny.safetensors", "convnext_tiny", **SMALL_CONVNEXT)
    return [write_small(folder / "van_b2.safetensors", "van_b2"), swin, convnext]
