"""torchvision's detectors on VAN: boxes are in image pixels, images are not resized, options reach their layer."""

from typing import Any

import pytest
import torch
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import MultiScaleRoIAlign

from van.errors import UsageError
from van.heads import create_model

KINDS = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
SMALL = {"channels": 64, "first_level": 4, "depths": (1, 1, 1, 1)}
"""For images of some 64 pixels."""


def create(head: str, num_classes: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("van_b0", num_classes=num_classes, options={"head": head, **options})


def small(head: str, **options: Any) -> Any:
    sizes = {} if head == "fcos" else {"anchor_sizes": (8, 16, 24, 32, 64)}
    return create(head, **{**SMALL, **sizes, **options})


def scene(head: str) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two normalized images of different sizes, each with two bright rectangles of classes 0 and 2."""
    images, targets = [], []
    for rows, columns in ((64, 80), (50, 64)):
        image = torch.rand(3, rows, columns) * 0.2
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [34.0, 8.0, 60.0, 44.0]])
        masks = torch.zeros(2, rows, columns, dtype=torch.uint8)
        for channel, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            image[channel, y1:y2, x1:x2] = 1.0
            masks[channel, y1:y2, x1:x2] = 1
        target = {"boxes": boxes, "labels": torch.tensor([0, 2])}
        images.append((image - 0.5) / 0.5)
        targets.append({**target, "masks": masks} if head == "mask_rcnn" else target)
    return images, targets


@pytest.mark.parametrize("head", ["fcos", "mask_rcnn"])
@pytest.mark.parametrize("training", [True, False])
def test_images_are_padded_and_not_resized(head, training):
    """torchvision's own transform would resize them to 800 pixels, in evaluation even with its ``_skip_resize``."""
    model = small(head).train(training)
    inputs = []
    original = model.backbone.forward_intermediates
    model.backbone.forward_intermediates = lambda x, **options: inputs.append(x) or original(x, **options)
    images, targets = scene(head)
    with torch.no_grad():
        model(images, targets) if training else model(images)
    if training:
        (batch,) = inputs
        assert batch.shape == (2, 3, 64, 96)
    else:  # each padded size is a batch of its own, so that no prediction depends on the other images
        batch = [one[0] for one in inputs]
    for padded, image in zip(batch, images, strict=True):
        rows, columns = image.shape[1:]
        assert padded[:, :rows, :columns].equal(image)
        assert padded[:, rows:].eq(0).all()
        assert padded[:, :, columns:].eq(0).all()


@pytest.mark.parametrize("head", KINDS)
def test_the_finest_level_and_the_channels_are_as_given(head):
    for first_level, strides in ((4, (4, 8, 16, 32, 64)), (8, (8, 16, 32, 64, 128))):
        pyramid = small(head, first_level=first_level, channels=128).detector.backbone
        levels = pyramid.eval()(torch.randn(1, 3, 256, 384))
        assert [tuple(level.shape) for level in levels.values()] == [(1, 128, 256 // s, 384 // s) for s in strides]


@pytest.mark.parametrize("first_level", [4, 8])
def test_pooling_does_not_depend_on_the_first_image(first_level):
    """torchvision's pooling infers the strides from the first image, wrongly where map sizes are rounded up."""
    first, model = (small("mask_rcnn", first_level=first_level, box_score_thresh=0.0).eval() for _ in range(2))
    image = torch.randn(3, 64, 96)
    with torch.no_grad():
        (expected,) = first([image])
        model([torch.randn(3, 40, 41)])
        (actual,) = model([image])
        pools = model.detector.roi_heads.box_roi_pool, model.detector.roi_heads.mask_roi_pool
        assert all(pool.scales == [1 / stride for stride in (4, 8, 16, 32) if stride >= first_level] for pool in pools)
        own = MultiScaleRoIAlign(pools[0].featmap_names, 7, 2)
        maps = model.detector.backbone(torch.randn(1, 3, 256, 384))
        boxes = [torch.tensor([[3.0, 4.0, 40.0, 30.0], [0.0, 0.0, 380.0, 250.0], [90.0, 20.0, 200.0, 190.0]])]
        torch.testing.assert_close(pools[0](maps, boxes, [(256, 384)]), own(maps, boxes, [(256, 384)]))
    assert len(expected["scores"]) > 0
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("head", "kind"), KINDS.items())
def test_at_256_channels_the_heads_equal_torchvisions(head, kind):
    """Compared with torchvision's constructors with default arguments, except for the classes."""
    with torch.device("meta"):
        detector = create(head, 80).detector
        reference = kind(detector.backbone, 80 + (head not in ("retinanet", "fcos")))
    shapes = [
        {name: value.shape for name, value in each.state_dict().items() if not name.startswith("backbone.")}
        for each in (detector, reference)
    ]
    assert shapes[0] == shapes[1] != {}


def test_images_without_objects_give_finite_losses():
    model = small("mask_rcnn").train()
    empty_target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = model([torch.rand(3, 64, 64)], [empty_target])
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn"])
def test_a_detector_overfits_two_images(head):
    """150 steps on two images; all objects are detected, with their classes."""
    model = small(head).train()
    images, targets = scene(head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        detections = model.eval()(images)
    for result, target in zip(detections, targets, strict=True):
        best = result["scores"].argsort(descending=True)[:2]
        assert sorted(result["labels"][best].tolist()) == [0, 2]
        ordered = result["boxes"][best[result["labels"][best].argsort()]]
        assert (ordered - target["boxes"]).abs().max() < 6


def test_invalid_and_unknown_options_are_refused():
    """torchvision accepts every keyword and ignores those that it does not know."""
    for head, options, message in (
        ("retinanet", {"channels": 0}, "channels.*1.* 0"),
        ("fcos", {"channels": 48}, "channels.*64.* 48"),
        ("fcos", {"anchor_sizes": (8, 16, 32, 64, 128)}, "FCOS.*'anchor_sizes'"),
        ("mask_rcnn", {"anchor_sizes": (8, 16)}, r"anchor_sizes.*5.*\(8, 16\)"),
        ("retinanet", {"anchor_sizes": (0, 8, 16, 32, 64)}, r"anchor_sizes.*\(0, 8, 16, 32, 64\)"),
        ("faster_rcnn", {"first_level": 16}, "first_level.*4 or 8.* 16"),
        ("faster_rcnn", {"min_size": 800}, "FasterRCNN.*'min_size'.*rpn_anchor_generator"),
        ("retinanet", {"anchor_size_px": 3}, "RetinaNet.*'anchor_size_px'"),
    ):
        with pytest.raises(UsageError, match=message):
            create(head, **options)


def test_options_reach_the_detector_or_the_backbone():
    model = create("fcos", score_thresh=0.01, norm_eps=1e-5, **SMALL)
    assert model.detector.score_thresh == 0.01
    assert model.backbone.norm1.eps == 1e-5


@pytest.mark.parametrize("head", KINDS)
def test_boxes_and_scores_are_float32_under_autocast(head):
    """In bfloat16 a coordinate near 800 would move in steps of 4 pixels."""
    network = small(head)
    image = torch.randn(3, 64, 96)
    target = {"boxes": torch.tensor([[5.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 96, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network([image], [target])
        (detections,) = network.eval()([image])
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {value.dtype for name, value in detections.items() if name != "labels"} == {torch.float32}


def test_more_padding_changes_the_detections_of_an_image():
    """The reason why images of one padded size form a batch."""
    network = small("retinanet", score_thresh=0.0).eval()
    for weight in network.detector.head.parameters():
        torch.nn.init.normal_(weight, std=0.05)  # untrained, all scores would be equal
    image, padded = torch.randn(3, 64, 96), torch.zeros(3, 128, 96)
    padded[:, :64] = image
    with torch.no_grad():
        (alone,), (other,) = network([image]), network([padded])
    count = min(len(other["scores"]), len(alone["scores"]))
    assert alone["scores"].std() > 1e-3
    assert not torch.allclose(other["scores"][:count], alone["scores"][:count], atol=1e-4)
