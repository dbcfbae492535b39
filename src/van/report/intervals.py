"""95 % confidence intervals of dataset metrics: Wilson for proportions, bootstrap over images for ratios of sums.

Average precision has no interval here: each bootstrap resample would need COCO's matching again.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from van.visualization.intervals import wilson_interval

Intervals = dict[str, tuple[float, float]]
"""The lower and upper bound of each metric, by its name."""
RESAMPLES = 1000


def accuracy_intervals(metrics: Mapping[str, float], num_samples: int) -> Intervals:
    """Return the Wilson intervals of top1 and top5."""
    return {
        name: wilson_interval(round(metrics[name] * num_samples), num_samples)
        for name in ("top1", "top5")
        if num_samples and 0 <= metrics.get(name, -1) <= 1
    }


def segmentation_intervals(counts: Sequence[np.ndarray]) -> Intervals:
    """Return bootstrap intervals of mean_iou, mean_accuracy and pixel_accuracy.

    Args:
        counts: for each image (3, classes): pixels that are correct, labeled and predicted.
    """

    def compute(sums: np.ndarray) -> dict[str, np.ndarray]:
        correct, labeled, predicted = sums[:, 0], sums[:, 1], sums[:, 2]
        return {
            "mean_iou": np.nanmean(correct / (labeled + predicted - correct), axis=1),
            "mean_accuracy": np.nanmean(correct / labeled, axis=1),
            "pixel_accuracy": correct.sum(1) / labeled.sum(1),
        }

    return _bootstrap(counts, compute)


def panoptic_intervals(counts: Sequence[np.ndarray], things: Sequence[bool]) -> Intervals:
    """Return bootstrap intervals of pq, sq, rq, pq_things and pq_stuff.

    Args:
        counts: for each image (4, classes): sum of IoUs, true positives, false positives and false negatives.
        things: for each class, whether it is a thing class.
    """
    is_thing = np.array(things, bool)

    def compute(sums: np.ndarray) -> dict[str, np.ndarray]:
        iou_sum, true_positives = sums[:, 0], sums[:, 1]
        weight = true_positives + (sums[:, 2] + sums[:, 3]) / 2
        quality = iou_sum / weight
        # a class without matches has a segmentation quality of 0, one without segments has none
        segmentation = np.where(weight > 0, iou_sum / np.maximum(true_positives, 1), np.nan)
        values = {"pq": quality, "sq": segmentation, "rq": true_positives / weight}
        means = {name: np.nanmean(array, axis=1) for name, array in values.items()}
        for name, mask in (("pq_things", is_thing), ("pq_stuff", ~is_thing)):
            if mask.any():
                means[name] = np.nanmean(quality[:, mask], axis=1)
        return means

    return _bootstrap(counts, compute)


def _bootstrap(
    counts: Sequence[np.ndarray], compute: Callable[[np.ndarray], dict[str, np.ndarray]], *, seed: int = 0
) -> Intervals:
    """Return percentile intervals of metrics that are functions of sums over images.

    Args:
        counts: an array for each image.
        compute: from sums (resamples, ...) to an array (resamples,) for each metric.
    """
    if len(counts) < 2:
        return {}
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
    sums = np.tensordot(weights, np.stack(counts).astype(float), axes=1)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over classes of which a resample has none
        metrics = compute(sums)
    bounds = {
        name: np.nanquantile(values, (0.025, 0.975)) for name, values in metrics.items() if np.isfinite(values).any()
    }
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
