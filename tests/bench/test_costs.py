"""Costs agree with the papers, and with a count by hand."""

import functools

import pytest
import torch
from torch import nn

from van.bench.costs import count
from van.bench.networks import NETWORKS, build
from van.models.catalogue import VARIANTS

PUBLISHED = {  # parameters in millions and GMACs at 224 x 224, as the papers round them
    "convnext_tiny": (29, 4.5), "convnext_small": (50, 8.7), "swin_tiny": (29, 4.5), "swin_small": (50, 8.7),
    "pvt_v2_b2": (25.4, 4.0), "inception_next_tiny": (28, 4.2), "resnet50": (25.6, 4.1),
}  # fmt: skip


def cost_of(name: str, **options: int):
    plan = functools.partial(build, NETWORKS[name], size_px=224, device="meta")
    return count(plan, batch_size=options.get("batch_size", 1), size_px=224)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_van_costs_what_its_paper_says(name):
    cost = cost_of(name)
    assert cost.parameters == VARIANTS[name].parameters
    assert cost.macs == VARIANTS[name].macs


def test_b0_has_0_864_gmacs():
    assert round(cost_of("van_b0").macs / 1e9, 3) == 0.864


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_peer_costs_what_its_paper_says(name):
    cost, (parameters, macs) = cost_of(name), PUBLISHED[name]
    assert cost.parameters / 1e6 == pytest.approx(parameters, rel=0.03)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=0.02)


def test_the_peers_are_all_there():
    assert {name for name, network in NETWORKS.items() if not network.is_van} == set(PUBLISHED)


def test_arithmetic_grows_with_the_batch_and_weights_are_read_once():
    one, three = cost_of("van_b0"), cost_of("van_b0", batch_size=3)
    assert three.macs == 3 * one.macs
    activations = (three.bytes_moved - one.bytes_moved) / 2
    weights = one.bytes_moved - activations
    assert weights == pytest.approx(4 * one.parameters, rel=0.02)


class Small(nn.Module):
    """One of each kind: a 3x3 convolution, a norm, an activation that is free, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(5, 7)

    def forward(self, x):
        return self.head(nn.functional.gelu(self.norm(self.conv(x))).mean((2, 3)))


def test_bytes_and_multiplications_are_those_counted_by_hand():
    def plan() -> nn.Module:
        with torch.device("meta"):
            return Small()

    cost = count(plan, batch_size=2, size_px=8)
    pixels = 2 * 8 * 8
    assert cost.macs == pixels * 3 * 5 * 9 + 2 * 5 * 7
    convolution = pixels * (3 + 5) + 3 * 5 * 9 + 5
    norm = pixels * (5 + 5) + 4 * 5
    linear = 2 * (5 + 7) + 5 * 7 + 7
    assert cost.bytes_moved == 4 * (convolution + norm + linear)
