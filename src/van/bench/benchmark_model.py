"""A network for images of one size, with reference outputs in float64 that every backend is compared with.

Shapes: images (N, 3, H, W) in NCHW, float32; labels (N,) of 1000 classes; logits (N, 1000).
"""

import copy
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.backbones.fusion import fuse
from van.bench.networks import Network, build
from van.bench.runtimes import write_onnx
from van.ops import use_backend

NUM_CHECKED = 2
"""Images whose outputs and gradients are compared with float64."""
_NUM_CLASSES = 1000


class BenchmarkModel:
    """The data that all backends of a network share; each item is computed on first access.

    Args:
        network: the network to build.
        image_size, kernel_size: as in ``networks.build``, in pixels.
        images: the largest batch size.
        folder: the folder of exported files.
    """

    def __init__(
        self, network: Network, *, image_size: int, kernel_size: int | None, images: int, folder: Path
    ) -> None:
        self.network = network
        self.image_size = image_size
        self.kernel_size = kernel_size
        self._folder = folder
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(max(images, NUM_CHECKED), 3, image_size, image_size, generator=generator)
        self.labels = torch.arange(len(self.images)) % _NUM_CLASSES

    @functools.cached_property
    def model(self) -> nn.Module:
        """Return the network in float32 on the CPU, in evaluation mode, NCHW. Do not modify it."""
        return build(self.network, image_size=self.image_size, kernel_size=self.kernel_size)

    @functools.cached_property
    def fused(self) -> nn.Module:
        """Return the fused network if it is a VAN, else ``model``. Do not modify it."""
        return fuse(self.model) if self.network.is_van else self.model

    @functools.cached_property
    def onnx(self) -> Path:
        """Return the path of the fused network as an ONNX file."""
        name = f"{self.network.name}-{self.image_size}-{self.kernel_size}.onnx"
        return write_onnx(self.fused, self.images[:NUM_CHECKED], self._folder / name)

    def error(self, logits: Tensor) -> float:
        """Return the largest error of the first logits against float64, relative to the largest logit."""
        actual = logits[:NUM_CHECKED].double().cpu()
        expected = self._reference_logits[: len(actual)]
        return ((actual - expected).abs().max() / expected.abs().max()).item()

    def gradient_error(self, gradients: list[Tensor]) -> float:
        """Return the L2 distance of all gradients to those in float64, relative to the L2 norm of the latter."""
        pairs = list(zip(gradients, self._reference_gradients, strict=True))
        distance = sum((actual.double().cpu() - expected).square().sum().item() for actual, expected in pairs)
        return (distance / sum(expected.square().sum().item() for _, expected in pairs)) ** 0.5

    @functools.cached_property
    def _reference_logits(self) -> Tensor:
        with torch.inference_mode(), use_backend("reference"):
            return copy.deepcopy(self.model).double()(self.images[:NUM_CHECKED].double())

    @functools.cached_property
    def _reference_gradients(self) -> list[Tensor]:
        model = copy.deepcopy(self.model).double()
        with use_backend("reference"):
            return loss_gradients(model, self.images[:NUM_CHECKED].double(), self.labels[:NUM_CHECKED])


def loss_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the gradients of the cross-entropy loss for every parameter, in their order.

    Normalization layers use their running statistics: over two images a channel that ReLU set to zero has no
    variance, and the gradient of BatchNorm would amplify rounding errors to several percent (as with ResNet-50).
    """
    loss = F.cross_entropy(model(images), labels)
    return list(torch.autograd.grad(loss, list(model.parameters())))
