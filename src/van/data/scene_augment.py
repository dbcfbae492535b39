"""How training pictures with annotations are varied. Nothing here needs torch; ``scene_transform`` does it."""

import dataclasses

import tyro

from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneAugmentSettings:
    """What happens to a training picture and its annotations before the network sees them."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor on the size that evaluation would use; 0.1 2.0 is large-scale jitter."""
    crop_px: int = 0
    """Side of a random square cut out of the scaled picture, padded where that is smaller; 0 keeps the whole."""
    largest_class: tyro.conf.Suppress[float] = 0.75
    """Greatest share of a crop that one class may fill, in maps."""
    flip: float = 0.5
    """Probability of a mirror image."""
    distort: float = 0.0
    """Probability of each change of brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 10:
            raise UsageError(f"--scale is {self.scale}; wanted two factors, 0 < first <= second <= 10")
        if self.crop_px < 0:
            raise UsageError(f"--crop-px is {self.crop_px}; wanted at least 0")
        for name in ("flip", "distort", "largest_class"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; wanted a share, 0 to 1")
