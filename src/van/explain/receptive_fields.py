"""Theoretical and effective receptive fields of the center cell of a network's layers.

The theoretical field is traced, or probed where an operation has no rule (``theoretical_receptive_fields``). The
effective field is that of Luo et al. 2016, arXiv:1701.04128: the absolute gradient of the cell's output, summed over
its channels, by every pixel, summed over the pixel's channels and averaged over images. The output is taken before a
LayerNorm that ends the stage: after one the channels sum to a constant. The network is evaluated in evaluation mode
and not changed.

Shapes: images (N, C, H, W), preprocessed; maps (N, D, h, w); fields (H, W).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.explain.layers import find_layer
from van.explain.receptive_field_tracing import (
    MapFunction,
    Prober,
    Untraceable,
    center_cell,
    trace_receptive_fields,
)
from van.visualization.receptive_fields import ReceptiveField, Span

STAGES = ("stage1", "stage2", "stage3", "stage4")
_BATCH_SIZE = 4
"""Images in a batch, to bound the memory for activations."""
_MIN_GRADIENT_RATIO = 1e-2
"""Minimum ratio of the gradient to that with random channel signs; less is the rounding error of a constant sum."""


class TheoreticalField(NamedTuple):
    """The theoretical field of the center cell of a layer, and height and width of the layer's map."""

    rows: Span
    columns: Span
    method: Literal["traced", "probed"]
    map_size: tuple[int, int]


