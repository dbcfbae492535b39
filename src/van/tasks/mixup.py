"""The settings of label smoothing, mixup and cutmix. This module does not import torch."""

import dataclasses
import math

from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixupSettings:
    """Label smoothing, mixup and cutmix of classification training."""

    label_smoothing: float = 0.1
    """Label smoothing: fraction of the target distributed over all classes."""
    mixup: float = 0.0
    """Mixup alpha; 0.8 in the paper, 0 disables it."""
    cutmix: float = 0.0
    """CutMix alpha; 1.0 in the paper, 0 disables it."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing: expected at least 0 and below 1, got {self.label_smoothing}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"--{name}: expected a finite number of at least 0, got {getattr(self, name)}")
