"""Confidence intervals of metrics: Wilson for accuracies, bootstrap over images for mean IoU and panoptic quality."""

import numpy as np
import pytest
import torch

from van.report.intervals import accuracy_intervals, panoptic_intervals, segmentation_intervals
from van.tasks.base import Batch, ImageMeta
from van.tasks.panoptic import PanopticTask


def test_accuracies_have_wilson_intervals():
    """Published values for 81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I)."""
    low, high = accuracy_intervals({"top1": 81 / 263, "loss": 1.0}, 263)["top1"]
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert accuracy_intervals({"top1": float("nan")}, 0) == {}


def test_equal_images_have_an_interval_of_width_zero():
    counts = np.array([[30, 10], [40, 20], [35, 25]])
    intervals = segmentation_intervals([counts] * 5)
    assert intervals["mean_iou"] == pytest.approx((np.mean([30 / 45, 10 / 35]),) * 2)
    assert intervals["mean_accuracy"] == pytest.approx((0.625, 0.625))
    assert intervals["pixel_accuracy"] == pytest.approx((40 / 60,) * 2)


def test_a_single_image_has_no_interval():
    assert segmentation_intervals([np.ones((3, 2))]) == {}


def test_a_class_without_pixels_is_in_no_mean():
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
