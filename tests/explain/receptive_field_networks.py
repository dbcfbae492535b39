"""Networks with small receptive fields, and their traced fields."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.backbones.van import VAN
from van.explain.receptive_fields import theoretical_receptive_fields
from van.visualization.receptive_fields import Span

SLOWER = settings(max_examples=25, deadline=None)


def tiny_van(seed: int = 0, **options) -> VAN:
    torch.manual_seed(seed)
    van = VAN(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=4, **options).eval()
    with torch.no_grad():
        for name, scale in van.named_parameters():
            if ".layer_scale_" in name:
                scale.fill_(0.5)  # the initial values are too small for the blocks to have an effect
    return van


def traced_field(model: nn.Module, image_size: tuple[int, int], layer: str) -> tuple[Span, Span]:
    (field,) = theoretical_receptive_fields(model, [layer], image_size=image_size, channels=1)
    assert field.method == "traced"
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
    """Return convolutions and pools of one channel with separate kernel sizes for rows and columns."""
    modules: list[nn.Module] = []
    for kind, kernel, stride, padding, dilation in layers:
        pool_padding = tuple(min(padding, side // 2) for side in kernel)
        if kind == "conv":
            modules.append(nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation))
        elif kind == "same":
            modules.append(nn.Conv2d(1, 1, kernel, padding="same", padding_mode="zeros", dilation=dilation))
        elif kind == "mean":
            modules.append(nn.AvgPool2d(kernel, stride=stride, padding=pool_padding))
        else:
            modules.append(nn.MaxPool2d(kernel, stride=stride, padding=pool_padding))
    return nn.Sequential(*modules)


def fits(model: nn.Module, x: Tensor) -> bool:
    """Return whether every map is at least as large as the next kernel."""
    try:
        return model(x).numel() > 0
    except RuntimeError:
        return False
