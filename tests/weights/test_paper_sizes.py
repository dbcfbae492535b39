"""Parameters and MACs of networks with heads equal those that are recorded at registration, the paper's.

Parameters: every trainable number, the auxiliary head of UPerNet counted (without it B2 and B4 would round to 56 and
89). MACs: ``torch.utils.flop_counter`` halved, which counts the convolutions and linear layers without biases; one
image in evaluation, so the auxiliary head is not run. The paper's counter adds elementwise work; see the last test.
Source: Guo et al. 2022, arXiv:2202.09741, the tables on COCO (80 classes) and ADE20K (150).
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from van.heads import HEADS, create_model
from van.heads.segmenter import ConvNormAct

ADE20K, COCO = 150, 80
CASES = [
    (head, name)
    for head in HEADS.values()
    for name, published in head.published.items()
    if published.millions and name not in ("van_b5", "van_b6")
]
COUNTED = [(head, name) for head, name in CASES if head.published[name].gmacs]


def network(head: str, name: str) -> Any:
    with torch.device("meta"):
        classes = ADE20K if HEADS[head].task == "segment" else COCO
        return create_model(name, num_classes=classes, options={"head": head}).eval()


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
        model(torch.empty(1, 3, *HEADS[head].published_size, device="meta"))
    return counter.get_total_flops() / 2e9, elementwise[0] / 1e9


def test_the_paper_has_results_of_four_heads_on_coco_and_ade20k():
    assert {head.name: len(head.published) for head in HEADS.values() if head.published} == {
        "mask2former": 2, "mask_rcnn": 4, "retinanet": 4, "semantic_fpn": 4, "upernet": 5,
    }  # fmt: skip
    assert HEADS["retinanet"].published["van_b2"].metrics == {"box_ap": 44.9}


def test_parameters_equal_the_papers(subtests):
    """Detectors within 1 % (measured: 0.1 %); segmenters, printed in whole millions, to that rounding."""
    for head, name in CASES:
        with subtests.test(head=head.name, name=name):
            actual = sum(parameter.numel() for parameter in network(head.name, name).parameters()) / 1e6
            paper = head.published[name].millions
            assert abs(actual - paper) <= (0.5 if head.task == "segment" else 0.01 * paper), actual


def test_the_papers_parameters_include_the_auxiliary_head():
    for name, without in (("van_b2", 56), ("van_b4", 89)):
        model = network("upernet", name)
        auxiliary = sum(parameter.numel() for parameter in model.auxiliary_head.parameters())
        assert round((sum(p.numel() for p in model.parameters()) - auxiliary) / 1e6) == without


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_macs_equal_the_papers_exactly_with_elementwise_operations(head, subtests):
    """Without them within 1 % and half of the paper's last digit: 26 may stand for 25.5.

    Elementwise are biases, ReLU, pooling and upsampling with one operation per element, BatchNorm with two.
    """
    for registered, name in COUNTED:
        if registered.name == head:
            with subtests.test(name=name):
                macs, elementwise = operations(head, name)
                paper = registered.published[name].gmacs
                assert abs(macs - paper) <= 0.01 * paper + 0.5
                assert round(macs + elementwise) == paper


def test_the_detection_docs_have_the_parameters_of_each_detector(subtests):
    """The table of parameters, for VAN-B0 and 80 classes."""
    heads = [head for head in HEADS if HEADS[head].task in ("detect", "instances")]
    for head in heads:
        with subtests.test(head=head):
            page = "instance-segmentation.md" if head == "mask_rcnn" else "object-detection.md"
            text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
            row = next(
                line for line in text.splitlines() if (f"`{head}`" if head != "mask_rcnn" else "Mask R-CNN (") in line
            )
            sizes = re.findall(r"(\d+\.\d) M", row)
            index = ["d_fine", "rt_detr_v2", "deformable_detr"].index(head) if len(sizes) == 3 else 0
            model = create_model("van_b0", num_classes=COCO, options={"head": head})
            assert f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f}" == sizes[index]
