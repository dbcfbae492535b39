"""The worst predictions are collected while an evaluation runs, for any batch size, and its metrics do not change."""

import math

import numpy as np
import pytest
import torch

from van.report.error_collection import ErrorCollectingTask
from van.report.error_ranking import make_error_ranking
from van.tasks.base import Batch, ImageMeta
from van.tasks.registry import make_task

LABELS = ("ant", "bee", "cat")


def classify_batches(logits, targets, size, valid=None):
    valid = torch.ones(len(targets), dtype=torch.bool) if valid is None else torch.tensor(valid)
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        image_metas = tuple(ImageMeta(f"image-{number}") for number in range(start, min(start + size, len(targets))))
        yield (
            logits[rows],
            Batch(images=logits[rows], targets=targets[rows], image_metas=image_metas, valid=valid[rows]),
        )


def collect(task, batches, max_errors):
    metric = ErrorCollectingTask(task, max_errors=max_errors).metric().to(torch.device("cpu"))
    for outputs, batch in batches:
        metric.update(outputs, batch)
    return metric.compute()


def test_errors_are_sorted_by_confidence_and_followed_by_correct_predictions_of_low_confidence():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(97, 3, generator=generator)
    targets = torch.randint(3, (97,), generator=generator)
    probabilities, predicted = logits.softmax(1), logits.argmax(1)
    wrong = [i for i in range(97) if predicted[i] != targets[i]]
    wrong.sort(key=lambda i: -float(probabilities[i].max()))
    correct = sorted(set(range(97)) - set(wrong), key=lambda i: float(probabilities[i, targets[i]]))
    for size, max_errors in ((97, 5), (10, 5), (1, 12), (64, len(wrong) + 4)):
        details = collect(make_task("classify", LABELS), classify_batches(logits, targets, size), max_errors)
        assert [one.name for one in details["errors"]] == [f"image-{i}" for i in (wrong + correct)[:max_errors]]
        assert details["num_errors"] == len(wrong)
        assert [one.is_error for one in details["errors"]] == [i < len(wrong) for i in range(max_errors)]
    first = details["errors"][0]
    assert first.summary.startswith(f"{LABELS[targets[wrong[0]]]} predicted as {LABELS[predicted[wrong[0]]]}")
    assert first.cam_classes == (int(predicted[wrong[0]]), int(targets[wrong[0]]))


def test_the_metrics_equal_those_of_the_task():
    logits, targets = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    task = make_task("classify", LABELS)
    plain = task.metric()
    for outputs, batch in classify_batches(logits, targets, 7):
        plain.update(outputs, batch)
    collected, expected = collect(task, classify_batches(logits, targets, 7), 2), plain.compute()
    assert collected["metrics"] == expected["metrics"]
    np.testing.assert_array_equal(collected["confusion"], expected["confusion"])


def test_padding_and_nan_outputs_are_not_ranked():
    logits = torch.tensor([[9.0, 0, 0], [5.0, 0, 0], [math.nan, 0, 0]])
    targets = torch.tensor([1, 1, 1])
    details = collect(
        make_task("classify", LABELS), classify_batches(logits[:2], targets[:2], 2, valid=[False, True]), 5
    )
    assert [one.name for one in details["errors"]] == ["image-1"]
    severities = make_error_ranking(make_task("classify", LABELS)).severities(
        logits, next(classify_batches(logits, targets, 3))[1]
    )
    assert math.isnan(severities[2])
    assert severities[0] > severities[1] > 1


def test_no_errors_are_kept_if_max_errors_is_zero():
    details = collect(make_task("classify", LABELS), classify_batches(torch.eye(3), torch.tensor([1, 2, 0]), 3), 0)
    assert details["errors"] == ()
    assert details["num_errors"] == 3


def dense_batch(outputs, targets, sizes):
    image_metas = tuple(ImageMeta(f"image-{index}", size, size) for index, size in enumerate(sizes))
    return [
        (
            outputs,
            Batch(images=[], targets=targets, image_metas=image_metas, valid=torch.ones(len(sizes), dtype=torch.bool)),
        )
    ]


