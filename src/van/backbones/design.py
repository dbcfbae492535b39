"""The LKA calculator: parameters, multiply-accumulates (MACs) and the best dilation for any kernel size.

A K x K convolution becomes a depth-wise (2d-1) x (2d-1), a depth-wise ceil(K/d) x ceil(K/d)
dilated by d, and a 1x1 convolution. Biases are not counted, as in the paper's table 2.
Source: Guo et al. 2022, arXiv:2202.09741, section 3.1. Nothing here needs torch.
"""

import dataclasses

from van.errors import ShapeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decomposition:
    """The decomposition of one K x K convolution, and the cost of each way to compute it.

    ``feature_size`` is the side of the feature map in pixels.
    """

    kernel_size: int
    dilation: int
    channels: int
    feature_size: int

    def __post_init__(self) -> None:
        for name in ("kernel_size", "dilation", "channels", "feature_size"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def local_size(self) -> int:
        """Side of the depth-wise kernel, in taps."""
        return 2 * self.dilation - 1

    @property
    def dilated_size(self) -> int:
        """Side of the depth-wise dilated kernel, in taps."""
        return -(-self.kernel_size // self.dilation)

    @property
    def receptive_field(self) -> int:
        """Side of the square of input pixels that one output pixel depends on."""
        return self.local_size + self.dilation * (self.dilated_size - 1)

    @property
    def parameters(self) -> dict[str, int]:
        """Weights of a standard convolution, of MobileNet's depth-wise separable one, and of LKA."""
        channels, kernel = self.channels, self.kernel_size
        return {
            "standard": kernel**2 * channels**2,
            "mobilenet": channels * (kernel**2 + channels),
            "lka": channels * (self.dilated_size**2 + self.local_size**2 + channels),
        }

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of each on one map (C, feature_size, feature_size)."""
        return {name: count * self.feature_size**2 for name, count in self.parameters.items()}


def best_dilation(kernel_size: int) -> int:
    """Return the dilation with the fewest weights for a K x K kernel; it does not depend on the channels.

    Raises:
        ShapeError: ``kernel_size`` is below 1.
    """
    if kernel_size < 1:
        raise ShapeError(f"kernel_size: expected at least 1, got {kernel_size}")
    return min(range(1, kernel_size + 1), key=lambda d: (2 * d - 1) ** 2 + (-(-kernel_size // d)) ** 2)


def decompose(
    kernel_size: int, *, dilation: int | None = None, channels: int = 64, feature_size: int = 56
) -> Decomposition:
    """Decompose a K x K convolution, with the best dilation if ``dilation`` is None."""
    dilation = best_dilation(kernel_size) if dilation is None else dilation
    return Decomposition(kernel_size=kernel_size, dilation=dilation, channels=channels, feature_size=feature_size)
