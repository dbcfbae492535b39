"""The attention that large kernel attention itself computes: the gate of every block, and maps of its channels.

LKA multiplies its input F by a gate, Conv1x1(DW-D-Conv(DW-Conv(F))), one number for each channel and pixel. Below 0
it turns the feature's sign, at 0 it shuts the feature out, above 0 it lets it through; nothing bounds it. It is read
where the network computes it, by the operators that the network uses at that moment.

Shapes: N pictures, C channels of a block, h x w cells of its stage; a gate is (N, C, h, w).
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

from van.errors import UsageError
from van.models.deploy import FusedBlock
from van.models.layers import LKA
from van.models.van import STAGES
from van.ops import lka_pair
from van.results.strips import Strip

Channels = Literal["mean", "strongest"] | Sequence[int]
"""What of a gate is drawn: the mean over its channels, those with the largest mean magnitude, or those numbered."""

_Taken = TypeVar("_Taken")
_IN_A_VAN = re.compile(r"(?:^|\.)block(\d+)[._](\d+)\.")


class Gate(NamedTuple):
    """The gate of one block.

    Args:
        name: stage from 1 and block from 0, ``stage3.block0``; the path where a network is no VAN or holds several.
        path: of the LKA in the network.
        values: (N, C, h, w), what the block's features were multiplied with.
        cell_px: side of a cell in pixels of what the network read; None where it is not known.
    """

    name: str
    path: str
    values: Tensor
    cell_px: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """An LKA in a network; ``mix`` is its 1x1 convolution where that is what a fused block calls, else None."""

    name: str
    path: str
    unit: LKA
    mix: nn.Conv2d | None
    cell_px: int | None

    @property
    def watched(self) -> nn.Module:
        """The module whose input tells the gate."""
        return self.unit if self.mix is None else self.mix

    def gate(self, seen: Tensor) -> Tensor:
        """The gate, from what ``watched`` is given: the features, or what comes out of the two depth-wise kernels."""
        if self.mix is not None:
            return self.mix.forward(seen)  # past the hooks, which would call this again
        return F.conv2d(lka_pair(seen, *self.unit.depthwise_kernels()), self.unit.conv1.weight, self.unit.conv1.bias)


def gate_names(model: nn.Module) -> list[str]:
    """The blocks of a network whose gates can be had, in its order.

    Raises:
        UsageError: it holds no LKA.
    """
    return [place.name for place in _places(model)]


def lka_gates(
    model: nn.Module,
    pictures: Any,
    *,
    blocks: str | Sequence[str] | None = None,
    run: Callable[[Any], Any] | None = None,
) -> list[Gate]:
    """The gates of one pass of ``pictures`` through a network, whole, in the network's order.

    They are the very tensors that the blocks multiply with: the same operators on the same backend and dtype. The
    network is left as it was; several threads may ask one network at once.

    Args:
        model: a VAN, anything that holds one, such as a detector, or what ``fuse`` made of it; in evaluation. What
            ``torch.compile`` made of it is run as it was before.
        pictures: what the network reads: (N, 3, H, W), or a list of (3, rows, columns).
        blocks: only these: ``stage3.block0``, ``stage3`` for all of a stage, or a module's path. All gates of a large
            network at a high resolution take gigabytes.
        run: what to call with ``pictures`` instead of the network, such as ``model.forward_features``.

    Raises:
        UsageError: the model holds no LKA or trains, there is no such block, or a block did not run exactly once.
    """
    return _watched(model, pictures, blocks, run, lambda gate: gate)


def lka_maps(
    model: nn.Module,
    pictures: Any,
    *,
    channels: Channels = "mean",
    count: int = 4,
    blocks: str | Sequence[str] | None = None,
) -> list[list[Strip]]:
    """Maps of the gates, ready to be drawn: for each picture one ``Strip`` for each block.

    Each gate is reduced as soon as it is there, so that whole ones are not held. Pictures in a list run one by one.

    Args:
        model, pictures, blocks: as for ``lka_gates``.
        channels, count: as for ``choose_channels``.

    Raises:
        UsageError: see ``lka_gates`` and ``choose_channels``.
    """
    if not isinstance(pictures, Tensor | list | tuple):
        raise UsageError(f"pictures is a {type(pictures).__name__}; wanted a tensor (N, 3, H, W) or a list of tensors")
    passes = [pictures] if isinstance(pictures, Tensor) else [[picture] for picture in pictures]
    found: list[list[Strip]] = []
    for each in passes:
        strips = _watched(model, each, blocks, None, lambda gate: choose_channels(gate, channels=channels, count=count))
        found += [list(of_one) for of_one in zip(*strips, strict=True)]
    return found


def choose_channels(gate: Gate, *, channels: Channels = "mean", count: int = 4) -> list[Strip]:
    """Maps (k, h, w) of a gate, one ``Strip`` for each picture.

    Args:
        gate: of one block.
        channels: ``mean`` over all channels, the numbers of channels from 0, or ``strongest``: those whose magnitude
            is largest in the mean over the picture, the strongest first, the lower number first of two alike.
        count: how many are ``strongest``; all where there are fewer.

    Raises:
        UsageError: there is no such way to choose, or no such channel.
        ShapeError: the gate is not finite.
    """
    values = gate.values.float()
    numbers = _numbers(gate, values, channels, count)
    strips = []
    for picture, of_picture in zip(values, numbers, strict=True):
        maps = picture.mean(dim=0, keepdim=True) if channels == "mean" else picture[of_picture]
        captions = ("mean",) if channels == "mean" else tuple(f"channel {number}" for number in of_picture)
        strips.append(Strip(name=gate.name, maps=maps.cpu().numpy(), captions=captions, cell_px=gate.cell_px))
    return strips


def _numbers(gate: Gate, values: Tensor, channels: Channels, count: int) -> list[list[int]]:
    """Of each picture, the channels to take."""
    pictures, available = values.shape[:2]
    if channels == "mean":
        return [[]] * pictures
    if channels == "strongest":
        if not isinstance(count, int) or count < 1:
            raise UsageError(f"count is {count!r}; wanted how many of the strongest channels, at least 1")
        strength = values.abs().mean(dim=(2, 3))
        return strength.sort(dim=1, descending=True, stable=True).indices[:, :count].tolist()
    if isinstance(channels, str) or not isinstance(channels, Sequence) or not channels:
        raise UsageError(f"channels is {channels!r}; wanted 'mean', 'strongest', or a list of channel numbers")
    for number in channels:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < available:
            raise UsageError(
                f"channels holds {number!r}, and {gate.name} has {available} channels; wanted whole numbers from 0 to "
                f"{available - 1}, or fewer blocks: stages differ in their channels"
            )
    return [list(channels)] * pictures


def _watched(
    model: nn.Module,
    pictures: Any,
    blocks: str | Sequence[str] | None,
    run: Callable[[Any], Any] | None,
    take: Callable[[Gate], _Taken],
) -> list[_Taken]:
    """What ``take`` makes of each gate while ``pictures`` pass through the network, in the network's order."""
    places = _chosen(_places(model), blocks)
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise UsageError(f"{training[0]} is in training mode, in which a look changes the network; call .eval() first")
    found: dict[str, list[_Taken]] = {place.path: [] for place in places}

    def see(place: _Place, seen: Tensor) -> None:
        values = place.gate(seen)
        found[place.path].append(take(Gate(place.name, place.path, values, place.cell_px)))

    with torch.no_grad(), _seeing(places, see):
        (run or getattr(model, "_orig_mod", model))(pictures)  # compiled code would have to take the hooks in
    for place in places:
        times = len(found[place.path])
        if times != 1:
            raise UsageError(
                f"{place.name} ran {times} times; wanted once: give one picture at a time, name the blocks that run, "
                "or give the network itself, not a sliding window or several scales of it"
            )
    return [found[place.path][0] for place in places]


