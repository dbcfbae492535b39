"""Classifies the layers of an OpenVINO graph, and restores float32 in some layers of a quantized graph.

Layers are classified by shape alone, so that any network is supported: depth-wise convolutions, 1x1 convolutions that
keep, expand or reduce the channels (in VAN: the attention's, fc1, fc2), and larger convolutions (patch embeddings). The
stage follows from the output stride: stride 4 is stage 1, stride 32 is stage 4.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal

from van.export.suppress_output import import_without_telemetry

Kind = Literal["depth-wise", "channel-preserving 1x1", "expanding 1x1", "reducing 1x1", "larger", "linear"]
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_QUANTIZER = "FakeQuantize"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with weights: its name in the graph, its kind, and its stage (0 if unknown)."""

    name: str
    kind: Kind
    stage: int


def list_layers(model: Any, *, rows: int) -> list[Layer]:
    """Return the layers with weights of a float32 ``openvino.Model``, in execution order.

    Args:
        model: the model.
        rows: of its input images in pixels; 0 if dynamic.
    """
    return [
        Layer(name=node.get_friendly_name(), kind=_kind(node), stage=_stage(node, rows))
        for node in model.get_ordered_ops()
        if node.get_type_name() in _LAYERS and _weights(node) is not None
    ]


def exclude_layers(quantized: Any, original: Any, names: Collection[str]) -> Any:
    """Return a copy of ``quantized`` whose layers ``names`` have float32 weights and inputs.

    Args:
        quantized: NNCF's result for ``original``.
        original: the float32 graph; its nodes have the same names.
        names: of layers.
    """
    openvino: Any = import_without_telemetry("openvino")
    copy = quantized.clone()
    originals = {node.get_friendly_name(): node for node in original.get_ordered_ops()}
    for node in copy.get_ordered_ops():
        name = node.get_friendly_name()
        if name not in names:
            continue
        weights = _weights(originals[name])
        node.input(1).replace_source_output(openvino.opset13.constant(weights).output(0))
        source = node.input_value(0).get_node()
        if source.get_type_name() == _QUANTIZER:  # the quantizer stays for the other layers that read it
            node.input(0).replace_source_output(source.input_value(0))
    copy.validate_nodes_and_infer_types()
    return copy


def _weights(node: Any) -> Any:
    """Return a layer's constant weights as an array; None if they are computed, as in attention."""
    source = node.input_value(1).get_node()
    if source.get_type_name() == "Reshape" and source.input_value(0).get_node().get_type_name() == "Constant":
        return source.input_value(0).get_node().get_data().reshape(tuple(node.input_value(1).get_shape()))
    return source.get_data() if source.get_type_name() == "Constant" else None


def _kind(node: Any) -> Kind:
    shape = tuple(node.input_value(1).get_shape())
    if node.get_type_name() == "MatMul":
        return "linear"
    if node.get_type_name() == "GroupConvolution":
        return "depth-wise" if shape[1:3] == (1, 1) else "larger"
    out_channels, in_channels, *kernel_size = shape
    if any(side > 1 for side in kernel_size):
        return "larger"
    if out_channels == in_channels:
        return "channel-preserving 1x1"
    return "expanding 1x1" if out_channels > in_channels else "reducing 1x1"


def _stage(node: Any, rows: int) -> int:
    shape = node.get_output_partial_shape(0)
    if not rows or len(shape) != 4 or not shape[2].is_static:
        return 0
    return max(0, round(math.log2(rows / max(1, shape[2].get_length()))) - 1)
