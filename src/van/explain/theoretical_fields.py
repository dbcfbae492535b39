"""From which to which row and column one cell of a map can read the picture, exactly, for any network.

``trace`` follows the rule of Araujo et al. 2019 ("Computing receptive fields of convolutional neural networks",
Distill) through the operations of one run. Cell i of a map reads the pixels first + jump·i to last + jump·i along
each axis. A convolution with kernel k, stride s, dilation d and padding p makes of that

    first - jump·p,  last + jump·(d·(k - 1) - p),  jump·s,

and where maps meet the smaller first and the larger last stand. An operation that looks at all rows or columns at
once (a mean over the map, group normalisation) makes them infinite. Nothing of it depends on the picture's size.

Where an operation has no such rule, as in windows of attention, ``Prober`` asks the network instead: rows that are NaN
make every cell NaN that reads one of them, whatever the weights are. That is exact for one size of picture. A pixel
that a window holds but a mask hides counts as read, since a mask is a large negative number, not a wall.

Shapes: pictures (1, C, H, W); maps (1, D, h, w) or (1, h, w, D). Axes are counted from the end, so that they are right
for tensors of fewer dimensions too.
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
from van.results.fields import Span

Maps = Callable[[Tensor, int], Sequence[Tensor]]
"""Of a picture, and how many layers are wanted, their maps (N, C, h, w)."""


class Line(NamedTuple):
    """What the cells along one axis of a tensor read; ``axis`` is None where the tensor has none of that kind left."""

    axis: int | None
    jump: float
    first: float
    last: float

    def at(self, cell: int) -> Span:
        """The pixels that one cell reads."""
        return Span(self.first + self.jump * cell, self.last + self.jump * cell)

    def endless(self) -> "Line":
        """The same cells when each reads everything."""
        return self._replace(first=-math.inf, last=math.inf)


class Unknown(NamedTuple):
    """There is no rule: the operation that was met."""

    operation: str


Lines = tuple[Line, Line] | Unknown
"""Rows and columns of one tensor."""


def trace(maps: Maps, picture: Tensor, layers: int) -> list[tuple[Lines, tuple[int, int]]]:
    """What the cells of each layer read, or the operation that has no rule; and rows and columns of its map."""
    with torch.no_grad(), use_backend("reference"), _Tracer(picture) as tracer:
        found = maps(picture, layers)
    return [(_of_map(tracer.known.get(each)), (each.shape[2], each.shape[3])) for each in found]


def _of_map(lines: Lines | None) -> Lines:
    """What is known of a map's cells, if its rows are the picture's and its columns too."""
    if lines is None:
        return Unknown("none, as the map does not come from the picture")
    if not isinstance(lines, Unknown) and (lines[0].axis not in (-2, None) or lines[1].axis not in (-1, None)):
        return Unknown("transpose of rows and columns")
    return lines


class Prober:
    """Finds what a cell reads by hiding rows or columns behind NaN, on pictures of one size.

    Args:
        maps: of a network in float32 on the CPU, where no convolution spreads a NaN further than its kernel.
        picture: zeros, (1, C, H, W).
    """

    def __init__(self, maps: Maps, picture: Tensor) -> None:
        self._maps, self._picture = maps, picture
        self._seen: dict[tuple[int, bool, int], list[bool]] = {}

    def spans(self, layer: int) -> tuple[Span, Span]:
        """Rows and columns that the middle cell of the layer at that place reads.

        Raises:
            UsageError: none, or the network answers NaN by itself.
        """
        rows, columns = (
            Span(self._fewest(axis, False, layer) - 1, self._picture.shape[axis] - self._fewest(axis, True, layer))
            for axis in (2, 3)
        )
        return rows, columns

    def _fewest(self, axis: int, from_end: bool, layer: int) -> int:
        """How many rows or columns must be hidden, counted from one edge, until the cell misses one."""
        free, missed = 0, self._picture.shape[axis]
        if self._misses(axis, from_end, free, layer):
            raise UsageError("the network answers NaN to a picture of zeros, so that its fields cannot be probed")
        if not self._misses(axis, from_end, missed, layer):
            raise UsageError("the middle cell does not depend on the picture")
        middle = 1  # windows often reach the edge
        while missed - free > 1:
            hidden = self._misses(axis, from_end, middle, layer)
            free, missed = (free, middle) if hidden else (middle, missed)
            middle = (free + missed) // 2
        return missed

    def _misses(self, axis: int, from_end: bool, count: int, layer: int) -> bool:
        seen = self._seen.get((axis, from_end, count), [])
        if len(seen) <= layer:
            picture = self._picture.clone()
            length = picture.shape[axis]
            picture.narrow(axis, length - count if from_end else 0, count).fill_(math.nan)
            with torch.no_grad(), use_backend("reference"):
                found = self._maps(picture, layer + 1)
            seen = [bool(middle_cell(each).isnan().any()) for each in found]
            self._seen[axis, from_end, count] = seen
        return seen[layer]


def middle_cell(found: Tensor) -> Tensor:
    """(N, C, h, w) to the (N, C) of the cell in the middle, the lower right one of four."""
    return found[:, :, found.shape[2] // 2, found.shape[3] // 2]


class _Tracer(TorchFunctionMode):
    """Watches a run, and knows for each tensor that comes from the picture what its cells read."""

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.known: Any = WeakTensorKeyDictionary()
        self.known[picture] = (Line(-2, 1, 0, 0), Line(-1, 1, 0, 0))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        answer = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.known]
        answers = [t for t in tree_leaves(answer) if isinstance(t, Tensor)]
        if inputs and answers:
            first = [kwargs.pop("input")] if "input" in kwargs else []
            lines = self._read(func.__name__, inputs, answers[0], (*first, *args), kwargs)
            for each in answers:
                self.known[each] = lines
        return answer

    def _read(self, name: str, inputs: Sequence[Tensor], answer: Tensor, args: Any, kwargs: Any) -> Lines:
        lines = [self.known[each] for each in inputs]
        unknown = next((each for each in lines if isinstance(each, Unknown)), None)
        if unknown is not None:
            return unknown
        if name in _CELL_BY_CELL or name in _JOINING:
            rows, columns = (_met([each[axis] for each in lines], inputs, answer) for axis in (0, 1))
            if rows is None or columns is None:
                return Unknown(f"{name} of maps with different strides")
            if name in _JOINING and _dimension(args, kwargs) in (rows.axis, columns.axis):
                return Unknown(f"{name} along rows or columns")
            return rows, columns
        if name not in _RULES or len(lines) > 1:
            return Unknown(name)
        try:
            rows, columns = (_RULES[name](line, axis, *args, **kwargs) for axis, line in enumerate(lines[0]))
        except TypeError:
            return Unknown(f"{name} with other arguments")
        return Unknown(name) if rows is None or columns is None else (rows, columns)


def _met(lines: Sequence[Line], tensors: Sequence[Tensor], answer: Tensor) -> Line | None:
    """What the cells read where maps meet one to one; None where they do not."""
    placed = None
    for line, tensor in zip(lines, tensors, strict=True):
        if line.axis is None:
            continue
        if math.isfinite(line.last) and tensor.shape[line.axis] != answer.shape[line.axis]:
            return None  # one cell is spread over all
        placed = placed or line
        if (line.axis, line.jump) != (placed.axis, placed.jump):
            return None
    first, last = min(line.first for line in lines), max(line.last for line in lines)
    return (placed or lines[0])._replace(first=first, last=last)


def _dimension(args: Any, kwargs: Any) -> int:
    """Along which maps are joined."""
    return _from_end(kwargs.get("dim", args[1] if len(args) > 1 else 0), args[0][0])


def _convolution(
    line: Line, which: int, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Line:  # fmt: skip
    kernel, step, spacing = weight.shape[2 + which], _of(stride, which), _of(dilation, which)
    named = {"same": spacing * (kernel - 1) // 2, "valid": 0}
    before = named[padding] if isinstance(padding, str) else _of(padding, which)
    return _windowed(line, kernel, step, before, spacing)


def _max_pool(
    line: Line, which: int, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Line:  # fmt: skip
    kernel = _of(kernel_size, which)
    return _windowed(line, kernel, _of(stride, which) if stride else kernel, _of(padding, which), _of(dilation, which))


def _mean_pool(
    line: Line, which: int, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *others: Any,
    **other: Any,
) -> Line:  # fmt: skip
    kernel = _of(kernel_size, which)
    return _windowed(line, kernel, _of(stride, which) if stride else kernel, _of(padding, which), 1)


def _windowed(line: Line, kernel: int, stride: int, before: int, dilation: int) -> Line:
    first, last = line.first - line.jump * before, line.last + line.jump * (dilation * (kernel - 1) - before)
    return line._replace(jump=line.jump * stride, first=first, last=last)


def _pad(line: Line, which: int, x: Tensor, pad: Sequence[int], *others: Any, **other: Any) -> Line:
    place = 2 * (-1 - line.axis) if line.axis is not None else len(pad)
    return line if place >= len(pad) else _windowed(line, 1, 1, pad[place], 1)


def _permute(line: Line, which: int, x: Tensor, *order: Any) -> Line:
    flat = order[0] if isinstance(order[0], tuple | list) else order
    places = [_from_end(axis, x) for axis in flat]
    return line if line.axis is None else line._replace(axis=places.index(line.axis) - len(places))


def _transpose(line: Line, which: int, x: Tensor, one: int, other: int) -> Line:
    one, other = _from_end(one, x), _from_end(other, x)
    return line._replace(axis={one: other, other: one}.get(line.axis, line.axis) if line.axis is not None else None)


def _mean(line: Line, which: int, x: Tensor, dim: Any = None, keepdim: bool = False, **other: Any) -> Line:
    given = range(x.ndim) if dim is None else (dim if isinstance(dim, tuple | list) else (dim,))
    axes = {_from_end(axis, x) for axis in given}
    if line.axis is None or line.axis in axes:
        return line.endless()._replace(axis=None)
    return line if keepdim else line._replace(axis=line.axis + sum(axis > line.axis for axis in axes))


def _adaptive_pool(line: Line, which: int, x: Tensor, output_size: Any, *others: Any) -> Line | None:
    return line.endless()._replace(axis=None) if _of(output_size, which) == 1 else None


def _batch_norm(line: Line, which: int, x: Tensor, running_mean: Any = None, *others: Any, **other: Any) -> Line:
    return line.endless() if running_mean is None else line


def _layer_norm(line: Line, which: int, x: Tensor, normalized_shape: Sequence[int], *others: Any, **other: Any) -> Line:
    return line.endless() if line.axis is not None and -line.axis <= len(normalized_shape) else line


def _softmax(line: Line, which: int, x: Tensor, dim: int, *others: Any, **other: Any) -> Line:
    return line.endless() if line.axis == _from_end(dim, x) else line


def _linear(line: Line, which: int, x: Tensor, *others: Any, **other: Any) -> Line:
    return line.endless()._replace(axis=None) if line.axis == -1 else line


def _split(line: Line, which: int, x: Tensor, sizes: Any, dim: int = 0) -> Line | None:
    return None if line.axis == _from_end(dim, x) else line


def _over_all_cells(line: Line, which: int, x: Tensor, *others: Any, **other: Any) -> Line:
    return line.endless()


def _of(value: Any, which: int) -> int:
    """One of a pair, or the number that stands for both."""
    return int(value[which % len(value)]) if isinstance(value, tuple | list) else int(value)


def _from_end(axis: int, x: Tensor) -> int:
    return axis if axis < 0 else axis - x.ndim


_CELL_BY_CELL = frozenset((
    "relu", "relu_", "relu6", "gelu", "silu", "silu_", "sigmoid", "sigmoid_", "tanh", "hardswish", "hardswish_",
    "hardsigmoid", "hardsigmoid_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "mish",
    "mish_", "softplus", "abs", "neg", "exp", "sqrt", "rsqrt", "pow", "square", "clamp", "dropout", "contiguous",
    "clone", "detach", "to", "float", "type_as", "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_",
    "maximum", "minimum", "lerp", "addcmul",
))  # fmt: skip
"""Each cell of the answer comes from the same cell of the maps, over all channels or not."""

_JOINING = frozenset(("cat", "concat"))

_RULES: dict[str, Callable[..., Line | None]] = {
    "conv2d": _convolution,
    "max_pool2d": _max_pool,
    "avg_pool2d": _mean_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "pad": _pad,
    "permute": _permute,
    "transpose": _transpose,
    "mean": _mean,
    "sum": _mean,
    "amax": _mean,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _over_all_cells,
    "instance_norm": _over_all_cells,
    "softmax": _softmax,
    "linear": _linear,
    "split": _split,
    "chunk": _split,
}
