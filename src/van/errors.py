"""Every error this package raises on purpose.

::

    VanError                    exit status 1: the job failed
    ├── UsageError              exit status 2: the request itself is wrong
    │   ├── MissingExtra        an optional package is not installed
    │   └── RunExists           the output folder already holds a run
    ├── ShapeError              tensors or kernels that do not fit together
    ├── PictureError            one picture cannot be read
    ├── DataError               a data set is not laid out as it should be
    │   └── NoSuchMarks         it holds no marks of the kind that is wanted
    ├── CheckpointError         a weights file cannot be used
    │   ├── TruncatedFile       it ends too early
    │   ├── UnsafePickle        it holds something other than tensors and plain values
    │   ├── HashMismatch        its content does not match the hash in its name
    │   ├── UnknownFormat       its names belong to no known family
    │   └── NamesMismatch       tensors are missing, left over, or of another shape
    ├── HubError                a download failed
    ├── NonFiniteLoss           training produced a NaN or an infinity
    └── Interrupted             a signal stopped the run after it had saved itself

A message names the thing, the value seen and the value wanted, and says what to do.
"""

from collections.abc import Sequence
from typing import Any


class VanError(Exception):
    """Root of the tree; ``exit_status`` is what the command line ends with."""

    exit_status = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as message and attributes, whatever ``__init__`` takes: errors come back from worker processes."""
        return _revived, (type(self), self.args, self.__dict__)


class UsageError(VanError):
    """The request is wrong: a flag, an argument or a combination of them."""

    exit_status = 2


class MissingExtra(UsageError):
    """The optional ``package`` is needed and absent; ``extra`` brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"pip install 'visual-attention-network[{extra}]'"
        )
        self.package = package
        self.extra = extra


class RunExists(UsageError):
    """``--out`` already holds a run, and nobody asked to go on with it."""


class ShapeError(VanError, ValueError):
    """Tensors, kernels or sizes that do not fit together."""


class PictureError(VanError):
    """One picture cannot be read; ``name`` says which."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class DataError(VanError):
    """A data set is missing, empty or laid out in another way than expected."""


class NoSuchMarks(DataError):
    """A folder holds no data set with boxes, masks or maps, whichever are wanted."""


class CheckpointError(VanError):
    """A weights file cannot be used."""


class TruncatedFile(CheckpointError):
    """A weights file ends before its content does."""


class UnsafePickle(CheckpointError):
    """A pickle holds something other than tensors and plain values; nothing of it was run."""


class HashMismatch(CheckpointError):
    """A file's sha256 does not start with the digits in its name."""


class UnknownFormat(CheckpointError):
    """A file's tensor names belong to no family this package knows."""


class NamesMismatch(CheckpointError):
    """Strict loading failed; ``missing``, ``left_over`` and ``misshapen`` list every tensor."""

    def __init__(
        self,
        source: str,
        *,
        missing: Sequence[str] = (),
        left_over: Sequence[str] = (),
        misshapen: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        lines = [f"{source} does not fit the model."]
        for title, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen)):
            if names:
                lines.append(f"  {title} ({len(names)}): {', '.join(names)}")
        if hint:
            lines.append(hint)
        super().__init__("\n".join(lines))
        self.missing = tuple(missing)
        self.left_over = tuple(left_over)
        self.misshapen = tuple(misshapen)


class HubError(VanError):
    """Weights could not be downloaded."""


class NonFiniteLoss(VanError):
    """Training met a NaN or an infinity; ``step`` and ``pictures`` say where."""

    def __init__(self, what: str, step: int, pictures: Sequence[str], kept: str) -> None:
        shown = ", ".join(pictures[:8]) + (f" and {len(pictures) - 8} more" if len(pictures) > 8 else "")
        super().__init__(
            f"the {what} is not finite at step {step}; the pictures of that step: {shown}. "
            f"{kept} Lower --lr, raise --warmup-epochs, clip with --clip-grad, or use --precision fp32."
        )
        self.step = step
        self.pictures = tuple(pictures)


class Interrupted(VanError):
    """A signal stopped the run; it saved itself first and can be resumed."""


def _revived(kind: type[VanError], args: tuple[Any, ...], attributes: dict[str, Any]) -> VanError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
