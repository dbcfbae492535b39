"""Multiply-accumulates and inference latency of a network on this machine.

Shapes: a timed call goes from tensors in memory to the network's outputs: images (N, 3, H, W), or a list of
(3, h, w) for detection and segmentation.
"""

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from van.bench.machine import device_name, synchronizer
from van.bench.timing import time_interleaved
from van.device import to_channels_last
from van.model import Model
from van.ops import use_backend
from van.tasks.base import Task

_MIN_ROUNDS, _MAX_ROUNDS = 3, 15
_MAX_TIME_S = 8.0
"""Time limit for each batch size, unless the minimum number of rounds takes longer."""


def count_macs(model: Model, task: Task, input_size: tuple[int, int], device: torch.device) -> int:
    """Return the multiply-accumulates of one image: half of what ``torch.utils.flop_counter`` counts.

    Convolutions, linear layers and attention products count, on the unfused network. A detector's work per proposal
    counts as well and depends slightly on the image.
    """
    images = task.stack([torch.zeros(3, *input_size, device=device)])
    with torch.no_grad(), use_backend("reference"), FlopCounterMode(display=False) as counter:
        model.network.to(device).eval()(images)
    return counter.get_total_flops() // 2


def measure_speed(
    model: Model, task: Task, input_size: tuple[int, int], device: torch.device, *, batch_sizes: tuple[int, ...]
) -> dict[str, Any]:
    """Time the network as ``van predict`` runs it: fused if possible, channels_last, float32, on a batch of noise.

    Returns:
        The conditions of the measurement, and ``batches``: batch size, number of timed calls, median and interquartile
        range of the latency, and throughput at the median.
    """
    network = to_channels_last(model.deployed, device).eval()
    synchronize = torch.mps.synchronize if device.type == "mps" else synchronizer(device)
    batches = []
    for batch_size in batch_sizes:
        noise = torch.randn(batch_size, 3, *input_size, generator=torch.Generator().manual_seed(0))
        images = task.stack([tensor.to(device) for tensor in noise])
        if isinstance(images, torch.Tensor):
            images = images.contiguous(memory_format=torch.channels_last)

        def call(images: Any = images) -> None:
            with torch.inference_mode():
                network(images)
            synchronize()

        call()  # the first call is slower; the second one tells how many fit the time limit
        started_at = time.perf_counter()
        call()
        call_s = max(time.perf_counter() - started_at, 1e-6)
        rounds = max(_MIN_ROUNDS, min(_MAX_ROUNDS, int(_MAX_TIME_S / call_s)))
        timing = time_interleaved({0: call}, rounds=rounds, warm_up=2)[0]
        rate = 1e3 * batch_size / timing.median_ms
        batches.append({"batch_size": batch_size, "rounds": rounds, **timing._asdict(), "images_per_s": rate})
    return {
        "machine": device_name(device),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "fused": model.deployed is not model.network,
        "rows": input_size[0],
        "columns": input_size[1],
        "batches": batches,
    }
