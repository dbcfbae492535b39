"""Large kernel attention once more, written independently of the package: one tap at a time, no convolution.

Shapes as in ``van.ops``. Slow, and meant for float64.
"""

import torch
from torch import Tensor

from van.ops import Kernel


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """``x`` (N, C, H, W) read ``down`` rows and ``right`` columns further on; zero beyond its edge."""
    rows, columns = x.shape[2:]
    out = torch.zeros_like(x)
    if abs(down) >= rows or abs(right) >= columns:
        return out
    to_rows, from_rows = slice(max(-down, 0), rows - max(down, 0)), slice(max(down, 0), rows - max(-down, 0))
    to_columns = slice(max(-right, 0), columns - max(right, 0))
    from_columns = slice(max(right, 0), columns - max(-right, 0))
    out[:, :, to_rows, to_columns] = x[:, :, from_rows, from_columns]
    return out


def depthwise_by_taps(x: Tensor, kernel: Kernel) -> Tensor:
    """Every tap times the picture moved under it; an even kernel reaches one tap further right and down."""
    out = torch.zeros_like(x)
    if kernel.bias is not None:
        out = out + kernel.bias[:, None, None]
    size, d = kernel.weight.shape[-1], kernel.dilation
    before = d * (size - 1) // 2
    for i in range(size):
        for j in range(size):
            out = out + kernel.weight[:, :, i, j, None] * shifted(x, i * d - before, j * d - before)
    return out


def attention_by_taps(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """``x`` times the 1x1 mix of the two depth-wise sums."""
    seen = depthwise_by_taps(depthwise_by_taps(x, local), dilated)
    gate = torch.einsum("oc,nchw->nohw", mix.weight[:, :, 0, 0], seen)
    return x * (gate if mix.bias is None else gate + mix.bias[:, None, None])


def random_kernels(
    channels: int, *, local_size: int = 5, dilated_size: int = 7, dilation: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Kernel, Kernel, Kernel]:
    """Kernels of fan-in scale that want gradients, always the same ones."""
    generator = torch.Generator().manual_seed(channels)

    def draw(*shape: int) -> Tensor:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        values = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
        return values.to(dtype).requires_grad_()

    return (
        Kernel(draw(channels, 1, local_size, local_size), draw(channels)),
        Kernel(draw(channels, 1, dilated_size, dilated_size), draw(channels), dilation),
        Kernel(draw(channels, channels, 1, 1), draw(channels)),
    )


def random_map(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A map (N, C, H, W) that wants gradients, always the same one for a shape."""
    generator = torch.Generator().manual_seed(hash(shape) % 2**31)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def output_and_gradients(operator, x: Tensor, kernels: tuple[Kernel, ...]) -> dict[str, Tensor]:
    """The operator's output, and the gradient of an uneven sum of it in every input, by name."""
    inputs = {"x": x}
    for name, kernel in zip(("local", "dilated", "mix"), kernels, strict=True):
        inputs[f"{name}.weight"] = kernel.weight
        if kernel.bias is not None:
            inputs[f"{name}.bias"] = kernel.bias
    out = operator(x, *kernels)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    total = (out * weights).sum()
    gradients = torch.autograd.grad(total, list(inputs.values()), materialize_grads=True)  # zero: no tap meets the map
    return {"output": out, **dict(zip(inputs, gradients, strict=True))}
