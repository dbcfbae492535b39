"""Multiply-accumulates and inference latency of a network on this machine.

Shapes: a timed call goes from tensors in memory to the network's outputs: images (N, 3, H, W), or a list of
(3, h, w) for detection and segmentation.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from van.backbones.fusion import can_fuse, fuse
from van.bench.machine import device_name, synchronizer
from van.bench.timing import Timing, time_interleaved
from van.device import to_channels_last
from van.model import Model
from van.ops import use_backend
from van.preprocess import ResizePreprocess
from van.tasks.base import Task

_MIN_ROUNDS, _MAX_ROUNDS = 3, 15
_WARM_UP_ROUNDS = 2
_MAX_TIME_S = 8.0
"""Time limit for each batch size, unless the minimum number of rounds takes longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Latency of a forward pass by batch size, and the conditions of the measurement.

    Args:
        machine: name of the processor or GPU.
        device: the torch device.
        threads: CPU threads.
        input_size: (rows, columns) of the network's input.
        fused: whether norms were folded into convolutions.
        rounds, timings: number of timed calls and their times, by batch size.
    """

    machine: str
    device: str
    threads: int
    input_size: tuple[int, int]
    fused: bool
    rounds: dict[int, int]
    timings: dict[int, Timing]

    def images_per_s(self, batch_size: int) -> float:
        """Return the throughput at the median latency."""
        return 1e3 * batch_size / self.timings[batch_size].median_ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        plain = {name: getattr(self, name) for name in ("machine", "device", "threads", "fused")}
        batches = [
            {"batch_size": size, "rounds": self.rounds[size], "median_ms": timing.median_ms, "iqr_ms": timing.iqr_ms,
             "images_per_s": self.images_per_s(size)}
            for size, timing in self.timings.items()
        ]  # fmt: skip
        return {**plain, "rows": self.input_size[0], "columns": self.input_size[1], "batches": batches}


def network_input_size(loaded: Model, original_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return rows and columns of the network's input.

    Args:
        original_size: rows and columns of an image before preprocessing; a square if None.
    """
    rule = loaded.preprocess
    if isinstance(rule, ResizePreprocess):
        return rule.resized_size(original_size or (1, 1))
    return (rule.image_size, rule.image_size)


def count_macs(loaded: Model, task: Task, input_size: tuple[int, int]) -> int:
    """Return the multiply-accumulates of one image: half of what ``torch.utils.flop_counter`` counts.

    Convolutions, linear layers and attention products count, on the unfused network. A detector's work per proposal
    counts as well and depends slightly on the image.
    """
    images = task.stack([torch.zeros(3, *input_size)])
    with torch.no_grad(), use_backend("reference"), FlopCounterMode(display=False) as counter:
        loaded.network.eval()(images)
    return counter.get_total_flops() // 2


def measure_speed(
    loaded: Model,
    task: Task,
    input_size: tuple[int, int],
    device: torch.device,
    *,
    batch_sizes: tuple[int, ...],
) -> Speed:
    """Time the network as ``van predict`` runs it: fused if possible, channels_last, float32."""
    fused = can_fuse(loaded.network)
    network = to_channels_last(fuse(loaded.network) if fused else loaded.network, device).eval()
    synchronize = torch.mps.synchronize if device.type == "mps" else synchronizer(device)
    rounds, timings = {}, {}
    for batch_size in batch_sizes:
        call = _make_call(network, task, input_size, device, batch_size)
        rounds[batch_size] = _num_rounds(call, synchronize)
        results = time_interleaved(
            {0: call}, rounds=rounds[batch_size], warm_up=_WARM_UP_ROUNDS, synchronize=synchronize
        )
        timings[batch_size] = results[0]
    return Speed(
        machine=device_name(device),
        device=str(device),
        threads=torch.get_num_threads(),
        input_size=input_size,
        fused=fused,
        rounds=rounds,
        timings=timings,
    )


def _make_call(
    network: nn.Module, task: Task, input_size: tuple[int, int], device: torch.device, batch_size: int
) -> Callable[[], object]:
    """Return a function that runs the network on a batch of noise."""
    generator = torch.Generator().manual_seed(0)
    images = task.stack([tensor.to(device) for tensor in torch.randn(batch_size, 3, *input_size, generator=generator)])
    if isinstance(images, torch.Tensor):
        images = images.contiguous(memory_format=torch.channels_last)

    def call() -> object:
        with torch.inference_mode():
            return network(images)

    return call


def _num_rounds(call: Callable[[], object], synchronize: Callable[[], object]) -> int:
    """Return the number of rounds that fit the time limit, estimated from the second call; the first one is slower."""
    call()
    synchronize()
    started_at = time.perf_counter()
    call()
    synchronize()
    call_s = max(time.perf_counter() - started_at, 1e-6)
    return max(_MIN_ROUNDS, min(_MAX_ROUNDS, int(_MAX_TIME_S / call_s)))
