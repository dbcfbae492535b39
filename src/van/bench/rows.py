"""Rows of the network benchmark: the case and its results."""

import dataclasses
from typing import Any, Literal

from van.bench.backends import layout_of
from van.bench.flops import ModelCost
from van.bench.networks import NETWORKS, PUBLISHED_IMAGE_SIZE
from van.bench.timing import Timing

Outcome = Literal["measured", "incorrect", "failed", "unavailable"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network, a backend, a batch size and an image size; ``kernel_size`` is None for that of the paper."""

    network: str
    backend: str
    batch_size: int
    image_size: int = PUBLISHED_IMAGE_SIZE
    kernel_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The results of a case. Measurements that were not requested, or of incorrect or failed cases, are None."""

    case: Case
    cost: ModelCost | None = None
    latency: Timing | None = None
    """Time of one image."""
    batch: Timing | None = None
    """Time of the whole batch."""
    step: Timing | None = None
    """Time of a training step on the whole batch."""
    peak_memory_bytes: int | None = None
    """Peak memory of inference on the batch beyond the weights: activations and workspace."""
    roofline_fraction: float | None = None
    """Roofline time of the batch on this machine, as a fraction of the measured time."""
    error: float | None = None
    gradient_error: float | None = None
    outcome: Outcome = "measured"
    reason: str = ""

    @property
    def images_per_s(self) -> float | None:
        """Return the inference throughput in images/s, at the batch size of the case."""
        return None if self.batch is None else 1e3 * self.case.batch_size / self.batch.median_ms

    @property
    def training_images_per_s(self) -> float | None:
        """Return the training throughput in images/s, at the batch size of the case."""
        return None if self.step is None else 1e3 * self.case.batch_size / self.step.median_ms

    @property
    def top1(self) -> float | None:
        """Return the published top-1 accuracy in percent; None if the image or kernel size differs from that."""
        is_published = self.case.image_size == PUBLISHED_IMAGE_SIZE and self.case.kernel_size is None
        return NETWORKS[self.case.network].top1 if is_published else None

    def to_dict(self) -> dict[str, Any]:
        """Return a flat dictionary for JSON and CSV; 1 MB is 10^6 bytes, top-1 is a fraction."""
        network, cost = NETWORKS[self.case.network], self.cost
        return {
            **dataclasses.asdict(self.case),
            "family": network.family,
            "layout": layout_of(self.case.backend, network),
            "parameters": None if cost is None else cost.parameters,
            "macs": None if cost is None else cost.macs // self.case.batch_size,
            **_time_sessions("latency", self.latency),
            **_time_sessions("batch", self.batch),
            "images_per_s": self.images_per_s,
            "peak_memory_mb": None if self.peak_memory_bytes is None else self.peak_memory_bytes / 1e6,
            **_time_sessions("training", self.step),
            "training_images_per_s": self.training_images_per_s,
            "roofline_fraction": self.roofline_fraction,
            "top1_published": None if self.top1 is None else self.top1 / 100,
            "error": self.error,
            "gradient_error": self.gradient_error,
            "outcome": self.outcome,
            "reason": self.reason,
        }


def _time_sessions(name: str, timing: Timing | None) -> dict[str, float | None]:
    median, iqr = (None, None) if timing is None else timing
    return {f"{name}_ms": median, f"{name}_iqr_ms": iqr}