@contextlib.contextmanager
def _seeing(places: Sequence[_Place], see: Callable[[_Place, Tensor], None]) -> Iterator[None]:
    """Within the block, call ``see`` with what each place is given, in this thread alone."""
    thread = threading.get_ident()

    def hook_for(place: _Place) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if threading.get_ident() == thread:
                see(place, arguments[0])

        return hook

    with contextlib.ExitStack() as hooks:
        for place in places:
            hooks.callback(place.watched.register_forward_pre_hook(hook_for(place)).remove)
        yield


def _places(model: nn.Module) -> list[_Place]:
    """Every LKA of a network, in its order."""
    modules = dict(model.named_modules())
    units = {path: module for path, module in modules.items() if isinstance(module, LKA)}
    if not units:
        raise UsageError(f"{type(model).__name__} holds no LKA; wanted a VAN, or a network that is built on one")
    matches = {path: _IN_A_VAN.search(f"{path}.") for path in units}
    names = {path: f"stage{found[1]}.block{found[2]}" if found else path for path, found in matches.items()}
    if len(set(names.values())) < len(names):
        names = {path: path for path in units}
    places = []
    for path, unit in units.items():
        found = matches[path]
        stage = int(found[1]) if found else 0
        fused = isinstance(modules.get(path.rpartition(".")[0]), FusedBlock)
        places.append(
            _Place(
                name=names[path],
                path=path,
                unit=unit,
                mix=unit.conv1 if fused else None,
                cell_px=2 ** (stage + 1) if stage in STAGES else None,
            )
        )
    return places


def _chosen(places: Sequence[_Place], blocks: str | Sequence[str] | None) -> list[_Place]:
    """Those that were asked for, in the network's order."""
    if blocks is None:
        return list(places)
    wanted = [blocks] if isinstance(blocks, str) else list(blocks)
    for block in wanted:
        if not any(_is_in(place, block) for place in places):
            names = [place.name for place in places]
            known = ", ".join(names) if len(names) < 16 else f"{', '.join(names[:7])}, ..., {', '.join(names[-7:])}"
            raise UsageError(f"blocks holds {block!r}, and there is no such block; known: {known}, or a whole stage")
    if not wanted:
        raise UsageError("blocks is empty; wanted at least one name, or None for all")
    return [place for place in places if any(_is_in(place, block) for block in wanted)]


def _is_in(place: _Place, block: object) -> bool:
    """Whether a place is the one named, or lies within it."""
    return isinstance(block, str) and any(f"{name}.".startswith(f"{block}.") for name in (place.name, place.path))
