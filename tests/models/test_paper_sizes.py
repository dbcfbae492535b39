"""Parameters and MACs of networks with heads equal the paper's for the whole model, on the meta device.

Parameters: every trainable number, the auxiliary head of UPerNet counted (without it B2 and B4 would round to 56 and
89). MACs: ``torch.utils.flop_counter`` halved, which counts the convolutions and linear layers without biases; one
image in evaluation, so the auxiliary head is not run. The paper's counter adds elementwise work; see the last test.
Source: Guo et al. 2022, arXiv:2202.09741, the tables on COCO (80 classes) and ADE20K (150).
"""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from van.models.build import create_model
from van.models.segmenters import ConvNormAct

MILLIONS = {
    "retinanet": {"van_b0": 13.4, "van_b1": 23.6, "van_b2": 36.3, "van_b3": 54.5},
    "mask_rcnn": {"van_b0": 23.9, "van_b1": 33.5, "van_b2": 46.2, "van_b3": 64.4},
    "semantic_fpn": {"van_b0": 8, "van_b1": 18, "van_b2": 30, "van_b3": 49},
    "upernet": {"van_b2": 57, "van_b3": 75, "van_b4": 90},
}
GMACS = {
    "semantic_fpn": {"van_b0": 26, "van_b1": 35, "van_b2": 48, "van_b3": 68},
    "upernet": {"van_b2": 948, "van_b3": 1030, "van_b4": 1098},
}
SIZE = {"semantic_fpn": (512, 512), "upernet": (512, 2048)}
COCO, ADE20K = 80, 150
CASES = [(head, name) for head, sizes in MILLIONS.items() for name in sizes]
COUNTED = [(head, name) for head, sizes in GMACS.items() for name in sizes]


def network(head: str, name: str) -> Any:
    with torch.device("meta"):
        return create_model(name, num_classes=ADE20K if head in GMACS else COCO, options={"head": head}).eval()


@functools.cache
def operations(head: str, name: str) -> tuple[float, float]:
    """Return billions of multiply-accumulates for one image, and of elementwise operations."""
    model, elementwise = network(head, name), [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            elementwise[0] += output.numel() if module.bias is not None else 0
        elif isinstance(module, nn.BatchNorm2d):
            elementwise[0] += 2 * output.numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            elementwise[0] += inputs[0].numel()
        elif isinstance(module, ConvNormAct | nn.Upsample):  # the first for its ReLU
            elementwise[0] += output.numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *SIZE[head], device="meta"))
    return counter.get_total_flops() / 2e9, elementwise[0] / 1e9


@pytest.mark.parametrize(("head", "name"), CASES)
def test_parameters_equal_the_papers(head, name):
    """Detectors within 1 % (measured: 0.1 %); segmenters, printed in whole millions, to that rounding."""
    actual, paper = sum(parameter.numel() for parameter in network(head, name).parameters()) / 1e6, MILLIONS[head][name]
    message = f"{head} on {name}: {actual:.3f} M, in the paper {paper} M"
    assert abs(actual - paper) <= (0.5 if head in GMACS else 0.01 * paper), message


def test_the_papers_parameters_include_the_auxiliary_head():
    for name, without in (("van_b2", 56), ("van_b4", 89)):
        model = network("upernet", name)
        auxiliary = sum(parameter.numel() for parameter in model.auxiliary_head.parameters())
        assert round((sum(p.numel() for p in model.parameters()) - auxiliary) / 1e6) == without


@pytest.mark.parametrize(("head", "name"), COUNTED)
def test_macs_equal_the_papers(head, name):
    """Within 1 % and half of the paper's last digit: 26 may stand for 25.5."""
    actual, paper = operations(head, name)[0], GMACS[head][name]
    assert abs(actual - paper) <= 0.01 * paper + 0.5, f"{head} on {name}: {actual:.2f} GMACs, in the paper {paper}"


@pytest.mark.parametrize(("head", "name"), COUNTED)
def test_with_elementwise_operations_the_rounded_macs_equal_the_papers(head, name):
    """Biases, ReLU, pooling and upsampling as one operation per element, BatchNorm as two."""
    macs, elementwise = operations(head, name)
    message = (
        f"{head} on {name}: {macs:.2f} GMACs and {elementwise:.2f} G elementwise, in the paper {GMACS[head][name]}"
    )
    assert round(macs + elementwise) == GMACS[head][name], message


@pytest.mark.parametrize(
    "head", ["retinanet", "fcos", "faster_rcnn", "mask_rcnn", "d_fine", "rt_detr_v2", "deformable_detr"]
)
def test_the_detection_docs_have_the_parameters_of_each_detector(head):
    """The table of parameters, for VAN-B0 and 80 classes."""
    page = "instance-segmentation.md" if head == "mask_rcnn" else "object-detection.md"
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if (f"`{head}`" if head != "mask_rcnn" else "Mask R-CNN (") in line)
    sizes = re.findall(r"(\d+\.\d) M", row)
    index = ["d_fine", "rt_detr_v2", "deformable_detr"].index(head) if len(sizes) == 3 else 0
    network = create_model("van_b0", num_classes=80, options={"head": head})
    assert f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f}" == sizes[index]
