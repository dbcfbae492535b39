"""D-FINE, RT-DETR v2 and Deformable DETR on VAN: all parameters train, and boxes of targets are decoded exactly."""

import socket
import sys
from typing import Any

import pytest
import torch
from torch import nn

from van.errors import MissingExtra, UsageError
from van.heads import create_model
from van.heads.transformer_detector import decode

HEADS = ("d_fine", "rt_detr_v2", "deformable_detr")
CLASSES = 3


def small(head: str, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"queries": 20, "channels": 64, "decoder_layers": 2, "encoder_layers": 1, "depths": (1, 1, 1, 1)}
    return create_model("van_b0", num_classes=CLASSES, options={"head": head, **sizes, **options})


def scene(second: tuple[int, int] = (50, 64)) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two images of different sizes, each with two bright rectangles of classes 0 and 2."""
    images, targets = [], []
    for rows, columns in ((64, 100), second):
        image = torch.rand(3, rows, columns) * 0.2
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [34.0, 8.0, 60.0, 44.0]])
        for channel, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            image[channel, y1:y2, x1:x2] = 1.0
        images.append(image)
        targets.append({"boxes": boxes, "labels": torch.tensor([0, 2])})
    return images, targets


def empty_target() -> dict[str, torch.Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def record_call(model: Any, *inputs) -> dict:
    """Return the keyword arguments that transformers' detector was called with."""
    call = {}
    hook = model.detector.register_forward_hook(
        lambda _, args, keywords, output: call.update(keywords), with_kwargs=True
    )
    model(*inputs)
    hook.remove()
    return call


def test_the_sum_of_the_losses_equals_transformers_loss(subtests):
    for head in HEADS:
        with subtests.test(head=str(head)):
            model = small(head).train()
            recorded = {}
            model.detector.register_forward_hook(lambda _, args, output: recorded.update(loss=output.loss))
            losses = model(*scene())
            torch.testing.assert_close(sum(losses.values()), recorded["loss"], rtol=1e-5, atol=0)


def test_images_without_objects_give_finite_losses_and_all_gradients(subtests):
    for head in HEADS:
        with subtests.test(head=str(head)):
            model = small(head).train()
            images, (target, _) = scene()
            for targets in ([target, empty_target()], [empty_target(), empty_target()]):
                losses = model(images, targets)
                assert all(value.isfinite() for value in losses.values())
                assert sum(losses.values()) > 0  # the absence of objects is trained, too
                model.zero_grad()
                sum(losses.values()).backward()
                untouched = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
                assert untouched == []  # distributed training would wait forever for a missing gradient


def test_targets_of_a_padded_batch_are_decoded_to_the_same_boxes_and_labels(subtests):
    """The fractions that the losses receive are decoded like predictions: every image gets its own boxes back."""
    for head in HEADS:
        with subtests.test(head=str(head)):
            model = small(head).train()
            images, targets = scene()
            sizes = [tuple(image.shape[1:]) for image in images]
            call = record_call(model, images, targets)
            padded_size = tuple(call["pixel_values"].shape[2:])
            assert padded_size == (64, 128)
            boxes = torch.stack([label["boxes"] for label in call["labels"]])
            classes = torch.stack([label["class_labels"] for label in call["labels"]])
            logits = nn.functional.one_hot(classes, CLASSES) * torch.tensor([9.0, 8.0])[:, None] - 20.0
            reference_sizes = model.reference_sizes.of_images(sizes, padded_size)
            for used_sizes, wrong in ((reference_sizes, False), (sizes, True)):
                detections = decode(logits, boxes, reference_sizes=used_sizes, sizes=sizes, max_detections=2)
                pairs = zip(detections, targets, strict=True)
                distances = [(result["boxes"] - target["boxes"]).abs().max() for result, target in pairs]
                if wrong:  # negative control: as fractions of the image's own size the boxes differ
                    assert max(distances) > 3
                else:
                    assert max(distances) < 1e-4
                    assert [result["labels"].tolist() for result in detections] == [[0, 2], [0, 2]]
            for image, padded in zip(images, call["pixel_values"], strict=True):
                rows, columns = image.shape[1:]
                assert torch.equal(padded[:, :rows, :columns], image)
                assert padded[:, rows:].abs().sum() == padded[:, :, columns:].abs().sum() == 0


