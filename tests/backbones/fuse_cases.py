"""Networks whose parameters all affect the output; new ones have zero shifts and small layer scales, hiding bugs."""

import timm
import torch
from torch import nn


def randomize_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Set statistics, weights and biases of a BatchNorm to values that all differ from their defaults."""
    generator = torch.Generator().manual_seed(norm.num_features)
    for tensor, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -0.5, 0.5)):
        nn.init.uniform_(tensor, low, high, generator=generator)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
    norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return norm


def random_van(name: str) -> nn.Module:
    """Return a float64 VAN in evaluation with random norms, biases and layer scales, and ten classes."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomize_norm(module)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "layer_scale" in parameter_name:
                parameter.uniform_(0.05, 0.3)
            elif parameter_name.endswith("bias") and "norm" not in parameter_name:
                parameter.uniform_(-0.1, 0.1)
    return model
