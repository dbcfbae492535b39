"""torchvision's detectors on VAN: the paper's sizes, losses that fall, boxes where things are."""

import pytest
import timm
import torch

from van.errors import UsageError
from van.models.detectors import HEADS, Detector, create_detector

# PAPER, section 4: millions of parameters of the whole model with COCO's 80 classes
PAPER = {
    "retinanet": {"van_b0": 13.4, "van_b1": 23.6, "van_b2": 36.3, "van_b3": 54.5},
    "mask_rcnn": {"van_b0": 23.9, "van_b1": 33.5, "van_b2": 46.2, "van_b3": 64.4},
}


@pytest.mark.parametrize(("head", "name"), [(head, name) for head, sizes in PAPER.items() for name in sizes])
def test_the_sizes_are_the_papers(head, name):
    with torch.device("meta"):
        model = create_detector(name, head=head, num_classes=80)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(PAPER[head][name], rel=0.01)


def small(head: str, **options) -> Detector:
    torch.manual_seed(0)
    return create_detector("van_b0", head=head, num_classes=3, min_size_px=64, max_size_px=96, **options)


def scene(head: str) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two pictures of different sizes, each with two bright rectangles of classes 0 and 2."""
    pictures, targets = [], []
    for rows, columns in ((64, 80), (50, 64)):
        picture = torch.rand(3, rows, columns) * 0.2
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [34.0, 8.0, 60.0, 44.0]])
        masks = torch.zeros(2, rows, columns, dtype=torch.uint8)
        for place, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            picture[place, y1:y2, x1:x2] = 1.0
            masks[place, y1:y2, x1:x2] = 1
        target = {"boxes": boxes, "labels": torch.tensor([0, 2])}
        pictures.append(picture)
        targets.append({**target, "masks": masks} if head == "mask_rcnn" else target)
    return pictures, targets


@pytest.mark.parametrize("head", HEADS)
def test_a_training_step_reaches_every_parameter(head):
    model = small(head).train()
    losses = model(*scene(head))
    assert losses
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # the paper's P3-P7 pyramid starts at stage 2, so the LayerNorm of stage 1 feeds stage 2 and has gradients too
    assert untouched == []


@pytest.mark.parametrize("head", HEADS)
def test_answers_lie_in_the_pictures_own_pixels_with_labels_from_0(head):
    model = small(head).eval()
    pictures, _ = scene(head)
    with torch.no_grad():
        answers = model([*pictures, torch.rand(3, 1, 1), torch.rand(3, 200, 7)])
    assert len(answers) == 4
    for picture, answer in zip([*pictures, torch.rand(3, 1, 1), torch.rand(3, 200, 7)], answers, strict=True):
        rows, columns = picture.shape[1:]
        assert ((answer["labels"] >= 0) & (answer["labels"] < 3)).all()
        assert (answer["boxes"] >= 0).all()
        assert (answer["boxes"] <= torch.tensor([columns, rows, columns, rows])).all()
        assert ("masks" in answer) == (head == "mask_rcnn")


def test_pictures_without_things_are_trained_on():
    model = small("mask_rcnn").train()
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = model([torch.rand(3, 64, 64)], [nothing])
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn"])
def test_a_detector_learns_two_pictures_by_heart(head):
    """Some hundred steps on two pictures; the things are found again, with their classes."""
    model = small(head).train()
    pictures, targets = scene(head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model(pictures, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        answers = model.eval()(pictures)
    for answer, target in zip(answers, targets, strict=True):
        best = answer["scores"].argsort(descending=True)[:2]
        assert sorted(answer["labels"][best].tolist()) == [0, 2]
        ordered = answer["boxes"][best[answer["labels"][best].argsort()]]
        assert (ordered - target["boxes"]).abs().max() < 6


def test_any_classification_network_can_start_one():
    trained = timm.create_model("van_b0", num_classes=7)
    model = Detector(trained, head="retinanet", num_classes=2)
    assert model.detector.backbone.body is trained


@pytest.mark.parametrize(
    ("model", "head", "classes", "message"),
    [
        ("van_b0", "yolo", 2, "there is no detector 'yolo'; known: retinanet, fcos, faster_rcnn, mask_rcnn"),
        ("resnet50", "fcos", 2, "there is no 'resnet50' to build on; known: van_b0"),
        ("van_b0", "fcos", 0, "num_classes is 0; wanted at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(model, head, classes, message):
    with pytest.raises(UsageError, match=message):
        create_detector(model, head=head, num_classes=classes)
