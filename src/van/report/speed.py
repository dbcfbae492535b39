"""What a network costs on paper and how fast it is here.

Shapes: what is timed goes from tensors in memory to the network's outputs: pictures (N, 3, H, W), or a list of
(3, h, w) for a network that looks at whole pictures.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from van.bench.machine import name_of, synchroniser
from van.bench.timing import Timing, interleaved
from van.models.deploy import can_fuse, fuse
from van.models.load import Loaded, in_channels_last
from van.ops import use_backend
from van.preprocess import WholePreprocess
from van.tasks.base import Task

_MOST_ROUNDS, _FEWEST_ROUNDS = 15, 3
_WARM_UP = 2
_AT_MOST_S = 8.0
"""How long each batch is timed, where the fewest rounds allow it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Times of a forward pass, batch by batch, with the terms they hold for."""

    machine: str
    device: str
    threads: int
    size: tuple[int, int]
    fused: bool
    rounds: dict[int, int]
    timings: dict[int, Timing]

    def pictures_per_s(self, batch_size: int) -> float:
        """By the median time."""
        return 1e3 * batch_size / self.timings[batch_size].median_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in ("machine", "device", "threads", "fused")}
        rows = [
            {"batch_size": size, "rounds": self.rounds[size], "median_ms": one.median_ms, "iqr_ms": one.iqr_ms,
             "pictures_per_s": self.pictures_per_s(size)}
            for size, one in self.timings.items()
        ]  # fmt: skip
        return {**plain, "rows": self.size[0], "columns": self.size[1], "batches": rows}


def seen_size(loaded: Loaded, typical: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns that the network sees of a picture.

    Args:
        typical: rows and columns of such a picture; a square if None.
    """
    rule = loaded.preprocess
    return rule.seen(typical or (1, 1)) if isinstance(rule, WholePreprocess) else (rule.size_px, rule.size_px)


def count_macs(loaded: Loaded, task: Task, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one picture of that size: half of what ``torch.utils.flop_counter`` counts.

    That is convolutions, linear layers and the products of attention, on the network as released. What a detector
    does for each thing that it may have found counts, too, and depends a little on the picture.
    """
    pictures = task.stack([torch.zeros(3, *size)])
    with torch.no_grad(), use_backend("reference"), FlopCounterMode(display=False) as counter:
        loaded.model.eval()(pictures)
    return counter.get_total_flops() // 2


def measure(
    loaded: Loaded, task: Task, size: tuple[int, int], device: torch.device, *, batches: tuple[int, ...]
) -> Speed:
    """Time the network as ``van predict`` runs it: fused where it can be, in channels_last, float32."""
    fused = can_fuse(loaded.model)
    network = in_channels_last(fuse(loaded.model) if fused else loaded.model, device).eval()
    wait = torch.mps.synchronize if device.type == "mps" else synchroniser(device)
    rounds, timings = {}, {}
    for batch_size in batches:
        call = _bound(network, task, size, device, batch_size)
        rounds[batch_size] = _rounds(call, wait)
        found = interleaved({0: call}, rounds=rounds[batch_size], warm_up=_WARM_UP, synchronise=wait)
        timings[batch_size] = found[0]
    return Speed(
        machine=name_of(device),
        device=str(device),
        threads=torch.get_num_threads(),
        size=size,
        fused=fused,
        rounds=rounds,
        timings=timings,
    )


def _bound(
    network: nn.Module, task: Task, size: tuple[int, int], device: torch.device, batch_size: int
) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    pictures = task.stack([tensor.to(device) for tensor in torch.randn(batch_size, 3, *size, generator=generator)])
    if isinstance(pictures, torch.Tensor):
        pictures = pictures.contiguous(memory_format=torch.channels_last)

    def call() -> object:
        with torch.inference_mode():
            return network(pictures)

    return call


def _rounds(call: Callable[[], object], wait: Callable[[], object]) -> int:
    """As many as fit into the time there is, after the first call, which is slower."""
    call()
    wait()
    began = time.perf_counter()
    call()
    wait()
    each_s = max(time.perf_counter() - began, 1e-6)
    return max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(_AT_MOST_S / each_s)))
