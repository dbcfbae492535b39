"""A head of another package: semantic segmentation by a 1x1 convolution on the sum of two levels of VAN."""

from typing import Any

from torch import Tensor, nn

from van.errors import UsageError
from van.heads import register_head
from van.heads.segmenter import SegmentationHead, Segmenter, resize_like


class ToyHead(SegmentationHead):
    """Stages 1 and 4, projected to ``channels``, added and classified."""

    def __init__(self, in_channels: list[int], num_classes: int, *, channels: int) -> None:
        super().__init__(channels, num_classes)
        self.first = nn.Conv2d(in_channels[0], channels, 1)
        self.last = nn.Conv2d(in_channels[-1], channels, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        first = self.first(maps[0])
        return self.classify(first + resize_like(self.last(maps[-1]), like=first))


@register_head("toy", title="Toy", task="segment")
def create_toy(backbone: Any, *, num_classes: int, channels: int = 16) -> nn.Module:
    """Create an untrained network."""
    if channels < 1:
        raise UsageError(f"channels: expected at least 1, got {channels}")
    in_channels = [level["num_chs"] for level in backbone.feature_info]
    return Segmenter(backbone, decode_head=ToyHead(in_channels, num_classes, channels=channels))
