"""torchvision's detectors on VAN: losses that fall, boxes where things are, pictures taken as they come."""

import pytest
import timm
import torch
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import MultiScaleRoIAlign

from van.errors import UsageError
from van.models.detectors import HEADS, Detector, create_detector

SMALL = {"channels": 64, "first_level": 4}
"""For pictures of some 64 pixels."""


def small(head: str, **options) -> Detector:
    torch.manual_seed(0)
    sizes = {} if head == "fcos" else {"anchor_sizes_px": (8, 16, 24, 32, 64)}
    return create_detector("van_b0", head=head, num_classes=3, **{**SMALL, **sizes, **options})


def scene(head: str) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two normalised pictures of different sizes, each with two bright rectangles of classes 0 and 2."""
    pictures, targets = [], []
    for rows, columns in ((64, 80), (50, 64)):
        picture = torch.rand(3, rows, columns) * 0.2
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [34.0, 8.0, 60.0, 44.0]])
        masks = torch.zeros(2, rows, columns, dtype=torch.uint8)
        for place, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            picture[place, y1:y2, x1:x2] = 1.0
            masks[place, y1:y2, x1:x2] = 1
        target = {"boxes": boxes, "labels": torch.tensor([0, 2])}
        pictures.append((picture - 0.5) / 0.5)
        targets.append({**target, "masks": masks} if head == "mask_rcnn" else target)
    return pictures, targets


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


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [True, False])
def test_pictures_reach_the_network_as_they_are_but_for_padding(head, training):
    """torchvision's own transform would resize them to 800 pixels, in evaluation even with its ``_skip_resize``."""
    model = small(head).train(training)
    seen = []
    original = model.backbone.forward_intermediates
    model.backbone.forward_intermediates = lambda x, **options: seen.append(x) or original(x, **options)
    pictures, targets = scene(head)
    with torch.no_grad():
        model(pictures, targets) if training else model(pictures)
    if training:
        (batch,) = seen
        assert batch.shape == (2, 3, 64, 96)
    else:  # each on a canvas of its own, so that no answer depends on the others
        batch = [one[0] for one in seen]
    for canvas, picture in zip(batch, pictures, strict=True):
        rows, columns = picture.shape[1:]
        assert canvas[:, :rows, :columns].equal(picture)
        assert canvas[:, rows:].eq(0).all()
        assert canvas[:, :, columns:].eq(0).all()


