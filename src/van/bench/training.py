"""Benchmark of a training step: forward, cross-entropy, backward, AdamW; float32, deterministic."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F

from van.bench.backends import copy_to_device, layout_of, to_device
from van.bench.benchmark_model import NUM_CHECKED, BenchmarkModel, loss_gradients
from van.ops import use_backend

TRAINABLE_BACKENDS = ("van", "reference", "eager")
"""The backends that support training; a VAN is trained unfused."""


class TrainingBenchmark:
    """A model that is trained on one of the ``TRAINABLE_BACKENDS``."""

    def __init__(self, backend: str, benchmark_model: BenchmarkModel, device: torch.device) -> None:
        self._benchmark_model = benchmark_model
        self._ops_backend = "reference" if backend == "reference" else "auto"
        self._layout = layout_of(backend, benchmark_model.network)
        self._device = device
        self._model = copy_to_device(benchmark_model.model, self._layout, device)

    def gradient_error(self) -> float:
        """Return the relative L2 error of the gradients of two images against float64."""
        images = to_device(self._benchmark_model.images[:NUM_CHECKED], self._layout, self._device)
        labels = self._benchmark_model.labels[:NUM_CHECKED].to(self._device)
        with use_backend(self._ops_backend):
            return self._benchmark_model.gradient_error(loss_gradients(self._model, images, labels))

    def step(self, batch_size: int) -> Callable[[], None]:
        """Return a function that runs one training step on ``batch_size`` images."""
        images = to_device(self._benchmark_model.images[:batch_size], self._layout, self._device)
        labels = self._benchmark_model.labels[:batch_size].to(self._device)
        model = copy.deepcopy(self._model).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            with use_backend(self._ops_backend):
                F.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return call
