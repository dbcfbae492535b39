"""VAN, the Visual Attention Network, in seven sizes.

``van_b0`` ... ``van_b6`` keep the state-dict keys of the released checkpoints and follow timm's backbone contract;
``timm_models`` registers them with timm. This module does not import timm, because timm imports torchvision and much
of torch's compiler, which takes longer than a prediction.
Shapes: N images (N, C, H, W); the four stages have strides 4, 8, 16 and 32.
Source: Guo et al. 2022, arXiv:2202.09741, table 3.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.backbones.layers import Block, OverlapPatchEmbed, init_weights
from van.errors import ShapeError
from van.weights.published import MLP_RATIOS, VARIANTS

STAGES = (1, 2, 3, 4)
STAGE_INDICES = (0, 1, 2, 3)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W), as timm's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.LayerNorm
        x = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class GlobalPool(nn.Module):
    """Pool (N, C, H, W) to (N, C): the mean (``avg``), ``max``, or half the sum of both (``avgmax``).

    ``catavgmax`` gives (N, 2C), both one after the other; "" keeps the map. As timm's ``SelectAdaptivePool2d``.
    """

    def __init__(self, pool_type: str) -> None:
        super().__init__()
        known = ("avg", "max", "avgmax", "catavgmax", "")
        if pool_type not in known:
            raise ShapeError(f"global_pool: expected one of {', '.join(known[:-1])} or '', got {pool_type!r}")
        self.pool_type = pool_type

    def forward(self, x: Tensor) -> Tensor:
        if not self.pool_type:
            return x
        if self.pool_type == "avg":
            return F.adaptive_avg_pool2d(x, 1).flatten(1)
        largest = F.adaptive_max_pool2d(x, 1)
        if self.pool_type == "max":
            return largest.flatten(1)
        mean = F.adaptive_avg_pool2d(x, 1)
        pooled = 0.5 * (mean + largest) if self.pool_type == "avgmax" else torch.cat([mean, largest], dim=1)
        return pooled.flatten(1)


class VAN(nn.Module):
    """The Visual Attention Network: four stages, global pooling and a linear classifier.

    Args:
        num_classes: outputs of the classifier; 0 removes it and gives the pooled features.
        in_chans: channels of the input images.
        global_pool: ``avg``, ``max``, ``avgmax``, ``catavgmax``, or "" to keep the map (with ``num_classes=0``).
        dims, depths, mlp_ratios: channels, number of blocks and expansion of the feed-forward network of each stage.
        kernel_size, dilation: of every LKA, in pixels.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout inside every feed-forward network.
        drop_path_rate: of the last block; it rises linearly from 0 over all blocks.
        norm_eps: of the LayerNorm that ends each stage (1e-6 released, 1e-5 in mmsegmentation).
        output_stride: 32, the only value; accepted because libraries on top of timm pass it.

    Raises:
        ShapeError: ``output_stride`` is not 32, a stage lacks an entry, or there is a classifier without pooling.
    """

    def __init__(
        self, *, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg",
        dims: tuple[int, ...] = (32, 64, 160, 256), depths: tuple[int, ...] = (3, 3, 5, 2),
        mlp_ratios: tuple[float, ...] = MLP_RATIOS, kernel_size: int = 21, dilation: int | None = None,
        drop_rate: float = 0.0, proj_drop_rate: float = 0.0, drop_path_rate: float = 0.0, norm_eps: float = 1e-6,
        output_stride: int = 32, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if output_stride != 32:
            raise ShapeError(f"output_stride: expected 32, because VAN's stages are not dilated, got {output_stride}")
        if {len(dims), len(depths), len(mlp_ratios)} != {len(STAGES)}:
            raise ShapeError(
                f"dims, depths, mlp_ratios: expected {len(STAGES)} values each, got {dims}, {depths}, {mlp_ratios}"
            )
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []
        last_block = max(sum(depths) - 1, 1)
        rates = (drop_path_rate * index / last_block for index in range(sum(depths)))
        channels, reduction = in_chans, 1
        for stage, dim, depth, ratio in zip(STAGES, dims, depths, mlp_ratios, strict=True):
            patch_size, stride = (7, 4) if stage == 1 else (3, 2)
            embed = OverlapPatchEmbed(channels, dim, patch_size=patch_size, stride=stride, **dd)
            blocks = [
                Block(
                    dim, mlp_ratio=ratio, kernel_size=kernel_size, dilation=dilation,
                    drop_rate=proj_drop_rate, drop_path_rate=next(rates), **dd,
                )
                for _ in range(depth)
            ]  # fmt: skip
            self.add_module(f"patch_embed{stage}", embed)
            self.add_module(f"block{stage}", nn.Sequential(*blocks))
            self.add_module(f"norm{stage}", LayerNorm2d(dim, eps=norm_eps, **dd))
            channels, reduction = dim, reduction * stride
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"norm{stage}"})
        self.global_pool, self.head = self._classifier(num_classes, global_pool, dd)
        self.head_drop = nn.Dropout(drop_rate)
        if torch.device(device or "cpu").type != "meta":
            self.apply(init_weights)

    def _classifier(self, num_classes: int, global_pool: str, dd: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
        if num_classes > 0 and not global_pool:
            raise ShapeError(
                f"num_classes: expected 0 without pooling (global_pool=''), got {num_classes}; set global_pool='avg'"
            )
        num_features = self.num_features * (2 if global_pool == "catavgmax" else 1)
        head = nn.Linear(num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        return GlobalPool(global_pool), head

    def _stage(self, stage: int) -> tuple[nn.Module, nn.Sequential, nn.Module]:
        embed, blocks = getattr(self, f"patch_embed{stage}"), getattr(self, f"block{stage}")
        return embed, blocks, getattr(self, f"norm{stage}")

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay, beside biases and norms: the layer scales."""
        return {name for name, _ in self.named_parameters() if ".layer_scale_" in name}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that order parameters by depth (for layer-wise decay), by stage if ``coarse``."""
        fine = [(r"^patch_embed(\d+)", None), (r"^block(\d+)\.(\d+)", None), (r"^norm(\d+)", (99999,))]
        return {"stem": r"^patch_embed1", "blocks": r"^(?:patch_embed|block|norm)(\d+)" if coarse else fine}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable gradient checkpointing: every block runs forward twice and stores no activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an identity if ``num_classes`` is 0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of ``num_classes`` outputs (0 removes it)."""
        pool_type = str(self.global_pool.pool_type) if global_pool is None else global_pool
        weight = next(self.parameters())
        self.global_pool, self.head = self._classifier(
            num_classes, pool_type, {"device": weight.device, "dtype": weight.dtype}
        )
        self.num_classes = num_classes
        if weight.device.type != "meta":
            self.head.apply(init_weights)

    def _run_blocks(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        if self.grad_checkpointing and len(blocks) and not torch.jit.is_scripting():
            from timm.models._manipulate import checkpoint_seq

            return checkpoint_seq(blocks, x)
        return blocks(x)

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Return the feature maps of chosen stages, before their LayerNorm or, with ``norm``, after it.

        Args:
            x: (N, C, H, W).
            indices: the last n stages if an int, every stage if None, else stage indices from 0.
            norm: return each map after the LayerNorm that ends its stage.
            stop_early: do not compute stages after the last requested one.
            output_fmt: ``NCHW``, the only value.
            intermediates_only: return the maps without the final features.

        Returns:
            The maps, or the final features (always normalized) and the maps.
        """
        if output_fmt != "NCHW":
            raise ShapeError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        from timm.models._features import feature_take_indices

        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        for index, stage in enumerate(STAGES[: last + 1] if stop_early else STAGES[: len(self.feature_info)]):
            embed, blocks, normalize = self._stage(stage)
            raw = self._run_blocks(blocks, embed(x))
            x = normalize(raw)
            if index in take:
                intermediates.append(x if norm else raw)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last requested one; return the indices that are kept."""
        from timm.models._features import feature_take_indices

        take, last = feature_take_indices(len(self.feature_info), indices)
        dropped = STAGES[last + 1 : len(self.feature_info)]
        for stage in dropped:
            for name in (f"patch_embed{stage}", f"block{stage}", f"norm{stage}"):
                delattr(self, name)
        self.feature_info = self.feature_info[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        if prune_norm:
            setattr(self, f"norm{STAGES[last]}", nn.Identity())
        if prune_head or dropped:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalized map of stage 4, (N, D, ceil(H/32), ceil(W/32))."""
        for stage in STAGES[: len(self.feature_info)]:
            embed, blocks, normalize = self._stage(stage)
            x = normalize(self._run_blocks(blocks, embed(x)))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the map of stage 4 and classify it: (N, num_classes), or the pooled features if ``pre_logits``."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def create_van(name: str, **options: Any) -> VAN:
    """Create an untrained variant of VAN as ``timm.create_model`` does, without timm.

    Raises:
        TypeError: VAN has no such option.
    """
    variant = VARIANTS[name]
    given: dict[str, Any] = {"dims": variant.dims, "depths": variant.depths, **options}
    network: Any = VAN(**given)
    network.pretrained_cfg = network.default_cfg = {**van_config(name), "architecture": name}
    return network


def van_config(name: str) -> dict[str, Any]:
    """Return timm's pretrained configuration of a variant."""
    variant = VARIANTS[name]
    hub = {"hf_hub_id": variant.hub_repository, "hf_hub_filename": variant.hub_file} if variant.hub_file else {}
    return {
        "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7),
        "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed1.proj", "classifier": "head", "license": "apache-2.0",
        "paper_ids": "arXiv:2202.09741", "paper_name": "Visual Attention Network",
        "origin_url": "github.com/Visual-Attention-Network/VAN-Classification", **hub,
    }  # fmt: skip