def test_detection_images_are_ranked_by_their_number_of_errors():
    def detections(boxes, labels, scores):
        return {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels).long(),
                "scores": torch.tensor(scores)}  # fmt: skip

    square, far = [0, 0, 10, 10], [20, 20, 30, 30]
    outputs = [
        detections([square, far], [0, 1], [0.9, 0.8]),  # both correct
        detections(
            [square, far], [2, 1], [0.9, 0.2]
        ),  # an ant predicted as cat; the score of the bee is below min_score
        detections([square], [0], [0.9]),  # a missed bee
    ]
    target = {"boxes": torch.tensor([square, far]).float(), "labels": torch.tensor([0, 1])}
    target |= {"iscrowd": torch.zeros(2, dtype=torch.int64), "area": torch.full((2,), 100.0)}
    details = collect(make_task("detect", LABELS), dense_batch(outputs, [target] * 3, [(40, 40)] * 3), 3)
    assert [one.name for one in details["errors"]] == ["image-1", "image-2", "image-0"]
    assert [one.summary for one in details["errors"]] == [
        "1 missed (bee); 1 confused (ant as cat)", "1 missed (bee)", "no errors",
    ]  # fmt: skip
    assert details["num_errors"] == 2
    worst = details["errors"][0]
    assert (worst.cam_classes, worst.box) == ((2,), (0.0, 0.0, 10.0, 10.0))
    assert [one.label for one in worst.target.detections] == ["ant", "bee"]
    assert [one.label for one in worst.prediction.detections] == ["cat"]


def test_segmentation_images_are_ranked_by_mean_iou():
    target = torch.zeros(4, 4, dtype=torch.int64)
    target[:2] = 1
    target[3, 3] = -1  # unlabeled pixels are ignored
    correct, half = target.clone(), target.clone()
    correct[3, 3], half[3, 3] = 2, 0
    half[0] = 2
    details = collect(make_task("segment", LABELS), dense_batch([correct, half], [target, target], [(4, 4)] * 2), 2)
    worst, best = details["errors"]
    assert (worst.name, best.name) == ("image-1", "image-0")
    assert worst.summary == "mean IoU 50\u202f%"  # ant 7/7, bee 4/8, cat 0/4
    assert worst.details == ("4 px of bee predicted as cat",)
    assert worst.cam_classes == (2, 1)
    assert (best.summary, best.is_error, details["num_errors"]) == ("no errors", False, 1)
    assert worst.target.segment_ids[3, 3] == -1


def test_panoptic_images_are_ranked_by_their_quality():
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, :3], masks[1, 3:] = True, True
    target = {"labels": torch.tensor([0, 1]), "masks": masks}

    def output(first, second):
        classes = torch.full((2, 4), -9.0)
        classes[0, first], classes[1, second] = 9.0, 9.0
        return {"class_logits": classes, "mask_logits": torch.where(masks, 9.0, -9.0)}

    task = make_task("panoptic", LABELS, {"things": [True, True, False]})
    details = collect(task, dense_batch([output(0, 1), output(0, 2)], [target, target], [(6, 6)] * 2), 2)
    worst, best = details["errors"]
    assert (worst.name, best.name, details["num_errors"]) == ("image-1", "image-0", 1)
    assert worst.summary == "panoptic quality 33\u202f%"  # ant matched, bee missed, cat a false positive
    assert worst.cam_classes == (2,)
    assert best.summary == "panoptic quality 100\u202f%"
    assert [segment.label for segment in worst.target.segments] == ["ant", "bee"]


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_the_wrapped_task_has_the_attributes_of_the_task(task):
    plain = make_task(task, LABELS)
    wrapped = ErrorCollectingTask(plain, max_errors=3)
    assert (wrapped.name, wrapped.monitor, wrapped.class_names) == (plain.name, plain.monitor, plain.class_names)
    assert wrapped.options == plain.options
