"""torchvision's detectors on VAN: all parameters train, boxes are in image pixels, images are not resized."""

import pytest
import timm
import torch
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import MultiScaleRoIAlign

from van.errors import UsageError
from van.models.detectors import HEADS, Detector, create_detector

SMALL = {"channels": 64, "first_level": 4}
"""For images of some 64 pixels."""


def small(head: str, **options) -> Detector:
    torch.manual_seed(0)
    sizes = {} if head == "fcos" else {"anchor_sizes": (8, 16, 24, 32, 64)}
    return create_detector("van_b0", head=head, num_classes=3, **{**SMALL, **sizes, **options})


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


@pytest.mark.parametrize("options", [{}, {"first_level": 8, "channels": 64}], ids=["stride 4", "stride 8"])
@pytest.mark.parametrize("head", HEADS)
def test_a_training_step_reaches_every_parameter(head, options):
    model = small(head, **options).train()
    losses = model(*scene(head))
    assert losses
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []  # a pyramid from stage 2 on still has stage 1 below it


@pytest.mark.parametrize("head", HEADS)
def test_detections_are_in_pixels_of_the_image_with_labels_from_0(head):
    model = small(head).eval()
    images, _ = scene(head)
    with torch.no_grad():
        detections = model([*images, torch.rand(3, 1, 1), torch.rand(3, 200, 7)])
    assert len(detections) == 4
    for image, result in zip([*images, torch.rand(3, 1, 1), torch.rand(3, 200, 7)], detections, strict=True):
        rows, columns = image.shape[1:]
        assert ((result["labels"] >= 0) & (result["labels"] < 3)).all()
        assert (result["boxes"] >= 0).all()
        assert (result["boxes"] <= torch.tensor([columns, rows, columns, rows])).all()
        assert ("masks" in result) == (head == "mask_rcnn")


@pytest.mark.parametrize("head", HEADS)
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


@pytest.mark.parametrize(("first_level", "strides"), [(4, (4, 8, 16, 32, 64)), (8, (8, 16, 32, 64, 128))])
@pytest.mark.parametrize("head", HEADS)
def test_the_finest_level_and_the_channels_are_as_given(head, first_level, strides):
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


@pytest.mark.parametrize("head", HEADS)
def test_at_256_channels_the_heads_equal_torchvisions(head):
    """Compared with torchvision's constructors with default arguments, except for the classes."""
    kind = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[head]
    with torch.device("meta"):
        detector = create_detector("van_b0", head=head, num_classes=80).detector
        reference = kind(detector.backbone, 80 + (head not in ("retinanet", "fcos")))
    shapes = [
        {name: value.shape for name, value in each.state_dict().items() if not name.startswith("backbone.")}
        for each in (detector, reference)
    ]
    assert shapes[0] == shapes[1] != {}


@pytest.mark.parametrize("head", HEADS)
def test_get_classifier_returns_everything_but_the_backbone(head):
    model = small(head)
    parameters = [*model.backbone.parameters(), *model.get_classifier().parameters()]
    assert {id(x) for x in parameters} == {id(x) for x in model.parameters()}
    assert len(parameters) == len(list(model.parameters()))
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {name for name in names if ".layer_scale_" in name} != set()
    with torch.device("meta"):
        other = create_detector("van_b0", head=head, num_classes=7, **SMALL)
    changed = {name for name, value in other.named_parameters() if names[name].shape != value.shape}
    assert changed == {name for name in names if name.startswith(tuple(f"{x}." for x in model.class_layers))}


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


def test_a_classification_network_can_be_the_backbone():
    trained = timm.create_model("van_b0", num_classes=7)
    model = Detector(trained, head="retinanet", num_classes=2)
    assert model.backbone is trained


@pytest.mark.parametrize(
    ("model", "head", "classes", "message"),
    [
        ("van_b0", "yolo", 2, "head.*retinanet, fcos, faster_rcnn, mask_rcnn.*'yolo'"),
        ("resnet50", "fcos", 2, "backbone.*van_b0.*'resnet50'"),
        ("van_b0", "fcos", 0, "num_classes.* 0"),
    ],
)
def test_unknown_names_and_invalid_sizes_are_refused(model, head, classes, message):
    with pytest.raises(UsageError, match=message):
        create_detector(model, head=head, num_classes=classes)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("retinanet", {"channels": 0}, "channels.*1.* 0"),
        ("fcos", {"channels": 48}, "channels.*64.* 48"),
        ("fcos", {"anchor_sizes": (8, 16, 32, 64, 128)}, r"anchor_sizes.*fcos.*\(8, 16, 32, 64, 128\)"),
        ("mask_rcnn", {"anchor_sizes": (8, 16)}, r"anchor_sizes.*5.*\(8, 16\)"),
        ("retinanet", {"anchor_sizes": (0, 8, 16, 32, 64)}, r"anchor_sizes.*\(0, 8, 16, 32, 64\)"),
        ("faster_rcnn", {"first_level": 16}, "first_level.*4 or 8.* 16"),
        ("faster_rcnn", {"min_size": 800}, "faster_rcnn.*'min_size'.*rpn_anchor_generator"),
        ("retinanet", {"anchor_size_px": 3}, "retinanet.*'anchor_size_px'"),
    ],
)
def test_invalid_and_unknown_options_are_refused(head, options, message):
    """torchvision accepts every keyword and ignores those that it does not know."""
    with pytest.raises(UsageError, match=message):
        create_detector("van_b0", head=head, num_classes=2, **options)


def test_options_reach_the_detector_or_the_backbone():
    model = create_detector("van_b0", head="fcos", num_classes=2, score_thresh=0.01, norm_eps=1e-5, **SMALL)
    assert model.detector.score_thresh == 0.01
    assert model.backbone.norm1.eps == 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_boxes_and_scores_are_float32_under_autocast(head):
    """In bfloat16 a coordinate near 800 would move in steps of 4 pixels."""
    torch.manual_seed(0)
    network = create_detector("van_b0", head=head, num_classes=2, channels=64)
    image = torch.randn(3, 64, 96)
    target = {"boxes": torch.tensor([[5.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 96, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network([image], [target])
        (detections,) = network.eval()([image])
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {value.dtype for name, value in detections.items() if name != "labels"} == {torch.float32}


@pytest.mark.parametrize("head", HEADS)
def test_detections_do_not_depend_on_the_other_images_of_the_batch(head):
    """Padding changes the features, as the control shows: with more padding the same image has other scores."""
    torch.manual_seed(1)
    thresholds = {"box_score_thresh": 0.0} if "rcnn" in head else {"score_thresh": 0.0}
    network = create_detector("van_b0", head=head, num_classes=2, channels=64, **thresholds).eval()
    for weight in network.get_classifier().parameters():
        torch.nn.init.normal_(weight, std=0.05)  # untrained, all scores would be equal
    images = [torch.randn(3, *size) for size in ((64, 96), (128, 40), (64, 90), (128, 64))]
    with torch.no_grad():
        together = network(images)
        for image, result in zip(images, together, strict=True):
            (alone,) = network([image])
            torch.testing.assert_close(result["scores"], alone["scores"], rtol=0, atol=1e-5)
            assert result["scores"].std() > 1e-3
        padded = torch.zeros(3, 128, 96)
        padded[:, :64] = images[0]
        (other,) = network([padded])
    count = min(len(other["scores"]), len(together[0]["scores"]))
    assert not torch.allclose(other["scores"][:count], together[0]["scores"][:count], atol=1e-4)
