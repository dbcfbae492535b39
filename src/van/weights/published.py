"""The registry of published models: the seven variants of VAN, and the sources of their weights.

Tests recompute parameters and multiply-accumulates (224 x 224, convolutions and linears).
Top-1 is the paper's, in percent. This module does not import torch.
Source: Guo et al. 2022, arXiv:2202.09741, tables 3 and 5; hub and zoo names as of 2022-2023.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of VAN.

    Args:
        name: in timm.
        alias: the paper's first name of it.
        dims, depths: channels and number of blocks of each stage.
        parameters: with the classifier for 1,000 classes.
        macs: multiply-accumulates for one 224 x 224 image.
        top1: accuracy on ImageNet-1K in percent; None where the paper has none.
        drop_path_rate: in the paper's training.
        hub_repository, hub_file: of the public weights on the Hugging Face hub.
        other_source: a description of where public weights are, if they are not on the hub.
    """

    name: str
    alias: str | None
    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    parameters: int
    macs: int
    top1: float | None
    drop_path_rate: float
    hub_repository: str | None = None
    hub_file: str | None = None
    other_source: str | None = None

    @property
    def weights(self) -> str | None:
        """A description of where the public weights are, or None."""
        return f"{self.hub_repository} ({self.hub_file})" if self.hub_repository else self.other_source


MLP_RATIOS = (8.0, 8.0, 4.0, 4.0)
LICENSE_NOTE = (
    "License of these weights: Apache-2.0; for commercial use please contact the authors: "
    "github.com/Visual-Attention-Network."
)
_HUB = "Visual-Attention-Network/VAN-{}-original"
_WIDE = (64, 128, 320, 512)

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="van_b0", alias="Tiny", dims=(32, 64, 160, 256), depths=(3, 3, 5, 2),
            parameters=4_105_800, macs=864_224_000, top1=75.4, drop_path_rate=0.1,
            hub_repository=_HUB.format("Tiny"), hub_file="van_tiny_754.pth.tar",
        ),
        Variant(
            name="van_b1", alias="Small", dims=_WIDE, depths=(2, 2, 4, 2),
            parameters=13_861_800, macs=2_495_262_720, top1=81.1, drop_path_rate=0.1,
            hub_repository=_HUB.format("Small"), hub_file="van_small_811.pth.tar",
        ),
        Variant(
            name="van_b2", alias="Base", dims=_WIDE, depths=(3, 3, 12, 3),
            parameters=26_578_472, macs=4_992_773_120, top1=82.8, drop_path_rate=0.1,
            hub_repository=_HUB.format("Base"), hub_file="van_base_828.pth.tar",
        ),
        Variant(
            name="van_b3", alias="Large", dims=_WIDE, depths=(3, 5, 27, 3),
            parameters=44_765_608, macs=8_925_292_032, top1=83.9, drop_path_rate=0.2,
            hub_repository=_HUB.format("Large"), hub_file="van_large_839.pth.tar",
        ),
        Variant(
            name="van_b4", alias=None, dims=_WIDE, depths=(3, 6, 40, 3),
            parameters=60_283_176, macs=12_143_756_288, top1=84.2, drop_path_rate=0.2,
            other_source="mmpretrain: van-b4_3rdparty_in1k_20220909-f4665b92.pth, then van convert",
        ),
        Variant(
            name="van_b5", alias=None, dims=(96, 192, 480, 768), depths=(3, 3, 24, 3),
            parameters=89_967_688, macs=17_129_123_328, top1=None, drop_path_rate=0.2,
            other_source="mmpretrain: van-b5_3rdparty_in21k (22K classes), then van convert",
        ),
        Variant(
            name="van_b6", alias=None, dims=(96, 192, 384, 768), depths=(6, 6, 90, 6),
            parameters=199_829_416, macs=38_710_096_896, top1=None, drop_path_rate=0.3,
            other_source="mmpretrain: van-b6_3rdparty_in21k (22K classes), then van convert",
        ),
    )
}  # fmt: skip
"""The seven variants by timm name."""
