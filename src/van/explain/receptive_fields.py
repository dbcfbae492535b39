"""Receptive fields of a network's layers: what their middle cell can read of a picture, and what it does read.

The theoretical field is traced, or probed where an operation has no rule (``theoretical_fields``). The effective
field is that of Luo et al. 2016, arXiv:1701.04128: the absolute gradient of the cell's output, summed over its
channels, by every pixel, summed over the pixel's channels and averaged over pictures. The output is taken before a
LayerNorm that ends the stage: behind one the channels add up to a constant. The network is looked at as it is, in
evaluation, and nothing of it is changed.

Shapes: pictures (N, C, H, W) as the network reads them; maps (N, D, h, w); fields (H, W).
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
from van.explain.theoretical_fields import Maps, Prober, Unknown, middle_cell, trace
from van.results.fields import ReceptiveField, Span

STAGES = ("stage1", "stage2", "stage3", "stage4")
_AT_ONCE = 4
"""Pictures whose activations are held at a time."""
_LEAST_SUM = 1e-2
"""Of the gradient with random signs for the channels: less is what rounding leaves of a sum that is constant."""


class TheoreticalField(NamedTuple):
    """What the middle cell of a layer can read, and rows and columns of the layer's map."""

    rows: Span
    columns: Span
    how: Literal["traced", "probed"]
    cells: tuple[int, int]


