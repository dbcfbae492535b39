"""The detection task: targets of the network, decoding, resizing to the original size, and metrics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.predictions import Detections
from van.tasks.base import Batch, ImageMeta
from van.tasks.detection import DetectionTask, to_original_size

LABELS = ("cat", "dog", "fox")
IMAGE_META = ImageMeta("x.jpg", (40, 90), (20, 30))
"""The file has twice the rows and three times the columns of the network's input."""


def output_of(
    *boxes: list[float], labels: list[int] | None = None, scores: list[float] | None = None
) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        "scores": torch.tensor(scores or [0.9] * len(boxes)),
    }


def batch_of(targets: list[dict[str, Tensor]], *image_metas: ImageMeta, valid: list[bool] | None = None) -> Batch:
    return Batch(
        images=[torch.zeros(3, *image_meta.input_size) for image_meta in image_metas],
        targets=targets,
        image_metas=image_metas,
        valid=torch.tensor([True] * len(image_metas) if valid is None else valid),
    )


def test_invalid_settings_raise(subtests):
    for min_score in [-0.1, 1.5, math.nan]:
        with subtests.test(min_score=str(min_score)):
            with pytest.raises(UsageError, match=f"min_score.*{min_score}"):
                DetectionTask(LABELS, min_score=min_score)
            with pytest.raises(ShapeError, match=r"category_ids.*3.*2"):
                DetectionTask(LABELS, category_ids=(1, 2))


