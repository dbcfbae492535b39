"""Small networks of every supported kind, and images of odd sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

import van  # noqa: F401  registers VAN with timm
from van.checkpoint import Checkpoint
from van.heads import create_model
from van.model import Model
from van.preprocess import CenterCropPreprocess, ResizePreprocess

LABELS = ("ant", "bee", "cat", "dog")
SMALL_VAN: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 2)}
SMALL_SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "img_size": 128}
SMALL_CONVNEXT: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
SMALL_VIT: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 128}


def small(
    name: str = "van_b0", *, image_size: int = 128, seed: int = 0, class_names: tuple[str, ...] = LABELS, **options: Any
) -> Model:
    """Return a classifier with random weights; layer scales are one, so that every block has an effect."""
    torch.manual_seed(seed)
    options = {**(SMALL_VAN if name.startswith("van") else {}), **options}
    model = timm.create_model(name, num_classes=len(class_names), **options).eval()
    for parameter_name, parameter in model.named_parameters():
        if "layer_scale" in parameter_name or parameter_name.endswith("gamma"):
            nn.init.ones_(parameter)
    return Model(
        model,
        name=name,
        options=options,
        task="classify",
        class_names=class_names,
        preprocess=CenterCropPreprocess(image_size=image_size, crop_fraction=0.9),
    )


def dense(task: str, head: dict[str, Any], class_names: tuple[str, ...], *, min_size: int = 96) -> Model:
    """Return a small detector or segmenter with random weights."""
    torch.manual_seed(0)
    model = create_model("van_b0", num_classes=len(class_names), options=head).eval()
    return Model(
        model,
        name="van_b0",
        options=head,
        task=task,
        class_names=class_names,
        preprocess=ResizePreprocess(min_size=min_size, max_size=2 * min_size),
    )


def in_double(loaded: Model) -> Model:
    """Return the same network in float64."""
    return loaded.replace(network=loaded.network.double())


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return colored noise on gradients."""
    random = np.random.default_rng(seed)
    slopes = np.linspace(0, 120, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    noise = random.integers(0, 76, (height, width, 3))
    return Image.fromarray((slopes + noise).clip(0, 255).astype(np.uint8))


def write_small(path: Path, name: str = "van_b0", **options: Any) -> Path:
    """Write ``small`` as a checkpoint and return ``path``."""
    loaded = small(name, **options)
    Checkpoint(
        task="classify",
        model=name,
        model_options=loaded.options,
        class_names=loaded.class_names,
        preprocess=loaded.preprocess,
        state=loaded.network.state_dict(),
    ).save(path)
    return path


def write_peers(folder: Path) -> list[Path]:
    """Write checkpoints of a small VAN, Swin and ConvNeXt with their public names, and return their paths."""
    swin = write_small(folder / "swin_tiny.safetensors", "swin_tiny_patch4_window7_224", **SMALL_SWIN)
    convnext = write_small(folder / "convnext_tiny.safetensors", "convnext_tiny", **SMALL_CONVNEXT)
    return [write_small(folder / "van_b2.safetensors", "van_b2"), swin, convnext]
