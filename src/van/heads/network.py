"""What the networks with a head share: their interface for training, and batches of images of different sizes.

Shapes: images (..., H, W); a size is rows and columns; images are padded with zeros at the bottom and on the right.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import UsageError

Size = tuple[int, int]


class HeadNetwork(nn.Module):
    """A network with a head on a backbone, which is at ``backbone``.

    ``num_classes`` counts the classes without a background; ``class_layers`` names the layers whose size depends on
    it, and is empty if the head cannot change them.
    """

    backbone: Any
    num_classes: int
    class_layers: tuple[str, ...] = ()

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay, beside biases and norms: the layer scales."""
        return {name for name, _ in self.named_parameters() if ".layer_scale_" in name}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable gradient checkpointing of the backbone: its blocks run forward twice and store no activations."""
        self.backbone.set_grad_checkpointing(enable)


def check_targets(images: Sequence[Tensor], targets: Sequence[Any] | None) -> Sequence[Any]:
    """Return the targets after a check that there is one for each image."""
    if targets is None or len(targets) != len(images):
        got = "None" if targets is None else len(targets)
        raise UsageError(f"targets: expected one for each of the {len(images)} images in training, got {got}")
    return targets


def sizes_of(images: Sequence[Tensor]) -> list[Size]:
    """Return rows and columns of each image."""
    return [(image.shape[-2], image.shape[-1]) for image in images]


def stack_padded(images: Sequence[Tensor], padded_size: Size) -> Tensor:
    """Pad images (..., H, W) with zeros to ``padded_size`` and stack them to (N, ..., rows, columns)."""
    rows, columns = padded_size
    return torch.stack([F.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2])) for x in images])


def common_padded_size(sizes: Sequence[Size], *, multiple: int = 32) -> Size:
    """Return the smallest size that contains images of these sizes and whose sides are multiples of ``multiple``."""
    rows, columns = (math.ceil(max(sides) / multiple) * multiple for sides in zip(*sizes, strict=True))
    return rows, columns


def predict_by_padded_size(
    images: Sequence[Tensor],
    padded_size: Callable[[Sequence[Size]], Size],
    predict: Callable[[list[Tensor], Size], Any],
) -> list[Any]:
    """Predict images of different sizes, those of one padded size as a batch, and return the outputs in order.

    Padding changes the features of an image, so with other batches a prediction would depend on the other images.
    ``padded_size`` maps the sizes of a batch to its padded size; ``predict`` takes images that would have the same one
    alone, and that size.
    """
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes_of(images)):
        groups.setdefault(padded_size([size]), []).append(index)
    outputs: dict[int, Any] = {}
    for size, indices in groups.items():
        outputs |= zip(indices, predict([images[index] for index in indices], size), strict=True)
    return [outputs[index] for index in range(len(images))]