class Losses(nn.Module):
    """A network in training mode that returns losses and stores its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Any, targets: Any) -> dict[str, Tensor]:
        self.inputs = (images, targets)
        return {"classes": self.weight * 3, "boxes": (self.weight**2).bfloat16()}


def test_the_loss_is_the_sum_of_the_networks_losses_and_targets_have_the_keys_of_the_task(subtests):
    for masks in [False, True]:
        with subtests.test(masks=str(masks)):
            target = {
                "boxes": torch.tensor([[1.0, 2, 3, 4]]),
                "labels": torch.tensor([2]),
                "masks": torch.ones(1, 20, 30, dtype=torch.bool),
                "area": torch.tensor([4.0]),
            }
            network, batch = (
                Losses(),
                batch_of([target, {**target, "labels": torch.tensor([1])}], IMAGE_META, IMAGE_META),
            )
            loss = DetectionTask(LABELS, masks=masks).loss(network, batch)
            loss.backward()
            assert (loss.item(), loss.dtype, network.weight.grad.item()) == (10.0, torch.float32, 7.0)
            images, targets = network.inputs
            assert images is batch.images
            assert [set(one) for one in targets] == [{"boxes", "labels", "masks"} if masks else {"boxes", "labels"}] * 2
            assert all(one["boxes"] is target["boxes"] for one in targets)
            assert [one["labels"].item() for one in targets] == [2, 1]


def test_boxes_are_resized_to_the_original_size():
    prediction = DetectionTask(LABELS).decode([output_of([3, 5, 10, 20])], [IMAGE_META])[0]
    assert isinstance(prediction, Detections)
    assert prediction.detections[0].box == (9.0, 10.0, 30.0, 40.0)
    assert (prediction.name, prediction.image_size, prediction.class_names) == ("x.jpg", (40, 90), LABELS)
    swapped = DetectionTask(LABELS).decode([output_of([3, 5, 10, 20])], [ImageMeta("x.jpg", (90, 40), (30, 20))])[0]
    assert swapped.detections[0].box != prediction.detections[0].box  # negative control: rows and columns swapped


def test_masks_are_resized_to_the_original_size():
    """Each input pixel covers 2 rows and 3 columns; the edge is where the probability reaches 0.5."""
    mask = torch.zeros(1, 1, 20, 30)
    mask[0, 0, 4:10, 6:20] = 1.0
    prediction = DetectionTask(LABELS, masks=True).decode([{**output_of([6, 4, 20, 10]), "masks": mask}], [IMAGE_META])[
        0
    ]
    mask = prediction.detections[0].mask
    assert (mask.shape, mask.dtype) == ((40, 90), np.bool_)
    expected = np.zeros((40, 90), bool)
    expected[8:20, 18:60] = True
    assert (mask != expected).sum() <= 4  # of 504 pixels; interpolation rounds the corners
    assert not np.array_equal(mask, np.roll(expected, 1, axis=1))


def test_masks_of_the_original_size_are_thresholded_at_one_half():
    mask = torch.tensor([0.499, 0.5, 1.0, 0.0]).reshape(1, 1, 2, 2)
    resized = to_original_size({**output_of([0, 0, 2, 2]), "masks": mask}, ImageMeta("x", (2, 2), (2, 2)))
    assert resized["masks"].tolist() == [[[False, True], [True, False]]]


def test_an_image_without_detections_is_decoded():
    empty = {**output_of(), "masks": torch.zeros(0, 1, 20, 30)}
    assert to_original_size(empty, IMAGE_META)["masks"].shape == (0, 40, 90)
    prediction = DetectionTask(LABELS, masks=True).decode([empty], [IMAGE_META])[0]
    assert prediction.detections == ()
    assert DetectionTask(LABELS).decode([], []) == []


def test_detections_below_min_score_are_dropped_and_the_rest_is_sorted():
    outputs = output_of(
        [0, 0, 3, 3], [1, 1, 4, 4], [2, 2, 5, 5], [3, 3, 6, 6], labels=[0, 2, 1, 0], scores=[0.5, 0.49, 0.9, 0.7]
    )
    outputs["masks"] = torch.zeros(4, 1, 20, 30)
    for index in range(4):
        outputs["masks"][index, 0, index] = 1
    prediction = DetectionTask(LABELS, min_score=0.5).decode([outputs], [IMAGE_META])[0]
    assert [(detection.label, detection.index) for detection in prediction.detections] == [
        ("dog", 1),
        ("cat", 0),
        ("cat", 0),
    ]
    assert [detection.score for detection in prediction.detections] == pytest.approx([0.9, 0.7, 0.5])
    assert [int(detection.mask[:, 0].argmax()) // 2 for detection in prediction.detections] == [
        2,
        3,
        0,
    ]  # each its own mask
    assert len(DetectionTask(LABELS, min_score=0.0).decode([outputs], [IMAGE_META])[0].detections) == 4
    assert len(DetectionTask(LABELS, min_score=1.0).decode([outputs], [IMAGE_META])[0].detections) == 0


def test_equal_scores_keep_the_order_of_the_outputs():
    outputs = output_of([0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 3, 1], scores=[0.5, 0.5, 0.5])
    assert [detection.box[0] for detection in DetectionTask(LABELS).decode([outputs], [IMAGE_META])[0].detections] == [
        0.0,
        3.0,
        6.0,
    ]


def test_result_files_use_the_category_ids_of_the_dataset():
    outputs = output_of([0, 0, 3, 3], labels=[2])
    for category_ids, expected in (((1, 5, 90), 90), ((), 2)):
        prediction = DetectionTask(LABELS, category_ids=category_ids).decode([outputs], [IMAGE_META])[0]
        assert prediction.to_coco(7)[0]["category_id"] == expected


def test_resized_boxes_are_clipped_to_the_image():
    assert float(torch.tensor(333.0) * torch.tensor(367 / 333)) > 367
    outputs = output_of([-1e-4, -2e-5, 333, 333.00003])
    box = DetectionTask(LABELS).decode([outputs], [ImageMeta("x", (367, 367), (333, 333))])[0].detections[0].box
    assert box == (0.0, 0.0, 367.0, 367.0)


def test_half_precision_boxes_are_resized_in_float32():
    """bfloat16 has 8 bits: 7 / 3 would be rounded to 2.328125, and 90 x 7 / 3 would be off by half a pixel."""
    outputs = output_of([0, 0, 90, 60])
    outputs = {name: values if name == "labels" else values.bfloat16() for name, values in outputs.items()}
    resized = to_original_size(outputs, ImageMeta("x", (140, 210), (60, 90)))
    assert resized["boxes"].tolist() == [[0, 0, 210, 140]]
    assert resized["boxes"].dtype == resized["scores"].dtype == torch.float32


def test_scores_above_one_raise():
    with pytest.raises(ShapeError, match=r"detection 0.*1\.5"):
        DetectionTask(LABELS).decode([output_of([0, 0, 3, 3], scores=[1.5])], [IMAGE_META])


def test_the_metric_uses_original_pixels_and_ignores_padding():
    """Targets are in pixels of the file; detections with low scores count; padding would halve the recall."""
    target = {"boxes": torch.tensor([[9.0, 10, 30, 40]]), "labels": torch.tensor([1])}
    metric = DetectionTask(LABELS).metric().to(torch.device("cpu"))
    outputs = [output_of([3, 5, 10, 20], labels=[1], scores=[0.01]), output_of()]
    metric.update(outputs, batch_of([target, target], IMAGE_META, IMAGE_META._replace(name="y"), valid=[True, False]))
    assert metric.compute()["metrics"]["box_ap"] == 1.0
    metric.update(outputs[1:], batch_of([target], IMAGE_META._replace(name="y")))
    assert metric.compute()["metrics"]["box_ar100"] == 0.5
    assert metric.compute()["per_class"].keys() == {"dog"}


def test_the_metric_evaluates_masks_only_for_instance_segmentation():
    mask = torch.zeros(1, 40, 90, dtype=torch.bool)
    mask[0, 8:20, 18:60] = True
    target = {"boxes": torch.tensor([[18.0, 8, 60, 20]]), "labels": torch.tensor([0]), "masks": mask}
    input_mask = mask[:, None, ::2, ::3].float()
    for masks, expected in ((False, {"box_ap": 1.0}), (True, {"box_ap": 1.0, "mask_ap": 1.0})):
        metric = DetectionTask(LABELS, masks=masks).metric()
        metric.update([{**output_of([6, 4, 20, 10]), "masks": input_mask}], batch_of([target], IMAGE_META))
        metrics = metric.compute()["metrics"]
        assert {name: value for name, value in metrics.items() if name.endswith("_ap")} == expected
