"""Class activation maps: which cells of a layer's maps raise a score. The arithmetic is pytorch-grad-cam's.

That library's own loop is not used. It clears the gradients of the network's parameters and leaves new ones there,
records what other threads run through the same network, cannot read bfloat16, and scales each map to 0..1, so that a
map of one value looks like one with a peak. Here the layer's maps and their gradients are taken by autograd alone.

Shapes: maps and gradients (N, C, h, w); a class activation map (N, h, w), at least 0.
Sources: Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391; Grad-CAM++, Chattopadhay et al. 2018, arXiv:1710.11063;
Layer-CAM, Jiang et al. 2021, doi:10.1109/TIP.2021.3089943; Eigen-CAM, Muhammad and Yeasin 2020, arXiv:2008.00299;
XGrad-CAM, Fu et al. 2020, arXiv:2008.02312.

A stage of VAN ends with a LayerNorm of each cell, which takes no notice of a cell's scale: before it, gradient times
map adds up to 0 over the channels of every cell, whatever it shows. HiResCAM, which is that sum, is left out for it,
and what else multiplies cell by cell (``CELL_BY_CELL``) tells more of a class behind the norm. Grad-CAM tells more
before it. docs/explain.md has the figures.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from van.errors import MissingExtra, ShapeError, UsageError
from van.explain.layers import Layer

METHODS = {
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMPlusPlus",
    "layer-cam": "LayerCAM",
    "eigen-cam": "EigenCAM",
    "xgrad-cam": "XGradCAM",
}
"""Ours and pytorch-grad-cam's names of the methods."""
CELL_BY_CELL = ("layer-cam", "xgrad-cam")
"""Methods that multiply each cell of a map with its own gradient."""
_MOST_CELLS_OF_EIGEN_CAM = 5_000
"""Its decomposition holds the square of that number: 100 MB."""


@contextmanager
def recorded(layer: Layer) -> Generator[list[Tensor], None, None]:
    """Collect what a layer gives, as maps whose gradients can be asked for, while the block runs.

    Only calls of this thread are recorded, so that others may use the network meanwhile. The layer is left as it was,
    whatever happens in the block.
    """
    found: list[Tensor] = []
    owner = threading.get_ident()

    def record(module: nn.Module, arguments: Any, output: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        if isinstance(output, Tensor) and not output.requires_grad and torch.is_grad_enabled():
            output = output.detach().requires_grad_()  # the network is frozen up to here
        maps = layer.maps(output)
        found.append(output)
        assert maps is not None
        return output

    handle = layer.module.register_forward_hook(record)
    try:
        yield found
    finally:
        handle.remove()


def activation_map(method: str, layer: Layer, output: Tensor, score: Tensor, network: nn.Module) -> np.ndarray:
    """The map (N, h, w) of one score for each of N pictures.

    Args:
        method: one of ``METHODS``.
        layer: whose maps they are.
        output: what the layer gave, recorded by ``recorded``.
        score: a scalar that the network computed from it: the sum over the pictures, each of which counts for itself.
        network: the whole of it.

    Raises:
        ShapeError: the score does not depend on the layer, or the map is too large for the method.
        UsageError: there is no such method.
        MissingExtra: pytorch-grad-cam is not installed.
    """
    arithmetic = _arithmetic(method, network)
    maps = _plain(layer.maps(output))
    cells = maps.shape[2] * maps.shape[3]
    if method == "eigen-cam" and cells > _MOST_CELLS_OF_EIGEN_CAM:
        raise ShapeError(f"eigen-cam of {cells:,} cells would need {cells**2 / 2.5e8:.1f} GB; choose a deeper layer")
    (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ShapeError(f"the score does not depend on layer {layer.name}; choose another layer")
    return _weighed(arithmetic, method, maps, _plain(layer.maps(gradient)))


def _weighed(arithmetic: Any, method: str, maps: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    signed = arithmetic.get_cam_image(None, None, None, maps, gradients, False)
    if method == "eigen-cam":  # a principal component has no sign of its own: its largest value is made positive
        largest = np.abs(signed).reshape(len(signed), -1).argmax(axis=1)
        signs = np.sign(signed.reshape(len(signed), -1)[np.arange(len(signed)), largest])
        signed = signed * signs[:, None, None]
    return np.maximum(signed, 0).astype(np.float32)


def _plain(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values if values.dtype == torch.float64 else values.float()).numpy()


def _arithmetic(method: str, network: nn.Module) -> Any:
    """pytorch-grad-cam's object for a method, which is given no layer to hook."""
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}; known: {', '.join(METHODS)}")
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise MissingExtra("grad-cam", "explain", "class activation maps") from error
    create: Callable[..., Any] = getattr(pytorch_grad_cam, METHODS[method])
    return create(network, [])
