"""Exact theoretical receptive fields: the rows and columns of the image that can influence a cell of a feature map.

``trace_receptive_fields`` follows the rules of Araujo et al. 2019 ("Computing receptive fields of convolutional
neural networks", Distill) through the operations of one forward pass. Cell i of a map depends on the pixels
first + jump·i to last + jump·i along each axis. A convolution with kernel k, stride s, dilation d and padding p
changes that to

    first - jump·p,  last + jump·(d·(k - 1) - p),  jump·s,

and where maps are combined, the smaller first and the larger last are kept. An operation over all rows or columns (a
mean over the map, group normalization) makes them infinite. None of it depends on the image's size.

Where an operation has no such rule, such as window attention, ``Prober`` runs the network on images with NaN rows:
every cell that depends on one of them becomes NaN, whatever the weights are. That is exact for one image size. Pixels
in an attention window that are masked count as read, since a mask adds a large negative number to the logits.

Shapes: images (1, C, H, W); maps (1, D, h, w) or (1, h, w, D). Axes are counted from the end, so that they also
apply to tensors of fewer dimensions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from van.errors import UsageError
from van.ops.dispatch import use_backend
from van.visualization.receptive_fields import Span

MapFunction = Callable[[Tensor, int], Sequence[Tensor]]
"""Returns the feature maps (N, C, h, w) of the first layers, given an image and the number of layers."""


class AxisField(NamedTuple):
    """The pixels that cells along one axis of a tensor depend on; ``axis`` is None if the tensor has lost that axis."""

    axis: int | None
    jump: float
    first: float
    last: float

    def span(self, cell: int) -> Span:
        """Return the pixels that one cell depends on."""
        return Span(self.first + self.jump * cell, self.last + self.jump * cell)

    def unbounded_field(self) -> "AxisField":
        """Return the same axis with every cell depending on all pixels."""
        return self._replace(first=-math.inf, last=math.inf)


class Untraceable(NamedTuple):
    """The result where there is no rule: the name of the operation."""

    operation: str


AxisFields = tuple[AxisField, AxisField] | Untraceable
"""Rows and columns of a tensor, or the operation that has no rule."""


def trace_receptive_fields(maps: MapFunction, image: Tensor, layers: int) -> list[tuple[AxisFields, tuple[int, int]]]:
    """Return the fields of each layer's cells, or the operation without a rule; and height and width of its map."""
    with torch.no_grad(), use_backend("reference"), _Tracer(image) as tracer:
        outputs = maps(image, layers)
    return [(_validate_map(tracer.fields.get(each)), (each.shape[2], each.shape[3])) for each in outputs]


def _validate_map(fields: AxisFields | None) -> AxisFields:
    """Return the fields of a map if its rows and columns correspond to the image's."""
    if fields is None:
        return Untraceable("none, as the map does not depend on the image")
    if not isinstance(fields, Untraceable) and (fields[0].axis not in (-2, None) or fields[1].axis not in (-1, None)):
        return Untraceable("transpose of rows and columns")
    return fields


class Prober:
    """Finds the field of a cell by setting rows or columns of the image to NaN, for one image size.

    Args:
        maps: the maps of a float32 network on the CPU, where no convolution spreads a NaN beyond its kernel.
        image: zeros, (1, C, H, W).
    """

    def __init__(self, maps: MapFunction, image: Tensor) -> None:
        self._maps, self._image = maps, image
        self._results: dict[tuple[int, bool, int], list[bool]] = {}

    def spans(self, layer: int) -> tuple[Span, Span]:
        """Return the rows and columns that the center cell of a layer depends on.

        Raises:
            UsageError: it depends on none, or the network's output for zeros is NaN.
        """
        rows, columns = (
            Span(
                self._first_change(axis, False, layer) - 1,
                self._image.shape[axis] - self._first_change(axis, True, layer),
            )
            for axis in (2, 3)
        )
        return rows, columns

    def _first_change(self, axis: int, from_end: bool, layer: int) -> int:
        """Return how many rows or columns from one edge must be NaN for the cell to become NaN, by bisection."""
        free, missed = 0, self._image.shape[axis]
        if self._becomes_nan(axis, from_end, free, layer):
            raise UsageError("receptive fields cannot be probed: the network's output for an image of zeros is NaN")
        if not self._becomes_nan(axis, from_end, missed, layer):
            raise UsageError("receptive fields cannot be probed: the center cell does not depend on the image")
        middle = 1  # windows often reach the edge, so try the first row before bisecting
        while missed - free > 1:
            is_nan = self._becomes_nan(axis, from_end, middle, layer)
            free, missed = (free, middle) if is_nan else (middle, missed)
            middle = (free + missed) // 2
        return missed

    def _becomes_nan(self, axis: int, from_end: bool, count: int, layer: int) -> bool:
        """Return whether the center cell is NaN when the first or last ``count`` rows or columns are."""
        results = self._results.get((axis, from_end, count), [])
        if len(results) <= layer:
            image = self._image.clone()
            length = image.shape[axis]
            image.narrow(axis, length - count if from_end else 0, count).fill_(math.nan)
            with torch.no_grad(), use_backend("reference"):
                outputs = self._maps(image, layer + 1)
            results = [bool(center_cell(output).isnan().any()) for output in outputs]
            self._results[axis, from_end, count] = results
        return results[layer]


