"""Networks whose receptive fields are small enough to be looked at, and what the rule says of them."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.explain.receptive_fields import theoretical_fields
from van.models.van import VAN
from van.results.fields import Span

SLOWER = settings(max_examples=25, deadline=None)


def tiny_van(seed: int = 0, **options) -> VAN:
    torch.manual_seed(seed)
    van = VAN(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=4, **options).eval()
    with torch.no_grad():
        for name, scale in van.named_parameters():
            if ".layer_scale_" in name:
                scale.fill_(0.5)  # as initialised they hide the blocks
    return van


def read_by_rule(model: nn.Module, size: tuple[int, int], layer: str) -> tuple[Span, Span]:
    (field,) = theoretical_fields(model, [layer], size=size, channels=1)
    assert field.how == "traced"
    return field.rows, field.columns


LAYERS = st.lists(
    st.tuples(
        st.sampled_from(["conv", "same", "mean", "max"]),
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=3,
)


def stacked(layers: list[tuple]) -> nn.Sequential:
    """Convolutions and pools of one channel, rows and columns with kernels of their own."""
    parts: list[nn.Module] = []
    for kind, kernel, stride, padding, dilation in layers:
        before = tuple(min(padding, side // 2) for side in kernel)
        if kind == "conv":
            parts.append(nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation))
        elif kind == "same":
            parts.append(nn.Conv2d(1, 1, kernel, padding="same", padding_mode="zeros", dilation=dilation))
        elif kind == "mean":
            parts.append(nn.AvgPool2d(kernel, stride=stride, padding=before))
        else:
            parts.append(nn.MaxPool2d(kernel, stride=stride, padding=before))
    return nn.Sequential(*parts)


def fits(model: nn.Module, x: Tensor) -> bool:
    """Whether every map on the way is as large as the next kernel."""
    try:
        return model(x).numel() > 0
    except RuntimeError:
        return False