def measure_fields(
    models: Mapping[str, nn.Module],
    *,
    size_px: int | tuple[int, int] = 224,
    pictures: Tensor | None = None,
    count: int = 8,
    seed: int = 0,
    layers: Sequence[str] = STAGES,
    progress: Callable[[str], None] = lambda step: None,
) -> list[ReceptiveField]:
    """The receptive field of each layer of each network, on the same pictures.

    Args:
        models: by the name that they shall have in charts.
        size_px: side of the pictures, or their rows and columns; where pictures are given theirs holds.
        pictures: (N, C, H, W), normalised; if None, as many as ``count``, of normal noise drawn with ``seed``.
        layers: stages, or paths of modules, in the order in which the network runs them.
        progress: told what comes next, in words.

    Raises:
        UsageError: a network is in training mode or has no such layer, or its cells do not depend on the picture.
        ShapeError: the pictures are too small for a network, or of a shape that it cannot read.
    """
    if pictures is not None:
        _check_pictures(pictures)
    found = []
    for name, model in models.items():
        own = noise(model, size_px, count=count, seed=seed) if pictures is None else pictures
        progress(f"{name}: what each cell can read")
        theory = theoretical_fields(model, layers, size=tuple(own.shape[2:]), channels=own.shape[1])
        progress(f"{name}: what each cell does read, of {len(own)} pictures")
        heats = effective_fields(model, layers, own)
        for layer, field, heat in zip(layers, theory, heats, strict=True):
            rows, columns = field.cells
            found.append(
                ReceptiveField(
                    network=name, layer=layer, size=(heat.shape[0], heat.shape[1]), cells=field.cells,
                    cell=(rows // 2, columns // 2), rows=field.rows, columns=field.columns, how=field.how, heat=heat,
                )
            )  # fmt: skip
    return found


def theoretical_fields(
    model: nn.Module, layers: Sequence[str] = STAGES, *, size: tuple[int, ...] = (224, 224), channels: int = 3
) -> list[TheoreticalField]:
    """What the middle cell of each layer can read of a picture with ``size`` rows and columns.

    Raises:
        UsageError, ShapeError: see ``measure_fields``.
    """
    _check(model, layers, size)
    weight = next(model.parameters(), torch.empty(0))
    picture = torch.zeros(1, channels, *size, dtype=weight.dtype, device=weight.device)
    try:
        traced = trace(_reader(model, layers), picture, len(layers))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:  # as torch and timm refuse what does not fit
        raise ShapeError(f"{type(model).__name__} cannot read {_named(picture)}: {error}") from error
    prober, found = None, {}
    for place in reversed(range(len(layers))):  # a deep layer's answers hold those of the layers before it
        lines, cells = traced[place]
        _check_stride(layers[place], size, cells, None if isinstance(lines, Unknown) else lines[0].jump)
        if isinstance(lines, Unknown):
            prober = prober or _prober(model, layers, picture)
            found[place] = TheoreticalField(*prober.spans(place), "probed", cells)
        else:
            rows, columns = (line.at(count // 2) for line, count in zip(lines, cells, strict=True))
            found[place] = TheoreticalField(rows, columns, "traced", cells)
    return [found[place] for place in range(len(layers))]


def effective_fields(model: nn.Module, layers: Sequence[str], pictures: Tensor) -> list[np.ndarray]:
    """What the middle cell of each layer does read: maps (H, W) float64 that each add up to 1.

    Args:
        pictures: (N, C, H, W), normalised.

    Raises:
        UsageError, ShapeError: see ``measure_fields``.
    """
    _check_pictures(pictures)
    _check(model, layers, tuple(pictures.shape[2:]))
    weight, maps = next(model.parameters(), pictures), _reader(model, layers)
    totals = torch.zeros(len(layers), *pictures.shape[2:], dtype=torch.float64)
    for start, some in enumerate(pictures.split(_AT_ONCE)):
        with torch.inference_mode(False), torch.enable_grad():
            x = some.detach().to(weight).clone().requires_grad_()
            for place, found in enumerate(maps(x, len(layers))):
                if not found.requires_grad:
                    raise UsageError(f"{layers[place]} gives no gradient by the picture; wanted a layer behind it")
                cell = middle_cell(found).float()
                total = _gradient(cell.sum(), x)
                if start == 0:
                    _check_gradient(layers[place], total, _gradient(_mixed(cell), x))
                totals[place] += total
    return [(total / total.sum()).numpy() for total in totals]


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """How much ``value`` depends on each pixel, (H, W) float64 on the CPU, added up over pictures and channels."""
    (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
    return gradient.detach().double().abs().sum(dim=(0, 1)).cpu()


def _mixed(cell: Tensor) -> Tensor:
    """The channels added up with random signs, which no constant sum survives."""
    signs = torch.randint(2, cell.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (cell * signs.to(cell)).sum()


def _check_gradient(layer: str, total: Tensor, mixed: Tensor) -> None:
    share, wanted = float(total.sum()), float(mixed.sum())
    if not (math.isfinite(share) and math.isfinite(wanted)):
        raise UsageError(
            f"{layer}: the gradient of the middle cell is not finite; look at the weights and the pictures"
        )
    if wanted == 0:
        raise UsageError(f"{layer}: the middle cell does not depend on the picture; look at the weights")
    if share < _LEAST_SUM * wanted:
        raise UsageError(
            f"{layer}: the channels of the middle cell add up to a constant, as they do behind a LayerNorm, "
            "and so have no gradient; choose the layer before it"
        )


def noise(model: nn.Module, size_px: int | tuple[int, int], *, count: int = 8, seed: int = 0) -> Tensor:
    """Pictures (N, C, H, W) of normal noise, the same for the same seed, with as many channels as the network reads."""
    if count < 1:
        raise ShapeError(f"count is {count}; wanted at least 1 picture")
    size = size_px if isinstance(size_px, tuple) else (size_px, size_px)
    channels = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(seed))


class _Enough(Exception):
    """Every layer that was wanted has been run."""


def _reader(model: nn.Module, layers: Sequence[str]) -> Maps:
    """Run the network as far as needed, and give the maps of its first so many layers."""
    looked_at = [find_layer(model, name) for name in layers]
    body = looked_at[0].network
    run = getattr(body, "forward_features", body)

    def maps(x: Tensor, wanted: int) -> list[Tensor]:
        found: dict[int, Tensor] = {}

        def keep(place: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[place] = looked_at[place].maps(output).clone()  # what follows may work in place
                if len(found) == wanted:
                    raise _Enough

            return hook

        handles = [looked_at[place].module.register_forward_hook(keep(place)) for place in range(wanted)]
        try:
            run(x)
        except _Enough:
            return [found[place] for place in range(wanted)]
        finally:
            for handle in handles:
                handle.remove()
        missing = ", ".join(layers[place] for place in range(wanted) if place not in found)
        raise UsageError(f"{type(body).__name__} does not run {missing}; wanted layers that a picture passes through")

    return maps


def _prober(model: nn.Module, layers: Sequence[str], picture: Tensor) -> Prober:
    if (picture.dtype, picture.device.type) != (torch.float32, "cpu"):
        model, picture = copy.deepcopy(model).float().cpu(), picture.float().cpu()
    return Prober(_reader(model, layers), picture)


def _check(model: nn.Module, layers: Sequence[str], size: tuple[int, ...]) -> None:
    if any(part.training for part in model.modules()):
        raise UsageError(f"{type(model).__name__} is in training mode, where pictures change it; call .eval() first")
    if not layers:
        raise UsageError("layers is empty; wanted at least one, such as 'stage4'")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"size is {size}; wanted rows and columns, each at least 1 pixel")


def _check_pictures(pictures: Tensor) -> None:
    if pictures.ndim != 4 or 0 in pictures.shape or not pictures.isfinite().all():
        raise ShapeError(f"pictures are {tuple(pictures.shape)}; wanted finite numbers (N, C, H, W), N at least 1")


def _check_stride(layer: str, size: tuple[int, ...], cells: tuple[int, int], jump: float | None) -> None:
    stride = jump or max(length / count for length, count in zip(size, cells, strict=True))
    if min(size) < stride:
        raise ShapeError(
            f"the picture has {size[0]}x{size[1]} pixels and one cell of {layer} stands for {stride:g}x{stride:g}; "
            "wanted a picture at least as large"
        )


def _named(picture: Tensor) -> str:
    rows, columns = picture.shape[2:]
    return f"pictures of {rows}x{columns} pixels and {picture.shape[1]} channels"
