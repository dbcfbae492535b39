"""A network for pictures of one size, and the right answers that every way to run it is held against.

Shapes: pictures (N, 3, H, W) in NCHW, float32; labels (N,) of 1000 classes; logits (N, 1000).
"""

import copy
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.bench.networks import Network, build
from van.bench.runtimes import write_onnx
from van.models.deploy import fuse
from van.ops import use_backend

CHECKED = 2
"""Pictures whose answers and gradients are compared with float64."""
_CLASSES = 1000


class Subject:
    """What the ways to run a network have in common, each part made when it is first asked for.

    Args:
        network: which.
        size_px, kernel_size: as in ``networks.build``.
        pictures: how many to have at most.
        folder: where exported files go.
    """

    def __init__(self, network: Network, *, size_px: int, kernel_size: int | None, pictures: int, folder: Path) -> None:
        self.network = network
        self.size_px = size_px
        self.kernel_size = kernel_size
        self._folder = folder
        generator = torch.Generator().manual_seed(1)
        self.pictures = torch.randn(max(pictures, CHECKED), 3, size_px, size_px, generator=generator)
        self.labels = torch.arange(len(self.pictures)) % _CLASSES

    @functools.cached_property
    def model(self) -> nn.Module:
        """In float32 on the CPU, in evaluation, NCHW. Not to be changed."""
        return build(self.network, size_px=self.size_px, kernel_size=self.kernel_size)

    @functools.cached_property
    def deployed(self) -> nn.Module:
        """The same with everything folded, if a VAN. Not to be changed."""
        return fuse(self.model) if self.network.is_van else self.model

    @functools.cached_property
    def onnx(self) -> Path:
        """The deployed network as an ONNX file."""
        name = f"{self.network.name}-{self.size_px}-{self.kernel_size}.onnx"
        return write_onnx(self.deployed, self.pictures[:CHECKED], self._folder / name)

    def error(self, logits: Tensor) -> float:
        """The largest error of the first answers against float64, relative to the largest of the logits."""
        found = logits[:CHECKED].double().cpu()
        right = self._right[: len(found)]
        return ((found - right).abs().max() / right.abs().max()).item()

    def gradient_error(self, gradients: list[Tensor]) -> float:
        """The distance of all gradients of the first pictures' loss to float64's, relative to their length."""
        pairs = list(zip(gradients, self._right_gradients, strict=True))
        distance = sum((found.double().cpu() - right).square().sum().item() for found, right in pairs)
        return (distance / sum(right.square().sum().item() for _, right in pairs)) ** 0.5

    @functools.cached_property
    def _right(self) -> Tensor:
        with torch.inference_mode(), use_backend("reference"):
            return copy.deepcopy(self.model).double()(self.pictures[:CHECKED].double())

    @functools.cached_property
    def _right_gradients(self) -> list[Tensor]:
        model = copy.deepcopy(self.model).double()
        with use_backend("reference"):
            return loss_gradients(model, self.pictures[:CHECKED].double(), self.labels[:CHECKED])


def loss_gradients(model: nn.Module, pictures: Tensor, labels: Tensor) -> list[Tensor]:
    """The gradients of the cross-entropy by every parameter, in their order.

    Norms go by their running statistics here: over two pictures a channel that ReLU left at zero has no
    variance, and BatchNorm's own gradient would blow rounding up to percents (seen on a ResNet-50).
    """
    loss = F.cross_entropy(model(pictures), labels)
    return list(torch.autograd.grad(loss, list(model.parameters())))
