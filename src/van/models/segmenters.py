"""Semantic segmentation with VAN: the paper's two heads, in the layout of mmsegmentation's checkpoints.

Semantic FPN (Kirillov et al. 2019, arXiv:1901.02446) merges the levels of a feature pyramid; UPerNet (Xiao et
al. 2018, arXiv:1807.10221) pools the last level at four scales first, and learns with an auxiliary head on
stage 3. Attribute names are those of mmsegmentation, so that its ADE20K checkpoints load entry for entry.

Shapes: pictures (N, 3, H, W), or a list of (3, H, W) of different sizes; level l of the backbone
(N, C_l, H / 2^(l+2), W / 2^(l+2)), rounded up; logits (N, classes, H/4, W/4) from a head, (N, classes, H, W)
from the network.
"""

from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.models.catalogue import VARIANTS
from van.models.necks import FeaturePyramid
from van.models.van import VAN

_CHANNELS = {"semantic_fpn": 128, "upernet": 512}
HEADS = tuple(_CHANNELS)
"""Segmentation heads by name."""
_DROPOUT = 0.1
"""Share of the channels before the last convolution that training leaves out."""


class ConvNormAct(nn.Module):
    """A convolution without bias that keeps the size, BatchNorm and ReLU, under the names ``conv`` and ``bn``."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the rows and columns of ``like``, bilinear, corners not aligned."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class _Head(nn.Module):
    """What every head ends with: dropout of whole channels, and a 1x1 convolution to the classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout2d(_DROPOUT)

    def classify(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))


class SemanticFpnHead(_Head):
    """Each level convolved and doubled until it has the size of the first, and their sum classified."""

    def __init__(self, in_channels: int, num_classes: int, *, levels: int = 4, channels: int = 128) -> None:
        super().__init__(channels, num_classes)
        self.scale_heads = nn.ModuleList()
        for level in range(levels):
            steps: list[nn.Module] = []
            for step in range(max(1, level)):
                steps.append(ConvNormAct(in_channels if step == 0 else channels, channels, 3))
                if level > 0:
                    steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scale_heads.append(nn.Sequential(*steps))

    def forward(self, maps: list[Tensor]) -> Tensor:
        merged, *others = (head(level) for head, level in zip(self.scale_heads, maps, strict=True))
        for other in others:
            merged = merged + resized(other, like=merged)
        return self.classify(merged)