def test_decode_clips_and_sorts_boxes_and_drops_those_in_the_padding():
    """An image of 40 x 100 padded to 64 x 128: boxes, scores and labels by hand."""
    boxes = torch.tensor([[
        [0.25, 0.25, 0.25, 0.25],  # 16..48 by 8..24, inside
        [0.75, 0.50, 0.50, 1.00],  # 64..128 by 0..64, clipped to 100 and 40
        [0.25, 0.90, 0.10, 0.10],  # rows 54..61, in the padding
    ]])  # fmt: skip
    logits = torch.tensor([[[-2.0, 1.0], [3.0, -4.0], [9.0, 9.0]]])
    (result,) = decode(logits, boxes, reference_sizes=[(64, 128)], sizes=[(40, 100)], max_detections=3)
    expected = torch.tensor([[64.0, 0.0, 100.0, 40.0], [16.0, 8.0, 48.0, 24.0], [16.0, 8.0, 48.0, 24.0]])
    torch.testing.assert_close(result["boxes"], expected)
    assert result["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(result["scores"], torch.tensor([3.0, 1.0, -2.0]).sigmoid())


def test_the_padding_mask_of_deformable_detr_has_the_same_edge_on_every_level():
    """The valid ratios are exactly those of the reference sizes; with masks of the images' own sizes they differ."""
    model = small("deformable_detr").train()
    images, targets = scene()
    call = record_call(model, [*images, torch.rand(3, 130, 70)], [*targets, empty_target()])
    rows, columns = call["pixel_values"].shape[2:]
    reference_sizes = [(64, 128), (64, 64), (192, 128)]
    for level in range(4):
        stride = 8 * 2**level
        masks = nn.functional.interpolate(call["pixel_mask"][None], size=(rows // stride, columns // stride))[0].bool()
        ratios = model.detector.model.get_valid_ratio(masks)
        torch.testing.assert_close(ratios, torch.tensor([[w / columns, h / rows] for h, w in reference_sizes]))
    own_mask = torch.zeros(1, rows, columns)
    own_mask[:, :50, :64] = 1
    heights = {
        float(
            model.detector.model.get_valid_ratio(nn.functional.interpolate(own_mask[None], scale_factor=1 / s)[0] > 0)[
                0, 1
            ]
        )
        for s in (8, 16, 32, 64)
    }
    assert len(heights) > 1


def test_detections_are_sorted_limited_and_depend_on_the_padded_size():
    """The reason why images of one padded size form a batch."""
    for head in HEADS:
        model = small(head, max_detections=7).eval()
        image = scene()[0][0]
        with torch.no_grad():
            (alone,), (other,) = model([image]), model([nn.functional.pad(image, (0, 64, 0, 64))])
        assert len(alone["scores"]) == len(alone["labels"]) == len(alone["boxes"]) == 7
        assert (alone["scores"].diff() <= 0).all()
        assert (other["scores"][:5] - alone["scores"][:5]).abs().max() > 1e-4


def test_a_small_image_is_padded_to_have_a_cell_for_every_query():
    model = small("rt_detr_v2", queries=300).eval()
    assert model.reference_sizes.padded_size([(30, 40)]) == (128, 128)  # 256 + 64 + 16 cells; 96 x 128 has 252
    with torch.no_grad():
        assert len(model([torch.rand(3, 30, 40)])) == 1


@pytest.mark.parametrize("head", HEADS)
def test_15_steps_lower_the_loss(head):
    # without dropout and denoising noise, which are drawn anew in each step
    model = small(head, dropout=0.0) if head == "deformable_detr" else small(head, num_denoising=0)
    images, targets = scene()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    totals = []
    for _ in range(15):
        optimizer.zero_grad()
        total = sum(model(images, targets).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_detector_overfits_two_images(head):
    """300 steps on two images of different sizes; all objects are detected, with their classes.

    Both have one padded size, because the overfitted box sizes are fractions of it.
    """
    model = small(head).train()
    images, targets = scene(second=(50, 128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=300)
    for _ in range(300):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        detections = model.eval()(images)
    for result, target in zip(detections, targets, strict=True):
        labels = result["labels"][:2]
        assert sorted(labels.tolist()) == [0, 2]
        assert (result["boxes"][:2][labels.argsort()] - target["boxes"]).abs().max() < 4


def test_the_initial_probability_of_every_class_is_one_percent_and_the_maps_are_the_last_three(subtests):
    for head in HEADS:
        with subtests.test(head=str(head)):
            model = small(head)
            image = torch.rand(1, 3, 64, 64)
            maps = model.detector.model.backbone.model.eval()(image).feature_maps
            expected = model.backbone.forward_intermediates(image, norm=True, intermediates_only=True)[1:]
            assert all(torch.equal(x, y) for x, y in zip(maps, expected, strict=True))
            heads = (
                model.detector.class_embed if head == "deformable_detr" else model.detector.model.decoder.class_embed
            )
            for layer in heads:
                torch.testing.assert_close(layer.bias.sigmoid(), torch.full((CLASSES,), 0.01))
            assert heads[0].weight is not heads[1].weight


def test_every_layer_of_d_fine_has_a_loss():
    """Without denoising, the quality estimator of the last layer but one gets a gradient from that layer's loss only.

    Negative control: transformers' own loss, which pairs this layer's corners with the boxes of the layer before.
    """
    has_gradient = []
    for own in (True, False):
        model = small("d_fine", num_denoising=0).train()
        if not own:
            from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss

            model.detector.loss_function = DFineForObjectDetectionLoss
        sum(model(*scene()).values()).backward()
        gradient = model.detector.model.decoder.lqe_layers[0].reg_conf.layers[-1].bias.grad
        has_gradient.append(gradient.item() != 0)
    assert has_gradient == [True, False]


def test_creating_a_detector_opens_no_connection(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for head in HEADS:
        small(head)


@pytest.mark.parametrize("package", ["transformers", "scipy"])
def test_the_error_for_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"D-FINE.*{package}.*\[transformers\]"):
        small("d_fine")


def test_invalid_sizes_and_unknown_options_are_refused():
    for options, message in (
        ({"channels": 96}, "channels.*64.* 96"),
        ({"queries": 0}, "queries.* 0"),
        ({"quieries": 9}, "d_fine.*quieries.*DFineConfig"),
    ):
        with pytest.raises(UsageError, match=message):
            small("d_fine", **options)


def test_training_without_targets_is_refused():
    images, targets = scene()
    model = small("rt_detr_v2").train()
    with pytest.raises(UsageError, match=r"targets.*2 images.*None"):
        model(images)
    with pytest.raises(UsageError, match=r"targets.*2 images.* 1$"):
        model(images, targets[:1])
