"""Which layer of a network is looked at, by the name of its stage, and its output as maps.

Shapes: maps (N, C, h, w), whatever the layer itself gives: (N, h, w, C) from Swin, (N, prefix + h·w, C) from ViT.
Stages have strides 4, 8, 16 and 32; a stage's layer is its last block, which is where the paper's Grad-CAM looks.
"""

import re
from typing import Any, NamedTuple

from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.models.van import STAGES, VAN

_STRIDES = (4, 8, 16, 32)
_LEAST_CELLS = 4


class Layer(NamedTuple):
    """A layer: the name it was found by, its module, and the network that it is in.

    ``stride`` is that of its cells in pixels of what the network sees; None where it is not known.
    """

    name: str
    module: nn.Module
    network: nn.Module
    stride: int | None

    def maps(self, output: Any) -> Tensor:
        """What the layer gave, as (N, C, h, w).

        Raises:
            ShapeError: it is no tensor, or its cells lie in no rows and columns.
        """
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            seen = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(f"layer {self.name} gives {seen}; wanted maps (N, C, rows, columns): choose another layer")
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
            raise ShapeError(f"layer {self.name} gives {tokens} tokens, which fill no square; choose another layer")
        return rows, columns


def find_layer(network: nn.Module, name: str | None = None, *, side_px: int | None = None) -> Layer:
    """The layer of that name: ``stage1`` to ``stage4``, ``stage3.block0``, or the path of any module.

    Without a name it is the last block of stage 4. Where ``side_px``, the shorter side that the network sees, is so
    small that this stage's map has fewer than four cells a side (to 96 pixels), it is the deepest stage that has.

    Args:
        network: a VAN, one with a head on a VAN, or a network of timm's.
        name: of the layer; the deepest stage, or the last block of a network without stages, if None.

    Raises:
        UsageError: there is no such layer; the message lists those there are.
    """
    body = backbone_of(network)
    if name is None:
        stages = {f"stage{stage}": stride for stage, stride in zip(STAGES, _STRIDES, strict=True)}
        fitting = [s for s, stride in stages.items() if side_px is None or -(-side_px // stride) >= _LEAST_CELLS]
        for stage in reversed(fitting or ["stage1"]):
            if (found := _stage(body, stage)) is not None:
                return Layer(stage, found, body, stages[stage])
        return _last(body)
    if re.fullmatch(r"stage[0-9]+(\.block[0-9]+)?", name):
        found = _stage(body, name)
    else:
        found = dict(body.named_modules()).get(name) or dict(network.named_modules()).get(name)
    if found is None or name == "":
        raise UsageError(f"there is no layer {name!r}; known: {', '.join(_known(body))}, or the path of any module")
    return Layer(name, found, body, _stride(body, name))


def backbone_of(network: nn.Module) -> nn.Module:
    """The VAN under a head, or the network itself."""
    backbone = getattr(network, "backbone", None)
    return backbone if isinstance(backbone, VAN) else network


def _stage(body: nn.Module, name: str) -> nn.Module | None:
    """The last block of a stage, or the one that is named; None where there is none."""
    stage, _, block = name.partition(".block")
    number = int(stage.removeprefix("stage"))
    blocks = _blocks(body, number)
    if block:
        return blocks[int(block)] if int(block) < len(blocks) else None
    if isinstance(body, VAN):
        return blocks[-1] if blocks else None
    paths = _paths(body, number)
    return body.get_submodule(paths[-1]) if paths and len(paths) < len(_features(body)) else None


def _blocks(body: nn.Module, stage: int) -> list[nn.Module]:
    if isinstance(body, VAN):
        return list(getattr(body, f"block{stage}", ()))
    paths = _paths(body, stage)
    return list(getattr(body.get_submodule(paths[-1]), "blocks", ())) if paths else []


def _paths(body: nn.Module, stage: int) -> list[str]:
    """The modules that timm lists with the stage's stride; all of them where a network has but one stride."""
    if stage not in STAGES:
        return []
    return [info["module"] for info in _features(body) if info["reduction"] == _STRIDES[stage - 1]]


def _features(body: nn.Module) -> list[dict[str, Any]]:
    """What timm lists of a network's stages."""
    known: Any = getattr(body, "feature_info", None)
    if known is None:
        return []
    return list(known) if isinstance(known, list) else [dict(info) for info in known.info]


def _last(body: nn.Module) -> Layer:
    """Where a network without stages is looked at: the norm that its last block begins with.

    Behind it the classifier of a ViT reads one token only, so that the others have no gradient.
    """
    blocks = [name for name, _ in body.named_modules() if re.fullmatch(r"blocks\.[0-9]+", name)]
    if not blocks:
        raise UsageError(f"{type(body).__name__} has no stages that are known; name a layer: the path of a module")
    path = max(blocks, key=lambda name: int(name.removeprefix("blocks.")))
    path = f"{path}.norm1" if hasattr(body.get_submodule(path), "norm1") else path
    return Layer(path, body.get_submodule(path), body, None)


def _stride(body: nn.Module, name: str) -> int | None:
    """By the number of the stage, which the names of a VAN's modules tell, too."""
    told = re.match(r"stage([1-4])", name)
    if told is None and isinstance(body, VAN):
        told = re.search(r"(?:patch_embed|block|norm)([1-4])", name)
    return _STRIDES[int(told[1]) - 1] if told else None


def _known(body: nn.Module) -> list[str]:
    return [name for stage in STAGES if _stage(body, name := f"stage{stage}") is not None] or [_last(body).name]
