"""Settings of the joint augmentation of images and annotations.

Nothing here imports torch, so that the command line can be parsed without it; ``joint_transform`` applies them.
"""

import dataclasses

import tyro

from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointAugmentSettings:
    """Random changes of a training image together with its annotations."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor on the size that evaluation would use; 0.1 2.0 is large-scale jitter."""
    crop_size: int = 0
    """Side in pixels of a random square crop of the resized image, padded where that is smaller; 0: no crop."""
    max_class_fraction: tyro.conf.Suppress[float] = 0.75
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
        for name in ("hflip", "photometric_distort", "max_class_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag}: expected a fraction from 0 to 1, got {getattr(self, name)}")
