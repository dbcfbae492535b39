"""Class activation maps (CAM): the cells of a layer's feature maps that raise a score, computed by pytorch-grad-cam.

Only that library's formulas are used, not its loop. The loop clears and overwrites the gradients of the parameters,
records calls of other threads to the same network, does not support bfloat16, and scales each map to 0..1, so that a
constant map has the same range as one with a peak. Here activations and gradients come from autograd alone.

Shapes: activations and gradients (N, C, h, w); a class activation map (N, h, w), nonnegative.
Sources: Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391; Grad-CAM++, Chattopadhay et al. 2018, arXiv:1710.11063;
Layer-CAM, Jiang et al. 2021, doi:10.1109/TIP.2021.3089943; Eigen-CAM, Muhammad and Yeasin 2020, arXiv:2008.00299;
XGrad-CAM, Fu et al. 2020, arXiv:2008.02312.

A stage of VAN ends with a LayerNorm over the channels of each cell, which is invariant to the cell's scale. Before it,
gradient times activation sums to 0 over the channels of every cell. HiResCAM is that sum, and therefore not included;
the other methods that multiply elementwise (``ELEMENTWISE``) are more faithful after the norm, Grad-CAM before it.
docs/explainability.md has the measurements.
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
"""Names of the methods here and in pytorch-grad-cam."""
ELEMENTWISE = ("layer-cam", "xgrad-cam")
"""Methods that multiply each activation with its own gradient."""
_MAX_EIGEN_CAM_CELLS = 5_000
"""The singular value decomposition needs memory for the square of that number: 100 MB."""


@contextmanager
def record_activations(layer: Layer) -> Generator[list[Tensor], None, None]:
    """Record the outputs of a layer, with gradients enabled, while the ``with`` block runs.

    Only calls of this thread are recorded, so that other threads may use the network meanwhile. The hook is removed
    in any case.
    """
    outputs: list[Tensor] = []
    owner = threading.get_ident()

    def record(module: nn.Module, arguments: Any, output: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        if isinstance(output, Tensor) and not output.requires_grad and torch.is_grad_enabled():
            output = output.detach().requires_grad_()  # all parameters up to here are frozen
        layer.to_maps(output)  # raises where the output is no feature map
        outputs.append(output)
        return output

    handle = layer.module.register_forward_hook(record)
    try:
        yield outputs
    finally:
        handle.remove()


def activation_map(method: str, layer: Layer, output: Tensor, score: Tensor, network: nn.Module) -> np.ndarray:
    """Return the class activation map (N, h, w) of one score for each of N images.

    Args:
        method: one of ``METHODS``.
        layer: the layer that gave ``output``.
        output: the layer's output, recorded by ``record_activations``.
        score: a scalar computed from it: the sum of the scores of independent images.
        network: the whole network.

    Raises:
        ShapeError: the score does not depend on the layer, or the map is too large for the method.
        UsageError: the method is unknown.
        MissingExtra: pytorch-grad-cam is not installed.
    """
    cam = _create_cam(method, network)
    activations = _to_numpy(layer.to_maps(output))
    cells = activations.shape[2] * activations.shape[3]
    if method == "eigen-cam" and cells > _MAX_EIGEN_CAM_CELLS:
        raise ShapeError(
            f"eigen-cam: expected at most {_MAX_EIGEN_CAM_CELLS:,} cells, got {cells:,} in layer {layer.name}; "
            f"they need {cells**2 / 2.5e8:.1f} GB of memory; choose a deeper layer"
        )
    (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ShapeError(f"layer {layer.name}: the score does not depend on its output; choose another layer")
    return _weight_activations(cam, method, activations, _to_numpy(layer.to_maps(gradient)))


def _weight_activations(cam: Any, method: str, activations: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return the positive part of the weighted sum over channels, (N, h, w) float32."""
    signed = cam.get_cam_image(None, None, None, activations, gradients, False)
    if method == "eigen-cam":
        # The sign of a principal component is arbitrary: make the value with the largest magnitude positive.
        largest = np.abs(signed).reshape(len(signed), -1).argmax(axis=1)
        signs = np.sign(signed.reshape(len(signed), -1)[np.arange(len(signed)), largest])
        signed = signed * signs[:, None, None]
    return np.maximum(signed, 0).astype(np.float32)


def _to_numpy(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values if values.dtype == torch.float64 else values.float()).numpy()


def _create_cam(method: str, network: nn.Module) -> Any:
    """Create pytorch-grad-cam's object for a method, without target layers, so that it adds no hooks."""
    if method not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise MissingExtra("grad-cam", "explain", "class activation maps") from error
    create: Callable[..., Any] = getattr(pytorch_grad_cam, METHODS[method])
    return create(network, [])
