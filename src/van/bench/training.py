"""A training step as it is measured: forward, cross-entropy, backward, AdamW; float32, nothing random in it."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F

from van.bench.subject import CHECKED, Subject, loss_gradients
from van.bench.ways import layout_of, on_device, place
from van.ops import use_backend

TRAINED = ("van", "reference", "eager")
"""The ways that can train; a VAN is trained as it is, unfused."""


class Trainee:
    """A subject that is trained one of the ``TRAINED`` ways."""

    def __init__(self, way: str, subject: Subject, device: torch.device) -> None:
        self._subject = subject
        self._backend = "reference" if way == "reference" else "auto"
        self._layout = layout_of(way, subject.network)
        self._device = device
        self._model = on_device(subject.model, self._layout, device)

    def gradient_error(self) -> float:
        """How far the gradients of two pictures are from float64's, as a share of their length."""
        pictures = place(self._subject.pictures[:CHECKED], self._layout, self._device)
        labels = self._subject.labels[:CHECKED].to(self._device)
        with use_backend(self._backend):
            return self._subject.gradient_error(loss_gradients(self._model, pictures, labels))

    def step(self, batch_size: int) -> Callable[[], None]:
        """A call that trains the network once on ``batch_size`` pictures."""
        pictures = place(self._subject.pictures[:batch_size], self._layout, self._device)
        labels = self._subject.labels[:batch_size].to(self._device)
        model = copy.deepcopy(self._model).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def call() -> None:
            optimiser.zero_grad(set_to_none=True)
            with use_backend(self._backend):
                F.cross_entropy(model(pictures), labels).backward()
            optimiser.step()

        return call
