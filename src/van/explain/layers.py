"""Layers of a network by the name of their stage, and their outputs as feature maps.

Shapes: maps (N, C, h, w), converted from (N, h, w, C) of Swin and (N, prefix + h·w, C) of ViT.
Stages have strides 4, 8, 16 and 32; the layer of a stage is its last block, the target layer of the Grad-CAM paper.
"""

import re
from typing import Any, NamedTuple

from torch import Tensor, nn

from van.backbones.van import STAGES, VAN
from van.errors import ShapeError, UsageError

_STRIDES = (4, 8, 16, 32)
_MIN_CELLS = 4


class Layer(NamedTuple):
    """A layer: its name, its module, and the network that contains it.

    ``stride`` is that of its cells in pixels of the network's input; None where it is unknown.
    """

    name: str
    module: nn.Module
    network: nn.Module
    stride: int | None

    def to_maps(self, output: Any) -> Tensor:
        """Return the layer's output as (N, C, h, w).

        Raises:
            ShapeError: it is not a tensor, or its tokens do not form a grid.
        """
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(
                f"layer {self.name}: expected feature maps (N, C, h, w), got {shape}; choose another layer"
            )
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else output
        prefix = int(getattr(self.network, "num_prefix_tokens", 0))
        rows, columns = self._grid(output.shape[1] - prefix)
        return output[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))

    def _grid(self, tokens: int) -> tuple[int, int]:
        grid: Any = getattr(getattr(self.network, "patch_embed", None), "grid_size", None)
        side = round(tokens**0.5)
        rows, columns = grid if grid is not None and grid[0] * grid[1] == tokens else (side, side)
        if rows * columns != tokens:
            raise ShapeError(f"layer {self.name}: expected a square grid of tokens, got {tokens}; choose another layer")
        return rows, columns


def find_layer(network: nn.Module, name: str | None = None, *, input_size: int | None = None) -> Layer:
    """Return the layer of that name: ``stage1`` to ``stage4``, ``stage3.block0``, or the path of any module.

    Args:
        network: a VAN, a model with a VAN as backbone, or a model from timm.
        name: name of the layer. If None, the last block of stage 4, or of the deepest stage with at least 4 x 4 cells
            (for inputs up to 96 pixels); the last block of a network without stages.
        input_size: the shorter side of the network's input in pixels, for the choice of the stage.

    Raises:
        UsageError: there is no such layer; the message lists those that exist.
    """
    body = find_backbone(network)
    if name is None:
        stages = {f"stage{stage}": stride for stage, stride in zip(STAGES, _STRIDES, strict=True)}
        large_enough = [
            s for s, stride in stages.items() if input_size is None or -(-input_size // stride) >= _MIN_CELLS
        ]
        for stage in reversed(large_enough or ["stage1"]):
            if (module := _stage(body, stage)) is not None:
                return Layer(stage, module, body, stages[stage])
        return _last(body)
    if re.fullmatch(r"stage[0-9]+(\.block[0-9]+)?", name):
        module = _stage(body, name)
    else:
        module = dict(body.named_modules()).get(name) or dict(network.named_modules()).get(name)
    if module is None or name == "":
        raise UsageError(f"layer: expected {', '.join(_known(body))}, or the path of any module, got {name!r}")
    return Layer(name, module, body, _stride(body, name))


def find_backbone(network: nn.Module) -> nn.Module:
    """Return the VAN that is the network's backbone, or the network itself."""
    backbone = getattr(network, "backbone", None)
    return backbone if isinstance(backbone, VAN) else network


def _stage(body: nn.Module, name: str) -> nn.Module | None:
    """Return the last block of a stage, or the block of that name; None if it does not exist."""
    stage, _, block = name.partition(".block")
    index = int(stage.removeprefix("stage"))
    blocks = _blocks(body, index)
    if block:
        return blocks[int(block)] if int(block) < len(blocks) else None
    if isinstance(body, VAN):
        return blocks[-1] if blocks else None
    paths = _paths(body, index)
    return body.get_submodule(paths[-1]) if paths and len(paths) < len(_feature_info(body)) else None


def _blocks(body: nn.Module, stage: int) -> list[nn.Module]:
    """Return the blocks of a stage."""
    if isinstance(body, VAN):
        return list(getattr(body, f"block{stage}", ()))
    paths = _paths(body, stage)
    return list(getattr(body.get_submodule(paths[-1]), "blocks", ())) if paths else []


def _paths(body: nn.Module, stage: int) -> list[str]:
    """Return the modules that timm lists with the stage's stride; all of them in networks of a single stride."""
    if stage not in STAGES:
        return []
    return [info["module"] for info in _feature_info(body) if info["reduction"] == _STRIDES[stage - 1]]


def _feature_info(body: nn.Module) -> list[dict[str, Any]]:
    """Return timm's description of a network's stages."""
    info: Any = getattr(body, "feature_info", None)
    if info is None:
        return []
    return list(info) if isinstance(info, list) else [dict(stage) for stage in info.info]


def _last(body: nn.Module) -> Layer:
    """Return the layer of a network without stages: the first norm of its last block.

    After that block the classifier of a ViT reads a single token, so that the others have no gradient.
    """
    blocks = [name for name, _ in body.named_modules() if re.fullmatch(r"blocks\.[0-9]+", name)]
    if not blocks:
        raise UsageError(f"layer: {type(body).__name__} has no known stages; pass the path of a module")
    path = max(blocks, key=lambda name: int(name.removeprefix("blocks.")))
    path = f"{path}.norm1" if hasattr(body.get_submodule(path), "norm1") else path
    return Layer(path, body.get_submodule(path), body, None)


def _stride(body: nn.Module, name: str) -> int | None:
    """Return the stride by the number of the stage, which the module names of a VAN contain as well."""
    match = re.match(r"stage([1-4])", name)
    if match is None and isinstance(body, VAN):
        match = re.search(r"(?:patch_embed|block|norm)([1-4])", name)
    return _STRIDES[int(match[1]) - 1] if match else None


def _known(body: nn.Module) -> list[str]:
    return [name for stage in STAGES if _stage(body, name := f"stage{stage}") is not None] or [_last(body).name]
