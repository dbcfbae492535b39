"""The worst predictions are collected while an evaluation runs, its metrics do not change; matches and intervals."""

import math

import numpy as np
import pytest
import torch

from van.report.errors import ErrorCollector, match, rate
from van.report.intervals import panoptic_intervals, segmentation_intervals
from van.tasks.base import Batch, ImageMeta
from van.tasks.panoptic import PanopticTask
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
    metric = ErrorCollector(task, max_errors=max_errors).to(torch.device("cpu"))
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


def test_accuracies_have_wilson_intervals():
    """Published values for 81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I)."""
    targets = (torch.arange(263) >= 81).long()
    details = collect(make_task("classify", LABELS), classify_batches(torch.eye(3)[[0] * 263], targets, 100), 1)
    assert details["intervals"]["top1"] == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_the_metrics_equal_those_of_the_task():
    logits, targets = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    task = make_task("classify", LABELS)
    plain = task.metric()
    for outputs, batch in classify_batches(logits, targets, 7):
        plain.update(outputs, batch)
    collected, expected = collect(task, classify_batches(logits, targets, 7), 2), plain.compute()
    assert collected["metrics"] == expected["metrics"]
    np.testing.assert_array_equal(collected["confusion"], expected["confusion"])


def test_padding_and_nan_outputs_are_not_ranked_and_no_errors_are_kept_if_max_errors_is_zero():
    task = make_task("classify", LABELS)
    logits = torch.tensor([[9.0, 0, 0], [5.0, 0, 0], [math.nan, 0, 0]])
    targets = torch.tensor([1, 1, 1])
    details = collect(task, classify_batches(logits[:2], targets[:2], 2, valid=[False, True]), 5)
    assert [one.name for one in details["errors"]] == ["image-1"]
    severities = [rate(task, *row, ImageMeta("a")).severity for row in zip(logits, targets, strict=True)]
    assert math.isnan(severities[2])
    assert severities[0] > severities[1] > 1
    details = collect(task, classify_batches(torch.eye(3), torch.tensor([1, 2, 0]), 3), 0)
    assert (details["errors"], details["num_errors"]) == ((), 3)


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


def objects(boxes, labels, scores=None, crowds=None):
    values = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels).long()}
    if scores is not None:
        values["scores"] = torch.tensor(scores)
    if crowds is not None:
        values["iscrowd"] = torch.tensor(crowds)
    return values


SQUARE, SHIFTED, FAR = [0, 0, 10, 10], [0, 2, 10, 12], [50, 50, 60, 60]


def test_each_target_is_matches_to_the_detection_of_its_class_with_the_highest_score():
    """10 x 8 of 10 x 12 pixels overlap: IoU 0.67. The second detection of the same target is a false positive."""
    detections = objects([SHIFTED, SQUARE, FAR], [1, 1, 2], [0.9, 0.8, 0.7])
    matches = match(detections, objects([SQUARE, FAR], [1, 2]))
    assert matches == ([(0, 0), (2, 1)], [], [1], [])
    assert matches.num_errors == 1


def test_a_match_of_another_class_is_one_error_and_an_iou_below_one_half_is_none():
    detections, target = objects([SQUARE], [1], [0.9]), objects([SQUARE, FAR], [2, 2])
    assert match(detections, target) == ([], [(0, 0)], [], [1])
    assert match(detections, target).num_errors == 2
    # a shift by 4 of 10 columns leaves an IoU of 60 / 140, one by 3 of 70 / 130
    assert match(objects([[4, 0, 14, 10]], [1], [0.9]), objects([SQUARE], [1])) == ([], [], [0], [0])
    assert match(objects([[3, 0, 13, 10]], [1], [0.9]), objects([SQUARE], [1])) == ([(0, 0)], [], [], [])


def test_crowds_are_never_missed_and_ignore_detections_of_their_class():
    crowd = objects([[0, 0, 100, 100]], [1], crowds=[1])
    assert match(objects([SQUARE], [1], [0.9]), crowd) == ([], [], [], [])
    assert match(objects([SQUARE], [2], [0.9]), crowd) == ([], [], [0], [])  # negative control: another class


def test_masks_are_matched_instead_of_boxes_if_both_sides_have_them():
    upper, lower = torch.zeros(1, 10, 10, dtype=torch.bool), torch.zeros(1, 10, 10, dtype=torch.bool)
    upper[:, :5], lower[:, 5:] = True, True
    detections, target = objects([SQUARE], [1], [0.9]), objects([SQUARE], [1])
    assert match(detections, target).num_errors == 0
    assert match({**detections, "masks": upper}, {**target, "masks": lower}).num_errors == 2
    assert match({**detections, "masks": upper}, {**target, "masks": upper}).num_errors == 0


def test_images_without_detections_or_targets_are_matched():
    empty = objects([], [], [])
    assert match(empty, objects([SQUARE], [1])) == ([], [], [], [0])
    assert match(objects([SQUARE], [1], [0.5]), objects([], [])) == ([], [], [0], [])
    assert match(empty, objects([], [])) == ([], [], [], [])


def test_equal_images_have_an_interval_of_width_zero():
    counts = np.array([[30, 10], [40, 20], [35, 25]])
    intervals = segmentation_intervals([counts] * 5)
    assert intervals["mean_iou"] == pytest.approx((np.mean([30 / 45, 10 / 35]),) * 2)
    assert intervals["mean_accuracy"] == pytest.approx((0.625, 0.625))
    assert intervals["pixel_accuracy"] == pytest.approx((40 / 60,) * 2)


def test_a_single_image_has_no_interval_and_a_class_without_pixels_is_in_no_mean():
    assert segmentation_intervals([np.ones((3, 2))]) == {}
    counts = np.array([[5, 0], [10, 0], [10, 0]])
    assert segmentation_intervals([counts] * 3)["mean_iou"] == pytest.approx((5 / 15,) * 2)


def test_the_interval_of_a_proportion_agrees_with_the_normal_approximation():
    """One pixel per image, half of them correct: the standard error is 0.5 / sqrt(n)."""
    counts = [np.array([[n % 2], [1], [n % 2]]) for n in range(400)]
    low, high = segmentation_intervals(counts)["pixel_accuracy"]
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_panoptic_intervals_contain_the_metrics_of_the_same_counts():
    task = PanopticTask(("cat", "dog", "sky"), things=(True, True, False))
    random = np.random.default_rng(0)
    whole, counts = task.metric(), []
    for number in range(12):
        masks = torch.from_numpy(random.integers(0, 3, (6, 8))) == torch.arange(3)[:, None, None]
        shown = masks ^ torch.from_numpy(random.random((3, 6, 8)) < 0.1)
        output = {"class_logits": torch.eye(3, 4) * 18 - 9, "mask_logits": 18.0 * shown.float() - 9}
        target = {"labels": torch.arange(3), "masks": masks}
        meta = (ImageMeta(f"{number}", (6, 8), (6, 8)),)
        batch = Batch(images=[], targets=[target], image_metas=meta, valid=torch.tensor([True]))
        metric = task.metric()
        for one in (metric, whole):
            one.update([output], batch)
        counts.append(metric.class_counts())
    np.testing.assert_allclose(np.sum(counts, axis=0), whole.class_counts())
    metrics, intervals = whole.compute()["metrics"], panoptic_intervals(counts, task.things)
    assert set(intervals) == set(metrics)
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high
        assert 0 < high - low < 0.5
