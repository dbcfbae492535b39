"""The networks that are compared: VAN, and from timm the ones its paper and its followers stand beside.

Top-1 is ImageNet-1K in percent, one crop of 224 x 224, trained on ImageNet-1K alone, as published.
Speed does not depend on the weights, so they are random, and nothing is downloaded.
"""

import dataclasses
from typing import Any

import timm
import torch
from torch import nn

import van  # noqa: F401  registers VAN with timm
from van.models.catalogue import VARIANTS

PUBLISHED_AT_PX = 224
CHANNELS_LAST, NCHW = "channels_last", "NCHW"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """One network. ``layout`` is the one it is usually run in: convolutions like channels_last.

    ``top1`` is in percent, and ``source`` says where it is from.
    """

    name: str
    timm_name: str
    family: str
    layout: str
    top1: float | None
    source: str
    sized: bool = False
    """Whether it is built for one size of picture."""
    gradient_tolerance: float = 1e-4
    """How far float32 gradients may be from float64's, as a share of their length."""

    @property
    def is_van(self) -> bool:
        """Whether this package has its own ways to run it."""
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
        name="swin_tiny", timm_name="swin_tiny_patch4_window7_224", family="Swin", layout=NCHW, sized=True,
        top1=81.3, source="Liu et al. 2021, arXiv:2103.14030, table 1",
    ),
    Network(
        name="swin_small", timm_name="swin_small_patch4_window7_224", family="Swin", layout=NCHW, sized=True,
        top1=83.0, source="Liu et al. 2021, arXiv:2103.14030, table 1",
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
        gradient_tolerance=1e-2,  # rounding switches some ReLUs on or off, which changes gradients by leaps
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
"""Every network that can be measured, by name."""


def build(network: Network, *, size_px: int, kernel_size: int | None = None, device: str = "cpu") -> nn.Module:
    """A fresh network, the same each time, without stochastic parts; in evaluation and NCHW.

    Args:
        network: which.
        size_px: side of the pictures it will see.
        kernel_size: of VAN's large kernel attention, in pixels, if not the paper's.
        device: ``meta`` for one without numbers.
    """
    options: dict[str, Any] = {}
    if network.sized:
        options["img_size"] = size_px
    if kernel_size is not None:
        options["kernel_size"] = kernel_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(network.timm_name, drop_path_rate=0.0, device=device, **options)
    if device != "meta":
        _make_every_part_count(model, size_px if network.sized else min(size_px, PUBLISHED_AT_PX))
    return model.eval()


def _make_every_part_count(model: nn.Module, size_px: int) -> None:
    """Give layer scales size and norms the statistics of what they see.

    As initialised, layer scales hide a block that answers wrong, and norms that do not normalise let the
    values of a deep network grow until rounding is all that is left of them.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if parameter.ndim == 1 and last in ("gamma", "layer_scale_1", "layer_scale_2"):
                parameter.uniform_(0.35, 0.7, generator=generator)
            elif parameter.ndim == 1 and last == "weight" and not parameter.any():  # a ResNet's blocks add nothing
                parameter.uniform_(0.1, 0.3, generator=generator)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean over all it sees, which is one batch
        if norms:
            model.train()(torch.randn(2, 3, size_px, size_px, generator=generator))
        for norm in norms:
            norm.momentum = 0.1
            if norm.running_var is not None:
                norm.running_var.clamp_(min=1e-2)  # a channel that ReLU left at zero has none
