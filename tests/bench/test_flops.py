"""Counts match the papers and a manual count."""

import functools

import pytest
import torch
from torch import nn

from van.bench.flops import count_flops
from van.bench.networks import NETWORKS, build
from van.weights.published import VARIANTS

PUBLISHED = {  # parameters in millions and GMACs at 224 x 224, as the papers round them
    "convnext_tiny": (29, 4.5), "convnext_small": (50, 8.7), "swin_tiny": (29, 4.5), "swin_small": (50, 8.7),
    "pvt_v2_b2": (25.4, 4.0), "inception_next_tiny": (28, 4.2), "resnet50": (25.6, 4.1),
}  # fmt: skip


def cost_of(name: str, **options: int):
    plan = functools.partial(build, NETWORKS[name], image_size=224, device="meta")
    return count_flops(plan, batch_size=options.get("batch_size", 1), image_size=224)


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_of_vans_match_the_registry(name):
    cost = cost_of(name)
    assert cost.parameters == VARIANTS[name].parameters
    assert cost.macs == VARIANTS[name].macs


def test_b0_has_0_864_gmacs():
    assert round(cost_of("van_b0").macs / 1e9, 3) == 0.864


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_peers_match_their_papers(name):
    cost, (parameters, macs) = cost_of(name), PUBLISHED[name]
    assert cost.parameters / 1e6 == pytest.approx(parameters, rel=0.03)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=0.02)


def test_published_counts_cover_all_peers():
    assert {name for name, network in NETWORKS.items() if not network.is_van} == set(PUBLISHED)


def test_macs_scale_with_the_batch_and_weights_are_read_once():
    one, three = cost_of("van_b0"), cost_of("van_b0", batch_size=3)
    assert three.macs == 3 * one.macs
    activations = (three.bytes_moved - one.bytes_moved) / 2
    weights = one.bytes_moved - activations
    assert weights == pytest.approx(4 * one.parameters, rel=0.02)


class Small(nn.Module):
    """One layer of each kind: a 3x3 convolution, a norm, an activation that is not counted, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(5, 7)

    def forward(self, x):
        return self.head(nn.functional.gelu(self.norm(self.conv(x))).mean((2, 3)))


def test_macs_and_bytes_match_a_manual_count():
    def plan() -> nn.Module:
        with torch.device("meta"):
            return Small()

    cost = count_flops(plan, batch_size=2, image_size=8)
    pixels = 2 * 8 * 8
    assert cost.macs == pixels * 3 * 5 * 9 + 2 * 5 * 7
    convolution = pixels * (3 + 5) + 3 * 5 * 9 + 5
    norm = pixels * (5 + 5) + 4 * 5
    linear = 2 * (5 + 7) + 5 * 7 + 7
    assert cost.bytes_moved == 4 * (convolution + norm + linear)
