"""Attention maps of large kernel attention (LKA): the whole attention of each block, and maps of its channels.

LKA multiplies its input F by the attention Conv1x1(DW-D-Conv(DW-Conv(F))), a number for each channel and position.
Below 0 it inverts the feature's sign, at 0 it removes the feature, above 0 it keeps it; it is unbounded. It is recorded
where the network computes it, with the operators and backend that the network uses.

Shapes: N images, C channels of a block, h x w cells of its stage; an attention map is (N, C, h, w).
Source: Guo et al. 2022, arXiv:2202.09741, section 3.1.
"""

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.backbones.fusion import FusedBlock
from van.backbones.layers import LKA
from van.backbones.van import STAGES
from van.errors import UsageError
from van.ops import lka_pair
from van.visualization.attention_grids import AttentionMaps

Channels = Literal["mean", "strongest"] | Sequence[int]
"""Channels to draw: the mean over all, those with the largest mean magnitude, or channel indices."""

_Result = TypeVar("_Result")
_VAN_BLOCK = re.compile(r"(?:^|\.)block(\d+)[._](\d+)\.")


class AttentionMap(NamedTuple):
    """The attention of one block.

    Args:
        name: stage from 1 and block from 0, ``stage3.block0``; the path if a network is no VAN or has several.
        path: module path of the LKA in the network.
        values: (N, C, h, w), the factors that multiply the block's features.
        stride: stride of the cells in pixels of the network's input; None where it is unknown.
    """

    name: str
    path: str
    values: Tensor
    stride: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LKAModule:
    """An LKA in a network; ``pointwise`` is its 1x1 convolution if a fused block calls that directly, else None."""

    name: str
    path: str
    module: LKA
    pointwise: nn.Conv2d | None
    stride: int | None

    @property
    def hooked(self) -> nn.Module:
        """The module whose input determines the attention."""
        return self.module if self.pointwise is None else self.pointwise

    def attention(self, x: Tensor) -> Tensor:
        """Compute the attention from the input of ``hooked``: features, or the output of the depth-wise kernels."""
        if self.pointwise is not None:
            return self.pointwise.forward(x)  # not __call__, which would run the hooks again
        conv1 = self.module.conv1
        return F.conv2d(lka_pair(x, *self.module.depthwise_kernels()), conv1.weight, conv1.bias)


def lka_block_names(model: nn.Module) -> list[str]:
    """Return the names of the blocks with LKA, in the network's order.

    Raises:
        UsageError: the network has no LKA.
    """
    return [block.name for block in _lka_modules(model)]


def lka_attention_maps(
    model: nn.Module,
    images: Any,
    *,
    blocks: str | Sequence[str] | None = None,
    run: Callable[[Any], Any] | None = None,
) -> list[AttentionMap]:
    """Return the attention of each block in one forward pass of ``images``, in the network's order.

    The values equal those that the blocks multiply with: same operators, backend and dtype. The network is not
    changed. Thread-safe.

    Args:
        model: a VAN, a model that contains one, such as a detector, or the result of ``fuse``; in evaluation mode. A
            model compiled by ``torch.compile`` is run uncompiled.
        images: the network's input: (N, 3, H, W), or a list of (3, H, W).
        blocks: only these blocks: ``stage3.block0``, ``stage3`` for all of a stage, or a module's path. The maps of all
            blocks of a large network at a high resolution need gigabytes of memory.
        run: the function to call with ``images`` instead of the network, such as ``model.forward_features``.

    Raises:
        UsageError: the model has no LKA or is in training mode, a block does not exist, or did not run exactly once.
    """
    return _record(model, images, blocks, run, lambda attention: attention)


def lka_channel_maps(
    model: nn.Module,
    images: Any,
    *,
    channels: Channels = "mean",
    count: int = 4,
    blocks: str | Sequence[str] | None = None,
) -> list[list[AttentionMaps]]:
    """Return maps of selected channels, for drawing: for each image one ``AttentionMaps`` per block.

    Each attention is reduced at once, so that memory holds only one block's. Images in a list run one by one.

    Args:
        model, images, blocks: see ``lka_attention_maps``.
        channels, count: see ``select_channels``.

    Raises:
        UsageError: see ``lka_attention_maps`` and ``select_channels``.
    """
    if not isinstance(images, Tensor | list | tuple):
        raise UsageError(f"images: expected a tensor (N, 3, H, W) or a list of tensors, got {type(images).__name__}")
    passes = [images] if isinstance(images, Tensor) else [[image] for image in images]
    maps: list[list[AttentionMaps]] = []
    for batch in passes:
        by_block = _record(
            model, batch, blocks, None, lambda attention: select_channels(attention, channels=channels, count=count)
        )
        maps += [list(of_image) for of_image in zip(*by_block, strict=True)]
    return maps


def select_channels(attention: AttentionMap, *, channels: Channels = "mean", count: int = 4) -> list[AttentionMaps]:
    """Return maps (k, h, w) of a block's attention, one ``AttentionMaps`` for each image.

    Args:
        attention: the attention of one block.
        channels: ``mean`` over all channels, channel indices, or ``strongest``: those with the largest mean magnitude
            over the image, the strongest first, the lower index first among equal ones.
        count: number of ``strongest`` channels; all if there are fewer.

    Raises:
        UsageError: ``channels`` or ``count`` is invalid, or there is no such channel.
        ShapeError: the attention is not finite.
    """
    values = attention.values.float()
    selected = _channel_indices(attention, values, channels, count)
    results = []
    for image, indices in zip(values, selected, strict=True):
        maps = image.mean(dim=0, keepdim=True) if channels == "mean" else image[indices]
        captions = ("mean",) if channels == "mean" else tuple(f"channel {index}" for index in indices)
        results.append(
            AttentionMaps(name=attention.name, maps=maps.cpu().numpy(), captions=captions, stride=attention.stride)
        )
    return results


