"""The layers of an OpenVINO graph by what they are, and a quantised graph with some of them back in float32.

A layer is told by its shape alone, so that any network will do: depth-wise convolutions, 1x1 convolutions that keep,
widen or narrow the channels (in VAN: the attention's, fc1, fc2), and other convolutions (patch embeddings). Its stage
is how often its rows have been halved since the picture: 4 pixels to one is stage 1, 32 to one is stage 4.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal

from van.export.quiet import quiet_import

Kind = Literal["depth-wise", "keeping 1x1", "widening 1x1", "narrowing 1x1", "larger", "linear"]
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_QUANTISER = "FakeQuantize"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with weights: its name in the graph, what it is, and its stage, 0 where that cannot be told."""

    name: str
    kind: Kind
    stage: int


def layers_of(model: Any, *, rows: int) -> list[Layer]:
    """The layers of ``model``, an ``openvino.Model`` in float32, in their order.

    Args:
        model: whose layers.
        rows: of its pictures, in pixels; 0 if they are free.
    """
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in _LAYERS and _weights(node) is not None:
            found.append(Layer(name=node.get_friendly_name(), kind=_kind(node), stage=_stage(node, rows)))
    return found


def spared(quantised: Any, plain: Any, names: Collection[str]) -> Any:
    """A copy of ``quantised`` with the layers of these names in float32, weights and all.

    Args:
        quantised: what NNCF made of ``plain``.
        plain: the same graph in float32, whose nodes have the same names.
        names: of layers.
    """
    openvino: Any = quiet_import("openvino")
    copy = quantised.clone()
    originals = {node.get_friendly_name(): node for node in plain.get_ordered_ops()}
    for node in copy.get_ordered_ops():
        name = node.get_friendly_name()
        if name not in names:
            continue
        weights = _weights(originals[name])
        node.input(1).replace_source_output(openvino.opset13.constant(weights).output(0))
        source = node.input_value(0).get_node()
        if source.get_type_name() == _QUANTISER:  # others that read it go on reading it
            node.input(0).replace_source_output(source.input_value(0))
    copy.validate_nodes_and_infer_types()
    return copy


def _weights(node: Any) -> Any:
    """The array that a layer reads as its weights; None if it computes them, as attention does."""
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
    outputs, inputs, *sides = shape
    if any(side > 1 for side in sides):
        return "larger"
    if outputs == inputs:
        return "keeping 1x1"
    return "widening 1x1" if outputs > inputs else "narrowing 1x1"


def _stage(node: Any, rows: int) -> int:
    shape = node.get_output_partial_shape(0)
    if not rows or len(shape) != 4 or not shape[2].is_static:
        return 0
    return max(0, round(math.log2(rows / max(1, shape[2].get_length()))) - 1)