@pytest.mark.parametrize(("first_level", "strides"), [(4, (4, 8, 16, 32, 64)), (8, (8, 16, 32, 64, 128))])
@pytest.mark.parametrize("head", HEADS)
def test_the_finest_level_and_the_channels_are_as_asked_for(head, first_level, strides):
    pyramid = small(head, first_level=first_level, channels=128).detector.backbone
    levels = pyramid.eval()(torch.randn(1, 3, 256, 384))
    assert [tuple(level.shape) for level in levels.values()] == [(1, 128, 256 // s, 384 // s) for s in strides]


@pytest.mark.parametrize("first_level", [4, 8])
def test_no_picture_decides_where_later_ones_are_looked_at(first_level):
    """torchvision's pooling takes the strides from the first one, wrongly where its maps are rounded up."""
    first, model = (small("mask_rcnn", first_level=first_level, box_score_thresh=0.0).eval() for _ in range(2))
    picture = torch.randn(3, 64, 96)
    with torch.no_grad():
        (right,) = first([picture])
        model([torch.randn(3, 40, 41)])
        (found,) = model([picture])
        pools = model.detector.roi_heads.box_roi_pool, model.detector.roi_heads.mask_roi_pool
        assert all(pool.scales == [1 / stride for stride in (4, 8, 16, 32) if stride >= first_level] for pool in pools)
        own = MultiScaleRoIAlign(pools[0].featmap_names, 7, 2)
        maps = model.detector.backbone(torch.randn(1, 3, 256, 384))
        boxes = [torch.tensor([[3.0, 4.0, 40.0, 30.0], [0.0, 0.0, 380.0, 250.0], [90.0, 20.0, 200.0, 190.0]])]
        torch.testing.assert_close(pools[0](maps, boxes, [(256, 384)]), own(maps, boxes, [(256, 384)]))
    assert len(right["scores"]) > 0
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("head", HEADS)
def test_at_256_channels_the_heads_are_torchvisions_own(head):
    """Against its constructors left to themselves, but for the classes."""
    kind = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[head]
    with torch.device("meta"):
        ours = create_detector("van_b0", head=head, num_classes=80).detector
        fresh = kind(ours.backbone, 80 + (head not in ("retinanet", "fcos")))
    shapes = [
        {name: value.shape for name, value in each.state_dict().items() if not name.startswith("backbone.")}
        for each in (ours, fresh)
    ]
    assert shapes[0] == shapes[1] != {}


@pytest.mark.parametrize("head", HEADS)
def test_the_classifier_is_all_but_the_backbone(head):
    model = small(head)
    parts = [*model.backbone.parameters(), *model.get_classifier().parameters()]
    assert {id(part) for part in parts} == {id(part) for part in model.parameters()}
    assert len(parts) == len(list(model.parameters()))
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {name for name in names if ".layer_scale_" in name} != set()
    with torch.device("meta"):
        other = create_detector("van_b0", head=head, num_classes=7, **SMALL)
    changed = {name for name, value in other.named_parameters() if names[name].shape != value.shape}
    assert changed == {name for name in names if name.startswith(tuple(f"{x}." for x in model.class_layers))}


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
    assert model.backbone is trained


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


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("retinanet", {"channels": 0}, "channels is 0; wanted at least 1"),
        ("fcos", {"channels": 48}, "channels is 48; wanted a multiple of 64"),
        ("fcos", {"anchor_sizes_px": (8, 16, 32, 64, 128)}, r"fcos has no anchors; leave it out"),
        ("mask_rcnn", {"anchor_sizes_px": (8, 16)}, r"anchor_sizes_px is \(8, 16\); wanted 5 sides"),
        ("retinanet", {"anchor_sizes_px": (0, 8, 16, 32, 64)}, "wanted 5 sides of at least 1 pixel"),
        ("faster_rcnn", {"first_level": 16}, "first_level is 16; wanted a stride of 4 or 8 pixels"),
        ("faster_rcnn", {"min_size": 800}, "faster_rcnn has no option 'min_size'; known: rpn_anchor_generator"),
        ("retinanet", {"anchor_size_px": 3}, "retinanet has no option 'anchor_size_px'"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(head, options, message):
    """torchvision takes every keyword and drops those that it does not know."""
    with pytest.raises(UsageError, match=message):
        create_detector("van_b0", head=head, num_classes=2, **options)


def test_options_go_to_the_network_that_has_them():
    model = create_detector("van_b0", head="fcos", num_classes=2, score_thresh=0.01, norm_eps=1e-5, **SMALL)
    assert model.detector.score_thresh == 0.01
    assert model.backbone.norm1.eps == 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_boxes_and_scores_are_float32_under_autocast(head):
    """In bfloat16 a coordinate near 800 would move in steps of 4 pixels."""
    torch.manual_seed(0)
    network = create_detector("van_b0", head=head, num_classes=2, channels=64)
    picture = torch.randn(3, 64, 96)
    target = {"boxes": torch.tensor([[5.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 96, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network([picture], [target])
        (found,) = network.eval()([picture])
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {value.dtype for name, value in found.items() if name != "labels"} == {torch.float32}


@pytest.mark.parametrize("head", HEADS)
def test_an_answer_does_not_depend_on_the_other_pictures_of_its_batch(head):
    """Padding is seen, as the control shows: on a larger canvas the same picture is scored otherwise."""
    torch.manual_seed(1)
    thresholds = {"box_score_thresh": 0.0} if "rcnn" in head else {"score_thresh": 0.0}
    network = create_detector("van_b0", head=head, num_classes=2, channels=64, **thresholds).eval()
    for weight in network.get_classifier().parameters():
        torch.nn.init.normal_(weight, std=0.05)  # untrained, all scores would be equal
    pictures = [torch.randn(3, *size) for size in ((64, 96), (128, 40), (64, 90), (128, 64))]
    with torch.no_grad():
        together = network(pictures)
        for picture, found in zip(pictures, together, strict=True):
            (alone,) = network([picture])
            torch.testing.assert_close(found["scores"], alone["scores"], rtol=0, atol=1e-5)
            assert found["scores"].std() > 1e-3
        padded = torch.zeros(3, 128, 96)
        padded[:, :64] = pictures[0]
        (other,) = network([padded])
    count = min(len(other["scores"]), len(together[0]["scores"]))
    assert not torch.allclose(other["scores"][:count], together[0]["scores"][:count], atol=1e-4)
