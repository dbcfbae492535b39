"""The semantic segmentation task: loss, metrics and decoding against plain loops and the definitions."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.errors import DataError, ShapeError
from van.tasks.base import Batch, ImageMeta
from van.tasks.segmentation import AUXILIARY_WEIGHT, SegmentationTask


def batch_of(targets: list[Tensor], *, size: tuple[int, int] | None = None, valid: list[bool] | None = None) -> Batch:
    return Batch(
        images=[torch.zeros(3, 4, 4)] * len(targets),
        targets=targets,
        image_metas=tuple(ImageMeta(f"{n}", size or tuple(target.shape), (4, 4)) for n, target in enumerate(targets)),
        valid=torch.tensor([True] * len(targets) if valid is None else valid),
    )


def reference_confusion(maps: list[np.ndarray], targets: list[np.ndarray], classes: int) -> np.ndarray:
    """Return the confusion matrix in pixels from plain loops."""
    confusion = np.zeros((classes, classes), np.int64)
    for predicted, target in zip(maps, targets, strict=True):
        for one, other in zip(predicted.reshape(-1).tolist(), target.reshape(-1).tolist(), strict=True):
            if other != -1:
                confusion[other, one] += 1
    return confusion


def reference_metrics(confusion: np.ndarray) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the metrics overall and per class, from their definitions."""
    per_class: dict[str, dict[str, float]] = {}
    for label in range(len(confusion)):
        correct, labeled, predicted = confusion[label, label], confusion[label].sum(), confusion[:, label].sum()
        if labeled + predicted:
            per_class[f"c{label}"] = {"pixels": int(labeled), "iou": correct / (labeled + predicted - correct)}
            if labeled:
                per_class[f"c{label}"]["accuracy"] = correct / labeled
    metrics = {
        "mean_iou": np.mean([values["iou"] for values in per_class.values()]),
        "mean_accuracy": np.mean([values["accuracy"] for values in per_class.values() if "accuracy" in values]),
        "pixel_accuracy": np.trace(confusion) / confusion.sum(),
    }
    return metrics, per_class


def assert_metrics_of(results: dict[str, Any], confusion: np.ndarray) -> None:
    np.testing.assert_array_equal(results["confusion"], confusion)
    metrics, per_class = reference_metrics(confusion)
    assert results["metrics"] == pytest.approx(metrics, abs=1e-12)
    assert list(results["per_class"]) == list(per_class)
    for label, values in per_class.items():
        assert results["per_class"][label] == pytest.approx(values, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 7),
    sizes=st.lists(st.tuples(st.integers(1, 13), st.integers(1, 11)), min_size=1, max_size=4),
)
def test_the_metrics_equal_those_of_a_plain_loop(seed, classes, sizes):
    """Logits smaller and larger than the image, and label maps; classes may be absent; padding is ignored."""
    random = np.random.default_rng(seed)
    metric = SegmentationTask([f"c{n}" for n in range(classes)]).metric()
    maps, targets = [], []
    for index, size in enumerate(sizes):
        target = random.integers(-1, classes, size)
        target[0, 0] = 0 if index == 0 else target[0, 0]  # at least one labeled pixel
        if random.random() < 0.3:
            output = torch.from_numpy(random.integers(0, classes, size)).int()
            predicted = output
        else:
            output = torch.from_numpy(random.standard_normal((classes, *random.integers(1, 9, 2))).astype(np.float32))
            enlarged = F.interpolate(output[None], size=size, mode="bilinear", align_corners=False)[0]
            predicted = enlarged.argmax(0)
        valid = index == 0 or random.random() < 0.7
        metric.update([output], batch_of([torch.from_numpy(target)], valid=[valid]))
        if valid:
            maps.append(predicted.numpy())
            targets.append(target)
    assert_metrics_of(metric.to(torch.device("cpu")).compute(), reference_confusion(maps, targets, classes))


