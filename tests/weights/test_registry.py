import dataclasses

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import van
from van.weights.published import LICENSE_NOTE, VARIANTS

assert van  # registers the names with timm

PAPER = {  # parameters; GMACs at 224 x 224; the paper's own rounding of both; ImageNet-1K top-1
    "van_b0": (4_105_800, 0.864, 4.1, 0.9, 75.4),
    "van_b1": (13_861_800, 2.495, 13.9, 2.5, 81.1),
    "van_b2": (26_578_472, 4.993, 26.6, 5.0, 82.8),
    "van_b3": (44_765_608, 8.925, 44.8, 9.0, 83.9),
    "van_b4": (60_283_176, 12.144, 60.3, 12.2, 84.2),
    "van_b5": (89_967_688, 17.129, 90.0, 17.2, None),
    "van_b6": (199_829_416, 38.710, 200.0, 38.4, None),
}


def measured_macs(name: str, image_size: int = 224) -> int:
    model = timm.create_model(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def test_the_registry_has_the_seven_variants():
    assert list(VARIANTS) == list(PAPER)
    assert [variant.name for variant in VARIANTS.values()] == list(PAPER)


def test_parameters_and_macs_equal_the_papers(subtests):
    for name in PAPER:
        with subtests.test(name=str(name)):
            variant, (parameters, gmacs, paper_millions, paper_gmacs, top1) = VARIANTS[name], PAPER[name]
            model = timm.create_model(name, device="meta")
            assert sum(parameter.numel() for parameter in model.parameters()) == variant.parameters == parameters
            assert measured_macs(name) == variant.macs
            assert round(variant.macs / 1e9, 3) == gmacs
            assert round(variant.parameters / 1e6, 1) == pytest.approx(paper_millions, abs=0.21)
            assert variant.macs / 1e9 == pytest.approx(paper_gmacs, abs=0.32)
            assert variant.top1 == top1


def test_macs_scale_with_the_pixels():
    """Control of the measurement: twice the side is four times the pixels, and the classifier counts once."""
    classifier = 256 * 1000
    assert measured_macs("van_b0", 448) == 4 * (VARIANTS["van_b0"].macs - classifier) + classifier


def test_every_variant_names_the_source_of_its_weights(subtests):
    for name in PAPER:
        with subtests.test(name=str(name)):
            weights = VARIANTS[name].weights
            if name in ("van_b0", "van_b1", "van_b2", "van_b3"):
                alias = VARIANTS[name].alias
                assert weights.startswith(f"Visual-Attention-Network/VAN-{alias}-original (van_{alias.lower()}_")
                assert weights.endswith(".pth.tar)")
            else:
                assert weights.startswith(f"mmpretrain: {name.replace('_', '-')}_3rdparty_")


def test_a_variant_without_weights_has_none():
    variant = dataclasses.replace(VARIANTS["van_b0"], hub_repository=None, hub_file=None)
    assert variant.weights is None


def test_the_license_note_names_license_and_contact():
    assert "Apache-2.0" in LICENSE_NOTE
    assert "commercial use" in LICENSE_NOTE
    assert "contact" in LICENSE_NOTE