def _channel_indices(attention: AttentionMap, values: Tensor, channels: Channels, count: int) -> list[list[int]]:
    """Return the selected channels of each image."""
    images, available = values.shape[:2]
    if channels == "mean":
        return [[]] * images
    if channels == "strongest":
        if not isinstance(count, int) or count < 1:
            raise UsageError(f"count: expected a number of channels, at least 1, got {count!r}")
        strength = values.abs().mean(dim=(2, 3))
        return strength.sort(dim=1, descending=True, stable=True).indices[:, :count].tolist()
    if isinstance(channels, str) or not isinstance(channels, Sequence) or not channels:
        raise UsageError(f"channels: expected 'mean', 'strongest' or a list of channel indices, got {channels!r}")
    for index in channels:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < available:
            raise UsageError(
                f"channels: expected indices from 0 to {available - 1} for {attention.name}, got {index!r}; stages "
                "differ in their number of channels: select other channels or fewer blocks"
            )
    return [list(channels)] * images


def _record(
    model: nn.Module,
    images: Any,
    blocks: str | Sequence[str] | None,
    run: Callable[[Any], Any] | None,
    reduce: Callable[[AttentionMap], _Result],
) -> list[_Result]:
    """Run the network on ``images`` and return ``reduce`` of each block's attention, in the network's order."""
    selected = _select_blocks(_lka_modules(model), blocks)
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise UsageError(f"{training[0]}: expected evaluation mode, got training mode; call .eval() first")
    results: dict[str, list[_Result]] = {block.path: [] for block in selected}

    def record(block: _LKAModule, x: Tensor) -> None:
        attention = AttentionMap(block.name, block.path, block.attention(x), block.stride)
        results[block.path].append(reduce(attention))

    with torch.no_grad(), _hooks(selected, record):
        (run or getattr(model, "_orig_mod", model))(images)  # compiled code ignores hooks added later
    for block in selected:
        calls = len(results[block.path])
        if calls != 1:
            raise UsageError(
                f"{block.name}: expected 1 call, got {calls}; pass one image at a time, select blocks that run, or "
                "pass the network itself instead of a sliding window or several scales"
            )
    return [results[block.path][0] for block in selected]


@contextlib.contextmanager
def _hooks(blocks: Sequence[_LKAModule], record: Callable[[_LKAModule, Tensor], None]) -> Iterator[None]:
    """Call ``record`` with the input of each block in the ``with`` block, for calls of this thread only."""
    thread = threading.get_ident()

    def make_hook(block: _LKAModule) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if threading.get_ident() == thread:
                record(block, arguments[0])

        return hook

    with contextlib.ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.hooked.register_forward_pre_hook(make_hook(block)).remove)
        yield


def _lka_modules(model: nn.Module) -> list[_LKAModule]:
    """Return every LKA of a network, in its order."""
    modules = dict(model.named_modules())
    units = {path: module for path, module in modules.items() if isinstance(module, LKA)}
    if not units:
        raise UsageError(f"expected a VAN or a network with a VAN as backbone, got {type(model).__name__} without LKA")
    matches = {path: _VAN_BLOCK.search(f"{path}.") for path in units}
    names = {path: f"stage{match[1]}.block{match[2]}" if match else path for path, match in matches.items()}
    if len(set(names.values())) < len(names):
        names = {path: path for path in units}
    blocks = []
    for path, unit in units.items():
        match = matches[path]
        stage = int(match[1]) if match else 0
        fused = isinstance(modules.get(path.rpartition(".")[0]), FusedBlock)
        blocks.append(
            _LKAModule(
                name=names[path],
                path=path,
                module=unit,
                pointwise=unit.conv1 if fused else None,
                stride=2 ** (stage + 1) if stage in STAGES else None,
            )
        )
    return blocks


def _select_blocks(available: Sequence[_LKAModule], blocks: str | Sequence[str] | None) -> list[_LKAModule]:
    """Return the blocks of the given names, in the network's order."""
    if blocks is None:
        return list(available)
    selected = [blocks] if isinstance(blocks, str) else list(blocks)
    for name in selected:
        if not any(_is_in(block, name) for block in available):
            names = [block.name for block in available]
            known = ", ".join(names) if len(names) < 16 else f"{', '.join(names[:7])}, ..., {', '.join(names[-7:])}"
            raise UsageError(f"blocks: expected {known}, or a whole stage, got {name!r}")
    if not selected:
        raise UsageError("blocks: expected at least 1 name, or None for all, got none")
    return [block for block in available if any(_is_in(block, name) for name in selected)]


def _is_in(block: _LKAModule, name: object) -> bool:
    """Return whether a block has that name, or belongs to the stage or module of that name."""
    return isinstance(name, str) and any(f"{own}.".startswith(f"{name}.") for own in (block.name, block.path))