def test_metrics_of_a_small_example():
    """2 of 3 pixels of class a are correct, b is never labeled, c never predicted, d neither; one is unlabeled."""
    metric = SegmentationTask(("a", "b", "c", "d")).metric()
    metric.update([torch.tensor([[0, 0, 1], [1, 0, 0]])], batch_of([torch.tensor([[0, 0, 0], [2, 2, -1]])]))
    results = metric.compute()
    assert results["per_class"] == {
        "a": {"pixels": 3, "iou": 2 / 4, "accuracy": 2 / 3},
        "b": {"pixels": 0, "iou": 0.0},
        "c": {"pixels": 2, "iou": 0.0, "accuracy": 0.0},
    }
    assert results["metrics"] == pytest.approx({"mean_iou": 1 / 6, "mean_accuracy": 1 / 3, "pixel_accuracy": 2 / 5})
    assert results["confusion"].tolist() == [[2, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_a_dataset_without_labeled_pixels_raises(subtests):
    for label in [-1, None]:
        with subtests.test(label=str(label)):
            metric = SegmentationTask(("a", "b")).metric()
            if label is not None:
                metric.update([torch.zeros(2, 2).int()], batch_of([torch.full((2, 2), label)]))
            with pytest.raises(DataError, match="labeled pixel"):
                metric.compute()


def test_more_than_255_classes_are_evaluated_and_decoded():
    class_names = [f"c{n}" for n in range(300)]
    target = torch.tensor([[299, 256, 255], [0, -1, 1]])
    metric = SegmentationTask(class_names).metric()
    predicted = torch.tensor([[299, 256, 254], [0, 7, 257]])
    logits = F.one_hot(predicted, 300).permute(2, 0, 1).float()
    metric.update([logits], batch_of([target]))
    results = metric.compute()
    assert {label for label, values in results["per_class"].items() if values["iou"] == 1} == {"c299", "c256", "c0"}
    assert results["metrics"]["pixel_accuracy"] == 3 / 5
    masks = SegmentationTask(class_names).decode([logits], [ImageMeta("a", (2, 3), (2, 3))])[0]
    assert masks.segment_ids.tolist() == predicted.tolist()


def test_outputs_are_decoded_in_original_pixels():
    """Logits of 2 x 3 for an image of 4 x 9, and a label map; absent classes have no segment."""
    logits = torch.full((3, 2, 3), -9.0)
    logits[2, :, 0], logits[0, :, 1], logits[0, :, 2] = 9.0, 9.0, 9.0
    label_map = torch.tensor([[1, 1], [2, 1]], dtype=torch.int32)
    task = SegmentationTask(("a", "b", "c"))
    first, second = task.decode([logits, label_map], [ImageMeta("x", (4, 9), (2, 3)), ImageMeta("y", (2, 2), (8, 8))])
    assert first.segment_ids.tolist() == [[2, 2, 2, 0, 0, 0, 0, 0, 0]] * 4
    assert [(segment.id, segment.label, segment.index) for segment in first.segments] == [(0, "a", 0), (2, "c", 2)]
    assert (first.name, first.panoptic, second.name) == ("x", False, "y")
    assert second.segment_ids.tolist() == [[1, 1], [2, 1]]


def test_invalid_outputs_raise(subtests):
    """Without the check the argmax of NaN logits would be the first class."""
    for output, reason in [
        (torch.zeros(3, 5).int(), r"\(4, 6\).*\(2, rows, columns\).*\(3, 5\)"),
        (torch.zeros(3, 4, 6), r"\(2, rows, columns\).*\(3, 4, 6\)"),
        (torch.full((2, 4, 6), math.nan), "finite logits"),
        (torch.tensor([math.inf, 0.0]).repeat(12, 2).reshape(2, 4, 6), "finite logits"),
    ]:
        with subtests.test(output=str(output), reason=str(reason)):
            task = SegmentationTask(("a", "b"))
            with pytest.raises(ShapeError, match=f"x.*{reason}"):
                task.decode([output], [ImageMeta("x", (4, 6), (4, 6))])
            batch = batch_of([torch.zeros(4, 6).long()])
            with pytest.raises(ShapeError, match=f"0.*{reason}"):
                task.metric().update([output], batch)


class Logits(nn.Module):
    """A network in training mode that returns given logits and stores its inputs."""

    def __init__(self, logits: Tensor, auxiliary: Tensor | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.auxiliary = None if auxiliary is None else nn.Parameter(auxiliary)

    def forward(self, images: Any) -> Any:
        self.inputs = images
        return SimpleNamespace(logits=self.logits, auxiliary=self.auxiliary)


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """Return the mean of -log_softmax at the true class over labeled pixels, from the definition."""
    losses = []
    for image, target in zip(logits.double(), targets, strict=True):
        for row, column in np.ndindex(*target.shape):
            if target[row, column] != -1:
                values = image[:, row, column]
                losses.append(float(values.exp().sum().log() - values[target[row, column]]))
    return sum(losses) / len(losses)


def test_the_loss_is_the_mean_over_labeled_pixels_plus_the_weighted_auxiliary_loss(subtests):
    """Images have different numbers of labeled pixels: each pixel has the same weight, not each image."""
    for with_auxiliary in [False, True]:
        with subtests.test(with_auxiliary=str(with_auxiliary)):
            generator = torch.Generator().manual_seed(0)
            targets = torch.randint(-1, 5, (2, 3, 7), generator=generator)
            targets[0, :2] = -1
            logits, auxiliary = torch.randn(2, 2, 5, 3, 7, generator=generator)
            network = Logits(logits, auxiliary if with_auxiliary else None)
            batch = batch_of(list(targets))
            loss = SegmentationTask([f"c{n}" for n in range(5)]).loss(network, batch)
            expected = cross_entropy(logits, targets)
            if with_auxiliary:
                expected += 0.4 * cross_entropy(auxiliary, targets)
            assert AUXILIARY_WEIGHT == 0.4
            assert loss.item() == pytest.approx(expected, rel=1e-6)
            assert network.inputs is batch.images
            loss.backward()
            unlabeled = (targets == -1)[:, None].expand_as(logits)
            assert network.logits.grad[unlabeled].eq(0).all()
            assert network.logits.grad[~unlabeled].ne(0).all()


def test_a_batch_without_labeled_pixels_has_loss_zero_and_a_zero_gradient():
    network = Logits(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    loss = SegmentationTask(("a", "b", "c")).loss(network, batch_of([torch.full((4, 4), -1)] * 2))
    loss.backward()
    assert loss.item() == 0.0
    assert network.logits.grad.eq(0).all()
    assert network.auxiliary.grad.eq(0).all()


def test_the_loss_of_half_precision_logits_is_computed_in_float32():
    logits = torch.randn(1, 4, 5, 5).bfloat16()
    targets = torch.randint(0, 4, (1, 5, 5))
    loss = SegmentationTask(("a", "b", "c", "d")).loss(Logits(logits), batch_of(list(targets)))
    assert loss.item() == pytest.approx(cross_entropy(logits, targets), rel=1e-6)