def measure_receptive_fields(
    models: Mapping[str, nn.Module],
    *,
    image_size: int | tuple[int, int] = 224,
    images: Tensor | None = None,
    count: int = 8,
    seed: int = 0,
    layers: Sequence[str] = STAGES,
    progress: Callable[[str], None] = lambda step: None,
) -> list[ReceptiveField]:
    """Measure the receptive field of each layer of each network on the same images.

    Args:
        models: the networks by their names in charts.
        image_size: side of the images, or height and width; ignored if images are given.
        images: (N, C, H, W), normalized; if None, ``count`` images of normal noise with ``seed``.
        layers: stages, or paths of modules, in the order in which the network runs them.
        progress: called with a description of each step.

    Raises:
        UsageError: a network is in training mode or lacks a layer, or its cells do not depend on the image.
        ShapeError: the images are too small for a network, or have a shape that it does not support.
    """
    if images is not None:
        _check_images(images)
    fields = []
    for name, model in models.items():
        inputs = noise(model, image_size, count=count, seed=seed) if images is None else images
        progress(f"{name}: theoretical receptive fields")
        theoretical = theoretical_receptive_fields(
            model, layers, image_size=tuple(inputs.shape[2:]), channels=inputs.shape[1]
        )
        progress(f"{name}: effective receptive fields, {len(inputs)} images")
        effective = effective_receptive_fields(model, layers, inputs)
        for layer, field, values in zip(layers, theoretical, effective, strict=True):
            rows, columns = field.map_size
            fields.append(
                ReceptiveField(
                    network=name, layer=layer, image_size=(values.shape[0], values.shape[1]), map_size=field.map_size,
                    cell=(rows // 2, columns // 2), rows=field.rows, columns=field.columns, method=field.method,
                    effective=values,
                )
            )  # fmt: skip
    return fields


def theoretical_receptive_fields(
    model: nn.Module, layers: Sequence[str] = STAGES, *, image_size: tuple[int, ...] = (224, 224), channels: int = 3
) -> list[TheoreticalField]:
    """Return the theoretical receptive field of each layer's center cell for images of height and width ``image_size``.

    Raises:
        UsageError, ShapeError: see ``measure_receptive_fields``.
    """
    _check_arguments(model, layers, image_size)
    weight = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, channels, *image_size, dtype=weight.dtype, device=weight.device)
    try:
        traced = trace_receptive_fields(_map_function(model, layers), image, len(layers))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:  # the errors of torch and timm for unsupported shapes
        rows, columns = image_size
        raise ShapeError(
            f"{type(model).__name__} does not support images of {rows}x{columns} pixels and {channels} channels: "
            f"{error}"
        ) from error
    prober, fields = None, {}
    # From the last layer: probing a deep layer also probes the layers before it.
    for place in reversed(range(len(layers))):
        axes, map_size = traced[place]
        _check_stride(layers[place], image_size, map_size, None if isinstance(axes, Untraceable) else axes[0].jump)
        if isinstance(axes, Untraceable):
            prober = prober or _create_prober(model, layers, image)
            fields[place] = TheoreticalField(*prober.spans(place), "probed", map_size)
        else:
            rows, columns = (axis.span(count // 2) for axis, count in zip(axes, map_size, strict=True))
            fields[place] = TheoreticalField(rows, columns, "traced", map_size)
    return [fields[place] for place in range(len(layers))]


def effective_receptive_fields(model: nn.Module, layers: Sequence[str], images: Tensor) -> list[np.ndarray]:
    """Return the effective receptive field of each layer's center cell, (H, W) float64, each with sum 1.

    Args:
        images: (N, C, H, W), normalized.

    Raises:
        UsageError, ShapeError: see ``measure_receptive_fields``.
    """
    _check_images(images)
    _check_arguments(model, layers, tuple(images.shape[2:]))
    weight, maps = next(model.parameters(), images), _map_function(model, layers)
    totals = torch.zeros(len(layers), *images.shape[2:], dtype=torch.float64)
    for step, batch in enumerate(images.split(_BATCH_SIZE)):
        with torch.inference_mode(False), torch.enable_grad():
            x = batch.detach().to(weight).clone().requires_grad_()
            for place, feature_map in enumerate(maps(x, len(layers))):
                if not feature_map.requires_grad:
                    raise UsageError(
                        f"layers: expected layers that depend on the image, got {layers[place]}, which has no gradient"
                    )
                cell = center_cell(feature_map).float()
                total = _pixel_gradient(cell.sum(), x)
                if step == 0:
                    _check_gradient(layers[place], total, _pixel_gradient(_sum_with_random_signs(cell), x))
                totals[place] += total
    return [(total / total.sum()).numpy() for total in totals]


def _pixel_gradient(value: Tensor, x: Tensor) -> Tensor:
    """Return the absolute gradient by each pixel, summed over images and channels, (H, W) float64 on the CPU."""
    (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
    return gradient.detach().double().abs().sum(dim=(0, 1)).cpu()


def _sum_with_random_signs(cell: Tensor) -> Tensor:
    """Sum the channels with random signs, so that the gradient does not vanish where their plain sum is constant."""
    signs = torch.randint(2, cell.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (cell * signs.to(cell)).sum()


def _check_gradient(layer: str, total: Tensor, with_random_signs: Tensor) -> None:
    own, reference = float(total.sum()), float(with_random_signs.sum())
    if not (math.isfinite(own) and math.isfinite(reference)):
        raise UsageError(f"{layer}: the gradient of the center cell is not finite; check the weights and the images")
    if reference == 0:
        raise UsageError(f"{layer}: the center cell does not depend on the image; check the weights")
    if own < _MIN_GRADIENT_RATIO * reference:
        raise UsageError(
            f"{layer}: the channels of the center cell sum to a constant, as after a LayerNorm, and have no gradient; "
            "choose the layer before it"
        )


def noise(model: nn.Module, image_size: int | tuple[int, int], *, count: int = 8, seed: int = 0) -> Tensor:
    """Return images (N, C, H, W) of normal noise with the network's input channels, the same for the same seed."""
    if count < 1:
        raise ShapeError(f"count: expected at least 1 image, got {count}")
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(seed))


class _AllRecorded(Exception):
    """Stops the forward pass when all requested layers have run."""


def _map_function(model: nn.Module, layers: Sequence[str]) -> MapFunction:
    """Return a function that runs the network as far as needed and returns the maps of the first layers."""
    targets = [find_layer(model, name) for name in layers]
    body = targets[0].network
    run = getattr(body, "forward_features", body)

    def maps(x: Tensor, count: int) -> list[Tensor]:
        recorded: dict[int, Tensor] = {}

        def make_hook(place: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                recorded[place] = targets[place].to_maps(output).clone()  # later operations may be in place
                if len(recorded) == count:
                    raise _AllRecorded

            return hook

        handles = [targets[place].module.register_forward_hook(make_hook(place)) for place in range(count)]
        try:
            run(x)
        except _AllRecorded:
            return [recorded[place] for place in range(count)]
        finally:
            for handle in handles:
                handle.remove()
        missing = ", ".join(layers[place] for place in range(count) if place not in recorded)
        raise UsageError(f"layers: {type(body).__name__} does not run {missing}; expected layers of its forward pass")

    return maps


def _create_prober(model: nn.Module, layers: Sequence[str], image: Tensor) -> Prober:
    if (image.dtype, image.device.type) != (torch.float32, "cpu"):
        model, image = copy.deepcopy(model).float().cpu(), image.float().cpu()
    return Prober(_map_function(model, layers), image)


def _check_arguments(model: nn.Module, layers: Sequence[str], image_size: tuple[int, ...]) -> None:
    if any(module.training for module in model.modules()):
        raise UsageError(f"{type(model).__name__}: expected evaluation mode, got training mode; call .eval() first")
    if not layers:
        raise UsageError("layers: expected at least 1, such as 'stage4', got none")
    if len(image_size) != 2 or min(image_size) < 1:
        raise ShapeError(f"image_size: expected height and width, each at least 1 pixel, got {image_size}")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape or not images.isfinite().all():
        raise ShapeError(f"images: expected finite numbers (N, C, H, W), N at least 1, got {tuple(images.shape)}")


def _check_stride(layer: str, image_size: tuple[int, ...], map_size: tuple[int, int], jump: float | None) -> None:
    stride = jump or max(length / count for length, count in zip(image_size, map_size, strict=True))
    if min(image_size) < stride:
        raise ShapeError(
            f"image_size: expected at least {stride:g}x{stride:g} pixels, the stride of {layer}, "
            f"got {image_size[0]}x{image_size[1]}"
        )
