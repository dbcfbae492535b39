"""D-FINE, RT-DETR v2 and Deformable DETR on VAN: everything learns, boxes come back from where they went in."""

import socket
import sys

import pytest
import timm
import torch
from torch import nn

from van.errors import MissingExtra, UsageError
from van.models.transformer_detectors import HEADS, TransformerDetector, decode
from van.models.van import VAN

CLASSES = 3


def small(head: str, **options) -> TransformerDetector:
    torch.manual_seed(0)
    sizes = {"queries": 20, "channels": 64, "decoder_layers": 2, "encoder_layers": 1}
    return TransformerDetector("van_b0", head=head, num_classes=CLASSES, **{**sizes, **options})


def scene(second: tuple[int, int] = (50, 64)) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two pictures of different sizes, each with two bright rectangles of classes 0 and 2."""
    pictures, targets = [], []
    for rows, columns in ((64, 100), second):
        picture = torch.rand(3, rows, columns) * 0.2
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [34.0, 8.0, 60.0, 44.0]])
        for place, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            picture[place, y1:y2, x1:x2] = 1.0
        pictures.append(picture)
        targets.append({"boxes": boxes, "labels": torch.tensor([0, 2])})
    return pictures, targets


def nothing() -> dict[str, torch.Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def what_went_in(model: TransformerDetector, *inputs) -> dict:
    """The keywords that transformers' detector was called with, and what it gave as ``found``."""
    seen = {}
    hook = model.detector.register_forward_hook(
        lambda _, args, keywords, found: seen.update(keywords, found=found), with_kwargs=True
    )
    model(*inputs)
    hook.remove()
    return seen


