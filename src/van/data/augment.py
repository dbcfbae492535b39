"""Training augmentation by timm, on the size, interpolation and normalisation of a ``Preprocess``."""

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

    from van.preprocess import Preprocess

_POLICY_PART = re.compile(r"[a-z]+\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """What happens to a training picture before the network sees it."""

    scale: tuple[float, float] = (0.35, 1.0)
    """Least and greatest share of the picture's area that a random crop keeps."""
    flip: float = 0.5
    """Probability of a mirror image."""
    rand_augment: str = ""
    """timm's RandAugment policy, such as rand-m9-mstd0.5-inc1; empty switches it off."""
    random_erasing: tyro.conf.Suppress[float] = 0.0
    """Probability that a rectangle is erased."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"--scale is {self.scale}; wanted two shares, 0 < first <= second <= 1")
        for name in ("flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; wanted a probability, 0 to 1")


def training_transform(preprocess: Preprocess, settings: AugmentSettings) -> Callable[[Image.Image], Tensor]:
    """A random transform from an RGB picture to a tensor (3, size_px, size_px).

    Raises:
        UsageError: timm does not know the RandAugment policy.
    """
    from timm.data import create_transform

    unknown = UsageError(f"--rand-augment is {settings.rand_augment!r}; wanted such as rand-m9-mstd0.5-inc1")
    if not all(_POLICY_PART.fullmatch(part) for part in settings.rand_augment.split("-")[1:]):
        raise unknown  # timm would pass over a part without a number
    try:
        transform: Any = create_transform(
            input_size=preprocess.size_px,
            is_training=True,
            scale=settings.scale,
            hflip=settings.flip,
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
