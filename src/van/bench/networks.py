"""The benchmarked networks: VAN, and peers of similar size from timm.

Top-1 is the published ImageNet-1K accuracy in percent, for a single 224 x 224 crop and training on ImageNet-1K only.
Throughput does not depend on the weights, so they are random, and nothing is downloaded.
"""

import dataclasses
from typing import Any

import timm
import torch
from torch import nn

import van  # noqa: F401  registers VAN with timm
from van.weights.published import VARIANTS

PUBLISHED_IMAGE_SIZE = 224
CHANNELS_LAST, NCHW = "channels_last", "NCHW"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network. ``layout`` is its preferred memory layout: channels_last for convolutional networks.

    ``top1`` is in percent, and ``source`` is its publication.
    """

    name: str
    timm_name: str
    family: str
    layout: str
    top1: float | None
    source: str
    has_fixed_image_size: bool = False
    """Whether it is built for one image size."""
    gradient_tolerance: float = 1e-4
    """Largest relative L2 error of float32 gradients against float64."""

    @property
    def is_van(self) -> bool:
        """Return whether this is a VAN, which this package has its own backends for."""
        return self.name in VARIANTS


_PEERS = (
    Network(
        name="convnext_tiny", timm_name="convnext_tiny", family="ConvNeXt", layout=CHANNELS_LAST,
        top1=82.1, source="Liu et al. 2022, arXiv:2201.03545, table 1",
    ),
    Network(
        name="convnext_small", timm_name="convnext_small", family="ConvNeXt", layout=CHANNELS_LAST,
        top1=83.1, source="Liu et al. 2022, arXiv:2201.03545, table 1",
    ),
    Network(
        name="swin_tiny", timm_name="swin_tiny_patch4_window7_224", family="Swin", layout=NCHW,
        has_fixed_image_size=True, top1=81.3, source="Liu et al. 2021, arXiv:2103.14030, table 1",
    ),
    Network(
        name="swin_small", timm_name="swin_small_patch4_window7_224", family="Swin", layout=NCHW,
        has_fixed_image_size=True, top1=83.0, source="Liu et al. 2021, arXiv:2103.14030, table 1",
    ),
    Network(
        name="pvt_v2_b2", timm_name="pvt_v2_b2", family="PVTv2", layout=NCHW,
        top1=82.0, source="Wang et al. 2022, arXiv:2106.13797",
    ),
    Network(
        name="inception_next_tiny", timm_name="inception_next_tiny", family="InceptionNeXt", layout=CHANNELS_LAST,
        top1=82.3, source="Yu et al. 2024, arXiv:2303.16900",
    ),
    Network(
        name="resnet50", timm_name="resnet50", family="ResNet", layout=CHANNELS_LAST, top1=76.1,
        source="He et al. 2016, arXiv:1512.03385, as retrained by torchvision (IMAGENET1K_V1)",
        gradient_tolerance=1e-2,  # rounding flips some ReLUs, which changes gradients discontinuously
    ),
)  # fmt: skip

NETWORKS = {
    **{
        name: Network(
            name=name, timm_name=name, family="VAN", layout=CHANNELS_LAST, top1=variant.top1,
            source="Guo et al. 2022, arXiv:2202.09741, table 5",
        )
        for name, variant in VARIANTS.items()
    },
    **{peer.name: peer for peer in _PEERS},
}  # fmt: skip
"""Every network that can be benchmarked, by name."""


def build(network: Network, *, image_size: int, kernel_size: int | None = None, device: str = "cpu") -> nn.Module:
    """Build a network with deterministic random weights and no stochastic depth, in evaluation mode and NCHW.

    Args:
        network: the network to build.
        image_size: height and width of the input images, in pixels.
        kernel_size: of VAN's large kernel attention, in pixels; that of the paper by default.
        device: ``meta`` for a network without values.
    """
    options: dict[str, Any] = {}
    if network.has_fixed_image_size:
        options["img_size"] = image_size
    if kernel_size is not None:
        options["kernel_size"] = kernel_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(network.timm_name, drop_path_rate=0.0, device=device, **options)
    if device != "meta":
        calibration_size = image_size if network.has_fixed_image_size else min(image_size, PUBLISHED_IMAGE_SIZE)
        _randomize_scales_and_norms(model, calibration_size)
    return model.eval()


def _randomize_scales_and_norms(model: nn.Module, image_size: int) -> None:
    """Randomize layer scales, and set the statistics of norms from random images.

    With the initial values, layer scales near zero would hide an incorrect block, and norms that do not normalize
    would let activations grow until rounding errors dominate.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if parameter.ndim == 1 and last in ("gamma", "layer_scale_1", "layer_scale_2"):
                parameter.uniform_(0.35, 0.7, generator=generator)
            elif parameter.ndim == 1 and last == "weight" and not parameter.any():
                # the zero-initialized last norm of each residual branch of ResNet
                parameter.uniform_(0.1, 0.3, generator=generator)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # cumulative average, here over one batch
        if norms:
            model.train()(torch.randn(2, 3, image_size, image_size, generator=generator))
        for norm in norms:
            norm.momentum = 0.1
            if norm.running_var is not None:
                norm.running_var.clamp_(min=1e-2)  # a channel that ReLU set to zero has no variance
