"""Deletion and insertion: how the class's probability falls and rises with the pixels that a map calls important.

Deletion takes pixels out of what the network sees, the most important ones first; a faithful map makes the class's
probability fall at once. Insertion puts them into a picture in which little can be told; the probability should rise at
once. The area under each curve over the share of pixels is the score: low for deletion, high for insertion.
What pixels are replaced by is a choice (``Ground``). As in the source, deletion defaults to one colour and insertion to
a blurred picture, because single pixels on a plain ground make edges that a network takes for things.

Shapes: what the network sees (3, H, W); maps (h, w); curves (steps + 1,), from no pixel to all of them.
Source: Petsiuk et al. 2018 (RISE), arXiv:1806.07421, section 4.3.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.results.heat import HeatMap

Ground = Literal["mean", "blur"]
"""What stands where a pixel does not: the mean colour of what is seen, or a blurred copy of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeletionSettings:
    """How pixels are taken out and put in."""

    steps: int = 32
    """Steps from no pixel to all of them."""
    deleted_to: Ground = "mean"
    """What deletion leaves where it took a pixel."""
    inserted_on: Ground = "blur"
    """What insertion begins with."""
    blur_share: float = 0.1
    """Standard deviation of the blur, as a share of the shorter side."""
    batch_size: int = 64
    """Pictures that the network sees at once."""
    seed: int = 0
    """Pixels of the same importance come in an order drawn by this."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; wanted at least 1")
        for name in ("deleted_to", "inserted_on"):
            if getattr(self, name) not in get_args(Ground):
                raise UsageError(f"{name} is {getattr(self, name)!r}; wanted {' or '.join(get_args(Ground))}")
        if not (math.isfinite(self.blur_share) and self.blur_share > 0):
            raise UsageError(f"blur_share is {self.blur_share}; wanted more than 0")


class Curves(NamedTuple):
    """The class's probability after each step, (steps + 1,), and the area under each curve."""

    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def areas(self) -> tuple[float, float]:
        """Of deletion and of insertion, by the trapezoid rule over the share of pixels; 0 to 1."""
        return _area(self.deletion), _area(self.insertion)


def deletion_and_insertion(
    network: nn.Module, seen: Tensor, importance: np.ndarray, label: int, settings: DeletionSettings | None = None
) -> Curves:
    """Both curves of one map.

    Only the order of the map's values counts, so a map scaled by a positive number gives the same curves.

    Args:
        network: gives logits (N, K); in evaluation mode.
        seen: (3, H, W), as its preprocessing gives it.
        importance: (H, W), see ``on_input``.
        label: the class.

    Raises:
        ShapeError: the map has another size, is not finite, or there is no such class.
        UsageError: the network is in training mode, where its answers depend on what else is in the batch; or there
            are fewer pixels than steps.
    """
    settings = settings or DeletionSettings()
    pixels = seen.shape[-2] * seen.shape[-1]
    if seen.ndim != 3 or importance.shape != tuple(seen.shape[1:]):
        raise ShapeError(
            f"the map is {importance.shape}, what the network sees {tuple(seen.shape)}; wanted a map (H, W) for "
            "(3, H, W): bring it to that size with on_input"
        )
    if not np.isfinite(importance).all():
        raise ShapeError("the map is not finite everywhere; wanted a number for each pixel that the network sees")
    if network.training:
        raise UsageError("the network is in training mode; call eval() on it first")
    if settings.steps > pixels:
        raise UsageError(f"steps is {settings.steps} for {pixels} pixels; wanted at most one for each pixel")
    taken = torch.linspace(0, pixels, settings.steps + 1, dtype=torch.float64).round()
    chosen = torch.from_numpy(_ranks(importance, settings.seed)) < taken[:, None, None]
    plain, soft = (_ground(seen, kind, settings.blur_share) for kind in (settings.deleted_to, settings.inserted_on))
    pictures = [(mask, plain, seen) for mask in chosen] + [(mask, seen, soft) for mask in chosen]
    weight = next(network.parameters(), seen)
    found: list[Tensor] = []
    for start in range(0, len(pictures), settings.batch_size):
        batch = torch.stack([torch.where(*parts) for parts in pictures[start : start + settings.batch_size]])
        found.append(_probabilities(network, batch.to(weight.device, weight.dtype), label))
    both = torch.cat(found).numpy()
    return Curves(both[: len(chosen)], both[len(chosen) :])


def on_input(heat: HeatMap, size: tuple[int, int]) -> np.ndarray:
    """(H, W): a map on the pixels that the network sees, of which there are ``size``."""
    left, top, right, bottom = heat.seen
    across, down = size[1] / (right - left), size[0] / (bottom - top)
    x1, y1, x2, y2 = heat.covers
    covers = ((x1 - left) * across, (y1 - top) * down, (x2 - left) * across, (y2 - top) * down)
    whole = (0.0, 0.0, float(size[1]), float(size[0]))
    return dataclasses.replace(heat, covers=covers, seen=whole, size=size).on_picture()


def _probabilities(network: nn.Module, pictures: Tensor, label: int) -> Tensor:
    """(N,) of one class, on the CPU."""
    with torch.inference_mode():
        logits = network(pictures)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not 0 <= label < logits.shape[1]:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"label is {label}, the network gives {shape}; wanted logits (N, K), and a label below K")
    return logits.double().softmax(dim=1)[:, label].cpu()


def _ranks(importance: np.ndarray, seed: int) -> np.ndarray:
    """(H, W): 0 for the most important pixel, then 1, ...; a drawn order among equals, as by rows would favour some."""
    order = np.random.default_rng(seed).permutation(importance.size)
    order = order[np.argsort(-importance.ravel()[order], kind="stable")]
    ranks = np.empty(importance.size, np.int64)
    ranks[order] = np.arange(importance.size)
    return ranks.reshape(importance.shape)


def _ground(seen: Tensor, kind: Ground, blur_share: float) -> Tensor:
    """(3, H, W): what stands where a pixel does not."""
    if kind == "mean":
        return seen.mean(dim=(1, 2), keepdim=True).expand_as(seen)
    sigma_px = blur_share * min(seen.shape[1:])
    down, across = (_weights(side, sigma_px).to(seen) for side in seen.shape[1:])
    return down @ seen @ across.T


def _weights(side: int, sigma_px: float) -> Tensor:
    """(side, side): Gaussian means along a side; near its ends of what there is."""
    places = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma_px) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def _area(curve: np.ndarray) -> float:
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))
