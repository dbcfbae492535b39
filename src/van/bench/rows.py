"""What one line of a table of networks is: the case that was measured, and what was found."""

import dataclasses
from typing import Any, Literal

from van.bench.costs import Cost
from van.bench.networks import NETWORKS, PUBLISHED_AT_PX
from van.bench.timing import Timing
from van.bench.ways import layout_of

Outcome = Literal["measured", "wrong", "failed", "not installed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network, a way to run it, and a batch; ``kernel_size`` is None for the paper's."""

    network: str
    way: str
    batch_size: int
    size_px: int = PUBLISHED_AT_PX
    kernel_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A case as measured; what was not asked for, or belongs to an answer that is wrong or missing, is None."""

    case: Case
    cost: Cost | None = None
    latency: Timing | None = None
    """Of one picture."""
    batch: Timing | None = None
    """Of the whole batch."""
    step: Timing | None = None
    """Of a training step on the whole batch."""
    peak_memory_bytes: int | None = None
    """What answering the batch takes beside the weights: activations and room to work in."""
    roofline_share: float | None = None
    """The least time that the batch takes on this machine, as a share of the time it took."""
    error: float | None = None
    gradient_error: float | None = None
    outcome: Outcome = "measured"
    reason: str = ""

    @property
    def images_per_s(self) -> float | None:
        """Pictures answered a second, at the case's batch."""
        return None if self.batch is None else 1e3 * self.case.batch_size / self.batch.median_ms

    @property
    def training_images_per_s(self) -> float | None:
        """Pictures trained on a second, at the case's batch."""
        return None if self.step is None else 1e3 * self.case.batch_size / self.step.median_ms

    @property
    def top1(self) -> float | None:
        """The published top-1 in percent, where the case is what was published."""
        at_home = self.case.size_px == PUBLISHED_AT_PX and self.case.kernel_size is None
        return NETWORKS[self.case.network].top1 if at_home else None

    def record(self) -> dict[str, Any]:
        """Plain values, flat, for JSON and CSV; megabytes are millions of bytes, shares and top-1 fractions."""
        network, cost = NETWORKS[self.case.network], self.cost
        return {
            **dataclasses.asdict(self.case),
            "family": network.family,
            "layout": layout_of(self.case.way, network),
            "parameters": None if cost is None else cost.parameters,
            "macs": None if cost is None else cost.macs // self.case.batch_size,
            **_times("latency", self.latency),
            **_times("batch", self.batch),
            "images_per_s": self.images_per_s,
            "peak_memory_mb": None if self.peak_memory_bytes is None else self.peak_memory_bytes / 1e6,
            **_times("training", self.step),
            "training_images_per_s": self.training_images_per_s,
            "roofline_share": self.roofline_share,
            "top1_published": None if self.top1 is None else self.top1 / 100,
            "error": self.error,
            "gradient_error": self.gradient_error,
            "outcome": self.outcome,
            "reason": self.reason,
        }


def _times(name: str, timing: Timing | None) -> dict[str, float | None]:
    median, spread = (None, None) if timing is None else timing
    return {f"{name}_ms": median, f"{name}_iqr_ms": spread}
