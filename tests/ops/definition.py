"""A naive implementation of large kernel attention, independent of the package: one tap at a time, no convolution.

Shapes as in ``van.ops``. Slow; intended for float64.
"""

import torch
from torch import Tensor

from van.ops import Kernel


def shift(x: Tensor, down: int, right: int) -> Tensor:
    """Shift ``x`` (N, C, H, W) by ``down`` rows and ``right`` columns; zero beyond its edge."""
    rows, columns = x.shape[2:]
    out = torch.zeros_like(x)
    if abs(down) >= rows or abs(right) >= columns:
        return out
    to_rows, from_rows = slice(max(-down, 0), rows - max(down, 0)), slice(max(down, 0), rows - max(-down, 0))
    to_columns = slice(max(-right, 0), columns - max(right, 0))
    from_columns = slice(max(right, 0), columns - max(-right, 0))
    out[:, :, to_rows, to_columns] = x[:, :, from_rows, from_columns]
    return out


def naive_depthwise(x: Tensor, kernel: Kernel) -> Tensor:
    """Sum over taps the products of the tap and the shifted input; an even kernel is padded more right and down."""
    out = torch.zeros_like(x)
    if kernel.bias is not None:
        out = out + kernel.bias[:, None, None]
    size, d = kernel.weight.shape[-1], kernel.dilation
    before = d * (size - 1) // 2
    for i in range(size):
        for j in range(size):
            out = out + kernel.weight[:, :, i, j, None] * shift(x, i * d - before, j * d - before)
    return out


def naive_attention(x: Tensor, local: Kernel, dilated: Kernel, mix: Kernel) -> Tensor:
    """Multiply ``x`` by the point-wise convolution of the two depth-wise ones."""
    local_out = naive_depthwise(naive_depthwise(x, local), dilated)
    gate = torch.einsum("oc,nchw->nohw", mix.weight[:, :, 0, 0], local_out)
    return x * (gate if mix.bias is None else gate + mix.bias[:, None, None])


def random_kernels(
    channels: int, *, local_size: int = 5, dilated_size: int = 7, dilation: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Kernel, Kernel, Kernel]:
    """Return deterministic random kernels of fan-in scale that require gradients."""
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


def random_feature_map(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a random feature map (N, C, H, W) that requires gradients, deterministic for a shape."""
    generator = torch.Generator().manual_seed(hash(shape) % 2**31)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def output_and_gradients(operator, x: Tensor, kernels: tuple[Kernel, ...]) -> dict[str, Tensor]:
    """Return the output of the operator, and the gradients of a weighted sum of it by input name."""
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
