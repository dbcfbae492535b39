"""How classification blends labels and pictures in training. Nothing here needs torch."""

import dataclasses
import math

from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixSettings:
    """How labels and pictures are blended in training; the defaults blend nothing."""

    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    mixup: float = 0.0
    """Strength of mixup; 0.8 in the paper, 0 switches it off."""
    cutmix: float = 0.0
    """Strength of cutmix; 1.0 in the paper, 0 switches it off."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing is {self.label_smoothing}; wanted at least 0 and below 1")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"--{name} is {getattr(self, name)}; wanted at least 0")
