"""Sessions: an exported network with the interface of the one in PyTorch.

A runtime maps images (N, 3, H, W), and their sizes where the graph takes them, to arrays; this module converts them
to the input of a task's ``decode``, for all formats. Shapes: classification maps (N, 3, H, W) to logits (N, K);
segmentation maps a list of (3, h, w) to a list of logits (K, h, w); detection maps such a list to dictionaries of
boxes (K, 4), labels (K,), scores (K,) and, for instances, masks (K, 1, h, w); panoptic segmentation maps one to
dictionaries of class_logits (Q, K + 1) and mask_logits (Q, h, w).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.export.header import Header
from van.export.writing import INPUT, MIN_SIZE, SIZES, full_sizes
from van.heads.network import Size, predict_by_padded_size, sizes_of, stack_padded
from van.heads.registry import Decoder, find_export_part

Runtime = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
"""Maps the header's inputs (in order, float32, contiguous, on the CPU) to its outputs (in order)."""


class Session(Protocol):
    """The interface of an opened file in every format; thread-safe."""

    header: Header

    def __call__(self, images: Tensor | list[Tensor]) -> Any:
        """Return the network's outputs as the task's ``decode`` takes them."""
        ...

    def run(self, images: Tensor, sizes: Sequence[Size] | None = None) -> list[Tensor]:
        """Return the header's outputs for (N, 3, H, W), before post-processing.

        ``sizes`` are the rows and columns of each image before padding; those of the padded images if None.
        """
        ...

    def close(self) -> None:
        """Release the runtime's resources; the session cannot predict afterwards."""
        ...


class ExportedNetwork(nn.Module):
    """A ``Session`` that replaces a network: in evaluation mode, without parameters, on the CPU.

    Args:
        header: of the file.
        runtime: maps inputs to outputs.
    """

    def __init__(self, header: Header, runtime: Runtime) -> None:
        super().__init__()
        self.header = header
        self._runtime: Runtime | None = runtime
        self._shape = header.inputs[INPUT]
        head = find_export_part(header.model_options)
        self._decoder: Decoder | None = None if head is None else head.decoder(header)
        self.eval()

    def forward(self, images: Tensor | list[Tensor]) -> Any:
        """Return the network's outputs as the task's ``decode`` takes them.

        Raises:
            ShapeError: the file was exported for another size.
            UsageError: the session is closed.
        """
        if self._decoder is not None:
            return predict_by_padded_size(list(images), self._decoder.padded_size, self._run_and_decode)
        if isinstance(images, Tensor):
            return self.run(images)[0]
        return predict_by_padded_size(images, lambda sizes: sizes[0], lambda batch, _: self.run(torch.stack(batch))[0])

    def run(self, images: Tensor, sizes: Sequence[Size] | None = None) -> list[Tensor]:
        """Return the runtime's outputs, computed in batches of the file's batch size.

        Args:
            images: (N, 3, H, W), of any float dtype, layout and device.
            sizes: rows and columns of each image before padding; used if the header has the input ``sizes``.
        """
        if self._runtime is None:
            raise UsageError("the session is closed; open the file again")
        self._check_shape(tuple(images.shape))
        inputs = {INPUT: images.detach().to("cpu", torch.float32).contiguous()}
        if SIZES in self.header.inputs:
            inputs[SIZES] = full_sizes(images) if sizes is None else torch.tensor(sizes, dtype=torch.float32)
        batch_size = self._shape[0]
        if batch_size is None:
            return list(self._runtime(inputs))
        batches = zip(*(_batches(values, batch_size) for values in inputs.values()), strict=True)
        results = [list(self._runtime(dict(zip(inputs, batch, strict=True)))) for batch in batches]
        # torch.cat would wake PyTorch's threads, which then spin and slow down those of the runtime.
        if len(results) == 1:
            return [output[: len(images)] for output in results[0]]
        return [torch.cat(outputs)[: len(images)] for outputs in zip(*results, strict=True)]

    def close(self) -> None:
        """Release the runtime's resources."""
        self._runtime = None

    def _run_and_decode(self, images: list[Tensor], padded_size: Size) -> list[dict[str, Tensor]]:
        assert self._decoder is not None
        sizes = sizes_of(images)
        return self._decoder(self.run(stack_padded(images, padded_size), sizes), sizes, padded_size)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        expected = self._shape
        sides = list(zip(shape[1:], expected[1:], strict=False))
        if len(shape) == len(expected) and all(s >= MIN_SIZE if e is None else s == e for s, e in sides):
            return
        described = " x ".join(f"at least {MIN_SIZE}" if side is None else str(side) for side in expected[1:])
        hint = "" if None in expected[1:] else "; export the network with --dynamic, or for that size"
        raise ShapeError(
            f"images: expected {described} after preprocessing, got {' x '.join(map(str, shape[1:]))}{hint}"
        )


def _batches(values: Tensor, batch_size: int) -> list[Tensor]:
    """Split into batches of exactly ``batch_size``; the last one is filled up with zeros, as static shapes require."""
    *full, last = values.split(batch_size)
    if len(last) == batch_size:  # a copy would wake PyTorch's threads, see ``run``
        return [*full, last]
    return [*full, torch.cat([last, last.new_zeros(batch_size - len(last), *last.shape[1:])])]
