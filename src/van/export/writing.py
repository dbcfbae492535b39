"""Preparation of a loaded network for all exporters: fused, with reference operators, example inputs and header.

Shapes: ``images`` (N, 3, H, W), normalized and, where a head takes them, ``sizes`` (N, 2), rows and columns of the
images before padding; both in float32 for every task and precision.
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

from van.backbones.fusion import can_fuse, fuse
from van.errors import UsageError
from van.export.header import Header, Precision, Shape
from van.heads import HEADS, ExportPart
from van.heads.registry import find_export_part
from van.model import Model
from van.ops import use_backend
from van.preprocess import CenterCropPreprocess

INPUT, SIZES = "images", "sizes"
MIN_SIZE = 33
"""The minimum of dynamic rows and columns in pixels: no feature map of VAN then has a single row, a size that PyTorch
would treat as static."""
_MULTIPLE_PX = 32
"""Images of detectors are padded to multiples of this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    Args:
        dynamic: dynamic batch size and, except for classification, dynamic rows and columns.
        half: float16 weights and, where the runtime supports it, arithmetic.
        image_size: side of a classifier's center crop, or the shorter side of other tasks' images, in pixels; the
            checkpoint's if None.
        batch_size: of a file without ``dynamic``.
        input_size: rows and columns after preprocessing, for tasks without center crop and a file without
            ``dynamic``; a square of the shorter side if None.
        source: sha256 of the checkpoint, for the header.
    """

    dynamic: bool = False
    half: bool = False
    image_size: int | None = None
    batch_size: int = 1
    input_size: tuple[int, int] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}: expected at least 1, got {value}")
        if self.input_size is not None and min(self.input_size) < 1:
            raise UsageError(f"input_size: expected rows and columns of at least 1 pixel, got {self.input_size}")
        if self.dynamic and (self.batch_size != 1 or self.input_size is not None):
            raise UsageError("dynamic excludes batch_size and input_size; leave them out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network ready for an exporter.

    Args:
        module: maps the header's inputs, float32, to the outputs, a tuple of float32 or integer tensors.
        example: for the input ``images``; dynamic sizes are neither 1 nor equal.
        dynamic_shapes: for ``torch.export.export``, or None.
        header: of the file to write.
    """

    module: nn.Module
    example: Tensor
    dynamic_shapes: tuple[dict[int, Any], ...] | None
    header: Header

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """Example inputs in order; the images have no padding."""
        if SIZES not in self.header.inputs:
            return (self.example,)
        return self.example, full_sizes(self.example)

    def program(self) -> torch.export.ExportedProgram:
        """Trace the module to a graph of ATen operators.

        Raises:
            UsageError: PyTorch cannot trace it with these dynamic shapes.
        """
        try:
            with reference_graph():
                program = torch.export.export(self.module, self.examples, dynamic_shapes=self.dynamic_shapes)
        except Exception as error:  # torch.export raises many exception types of its own
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            hint = "; try it without --dynamic" if self.dynamic_shapes else ""
            raise UsageError(f"{self.header.model}: export failed: {first}{hint}") from error
        return _remove_bound_assertions(_remove_shape_checks(program))


def full_sizes(images: Tensor) -> Tensor:
    """Return ``sizes`` (N, 2) of images (N, 3, H, W) without padding."""
    return torch.tensor(images.shape[2:], dtype=torch.float32).expand(len(images), 2).contiguous()


def with_image_size(loaded: Model, image_size: int | None) -> Model:
    """Return the same network with its preprocessing changed to another image size."""
    if image_size is None:
        return loaded
    preprocess = loaded.preprocess
    if isinstance(preprocess, CenterCropPreprocess):
        return loaded.replace(preprocess=dataclasses.replace(preprocess, image_size=image_size))
    max_size = max(image_size, round(preprocess.max_size * image_size / preprocess.min_size))
    resized = dataclasses.replace(preprocess, min_size=image_size, max_size=max_size)
    return loaded.replace(preprocess=resized)


def check_exportable(loaded: Model, *, dynamic: bool = False) -> None:
    """Check that the network can be exported.

    Raises:
        UsageError: the network has no classes, there is no export for its task or head, or its head excludes dynamic
            sizes.
    """
    loaded.check_has_weights()
    loaded.check_can_predict()
    if loaded.task in ("classify", "segment"):
        return
    head = find_export_part(loaded.options)
    name = loaded.options.get("head", "")
    if head is None:
        raise UsageError(
            f"{name or loaded.task}: export is not supported; expected a network for classification or semantic "
            f"segmentation, or with one of the heads {', '.join(HEADS)}"
        )
    if head.fixed_reason and dynamic:
        raise UsageError(f"{name}: dynamic sizes are not supported, because {head.fixed_reason}; leave out --dynamic")


def prepare(
    loaded: Model,
    options: ExportOptions,
    *,
    format: str,  # noqa: A002 - the header's field name
    precision: Precision | None = None,
    opset: str = "",
    versions: Mapping[str, str] | None = None,
) -> Prepared:
    """Fuse the network, extract the part to trace, and make the header.

    Args:
        loaded: the network to export; not modified.
        options: of the export.
        format: name of the file format.
        precision: of the arithmetic; from ``options.half`` if None.
        opset: the operator set, as the format names it.
        versions: of packages other than torch and van.

    Raises:
        UsageError: see ``check_exportable``.
    """
    check_exportable(loaded, dynamic=options.dynamic)
    loaded = with_image_size(loaded, options.image_size)
    head = find_export_part(loaded.options)
    if precision is None:
        precision = "float16" if options.half else "float32"
    header = Header(
        task=loaded.task,
        model=loaded.name,
        class_names=loaded.class_names,
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
        notes=() if head is None else (head.note,),
    )
    if head is not None and not options.dynamic:
        rows, columns = head.decoder(header).padded_size([header.inputs[INPUT][2:]])  # pyrefly: ignore
        header = dataclasses.replace(
            header, inputs={**header.inputs, INPUT: (*header.inputs[INPUT][:2], rows, columns)}
        )
    half = precision if precision in ("float16", "bfloat16") else None
    shape = header.inputs[INPUT]
    return Prepared(
        module=_module(loaded, half=half),
        example=_example(shape),
        dynamic_shapes=_dynamic_shapes(shape, is_padded=head is not None, takes_sizes=SIZES in header.inputs),
        header=header,
    )


