"""The exceptions of this package.

::

    VanError                    exit status 1: the command failed
    ├── UsageError              exit status 2: an option or argument is wrong
    │   ├── MissingExtra        an optional package is not installed
    │   └── RunExists           the output folder already holds a run
    ├── ShapeError              tensors, kernels or sizes that do not match
    ├── ImageError              an image cannot be read
    ├── DataError               a dataset is missing, empty or invalid
    │   └── MissingAnnotations  it has no annotations of the expected type
    ├── CheckpointError         a weights file cannot be used
    │   ├── TruncatedFile       it ends too early
    │   ├── UnsafePickle        it contains objects other than tensors and plain values
    │   ├── HashMismatch        its sha256 does not match the hash in its name
    │   ├── UnknownFormat       its tensor names match no known format
    │   └── StateDictMismatch   tensors are missing, unexpected, or of another shape
    ├── HubError                a download failed
    ├── NonFiniteLoss           training produced a NaN or an infinity
    └── Interrupted             a signal stopped the run, which saved a checkpoint first

A message has the argument, file or id that is wrong, the expected value, the value got, and what to do.
"""

from collections.abc import Sequence
from typing import Any


class VanError(Exception):
    """Base class; ``exit_status`` is the exit status of the command line."""

    exit_status = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as message and attributes, not as arguments of ``__init__``: worker processes send errors back."""
        return _unpickle, (type(self), self.args, self.__dict__)


class UsageError(VanError):
    """A wrong option, argument or combination of them."""

    exit_status = 2


class MissingExtra(UsageError):
    """The optional ``package`` is not installed; ``extra`` installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose}: expected the package {package} to be installed; "
            f"run pip install 'visual-attention-network[{extra}]'"
        )
        self.package = package
        self.extra = extra


class RunExists(UsageError):
    """``--out`` already holds a run, and ``--resume`` is not given."""


class ShapeError(VanError, ValueError):
    """Tensors, kernels or sizes that do not match."""


class ImageError(VanError):
    """An image cannot be read; ``name`` is its path, ``reason`` the cause."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class DataError(VanError):
    """A dataset is missing, empty or invalid."""


class MissingAnnotations(DataError):
    """A dataset has no annotations of the expected type: boxes, masks or semantic maps."""


class CheckpointError(VanError):
    """A weights file cannot be used."""


class TruncatedFile(CheckpointError):
    """A weights file ends too early."""


class UnsafePickle(CheckpointError):
    """A pickle contains objects other than tensors and plain values; none of its code was run."""


class HashMismatch(CheckpointError):
    """A file's sha256 does not start with the hash in its name."""


class UnknownFormat(CheckpointError):
    """A file's tensor names match no known format."""


class StateDictMismatch(CheckpointError):
    """Strict loading failed; ``missing``, ``unexpected`` and ``mismatched`` list every tensor."""

    def __init__(
        self,
        source: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        lines = [f"{source}: the state dict does not match the model."]
        for title, names in (("missing", missing), ("unexpected", unexpected), ("shape mismatch", mismatched)):
            if names:
                lines.append(f"  {title} ({len(names)}): {', '.join(names)}")
        if hint:
            lines.append(hint)
        super().__init__("\n".join(lines))
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.mismatched = tuple(mismatched)


class HubError(VanError):
    """Weights could not be downloaded."""


class NonFiniteLoss(VanError):
    """A loss or gradient is NaN or infinite; ``step`` and ``images`` identify the batch."""

    def __init__(self, quantity: str, step: int, images: Sequence[str], saved: str) -> None:
        shown = ", ".join(images[:8]) + (f" and {len(images) - 8} more" if len(images) > 8 else "")
        super().__init__(
            f"step {step}: expected a finite {quantity}, got NaN or infinity; images of this step: {shown}. "
            f"{saved} Lower --lr, raise --warmup-epochs, set --clip-grad, or use --precision fp32."
        )
        self.step = step
        self.images = tuple(images)


class Interrupted(VanError):
    """A signal stopped the run; it saved a checkpoint first and can be resumed."""


def _unpickle(kind: type[VanError], args: tuple[Any, ...], attributes: dict[str, Any]) -> VanError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
