"""Training augmentation: its settings, and the transform of classification, which is timm's.

Nothing here imports torch at the top, so that the command line can be parsed without it; ``van.datasets.dense_dataset``
has the joint transform of images and annotations.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from van.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image
    from torch import Tensor

    from van.preprocess import CenterCropPreprocess

_POLICY_TERM = re.compile(r"[a-z]+\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes of a training image for classification."""

    scale: tuple[float, float] = (0.35, 1.0)
    """Least and greatest fraction of the image's area that a random crop keeps."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    rand_augment: str = ""
    """timm's RandAugment policy, such as rand-m9-mstd0.5-inc1; empty: none."""
    random_erasing: float = 0.0
    """Probability of erasing a random rectangle."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"--scale: expected two fractions, 0 < first <= second <= 1, got {self.scale}")
        _check_fractions(self, "hflip", "random_erasing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointAugmentSettings:
    """Random changes of a training image together with its annotations."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor on the size that evaluation would use; 0.1 2.0 is large-scale jitter."""
    crop_size: int = 0
    """Side in pixels of a random square crop of the resized image, padded where that is smaller; 0: no crop."""
    max_class_fraction: float = 0.75
    """Greatest fraction of a crop that one class may fill, in semantic masks."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    photometric_distort: float = 0.0
    """Probability of each change of brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 10:
            raise UsageError(f"--scale: expected two factors, 0 < first <= second <= 10, got {self.scale}")
        if self.crop_size < 0:
            raise UsageError(f"--crop-size: expected at least 0 pixels, got {self.crop_size}")
        _check_fractions(self, "hflip", "photometric_distort", "max_class_fraction")


def training_transform(preprocess: CenterCropPreprocess, settings: AugmentSettings) -> Callable[[Image.Image], Tensor]:
    """Return a random transform from an RGB image to a tensor (3, image_size, image_size).

    Raises:
        UsageError: timm does not know the RandAugment policy.
    """
    from timm.data import create_transform

    unknown = UsageError(
        f"--rand-augment: expected a policy such as rand-m9-mstd0.5-inc1, got {settings.rand_augment!r}"
    )
    if not all(_POLICY_TERM.fullmatch(term) for term in settings.rand_augment.split("-")[1:]):
        raise unknown  # timm ignores a term without a number
    try:
        transform: Any = create_transform(
            input_size=preprocess.image_size,
            is_training=True,
            scale=settings.scale,
            hflip=settings.hflip,
            color_jitter=0.0,
            auto_augment=settings.rand_augment or None,
            interpolation=preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            re_prob=settings.random_erasing,
            re_mode="pixel",
        )
        return transform
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise unknown from error


def _check_fractions(settings: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag}: expected a fraction from 0 to 1, got {getattr(settings, name)}")
