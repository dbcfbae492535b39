"""A loaded network made ready for every exporter: folded, of plain operators, with its inputs and its header.

Shapes: ``pictures`` (N, 3, H, W), normalised, and where a head wants them ``sizes`` (N, 2), rows and columns of the
pictures on their canvas; in float32 both, whatever the task and the precision.
"""

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Generator, Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import free_symbols

from van.errors import UsageError
from van.export.header import Header, Precision, Shape
from van.export.heads import HEADS, Head, head_of
from van.models.deploy import can_fuse, fuse
from van.models.load import Loaded
from van.ops import use_backend
from van.preprocess import Preprocess

INPUT, SIZES = "pictures", "sizes"
LEAST_PX = 33
"""Where rows and columns are free there are at least so many: from here on no map of VAN has but one row, which
PyTorch would take for a size that is not free."""
_CANVAS_PX = 32
"""Detectors see canvases whose sides are multiples of this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What can be chosen of an exported file.

    Args:
        dynamic: any number of pictures and, where a task looks at whole ones, of any size.
        half: float16 weights and, where the runtime computes so, arithmetic.
        size_px: side of the square that a classifier sees, or the shorter side of whole pictures; the
            checkpoint's own if None.
        batch_size: pictures at once, where their number is fixed.
        seen: rows and columns of whole pictures as the network sees them, where they are fixed; a square of the
            shorter side if None.
        source: sha256 of the checkpoint, for the header.
    """

    dynamic: bool = False
    half: bool = False
    size_px: int | None = None
    batch_size: int = 1
    seen: tuple[int, int] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("size_px", "batch_size"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise UsageError(f"{name} is {given}; wanted at least 1")
        if self.seen is not None and min(self.seen) < 1:
            raise UsageError(f"seen is {self.seen}; wanted rows and columns of at least 1 pixel")
        if self.dynamic and (self.batch_size != 1 or self.seen is not None):
            raise UsageError("dynamic leaves the number and the size of pictures free; do not give them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network as exporters take it.

    Args:
        module: maps the header's inputs, float32, to the outputs, a tuple of tensors, float32 or whole numbers.
        example: of ``pictures``; where sizes are free they are neither 1 nor alike.
        dynamic_shapes: as ``torch.export.export`` wants them, or None.
        header: of the file to be.
    """

    module: nn.Module
    example: Tensor
    dynamic_shapes: tuple[dict[int, Any], ...] | None
    header: Header

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """Of every input; pictures fill their canvas."""
        if SIZES not in self.header.inputs:
            return (self.example,)
        return self.example, whole_sizes(self.example)

    def program(self) -> torch.export.ExportedProgram:
        """The graph of plain operators.

        Raises:
            UsageError: PyTorch cannot read it with these sizes free.
        """
        try:
            with plain_graph():
                program = torch.export.export(self.module, self.examples, dynamic_shapes=self.dynamic_shapes)
        except Exception as error:  # torch.export raises its own, many kinds
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            hint = "; try it without --dynamic" if self.dynamic_shapes else ""
            raise UsageError(f"{self.header.model} cannot be exported: {first}{hint}") from error
        return _without_bounds(_without_checks(program))


def whole_sizes(pictures: Tensor) -> Tensor:
    """``sizes`` (N, 2) of pictures (N, 3, H, W) that fill their canvas."""
    return torch.tensor(pictures.shape[2:], dtype=torch.float32).expand(len(pictures), 2).contiguous()


def at_size(loaded: Loaded, size_px: int | None) -> Loaded:
    """The same network for pictures of another size: the rule that travels with it says so."""
    if size_px is None:
        return loaded
    rule = loaded.preprocess
    if isinstance(rule, Preprocess):
        return dataclasses.replace(loaded, preprocess=dataclasses.replace(rule, size_px=size_px))
    longer = max(size_px, round(rule.long_px * size_px / rule.short_px))
    return dataclasses.replace(loaded, preprocess=dataclasses.replace(rule, short_px=size_px, long_px=longer))


def want_exportable(loaded: Loaded, *, dynamic: bool = False) -> None:
    """Refuse what no format here can hold.

    Raises:
        UsageError: the network has no classes, or a task or a head without a session, or one that fixes its sizes.
    """
    loaded.want_answers()
    if loaded.task in ("classify", "segment"):
        return
    head = head_of(loaded.options)
    name = loaded.options.get("head", "")
    if head is None:
        raise UsageError(
            f"{name or loaded.task} cannot be exported: it has no session here; wanted a network that classifies, one "
            f"for semantic segmentation, or one with a head among {', '.join(HEADS)}"
        )
    if head.fixed and dynamic:
        raise UsageError(f"{name} cannot be exported with free sizes: {head.fixed}; leave out --dynamic")


def prepare(
    loaded: Loaded,
    options: ExportOptions,
    *,
    format: str,  # noqa: A002 - the header's own name
    precision: Precision | None = None,
    opset: str = "",
    versions: Mapping[str, str] | None = None,
) -> Prepared:
    """Fold the network, cut off what the session does, and write its header.

    Args:
        loaded: what to export; it is left as it is.
        options: which way.
        format: the file's.
        precision: of the arithmetic; by ``options.half`` if None.
        opset: in the format's own words.
        versions: of further packages, beside torch's and ours.

    Raises:
        UsageError: see ``want_exportable``.
    """
    want_exportable(loaded, dynamic=options.dynamic)
    loaded = at_size(loaded, options.size_px)
    head = head_of(loaded.options)
    if precision is None:
        precision = "float16" if options.half else "float32"
    header = Header(
        task=loaded.task,
        model=loaded.name,
        labels=loaded.labels,
        preprocess=loaded.preprocess,
        task_options=loaded.task_options,
        model_options=loaded.options,
        format=format,
        precision=precision,
        dynamic=options.dynamic,
        inputs=_inputs(loaded, options, head),
        outputs=("logits",) if head is None else head.outputs,
        opset=opset,
        source=options.source,
        versions={"van": metadata.version("visual-attention-network"), "torch": torch.__version__, **(versions or {})},
        notes=() if head is None else (head.left,),
    )
    if head is not None and not options.dynamic:  # the canvas is the decoder's to say
        rows, columns = head.decoder(header).canvas([header.inputs[INPUT][2:]])  # pyrefly: ignore
        header = dataclasses.replace(
            header, inputs={**header.inputs, INPUT: (*header.inputs[INPUT][:2], rows, columns)}
        )
    half = precision if precision in ("float16", "bfloat16") else None
    shape = header.inputs[INPUT]
    return Prepared(
        module=_module(loaded, half=half),
        example=_example(shape),
        dynamic_shapes=_free(shape, canvas=head is not None, sized=SIZES in header.inputs),
        header=header,
    )


@contextlib.contextmanager
def plain_graph() -> Generator[None, None, None]:
    """Operators that every exporter knows, no gradients, and no deprecations from inside the exporters."""
    with use_backend("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _InPrecision(nn.Module):
    """A network in another precision, between float32 pictures and float32 outputs."""

    def __init__(self, network: nn.Module, precision: str | None) -> None:
        super().__init__()
        self.dtype = torch.float32 if precision is None else getattr(torch, precision)
        self.network = network.to(self.dtype)

    def forward(self, pictures: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        pictures = pictures.to(self.dtype)
        found = self.network(pictures) if sizes is None else self.network(pictures, sizes)
        outputs = found if isinstance(found, tuple) else (found,)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)


class _PooledByMatrix(nn.Module):
    """``AdaptiveAvgPool2d`` as two matrix products, which every exporter knows for free rows and columns, too."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._shares(x.shape[axis], x) for axis in (2, 3))
        return rows @ x @ columns.transpose(0, 1)

    def _shares(self, side: int, like: Tensor) -> Tensor:
        """(cells, side): what each pixel gives to each cell, which reaches from its floor to its ceiling."""
        cell, pixel = (torch.arange(count, device=like.device) for count in (self.cells, side))
        first, last = cell * side // self.cells, ((cell + 1) * side + self.cells - 1) // self.cells
        inside = (pixel >= first[:, None]) & (pixel < last[:, None])
        return inside.to(like.dtype) / (last - first)[:, None].to(like.dtype)


def _module(loaded: Loaded, *, half: str | None) -> nn.Module:
    network = loaded.model.eval()
    network = fuse(network) if can_fuse(network) else copy.deepcopy(network).requires_grad_(False)
    network = _plain(network.cpu())
    if (head := head_of(loaded.options)) is not None:
        network = head.cut(network)
    return _InPrecision(network, half).eval()


def _without_checks(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without what transformers checks of its own sizes, by an operator that other runtimes do not have."""
    graph = program.graph_module.graph
    checks: list[torch.fx.Node] = []
    for node in graph.nodes:
        if node.target is torch.ops.aten._is_all_true.default or any(each in checks for each in node.all_input_nodes):
            checks.append(node)
    if not checks:
        return program
    for node in reversed(checks):
        graph.erase_node(node)
    program.graph_module.recompile()
    left = set().union(*(free_symbols(node.meta.get("val")) for node in graph.nodes))
    for symbol in set(program.range_constraints) - left:
        del program.range_constraints[symbol]
    return program


def _without_bounds(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without assertions that a number of boxes is what it cannot but be."""
    graph = program.graph_module.graph
    checks = [node for node in graph.nodes if node.target is torch.ops.aten._assert_scalar.default]
    for node in checks:
        graph.erase_node(node)
    if checks:
        graph.eliminate_dead_code()
        program.graph_module.recompile()
    return program


def _plain(module: nn.Module) -> nn.Module:
    """The module with every pooling to more than one cell replaced, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int) and child.output_size > 1:
            setattr(module, name, _PooledByMatrix(child.output_size))
        else:
            _plain(child)
    return module


def _inputs(loaded: Loaded, options: ExportOptions, head: Head | None) -> dict[str, Shape]:
    shape = _shape(loaded, options)
    if head is None:
        return {INPUT: shape}
    if head.sized and options.dynamic:
        shape = (1, *shape[1:])
    return {INPUT: shape, SIZES: (shape[0], 2)} if head.sized else {INPUT: shape}


def _shape(loaded: Loaded, options: ExportOptions) -> Shape:
    rule = loaded.preprocess
    if isinstance(rule, Preprocess):
        return None if options.dynamic else options.batch_size, 3, rule.size_px, rule.size_px
    if options.dynamic:
        return None, 3, None, None
    return options.batch_size, 3, *(options.seen or (rule.short_px, rule.short_px))


def _example(shape: Shape) -> Tensor:
    """Noise; free sizes are neither 1 nor alike, or an exporter would take them for fixed or for one and the same."""
    batch, channels, rows, columns = shape
    sizes = (batch or 2, channels or 3, rows or 128, columns or 160)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def _free(shape: Shape, *, canvas: bool, sized: bool) -> tuple[dict[int, Any], ...] | None:
    names = {0: "batch", 2: "rows", 3: "columns"}
    free: dict[int, Any] = {}
    for place, name in names.items():
        if shape[place] is None:
            if place == 0:
                free[place] = torch.export.Dim(name)
            elif canvas:
                free[place] = _CANVAS_PX * torch.export.Dim(f"{name}_of_{_CANVAS_PX}", min=2)
            else:
                free[place] = torch.export.Dim(name, min=LEAST_PX)
    if not free:
        return None
    return (free, {place: name for place, name in free.items() if place == 0}) if sized else (free,)
