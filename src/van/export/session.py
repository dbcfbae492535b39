"""An exported network, asked as the one in PyTorch is.

A runtime maps pictures (N, 3, H, W), and their sizes where it is told them, to arrays; what a task's ``decode`` reads
is made of them here, once for all formats. Shapes: classification answers (N, 3, H, W) with logits (N, K);
segmentation a list of (3, h, w) with a list of logits (K, h, w); detection such a list with dictionaries of boxes
(K, 4), labels (K,), scores (K,) and, for instances, masks (K, 1, h, w); panoptic segmentation one with class_logits
(Q, K + 1) and mask_logits (Q, h, w).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.export.header import Header
from van.export.heads import Decoder, head_of
from van.export.writing import INPUT, LEAST_PX, SIZES, whole_sizes
from van.models.canvas import Size, group_by_canvas, sizes_of, stack_padded

Runtime = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
"""The header's inputs, in their order, float32, contiguous and on the CPU, to its outputs in their order."""


class Session(Protocol):
    """What every format gives; several threads may ask at once."""

    header: Header

    def __call__(self, pictures: Tensor | list[Tensor]) -> Any:
        """The network's answer, as ``van.tasks`` decodes it."""
        ...

    def run(self, pictures: Tensor, sizes: Sequence[Size] | None = None) -> list[Tensor]:
        """The header's outputs for (N, 3, H, W), before anything is made of them.

        ``sizes`` are the pictures' own rows and columns; that of the canvas if None.
        """
        ...

    def close(self) -> None:
        """Let go of what the runtime holds; the session answers no more."""
        ...


class ExportedNetwork(nn.Module):
    """A ``Session`` that stands where a network stood: in evaluation, without parameters, on the CPU.

    Args:
        header: of the file.
        runtime: see above.
    """

    def __init__(self, header: Header, runtime: Runtime) -> None:
        super().__init__()
        self.header = header
        self._runtime: Runtime | None = runtime
        self._shape = header.inputs[INPUT]
        head = head_of(header.model_options)
        self._decoder: Decoder | None = None if head is None else head.decoder(header)
        self.eval()

    def forward(self, pictures: Tensor | list[Tensor]) -> Any:
        """Answer.

        Raises:
            ShapeError: the file was exported for another size.
            UsageError: the session is closed.
        """
        if self._decoder is not None:
            return self._things(list(pictures), self._decoder)
        if isinstance(pictures, Tensor):
            return self.run(pictures)[0]
        answers: dict[int, Tensor] = {}
        for places in group_by_canvas(sizes_of(pictures), lambda sizes: sizes[0]).values():
            (found,) = self.run(torch.stack([pictures[place] for place in places]))
            answers |= zip(places, found, strict=True)
        return [answers[place] for place in range(len(pictures))]

    def run(self, pictures: Tensor, sizes: Sequence[Size] | None = None) -> list[Tensor]:
        """What the runtime itself gives, in batches of the size that the file has.

        Args:
            pictures: (N, 3, H, W), of any float dtype, layout and device.
            sizes: rows and columns of each, without what fills up its canvas; read where the header wants them.
        """
        if self._runtime is None:
            raise UsageError("the session is closed; open the file again")
        self._want(tuple(pictures.shape))
        ready = {INPUT: pictures.detach().to("cpu", torch.float32).contiguous()}
        if SIZES in self.header.inputs:
            ready[SIZES] = whole_sizes(pictures) if sizes is None else torch.tensor(sizes, dtype=torch.float32)
        fixed = self._shape[0]
        if fixed is None:
            return list(self._runtime(ready))
        batches = zip(*(_batches(values, fixed) for values in ready.values()), strict=True)
        parts = [list(self._runtime(dict(zip(ready, batch, strict=True)))) for batch in batches]
        if (
            len(parts) == 1
        ):  # to put one together wakes PyTorch's threads, which then spin where the runtime's want to work
            return [output[: len(pictures)] for output in parts[0]]
        return [torch.cat(outputs)[: len(pictures)] for outputs in zip(*parts, strict=True)]

    def close(self) -> None:
        """Let go of what the runtime holds."""
        self._runtime = None

    def _things(self, pictures: list[Tensor], decoder: Decoder) -> list[dict[str, Tensor]]:
        sizes = sizes_of(pictures)
        answers: dict[int, dict[str, Tensor]] = {}
        for canvas, places in group_by_canvas(sizes, decoder.canvas).items():
            own = [sizes[place] for place in places]
            outputs = self.run(stack_padded([pictures[place] for place in places], canvas), own)
            answers |= zip(places, decoder(outputs, own, canvas), strict=True)
        return [answers[place] for place in range(len(pictures))]

    def _want(self, seen: tuple[int, ...]) -> None:
        wanted = self._shape
        pairs = list(zip(seen[1:], wanted[1:], strict=False))
        if len(seen) == len(wanted) and all(s >= LEAST_PX if w is None else s == w for s, w in pairs):
            return
        shown = " x ".join(f"at least {LEAST_PX}" if side is None else str(side) for side in wanted[1:])
        hint = "" if None in wanted[1:] else "; export it with --dynamic, or for that size"
        raise ShapeError(
            f"the network was exported for pictures of {shown}, and sees {' x '.join(map(str, seen[1:]))}{hint}"
        )


def _batches(values: Tensor, count: int) -> list[Tensor]:
    """So many of them at a time, the last ones followed by empty ones: a batch of fixed size has no fewer."""
    *full, last = values.split(count)
    if len(last) == count:  # a copy would wake PyTorch's threads, which then spin where the runtime's want to work
        return [*full, last]
    return [*full, torch.cat([last, last.new_zeros(count - len(last), *last.shape[1:])])]