class UPerHead(_Head):
    """A feature pyramid on top of the last level pooled to 1, 2, 3 and 6 pixels a side."""

    def __init__(
        self,
        in_channels: tuple[int, ...],
        num_classes: int,
        *,
        channels: int = 512,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
    ) -> None:
        super().__init__(channels, num_classes)
        *lower, last = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(last, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = ConvNormAct(last + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(c, channels, 1) for c in lower)
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in lower)
        self.fpn_bottleneck = ConvNormAct(len(in_channels) * channels, channels, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        *lower, last = maps
        pooled = [resized(module(last), like=last) for module in self.psp_modules]
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, lower, strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for place in reversed(range(len(lower))):
            levels[place] = levels[place] + resized(levels[place + 1], like=levels[place])
        smooth = [conv(level) for conv, level in zip(self.fpn_convs, levels[:-1], strict=True)]
        first, *others = [*smooth, levels[-1]]
        return self.classify(self.fpn_bottleneck(torch.cat([first, *(resized(o, like=first) for o in others)], dim=1)))


class AuxiliaryHead(_Head):
    """One convolution on stage 3, which only training uses."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 256) -> None:
        super().__init__(channels, num_classes)
        self.convs = nn.Sequential(ConvNormAct(in_channels, channels, 3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.classify(self.convs(maps[2]))


class SegmentationOutput(NamedTuple):
    """Logits (N, classes, H, W), and those of the auxiliary head in training where there is one."""

    logits: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """VAN with a segmentation head.

    In evaluation it gives logits (N, classes, H, W), or a list of (classes, H, W) for a list of pictures; in
    training a ``SegmentationOutput``, and pictures in a list must have one size.

    Args:
        backbone: a VAN; its classifier is taken off.
        head: ``semantic_fpn`` or ``upernet``.
        num_classes: classes of the map.
        channels: of the head, the paper's if None: 128 for Semantic FPN, on a neck of twice as many, and 512 for
            UPerNet, with half as many in the auxiliary head.

    Raises:
        UsageError: there is no head of that name, or fewer than one class or channel.
    """

    def __init__(self, backbone: VAN, *, head: str, num_classes: int, channels: int | None = None) -> None:
        super().__init__()
        if head not in HEADS:
            raise UsageError(f"there is no segmentation head {head!r}; known: {', '.join(HEADS)}")
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}; wanted at least 1")
        width = _CHANNELS[head] if channels is None else channels
        if width < 2:
            raise UsageError(f"channels is {channels}; wanted at least 2")
        in_channels = tuple(level["num_chs"] for level in backbone.feature_info)
        backbone.reset_classifier(0)
        self.backbone = backbone
        self.num_classes = num_classes
        self.neck: nn.Module = nn.Identity()
        self.auxiliary_head: AuxiliaryHead | None = None
        if head == "semantic_fpn":
            self.neck = FeaturePyramid(in_channels, out_channels=2 * width)
            self.decode_head: nn.Module = SemanticFpnHead(2 * width, num_classes, channels=width)
        else:
            self.decode_head = UPerHead(in_channels, num_classes, channels=width)
            self.auxiliary_head = AuxiliaryHead(in_channels[2], num_classes, channels=width // 2)

    @property
    def class_layers(self) -> tuple[str, ...]:
        """Names of the layers whose size follows the number of classes."""
        return ("decode_head.conv_seg", *(["auxiliary_head.conv_seg"] if self.auxiliary_head is not None else []))

    def get_classifier(self) -> nn.ModuleList:
        """Everything but the backbone."""
        return nn.ModuleList(part for name, part in self.named_children() if name != "backbone")

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside biases and norms: the layer scales."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade a second forward pass of every block of the backbone for the memory of its activations."""
        self.backbone.set_grad_checkpointing(enable)

    def forward_head(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (N, classes, H/4, W/4), rounded up, and the maps of the backbone that they come from."""
        maps = self.backbone.forward_intermediates(x, norm=True, intermediates_only=True)
        assert isinstance(maps, list)
        return self.decode_head(self.neck(maps)), maps

    def forward(self, x: Tensor | list[Tensor]) -> Tensor | list[Tensor] | SegmentationOutput:
        if isinstance(x, list) and not self.training:
            return self._each(x)
        if isinstance(x, list):
            x = _stacked(x)
        logits, maps = self.forward_head(x)
        logits = resized(logits, like=x)
        if not self.training:
            return logits
        auxiliary = None if self.auxiliary_head is None else resized(self.auxiliary_head(maps), like=x)
        return SegmentationOutput(logits, auxiliary)

    def _each(self, pictures: list[Tensor]) -> list[Tensor]:
        """Logits of each picture; those of one size run together."""
        places: dict[torch.Size, list[int]] = {}
        for place, picture in enumerate(pictures):
            places.setdefault(picture.shape, []).append(place)
        found: dict[int, Tensor] = {}
        for alike in places.values():
            x = torch.stack([pictures[place] for place in alike])
            found |= zip(alike, resized(self.forward_head(x)[0], like=x), strict=True)
        return [found[place] for place in range(len(pictures))]


def _stacked(pictures: list[Tensor]) -> Tensor:
    sizes = sorted({tuple(picture.shape[1:]) for picture in pictures})
    if len(sizes) != 1:
        shown = ", ".join(f"{rows}x{columns}" for rows, columns in sizes) or "none"
        raise ShapeError(f"pictures have the sizes {shown}; wanted one size in training: crop or pad them")
    return torch.stack(pictures)


def create_segmenter(
    model: str, *, head: str, num_classes: int, channels: int | None = None, **options: Any
) -> Segmenter:
    """A fresh ``Segmenter`` on the VAN of that name; ``options`` are the VAN's.

    Its LayerNorm has mmsegmentation's eps of 1e-5 unless one is given.

    Raises:
        UsageError: there is no VAN or head of that name.
    """
    if model not in VARIANTS:
        raise UsageError(f"there is no {model!r} to build on; known: {', '.join(VARIANTS)}")
    with_eps: dict[str, Any] = {"norm_eps": 1e-5, **options}
    backbone = timm.create_model(model, num_classes=0, **with_eps)
    assert isinstance(backbone, VAN)
    return Segmenter(backbone, head=head, num_classes=num_classes, channels=channels)