@contextlib.contextmanager
def reference_graph() -> Generator[None, None, None]:
    """Use the reference operators, which every exporter supports, without gradients and the exporters' warnings."""
    with use_backend("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _CastNetwork(nn.Module):
    """A network in another precision with float32 inputs and float32 outputs."""

    def __init__(self, network: nn.Module, precision: str | None) -> None:
        super().__init__()
        self.dtype = torch.float32 if precision is None else getattr(torch, precision)
        self.network = network.to(self.dtype)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        images = images.to(self.dtype)
        result = self.network(images) if sizes is None else self.network(images, sizes)
        outputs = result if isinstance(result, tuple) else (result,)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)


class _MatrixAveragePool(nn.Module):
    """``AdaptiveAvgPool2d`` as two matrix products, which every exporter supports also with dynamic sizes."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._weights(x.shape[axis], x) for axis in (2, 3))
        return rows @ x @ columns.transpose(0, 1)

    def _weights(self, side: int, like: Tensor) -> Tensor:
        """Return the weights (cells, side) of each pixel in each cell; a cell's bounds are rounded outwards."""
        cell, pixel = (torch.arange(count, device=like.device) for count in (self.cells, side))
        first, last = cell * side // self.cells, ((cell + 1) * side + self.cells - 1) // self.cells
        inside = (pixel >= first[:, None]) & (pixel < last[:, None])
        return inside.to(like.dtype) / (last - first)[:, None].to(like.dtype)


def _module(loaded: Model, *, half: str | None) -> nn.Module:
    network = loaded.network.eval()
    network = fuse(network) if can_fuse(network) else copy.deepcopy(network).requires_grad_(False)
    network = _replace_adaptive_pools(network.cpu())
    if (head := find_export_part(loaded.options)) is not None:
        network = head.extract(network)
    return _CastNetwork(network, half).eval()


def _remove_shape_checks(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove the shape checks of transformers in place; their operator exists in no other runtime."""
    graph = program.graph_module.graph
    checks: list[torch.fx.Node] = []
    for node in graph.nodes:
        if node.target is torch.ops.aten._is_all_true.default or any(
            source in checks for source in node.all_input_nodes
        ):
            checks.append(node)
    if not checks:
        return program
    for node in reversed(checks):
        graph.erase_node(node)
    program.graph_module.recompile()
    remaining = set().union(*(free_symbols(node.meta.get("val")) for node in graph.nodes))
    for symbol in set(program.range_constraints) - remaining:
        del program.range_constraints[symbol]
    return program


def _remove_bound_assertions(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove the assertions on the number of boxes in place; the number is always within their bounds."""
    graph = program.graph_module.graph
    checks = [node for node in graph.nodes if node.target is torch.ops.aten._assert_scalar.default]
    for node in checks:
        graph.erase_node(node)
    if checks:
        graph.eliminate_dead_code()
        program.graph_module.recompile()
    return program


def _replace_adaptive_pools(module: nn.Module) -> nn.Module:
    """Replace every adaptive pooling to more than one cell in place, and return the module."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int) and child.output_size > 1:
            setattr(module, name, _MatrixAveragePool(child.output_size))
        else:
            _replace_adaptive_pools(child)
    return module


def _inputs(loaded: Model, options: ExportOptions, head: ExportPart | None) -> dict[str, Shape]:
    shape = _shape(loaded, options)
    if head is None:
        return {INPUT: shape}
    if head.takes_sizes and options.dynamic:
        shape = (1, *shape[1:])
    return {INPUT: shape, SIZES: (shape[0], 2)} if head.takes_sizes else {INPUT: shape}


def _shape(loaded: Model, options: ExportOptions) -> Shape:
    preprocess = loaded.preprocess
    if isinstance(preprocess, CenterCropPreprocess):
        batch_size = None if options.dynamic else options.batch_size
        return batch_size, 3, preprocess.image_size, preprocess.image_size
    if options.dynamic:
        return None, 3, None, None
    return options.batch_size, 3, *(options.input_size or (preprocess.min_size, preprocess.min_size))


def _example(shape: Shape) -> Tensor:
    """Return noise; dynamic sizes are neither 1 nor equal, or an exporter would treat them as static or as one size."""
    batch, channels, rows, columns = shape
    sizes = (batch or 2, channels or 3, rows or 128, columns or 160)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def _dynamic_shapes(shape: Shape, *, is_padded: bool, takes_sizes: bool) -> tuple[dict[int, Any], ...] | None:
    names = {0: "batch", 2: "rows", 3: "columns"}
    dynamic: dict[int, Any] = {}
    for axis, name in names.items():
        if shape[axis] is None:
            if axis == 0:
                dynamic[axis] = torch.export.Dim(name)
            elif is_padded:
                dynamic[axis] = _MULTIPLE_PX * torch.export.Dim(f"{name}_of_{_MULTIPLE_PX}", min=2)
            else:
                dynamic[axis] = torch.export.Dim(name, min=MIN_SIZE)
    if not dynamic:
        return None
    return (dynamic, {axis: dim for axis, dim in dynamic.items() if axis == 0}) if takes_sizes else (dynamic,)
