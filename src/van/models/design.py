"""The LKA calculator: parameters, multiply-accumulates and the best dilation for any kernel size.

A K x K convolution becomes a depth-wise (2d-1) x (2d-1), a depth-wise ceil(K/d) x ceil(K/d)
dilated by d, and a 1x1 convolution. Biases are not counted, as in the paper's table 2.
Source: Guo et al. 2022, arXiv:2202.09741, section 3.1. Nothing here needs torch.
"""

import dataclasses

from van.errors import ShapeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decomposition:
    """How one K x K convolution splits, and what each way of computing it costs."""

    kernel_size: int
    dilation: int
    channels: int
    size_px: int

    def __post_init__(self) -> None:
        for name in ("kernel_size", "dilation", "channels", "size_px"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name} is {getattr(self, name)}; wanted at least 1")

    @property
    def local_size(self) -> int:
        """Side of the depth-wise kernel, in taps."""
        return 2 * self.dilation - 1

    @property
    def dilated_size(self) -> int:
        """Side of the depth-wise dilated kernel, in taps."""
        return -(-self.kernel_size // self.dilation)

    @property
    def reach_px(self) -> int:
        """Side of the square of inputs that one output pixel reads."""
        return self.local_size + self.dilation * (self.dilated_size - 1)

    @property
    def parameters(self) -> dict[str, int]:
        """Weights of a standard convolution, of MobileNet's split, and of LKA."""
        channels, kernel = self.channels, self.kernel_size
        return {
            "standard": kernel**2 * channels**2,
            "mobilenet": channels * (kernel**2 + channels),
            "lka": channels * (self.dilated_size**2 + self.local_size**2 + channels),
        }

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of each way on one (C, size, size) map."""
        return {name: count * self.size_px**2 for name, count in self.parameters.items()}


def best_dilation(kernel_size: int) -> int:
    """The dilation that needs the fewest weights for a K x K kernel; it does not depend on the channels.

    Raises:
        ShapeError: ``kernel_size`` is below 1.
    """
    if kernel_size < 1:
        raise ShapeError(f"kernel_size is {kernel_size}; wanted at least 1")
    return min(range(1, kernel_size + 1), key=lambda d: (2 * d - 1) ** 2 + (-(-kernel_size // d)) ** 2)


def decompose(kernel_size: int, *, dilation: int | None = None, channels: int = 64, size_px: int = 56) -> Decomposition:
    """Split a K x K convolution, at the best dilation unless one is given."""
    chosen = best_dilation(kernel_size) if dilation is None else dilation
    return Decomposition(kernel_size=kernel_size, dilation=chosen, channels=channels, size_px=size_px)