@pytest.mark.parametrize("head", HEADS)
def test_a_training_step_reaches_every_parameter_and_every_batchnorm_of_van(head):
    model = small(head).train()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in timm.create_model("van_b0").modules()) > 0
    before = [norm.running_mean.clone() for norm in norms]
    losses = model(*scene())
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # D-FINE keeps two constants of its box distribution as parameters, which its authors do not train either
    constants = ["detector.model.decoder.reg_scale", "detector.model.decoder.up"] if head == "d_fine" else []
    assert untouched == constants
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in model.backbone.parameters())
    assert all((norm.running_mean != mean).any() for norm, mean in zip(norms, before, strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_the_sum_of_the_losses_is_what_transformers_minimises(head):
    model = small(head).train()
    found = {}
    model.detector.register_forward_hook(lambda _, args, result: found.update(loss=result.loss))
    losses = model(*scene())
    torch.testing.assert_close(sum(losses.values()), found["loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_pictures_without_things_are_trained_on(head):
    model = small(head).train()
    pictures, (target, _) = scene()
    for targets in ([target, nothing()], [nothing(), nothing()]):
        losses = model(pictures, targets)
        assert all(value.isfinite() for value in losses.values())
        assert sum(losses.values()) > 0  # that there is nothing is learned, too
        model.zero_grad()
        sum(losses.values()).backward()
        untouched = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert untouched == []  # or distributed training would stop at such a batch


@pytest.mark.parametrize("head", HEADS)
def test_boxes_and_labels_that_go_in_come_out_again_from_a_padded_batch(head):
    """The fractions that the losses see are decoded like answers: every picture gets its own boxes back."""
    model = small(head).train()
    pictures, targets = scene()
    sizes = [tuple(picture.shape[1:]) for picture in pictures]
    seen = what_went_in(model, pictures, targets)
    canvas = tuple(seen["pixel_values"].shape[2:])
    assert canvas == (64, 128)
    boxes = torch.stack([label["boxes"] for label in seen["labels"]])
    classes = torch.stack([label["class_labels"] for label in seen["labels"]])
    logits = nn.functional.one_hot(classes, CLASSES) * torch.tensor([9.0, 8.0])[:, None] - 20.0
    frames = model.frames(sizes, canvas)
    for frame, wrong in ((frames, False), (sizes, True)):
        answers = decode(logits, boxes, frames=frame, sizes=sizes, detections=2)
        distances = [
            (answer["boxes"] - target["boxes"]).abs().max() for answer, target in zip(answers, targets, strict=True)
        ]
        if wrong:  # as fractions of the picture's own size they land elsewhere
            assert max(distances) > 3
        else:
            assert max(distances) < 1e-4
            assert [answer["labels"].tolist() for answer in answers] == [[0, 2], [0, 2]]
    for picture, padded in zip(pictures, seen["pixel_values"], strict=True):
        rows, columns = picture.shape[1:]
        assert torch.equal(padded[:, :rows, :columns], picture)
        assert padded[:, rows:].abs().sum() == padded[:, :, columns:].abs().sum() == 0


def test_hand_made_answers_are_clipped_sorted_and_dropped_in_the_filling():
    """On a canvas of 64 x 128 with a picture of 40 x 100: sides, scores and labels by hand."""
    boxes = torch.tensor([[
        [0.25, 0.25, 0.25, 0.25],  # 16..48 by 8..24, inside
        [0.75, 0.50, 0.50, 1.00],  # 64..128 by 0..64, clipped to 100 and 40
        [0.25, 0.90, 0.10, 0.10],  # rows 54..61, in the filling
    ]])  # fmt: skip
    logits = torch.tensor([[[-2.0, 1.0], [3.0, -4.0], [9.0, 9.0]]])
    (answer,) = decode(logits, boxes, frames=[(64, 128)], sizes=[(40, 100)], detections=3)
    wanted = torch.tensor([[64.0, 0.0, 100.0, 40.0], [16.0, 8.0, 48.0, 24.0], [16.0, 8.0, 48.0, 24.0]])
    torch.testing.assert_close(answer["boxes"], wanted)
    assert answer["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(answer["scores"], torch.tensor([3.0, 1.0, -2.0]).sigmoid())


def test_deformable_detr_is_told_the_same_edge_of_each_picture_on_every_level():
    """Its valid ratios are those of the frames exactly; with masks that end at the pictures they would differ."""
    model = small("deformable_detr").train()
    pictures, targets = scene()
    seen = what_went_in(model, [*pictures, torch.rand(3, 130, 70)], [*targets, nothing()])
    rows, columns = seen["pixel_values"].shape[2:]
    frames = [(64, 128), (64, 64), (192, 128)]
    for level in range(4):
        stride = 8 * 2**level
        masks = nn.functional.interpolate(seen["pixel_mask"][None], size=(rows // stride, columns // stride))[0].bool()
        ratios = model.detector.model.get_valid_ratio(masks)
        torch.testing.assert_close(ratios, torch.tensor([[w / columns, h / rows] for h, w in frames]))
    own = torch.zeros(1, rows, columns)
    own[:, :50, :64] = 1
    heights = {
        float(
            model.detector.model.get_valid_ratio(nn.functional.interpolate(own[None], scale_factor=1 / s)[0] > 0)[0, 1]
        )
        for s in (8, 16, 32, 64)
    }
    assert len(heights) > 1


@pytest.mark.parametrize("head", HEADS)
def test_no_answer_depends_on_the_other_pictures_of_the_batch(head):
    """Up to rounding, since larger batches add in another order; with more filling the answers are others."""
    model = small(head).eval()
    pictures, _ = scene()
    pictures += [torch.rand(3, 130, 70), torch.rand(3, 60, 128)]
    farthest = {"boxes": 0.0, "scores": 0.0}
    with torch.no_grad():
        together = model(pictures)
        for picture, answer in zip(pictures, together, strict=True):
            (alone,) = model([picture])
            assert len(alone["scores"]) > 0
            assert torch.equal(answer["labels"], alone["labels"])
            for name, distance in farthest.items():
                farthest[name] = max(distance, (answer[name] - alone[name]).abs().max().item())
        (other,) = model([nn.functional.pad(pictures[0], (0, 64, 0, 64))])
    # 100 px in float32, and scores of about 0.01
    assert farthest["boxes"] < 1e-3
    assert farthest["scores"] < 1e-6
    assert (other["scores"][:5] - together[0]["scores"][:5]).abs().max() > 1e-4


@pytest.mark.parametrize("head", HEADS)
def test_answers_lie_in_the_pictures_own_pixels_best_first(head):
    model = small(head, detections=7).eval()
    pictures = [torch.rand(3, 1, 1), torch.rand(3, 200, 7), scene()[0][0]]
    with torch.no_grad():
        answers = model(pictures)
    for picture, answer in zip(pictures, answers, strict=True):
        rows, columns = picture.shape[1:]
        assert len(answer["scores"]) == len(answer["labels"]) == len(answer["boxes"]) <= 7
        assert ((answer["labels"] >= 0) & (answer["labels"] < CLASSES)).all()
        assert (answer["boxes"] >= 0).all()
        assert (answer["boxes"] <= torch.tensor([columns, rows, columns, rows])).all()
        assert (answer["scores"].diff() <= 0).all()
    assert len(answers[2]["scores"]) == 7


@pytest.mark.parametrize("head", ["d_fine", "rt_detr_v2"])
def test_a_small_picture_gets_a_canvas_with_a_place_for_every_query(head):
    model = small(head, queries=300).eval()
    assert model.canvas([(30, 40)]) == (128, 128)  # 256 + 64 + 16 places; 96 x 128 has 252
    with torch.no_grad():
        assert len(model([torch.rand(3, 30, 40)])) == 1


@pytest.mark.parametrize("head", HEADS)
def test_a_few_steps_lower_the_loss(head):
    # without what is drawn anew in each step
    model = small(head, dropout=0.0) if head == "deformable_detr" else small(head, num_denoising=0)
    pictures, targets = scene()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    totals = []
    for _ in range(15):
        optimizer.zero_grad()
        total = sum(model(pictures, targets).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_detector_learns_two_pictures_by_heart(head):
    """Some hundred steps on two pictures of different sizes; the things are found again, with their classes.

    Both have one canvas, because sizes learned by heart are fractions of it.
    """
    model = small(head).train()
    pictures, targets = scene(second=(50, 128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=300)
    for _ in range(300):
        optimizer.zero_grad()
        sum(model(pictures, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        answers = model.eval()(pictures)
    for answer, target in zip(answers, targets, strict=True):
        labels = answer["labels"][:2]
        assert sorted(labels.tolist()) == [0, 2]
        assert (answer["boxes"][:2][labels.argsort()] - target["boxes"]).abs().max() < 4


def test_a_classifiers_weights_load_into_the_backbone_entry_for_entry():
    trained = timm.create_model("van_b0", num_classes=0)
    for head in HEADS:
        model = small(head)
        assert isinstance(model.backbone, VAN)
        model.backbone.load_state_dict(trained.state_dict(), strict=True)
        picture = torch.rand(1, 3, 64, 64)
        maps = model.detector.model.backbone.model.eval()(picture).feature_maps
        wanted = trained.eval().forward_intermediates(picture, norm=True, intermediates_only=True)[1:]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(maps, wanted, strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_a_detectors_own_weights_load_into_another(head):
    model, other = small(head).eval(), small(head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        other.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, strict=True)
        picture = scene()[0][0]
        assert torch.equal(model([picture])[0]["boxes"], other([picture])[0]["boxes"])


@pytest.mark.parametrize("head", HEADS)
def test_before_learning_things_are_rare_whatever_the_number_of_classes(head):
    model = small(head)
    heads = model.detector.class_embed if head == "deformable_detr" else model.detector.model.decoder.class_embed
    for layer in heads:
        torch.testing.assert_close(layer.bias.sigmoid(), torch.full((CLASSES,), 0.01))
    assert heads[0].weight is not heads[1].weight


def test_d_fine_learns_from_every_layer():
    """Without noise, the estimator of the last layer but one is reached by nothing else than that layer's own loss.

    The negative control is transformers' own call, which pairs this layer's corners with the boxes before it.
    """
    reached = []
    for own in (True, False):
        model = small("d_fine", num_denoising=0).train()
        if not own:
            from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss

            model.detector.loss_function = DFineForObjectDetectionLoss
        sum(model(*scene()).values()).backward()
        gradient = model.detector.model.decoder.lqe_layers[0].reg_conf.layers[-1].bias.grad
        reached.append(gradient.item() != 0)
    assert reached == [True, False]


def test_building_asks_nothing_of_the_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for head in HEADS:
        small(head)


@pytest.mark.parametrize("package", ["transformers", "scipy"])
def test_a_missing_package_says_which_extra_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"D-FINE needs the package '{package}'.*\[transformers\]"):
        small("d_fine")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("van_b0", {"head": "detr"}, "there is no detector 'detr'; known: d_fine, rt_detr_v2, deformable_detr"),
        ("resnet50", {"head": "d_fine"}, "there is no 'resnet50' to build on; known: van_b0"),
        ("van_b0", {"head": "d_fine", "num_classes": 0}, "num_classes is 0; wanted at least 1"),
        ("van_b0", {"head": "d_fine", "channels": 96}, "channels is 96; wanted a multiple of 64"),
        ("van_b0", {"head": "d_fine", "quieries": 9}, "d_fine has no option quieries; see transformers' DFineConfig"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        TransformerDetector(name, **{"num_classes": 2, **options})


def test_training_without_targets_is_refused():
    pictures, targets = scene()
    model = small("rt_detr_v2").train()
    with pytest.raises(UsageError, match="targets is None in training; wanted one for each of the 2 pictures"):
        model(pictures)
    with pytest.raises(UsageError, match="targets is 1 of them"):
        model(pictures, targets[:1])
