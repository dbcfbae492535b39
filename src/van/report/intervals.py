"""95 % bootstrap intervals over images, of metrics that are ratios of sums: mean IoU and panoptic quality.

Average precision has no interval: each resample would need COCO's matching again. Source: the percentile bootstrap,
Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

Intervals = dict[str, tuple[float, float]]
"""The lower and upper bound of each metric, by its name."""
_RESAMPLES = 1000


def segmentation_intervals(counts: Sequence[np.ndarray]) -> Intervals:
    """Return the intervals of mean_iou, mean_accuracy and pixel_accuracy.

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
    """Return the intervals of pq, sq, rq, pq_things and pq_stuff.

    Args:
        counts: for each image (4, classes): sum of IoUs, true positives, false positives and false negatives.
        things: for each class, whether it is a thing class.
    """

    def compute(sums: np.ndarray) -> dict[str, np.ndarray]:
        iou_sum, true_positives = sums[:, 0], sums[:, 1]
        weight = true_positives + (sums[:, 2] + sums[:, 3]) / 2
        quality = iou_sum / weight
        # a class without matches has a segmentation quality of 0, one without segments has none
        segmentation = np.where(weight > 0, iou_sum / np.maximum(true_positives, 1), np.nan)
        means = {"pq": quality, "sq": segmentation, "rq": true_positives / weight}
        for name, is_shown in (("pq_things", np.array(things, bool)), ("pq_stuff", ~np.array(things, bool))):
            if is_shown.any():
                means[name] = quality[:, is_shown]
        return {name: np.nanmean(values, axis=1) for name, values in means.items()}

    return _bootstrap(counts, compute)


def _bootstrap(counts: Sequence[np.ndarray], compute: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Intervals:
    """Return percentile intervals of metrics that ``compute`` returns (resamples,) for sums (resamples, ...)."""
    if len(counts) < 2:
        return {}
    random = np.random.default_rng(0)
    weights = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_RESAMPLES)
    sums = np.tensordot(weights, np.stack(counts).astype(float), axes=1)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over classes of which a resample has none
        metrics = compute(sums)
    finite = {name: values for name, values in metrics.items() if np.isfinite(values).any()}
    bounds = {name: np.nanquantile(values, (0.025, 0.975)) for name, values in finite.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