def center_cell(feature_map: Tensor) -> Tensor:
    """Return the center cell (N, C) of a map (N, C, h, w); the lower right of four for even sizes."""
    return feature_map[:, :, feature_map.shape[2] // 2, feature_map.shape[3] // 2]


class _Tracer(TorchFunctionMode):
    """Intercepts the operations of a forward pass and computes the fields of each tensor that depends on the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.fields: Any = WeakTensorKeyDictionary()
        self.fields[image] = (AxisField(-2, 1, 0, 0), AxisField(-1, 1, 0, 0))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        output = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.fields]
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if inputs and outputs:
            first = [kwargs.pop("input")] if "input" in kwargs else []
            fields = self._apply_rule(func.__name__, inputs, outputs[0], (*first, *args), kwargs)
            for each in outputs:
                self.fields[each] = fields
        return output

    def _apply_rule(self, name: str, inputs: Sequence[Tensor], output: Tensor, args: Any, kwargs: Any) -> AxisFields:
        fields = [self.fields[each] for each in inputs]
        untraceable = next((each for each in fields if isinstance(each, Untraceable)), None)
        if untraceable is not None:
            return untraceable
        if name in _ELEMENTWISE or name in _CONCATENATING:
            rows, columns = (_combine([each[axis] for each in fields], inputs, output) for axis in (0, 1))
            if rows is None or columns is None:
                return Untraceable(f"{name} of maps with different strides")
            if name in _CONCATENATING and _concat_dim(args, kwargs) in (rows.axis, columns.axis):
                return Untraceable(f"{name} along rows or columns")
            return rows, columns
        if name not in _RULES or len(fields) > 1:
            return Untraceable(name)
        try:
            rows, columns = (_RULES[name](field, axis, *args, **kwargs) for axis, field in enumerate(fields[0]))
        except TypeError:
            return Untraceable(f"{name} with unsupported arguments")
        return Untraceable(name) if rows is None or columns is None else (rows, columns)


def _combine(fields: Sequence[AxisField], tensors: Sequence[Tensor], output: Tensor) -> AxisField | None:
    """Return the field where maps are combined elementwise; None if their cells do not correspond."""
    reference = None
    for field, tensor in zip(fields, tensors, strict=True):
        if field.axis is None:
            continue
        if math.isfinite(field.last) and tensor.shape[field.axis] != output.shape[field.axis]:
            return None  # a single cell is broadcast over all
        reference = reference or field
        if (field.axis, field.jump) != (reference.axis, reference.jump):
            return None
    first, last = min(field.first for field in fields), max(field.last for field in fields)
    return (reference or fields[0])._replace(first=first, last=last)


def _concat_dim(args: Any, kwargs: Any) -> int:
    """Return the dimension along which maps are concatenated, counted from the end."""
    return _from_end(kwargs.get("dim", args[1] if len(args) > 1 else 0), args[0][0])


def _convolution(
    field: AxisField, side: int, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> AxisField:  # fmt: skip
    kernel, step, gap = weight.shape[2 + side], _of(stride, side), _of(dilation, side)
    padding_by_name = {"same": gap * (kernel - 1) // 2, "valid": 0}
    before = padding_by_name[padding] if isinstance(padding, str) else _of(padding, side)
    return _sliding_window(field, kernel, step, before, gap)


def _max_pool(
    field: AxisField, side: int, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> AxisField:  # fmt: skip
    kernel = _of(kernel_size, side)
    return _sliding_window(
        field, kernel, _of(stride, side) if stride else kernel, _of(padding, side), _of(dilation, side)
    )


def _avg_pool(
    field: AxisField, side: int, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *others: Any,
    **other: Any,
) -> AxisField:  # fmt: skip
    kernel = _of(kernel_size, side)
    return _sliding_window(field, kernel, _of(stride, side) if stride else kernel, _of(padding, side), 1)


def _sliding_window(field: AxisField, kernel: int, stride: int, before: int, dilation: int) -> AxisField:
    first, last = field.first - field.jump * before, field.last + field.jump * (dilation * (kernel - 1) - before)
    return field._replace(jump=field.jump * stride, first=first, last=last)


def _pad(field: AxisField, side: int, x: Tensor, pad: Sequence[int], *others: Any, **other: Any) -> AxisField:
    place = 2 * (-1 - field.axis) if field.axis is not None else len(pad)
    return field if place >= len(pad) else _sliding_window(field, 1, 1, pad[place], 1)


def _permute(field: AxisField, side: int, x: Tensor, *order: Any) -> AxisField:
    flat = order[0] if isinstance(order[0], tuple | list) else order
    axes = [_from_end(axis, x) for axis in flat]
    return field if field.axis is None else field._replace(axis=axes.index(field.axis) - len(axes))


def _transpose(field: AxisField, side: int, x: Tensor, one: int, other: int) -> AxisField:
    one, other = _from_end(one, x), _from_end(other, x)
    return field._replace(axis={one: other, other: one}.get(field.axis, field.axis) if field.axis is not None else None)


def _reduce(field: AxisField, side: int, x: Tensor, dim: Any = None, keepdim: bool = False, **other: Any) -> AxisField:
    given = range(x.ndim) if dim is None else (dim if isinstance(dim, tuple | list) else (dim,))
    axes = {_from_end(axis, x) for axis in given}
    if field.axis is None or field.axis in axes:
        return field.unbounded_field()._replace(axis=None)
    return field if keepdim else field._replace(axis=field.axis + sum(axis > field.axis for axis in axes))


def _adaptive_pool(field: AxisField, side: int, x: Tensor, output_size: Any, *others: Any) -> AxisField | None:
    return field.unbounded_field()._replace(axis=None) if _of(output_size, side) == 1 else None


def _batch_norm(
    field: AxisField, side: int, x: Tensor, running_mean: Any = None, *others: Any, **other: Any
) -> AxisField:
    return field.unbounded_field() if running_mean is None else field


def _layer_norm(
    field: AxisField, side: int, x: Tensor, normalized_shape: Sequence[int], *others: Any, **other: Any
) -> AxisField:
    return field.unbounded_field() if field.axis is not None and -field.axis <= len(normalized_shape) else field


def _softmax(field: AxisField, side: int, x: Tensor, dim: int, *others: Any, **other: Any) -> AxisField:
    return field.unbounded_field() if field.axis == _from_end(dim, x) else field


def _linear(field: AxisField, side: int, x: Tensor, *others: Any, **other: Any) -> AxisField:
    return field.unbounded_field()._replace(axis=None) if field.axis == -1 else field


def _split(field: AxisField, side: int, x: Tensor, sizes: Any, dim: int = 0) -> AxisField | None:
    return None if field.axis == _from_end(dim, x) else field


def _over_whole_map(field: AxisField, side: int, x: Tensor, *others: Any, **other: Any) -> AxisField:
    return field.unbounded_field()


def _of(value: Any, side: int) -> int:
    """Return one element of a pair, or the number that applies to both."""
    return int(value[side % len(value)]) if isinstance(value, tuple | list) else int(value)


def _from_end(axis: int, x: Tensor) -> int:
    """Return an axis counted from the end."""
    return axis if axis < 0 else axis - x.ndim


_ELEMENTWISE = frozenset((
    "relu", "relu_", "relu6", "gelu", "silu", "silu_", "sigmoid", "sigmoid_", "tanh", "hardswish", "hardswish_",
    "hardsigmoid", "hardsigmoid_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "mish",
    "mish_", "softplus", "abs", "neg", "exp", "sqrt", "rsqrt", "pow", "square", "clamp", "dropout", "contiguous",
    "clone", "detach", "to", "float", "type_as", "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_",
    "maximum", "minimum", "lerp", "addcmul",
))  # fmt: skip
"""Each cell of the output depends on the same cell of the inputs only."""

_CONCATENATING = frozenset(("cat", "concat"))

_RULES: dict[str, Callable[..., AxisField | None]] = {
    "conv2d": _convolution,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "pad": _pad,
    "permute": _permute,
    "transpose": _transpose,
    "mean": _reduce,
    "sum": _reduce,
    "amax": _reduce,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _over_whole_map,
    "instance_norm": _over_whole_map,
    "softmax": _softmax,
    "linear": _linear,
    "split": _split,
    "chunk": _split,
}
