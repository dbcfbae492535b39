"""Deletion and insertion: the class score while the pixels with the highest attribution are removed or added.

Deletion replaces pixels of the network's input, the most important ones first; with a faithful map the score of the
class drops at once. Insertion adds them to an uninformative image; the score should rise at once. The metric is the
area under each curve over the fraction of pixels: low for deletion, high for insertion.
The replacement of pixels is a choice (``Baseline``). As in the source, deletion defaults to a constant color and
insertion to a blurred image, because single pixels on a constant color make edges that a network takes for objects.

Shapes: input (3, H, W); maps (h, w); curves (steps + 1,), from no pixel to all of them.
Source: Petsiuk et al. 2018 (RISE), arXiv:1806.07421, section 4.3.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.visualization.heatmap import Heatmap

Baseline = Literal["mean", "blur"]
"""The replacement of missing pixels: the mean color of the input, or a blurred copy of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeletionSettings:
    """Settings of deletion and insertion."""

    steps: int = 32
    """Number of steps from no pixel to all of them."""
    deletion_baseline: Baseline = "mean"
    """Replacement of deleted pixels."""
    insertion_baseline: Baseline = "blur"
    """The image that insertion starts from."""
    blur_fraction: float = 0.1
    """Standard deviation of the blur, as a fraction of the shorter side."""
    batch_size: int = 64
    """Images in a batch."""
    seed: int = 0
    """Seed of the random order of pixels with equal attribution."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("deletion_baseline", "insertion_baseline"):
            if getattr(self, name) not in get_args(Baseline):
                raise UsageError(f"{name}: expected {' or '.join(get_args(Baseline))}, got {getattr(self, name)!r}")
        if not (math.isfinite(self.blur_fraction) and self.blur_fraction > 0):
            raise UsageError(f"blur_fraction: expected more than 0, got {self.blur_fraction}")


class Curves(NamedTuple):
    """The class score after each step, (steps + 1,), and the area under each curve."""

    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def areas(self) -> tuple[float, float]:
        """The areas under both curves, by the trapezoidal rule over the fraction of pixels; 0 to 1."""
        return _area_under(self.deletion), _area_under(self.insertion)


def deletion_and_insertion_curves(
    network: nn.Module, image: Tensor, attribution: np.ndarray, label: int, settings: DeletionSettings | None = None
) -> Curves:
    """Compute both curves of one map.

    Only the order of the map's values counts, so a map scaled by a positive number gives the same curves.

    Args:
        network: returns logits (N, K); in evaluation mode.
        image: (3, H, W), preprocessed.
        attribution: (H, W), see ``resize_to_input``.
        label: the class index.

    Raises:
        ShapeError: the map has another size or is not finite, or the class index is out of range.
        UsageError: the network is in training mode, where predictions depend on the rest of the batch; or there are
            fewer pixels than steps.
    """
    settings = settings or DeletionSettings()
    pixels = image.shape[-2] * image.shape[-1]
    if image.ndim != 3 or attribution.shape != tuple(image.shape[1:]):
        raise ShapeError(
            f"attribution: expected (H, W) for an image (3, H, W), got {attribution.shape} for {tuple(image.shape)}; "
            "resize it with resize_to_input"
        )
    if not np.isfinite(attribution).all():
        raise ShapeError("attribution: expected finite numbers for each pixel of the input, got NaN or infinity")
    if network.training:
        raise UsageError(f"{type(network).__name__}: expected evaluation mode, got training mode; call .eval() first")
    if settings.steps > pixels:
        raise UsageError(f"steps: expected at most {pixels}, the number of pixels, got {settings.steps}")
    counts = torch.linspace(0, pixels, settings.steps + 1, dtype=torch.float64).round()
    selected = torch.from_numpy(_ranks(attribution, settings.seed)) < counts[:, None, None]
    baselines = (settings.deletion_baseline, settings.insertion_baseline)
    deleted, start_image = (_baseline(image, kind, settings.blur_fraction) for kind in baselines)
    images = [(mask, deleted, image) for mask in selected] + [(mask, image, start_image) for mask in selected]
    weight = next(network.parameters(), image)
    scores: list[Tensor] = []
    for start in range(0, len(images), settings.batch_size):
        batch = torch.stack([torch.where(*operands) for operands in images[start : start + settings.batch_size]])
        scores.append(_class_scores(network, batch.to(weight.device, weight.dtype), label))
    both = torch.cat(scores).numpy()
    return Curves(both[: len(selected)], both[len(selected) :])


def resize_to_input(heatmap: Heatmap, input_size: tuple[int, int]) -> np.ndarray:
    """Resize a map to the pixels of the network's input, (H, W) = ``input_size``."""
    left, top, right, bottom = heatmap.crop_box
    height, width = input_size
    horizontal, vertical = width / (right - left), height / (bottom - top)
    x1, y1, x2, y2 = heatmap.extent
    extent = ((x1 - left) * horizontal, (y1 - top) * vertical, (x2 - left) * horizontal, (y2 - top) * vertical)
    whole = (0.0, 0.0, float(width), float(height))
    resized = dataclasses.replace(heatmap, extent=extent, crop_box=whole, image_size=input_size)
    return resized.to_image_size()


def _class_scores(network: nn.Module, images: Tensor, label: int) -> Tensor:
    """Return the softmax scores (N,) of one class, on the CPU."""
    with torch.inference_mode():
        logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not 0 <= label < logits.shape[1]:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"expected logits (N, K) and 0 <= label < K, got {shape} and label {label}")
    return logits.double().softmax(dim=1)[:, label].cpu()


def _ranks(attribution: np.ndarray, seed: int) -> np.ndarray:
    """Return the rank of each pixel (H, W), 0 for the highest attribution; equal ones are in random order."""
    # In row order, the upper pixels of a constant map would always be deleted first.
    order = np.random.default_rng(seed).permutation(attribution.size)
    order = order[np.argsort(-attribution.ravel()[order], kind="stable")]
    ranks = np.empty(attribution.size, np.int64)
    ranks[order] = np.arange(attribution.size)
    return ranks.reshape(attribution.shape)


def _baseline(image: Tensor, kind: Baseline, blur_fraction: float) -> Tensor:
    """Return the replacement of missing pixels (3, H, W)."""
    if kind == "mean":
        return image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    sigma_px = blur_fraction * min(image.shape[1:])
    vertical, horizontal = (_blur_weights(side, sigma_px).to(image) for side in image.shape[1:])
    return vertical @ image @ horizontal.T


def _blur_weights(side: int, sigma_px: float) -> Tensor:
    """Return Gaussian weights along a side, (side, side), normalized over the pixels within the image."""
    positions = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((positions[:, None] - positions) / sigma_px) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def _area_under(curve: np.ndarray) -> float:
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))
