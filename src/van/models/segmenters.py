"""Semantic segmentation with VAN: the paper's two heads, with the names of mmsegmentation's checkpoints.

Semantic FPN (Kirillov et al. 2019, arXiv:1901.02446) merges the levels of a feature pyramid; UPerNet (Xiao et al.
2018, arXiv:1807.10221) pools the last level at four scales first, and trains with an auxiliary head on stage 3.
Attribute names are those of mmsegmentation, so that its ADE20K checkpoints load strictly.

Shapes: images (N, 3, H, W), or a list of (3, H, W) of different sizes; level l of the backbone
(N, C_l, H / 2^(l+2), W / 2^(l+2)), rounded up; logits (N, classes, H/4, W/4) from a head, (N, classes, H, W)
from the network.
"""

from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.models.necks import FeaturePyramid
from van.models.registry import VARIANTS
from van.models.van import VAN

_CHANNELS = {"semantic_fpn": 128, "upernet": 512}
HEADS = tuple(_CHANNELS)
"""Segmentation heads by name."""
_DROPOUT = 0.1
"""Dropout probability of the channels before the last convolution."""


class ConvNormAct(nn.Module):
    """A convolution of stride 1 without bias, BatchNorm and ReLU, with mmsegmentation's names ``conv`` and ``bn``."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Resize ``x`` bilinearly to the rows and columns of ``like``, corners not aligned."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class _Head(nn.Module):
    """The last layers of every head: channel dropout and a 1x1 convolution to the classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout2d(_DROPOUT)

    def classify(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))


class SemanticFpnHead(_Head):
    """The head of Semantic FPN: every level is convolved and upsampled to the first one's size, the sum classified.

    ``levels`` is the number of pyramid levels, ``channels`` the width of the head.
    """

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
            merged = merged + resize_like(other, like=merged)
        return self.classify(merged)


class UPerHead(_Head):
    """The head of UPerNet: pyramid pooling of the last level to 1, 2, 3 and 6 pixels a side, then a feature pyramid."""

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
        pooled = [resize_like(module(last), like=last) for module in self.psp_modules]
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, lower, strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for index in reversed(range(len(lower))):
            levels[index] = levels[index] + resize_like(levels[index + 1], like=levels[index])
        smooth = [conv(level) for conv, level in zip(self.fpn_convs, levels[:-1], strict=True)]
        first, *others = [*smooth, levels[-1]]
        return self.classify(
            self.fpn_bottleneck(torch.cat([first, *(resize_like(o, like=first) for o in others)], dim=1))
        )


class AuxiliaryHead(_Head):
    """The auxiliary head of UPerNet: one convolution on stage 3, used in training only."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 256) -> None:
        super().__init__(channels, num_classes)
        self.convs = nn.Sequential(ConvNormAct(in_channels, channels, 3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.classify(self.convs(maps[2]))


class SegmentationOutput(NamedTuple):
    """Logits (N, classes, H, W), and in training those of the auxiliary head, or None without one."""

    logits: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """VAN with a segmentation head.

    In evaluation it returns logits (N, classes, H, W), or a list of (classes, H, W) for a list of images; in training
    a ``SegmentationOutput``, and images in a list must have one size.

    Args:
        backbone: a VAN; its classifier is removed.
        head: ``semantic_fpn`` or ``upernet``.
        num_classes: number of classes.
        channels: of the head, the paper's if None: 128 for Semantic FPN, on a neck of twice as many, and 512 for
            UPerNet, with half as many in the auxiliary head.

    Raises:
        UsageError: the head is unknown, there are no classes, or there are fewer than 2 channels.
    """

    def __init__(self, backbone: VAN, *, head: str, num_classes: int, channels: int | None = None) -> None:
        super().__init__()
        if head not in HEADS:
            raise UsageError(f"head: expected one of {', '.join(HEADS)}, got {head!r}")
        if num_classes < 1:
            raise UsageError(f"num_classes: expected at least 1, got {num_classes}")
        width = _CHANNELS[head] if channels is None else channels
        if width < 2:
            raise UsageError(f"channels: expected at least 2, got {channels}")
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
        """Names of the layers whose size depends on the number of classes."""
        return ("decode_head.conv_seg", *(["auxiliary_head.conv_seg"] if self.auxiliary_head is not None else []))

    def get_classifier(self) -> nn.ModuleList:
        """Return all modules except the backbone."""
        return nn.ModuleList(module for name, module in self.named_children() if name != "backbone")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay, beside biases and norms: the layer scales."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable gradient checkpointing of the backbone: its blocks run forward twice and store no activations."""
        self.backbone.set_grad_checkpointing(enable)

    def forward_head(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (N, classes, H/4, W/4), rounded up, and the backbone's feature maps."""
        maps = self.backbone.forward_intermediates(x, norm=True, intermediates_only=True)
        assert isinstance(maps, list)
        return self.decode_head(self.neck(maps)), maps

    def forward(self, x: Tensor | list[Tensor]) -> Tensor | list[Tensor] | SegmentationOutput:
        if isinstance(x, list) and not self.training:
            return self._forward_by_size(x)
        if isinstance(x, list):
            x = _stack_equal_sizes(x)
        logits, maps = self.forward_head(x)
        logits = resize_like(logits, like=x)
        if not self.training:
            return logits
        auxiliary = None if self.auxiliary_head is None else resize_like(self.auxiliary_head(maps), like=x)
        return SegmentationOutput(logits, auxiliary)

    def _forward_by_size(self, images: list[Tensor]) -> list[Tensor]:
        """Return logits of each image; images of one size form one batch."""
        indices_by_size: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            indices_by_size.setdefault(image.shape, []).append(index)
        logits: dict[int, Tensor] = {}
        for indices in indices_by_size.values():
            x = torch.stack([images[index] for index in indices])
            logits |= zip(indices, resize_like(self.forward_head(x)[0], like=x), strict=True)
        return [logits[index] for index in range(len(images))]


def _stack_equal_sizes(images: list[Tensor]) -> Tensor:
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) != 1:
        shown = ", ".join(f"{rows}x{columns}" for rows, columns in sizes) or "none"
        raise ShapeError(f"images: expected one size in training, got {shown}; crop or pad them")
    return torch.stack(images)


def create_segmenter(
    model: str, *, head: str, num_classes: int, channels: int | None = None, **options: Any
) -> Segmenter:
    """Create an untrained ``Segmenter`` on the VAN of that name; ``options`` are the VAN's.

    The LayerNorms have mmsegmentation's eps of 1e-5 unless ``norm_eps`` is given.

    Raises:
        UsageError: the VAN or the head is unknown.
    """
    if model not in VARIANTS:
        raise UsageError(f"backbone: expected one of {', '.join(VARIANTS)}, got {model!r}")
    backbone_options: dict[str, Any] = {"norm_eps": 1e-5, **options}
    backbone = timm.create_model(model, num_classes=0, **backbone_options)
    assert isinstance(backbone, VAN)
    return Segmenter(backbone, head=head, num_classes=num_classes, channels=channels)
