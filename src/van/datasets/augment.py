"""Training augmentation of classification, by timm; follows the size and colors of a ``CenterCropPreprocess``."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import tyro

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
    random_erasing: tyro.conf.Suppress[float] = 0.0
    """Probability of erasing a random rectangle."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"--scale: expected two fractions, 0 < first <= second <= 1, got {self.scale}")
        for name in ("hflip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag}: expected a probability from 0 to 1, got {getattr(self, name)}")


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
