"""The classification task: loss, mixup, metrics and decoding against values computed by hand and with NumPy."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError

from van.predictions import Classification
from van.tasks.base import Batch, ImageMeta
from van.tasks.classification import ClassificationTask
from van.tasks.classification_metric import MAX_CONFUSION_CLASSES
from van.tasks.mixup import MixupSettings
from van.training.loader import seeded


class FixedLogits(nn.Module):
    """A network that returns given logits and stores its input."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.inputs: Any = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.inputs = images
        rows = torch.arange(len(images)) % len(self.logits)
        return self.logits[rows]


def batch_of(targets: list[int], images: torch.Tensor | None = None, valid: list[bool] | None = None) -> Batch:
    count = len(targets)
    return Batch(
        images=torch.zeros(count, 3, 4, 4) if images is None else images,
        targets=torch.tensor(targets),
        image_metas=tuple(ImageMeta(f"image {n}") for n in range(count)),
        valid=torch.tensor([True] * count if valid is None else valid),
    )


def cross_entropy(logits: list[list[float]], soft: np.ndarray) -> float:
    """Return the mean over images of -sum(target * log_softmax), from the definition."""
    losses = []
    for row, target in zip(logits, soft, strict=True):
        log_total = math.log(sum(math.exp(value) for value in row))
        losses.append(-sum(t * (value - log_total) for t, value in zip(target, row, strict=True)))
    return sum(losses) / len(losses)


def test_the_loss_is_the_cross_entropy_with_label_smoothing(subtests):
    for smoothing in [0.0, 0.1, 0.9]:
        with subtests.test(smoothing=str(smoothing)):
            logits = [[1.0, 2.0, -1.0], [0.5, 0.0, 0.0]]
            soft = np.eye(3)[[1, 0]] * (1 - smoothing) + smoothing / 3
            model = FixedLogits(torch.tensor(logits, dtype=torch.float64))
            task = ClassificationTask(("a", "b", "c"), MixupSettings(label_smoothing=smoothing))
            loss = task.loss(model, batch_of([1, 0]))
            assert loss.item() == pytest.approx(cross_entropy(logits, soft), abs=1e-12)
            loss.backward()
            gradient = (F.softmax(torch.tensor(logits, dtype=torch.float64), dim=1) - torch.from_numpy(soft)) / 2
            torch.testing.assert_close(model.logits.grad, gradient)


def mixed_targets(mix: MixupSettings, targets: list[int], num_classes: int, seed: int) -> torch.Tensor:
    """Return the soft targets of a mixed batch from the gradient of the loss: (softmax - target) / batch size."""
    model = FixedLogits(torch.zeros(len(targets) + len(targets) % 2, num_classes, dtype=torch.float64))
    with seeded(seed):
        ClassificationTask([f"c{n}" for n in range(num_classes)], mix).loss(model, batch_of(targets)).backward()
    assert model.logits.grad is not None
    return 1 / num_classes - model.logits.grad * len(model.logits)


@settings(deadline=None, max_examples=30)
@given(
    targets=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    strengths=st.sampled_from([(0.4, 0.0), (0.0, 0.7), (1.0, 1.0)]),
    seed=st.integers(0, 2**20),
)
def test_mixed_targets_sum_to_one_and_contain_only_classes_of_the_batch(targets, strengths, seed):
    """Also for odd batches, in which the first image is used twice."""
    mix = MixupSettings(mixup=strengths[0], cutmix=strengths[1], label_smoothing=0.1)
    rows = mixed_targets(mix, targets, 4, seed)
    assert len(rows) == len(targets) + len(targets) % 2
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(len(rows), dtype=torch.float64))
    others = [c for c in range(4) if c not in targets]
    torch.testing.assert_close(rows[:, others], torch.full((len(rows), len(others)), 0.1 / 4, dtype=torch.float64))
    assert rows.min() > 0.1 / 4 - 1e-6


def test_mixup_blends_images_and_labels_with_the_same_weight():
    """One image is black and one white, so a pixel of the blend is its weight."""
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).double()
    model = FixedLogits(torch.zeros(2, 2, dtype=torch.float64))
    task = ClassificationTask(("dark", "bright"), MixupSettings(mixup=8.0, label_smoothing=0.0))
    with seeded(2):
        task.loss(model, batch_of([0, 1], images)).backward()
    soft = 0.5 - model.logits.grad * 2
    weight = model.inputs[0].unique()
    assert len(weight) == 1
    assert 0.05 < weight.item() < 0.95
    torch.testing.assert_close(soft[0], torch.stack([1 - weight[0], weight[0]]), atol=1e-6, rtol=0)


def test_cutmix_weights_labels_by_the_area_of_the_pasted_rectangle():
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]).double()
    model = FixedLogits(torch.zeros(2, 2, dtype=torch.float64))
    task = ClassificationTask(("dark", "bright"), MixupSettings(cutmix=1.0, label_smoothing=0.0))
    with seeded(3):
        task.loss(model, batch_of([0, 1], images)).backward()
    area = model.inputs[0].mean().item()
    assert model.inputs.unique().tolist() == [0, 1]
    assert 0 < area < 1
    soft = 0.5 - model.logits.grad * 2
    assert soft[0, 1].item() == pytest.approx(area, abs=1e-6)


def test_mixing_does_not_modify_the_images_of_the_batch():
    images = torch.rand(4, 3, 4, 4)
    batch = batch_of([0, 1, 0, 1], images.clone())
    task = ClassificationTask(("a", "b"), MixupSettings(mixup=0.8, cutmix=1.0))
    model = FixedLogits(torch.zeros(4, 2))
    with seeded(1):
        task.loss(model, batch)
    assert batch.images.equal(images)
    assert not model.inputs.equal(images)


def test_without_mixing_the_network_gets_the_images_of_the_batch():
    images = torch.rand(3, 3, 4, 4)
    model = FixedLogits(torch.zeros(3, 2))
    ClassificationTask(("a", "b")).loss(model, batch_of([0, 1, 0], images))
    assert model.inputs is images


def reference_metrics(logits: np.ndarray, targets: np.ndarray, valid: np.ndarray, num_classes: int) -> dict[str, Any]:
    """Return top-1, top-5, loss and confusion matrix from a plain loop."""
    top1 = top5 = 0
    losses, confusion = [], np.zeros((num_classes, num_classes), int)
    for row, target in zip(logits[valid].astype(np.float64), targets[valid], strict=True):
        better = int((row > row[target]).sum())
        top1 += better < 1
        top5 += better < 5
        losses.append(np.log(np.exp(row).sum()) - row[target])
        confusion[target, int(row.argmax())] += 1
    count = max(1, len(losses))
    return {"top1": top1 / count, "top5": top5 / count, "loss": float(np.mean(losses)), "confusion": confusion}


@settings(deadline=None, max_examples=30)
@given(num_classes=st.integers(2, 12), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0))
def test_the_metrics_equal_those_of_a_plain_loop_and_ignore_padding(num_classes, sizes, seed):
    rng = np.random.default_rng(seed)
    metric = ClassificationTask([f"c{n}" for n in range(num_classes)]).metric()
    rows, all_targets, masks = [], [], []
    for index, size in enumerate(sizes):
        logits = rng.standard_normal((size, num_classes)).astype(np.float32)
        targets = rng.integers(0, num_classes, size)
        valid = rng.random(size) < 0.7
        valid[0] |= index == 0  # at least one valid sample
        metric.update(torch.from_numpy(logits), batch_of(targets.tolist(), valid=valid.tolist()))
        rows.append(logits), all_targets.append(targets), masks.append(valid)
    expected = reference_metrics(np.concatenate(rows), np.concatenate(all_targets), np.concatenate(masks), num_classes)
    results = metric.compute()
    np.testing.assert_array_equal(results["confusion"], expected.pop("confusion"))
    assert set(results["metrics"]) == {"top1", "top5", "loss", "ece"}
    assert sum(results["reliability"]["correct"]) == results["confusion"].trace()
    for name, value in expected.items():
        assert results["metrics"][name] == pytest.approx(value, abs=1e-5)  # float32 sums of up to 36 losses
    assert all(isinstance(value, float) for value in results["metrics"].values())


def test_top5_is_one_with_fewer_than_five_classes():
    metric = ClassificationTask(("a", "b", "c")).metric()
    metric.update(torch.randn(6, 3), batch_of([0, 1, 2, 0, 1, 2]))
    assert metric.compute()["metrics"]["top5"] == 1.0


def test_a_single_class_has_accuracy_one_and_no_confusion_matrix():
    task = ClassificationTask(("only",), MixupSettings(mixup=0.5))
    metric = task.metric()
    metric.update(torch.randn(3, 1), batch_of([0, 0, 0]))
    results = metric.compute()
    assert results.pop("metrics") == {"top1": 1.0, "top5": 1.0, "loss": 0.0}
    assert results == {"confusion": None, "reliability": None, "per_class": {}}
    assert task.loss(FixedLogits(torch.zeros(2, 1)), batch_of([0, 0])).item() == 0.0


def test_22_thousand_classes_have_no_confusion_matrix():
    num_classes = 21_841
    assert num_classes > MAX_CONFUSION_CLASSES
    metric = ClassificationTask([f"c{n}" for n in range(num_classes)]).metric()
    logits = torch.zeros(3, num_classes)
    logits[0, 7], logits[1, [1, 2, 3, 9]], logits[2, 11] = 5.0, torch.tensor([4.0, 3.0, 2.0, 1.0]), -5.0
    metric.update(logits, batch_of([7, 9, 11]))  # ranks 1, 4 and last
    results = metric.compute()
    assert results["confusion"] is None
    assert results["metrics"]["top1"] == pytest.approx(1 / 3)
    assert results["metrics"]["top5"] == pytest.approx(2 / 3)


def test_the_largest_confusion_matrix_is_kept():
    class_names = [f"c{n}" for n in range(MAX_CONFUSION_CLASSES)]
    metric = ClassificationTask(class_names).metric()
    metric.update(torch.eye(len(class_names))[:2], batch_of([0, 1]))
    assert metric.compute()["confusion"].diagonal().sum() == 2


def test_half_precision_logits_are_evaluated_in_float32():
    metric = ClassificationTask(("a", "b")).metric()
    metric.update(torch.tensor([[2.0, 0.0]], dtype=torch.bfloat16), batch_of([0]))
    assert metric.compute()["metrics"]["loss"] == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


def test_a_nan_logit_makes_the_loss_and_the_calibration_error_nan():
    """If the mean ignored it, a diverged network would have a low loss."""
    metric = ClassificationTask(("a", "b")).metric()
    metric.update(torch.tensor([[2.0, 0.0], [float("nan"), 0.0]]), batch_of([0, 1]))
    results = metric.compute()
    assert math.isnan(results["metrics"]["loss"])
    assert math.isnan(results["metrics"]["ece"])
    assert math.isnan(results["reliability"]["confidence"][0])
    assert (sum(results["reliability"]["count"]), sum(results["reliability"]["correct"])) == (2, 1)


def logits_of(confidences: list[float], predicted: list[int]) -> torch.Tensor:
    """Return two-class logits whose softmax has the given confidence in the given class."""
    rows = torch.tensor([[math.log(p), math.log1p(-p)] for p in confidences], dtype=torch.float64)
    return torch.where(torch.tensor(predicted)[:, None] == 0, rows, rows.flip(1)).float()


def test_reliability_counts_predictions_correct_ones_and_confidence_per_bin():
    """0.55 is in the ninth of fifteen bins, 0.90 in the fourteenth, 0.97 and 1 in the last."""
    metric = ClassificationTask(("a", "b")).metric()
    metric.update(logits_of([0.55, 0.55, 0.9, 0.97], [0, 1, 0, 1]), batch_of([0, 0, 0, 1]))
    metric.update(torch.tensor([[300.0, 0.0]]), batch_of([1]))  # confident and wrong
    results = metric.compute()
    table = results["reliability"]
    bins = {8: (2, 1, 1.1), 13: (1, 1, 0.9), 14: (2, 1, 1.97)}
    expected = [bins.get(index, (0, 0, 0.0)) for index in range(15)]
    count, correct, confidence = (list(column) for column in zip(*expected, strict=True))
    assert (table["count"], table["correct"]) == (count, correct)
    assert table["confidence"] == pytest.approx(confidence, abs=1e-6)
    assert results["metrics"]["ece"] == pytest.approx((0.1 + 0.1 + 0.97) / 5, abs=1e-6)


def test_a_confidence_at_a_bin_edge_is_binned_exactly():
    """A bin is (m/15, (m+1)/15]; in float32 1/3 is slightly above 5/15, 1/5 above 3/15, and 1 is 15/15."""
    for classes in (3, 5, 6, 15, 30):
        metric = ClassificationTask([f"c{n}" for n in range(classes)]).metric()
        metric.update(torch.zeros(1, classes), batch_of([0]))
        confidence = Fraction(torch.zeros(classes).softmax(0)[0].item())
        assert metric.compute()["reliability"]["count"].index(1) == math.ceil(confidence * 15) - 1


@settings(deadline=None, max_examples=20)
@given(num_classes=st.integers(2, 9), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0))
def test_the_calibration_error_equals_that_of_torchmetrics(num_classes, sizes, seed):
    rng = np.random.default_rng(seed)
    metric, reference = (
        ClassificationTask([f"c{n}" for n in range(num_classes)]).metric(),
        MulticlassCalibrationError(num_classes, 15),
    )
    for size in sizes:
        logits = torch.from_numpy(3 * rng.standard_normal((size, num_classes))).float()
        targets = torch.from_numpy(rng.integers(0, num_classes, size))
        metric.update(logits, batch_of(targets.tolist()))
        reference.update(logits, targets)
    assert metric.compute()["metrics"]["ece"] == pytest.approx(float(reference.compute()), abs=1e-5)


def test_sums_of_confidence_do_not_depend_on_the_order():
    """Negative control: float32 sums do."""
    logits = torch.randn(3000, 7, generator=torch.Generator().manual_seed(0))
    targets = [n % 7 for n in range(3000)]
    results = []
    for order in (torch.arange(3000), torch.arange(3000).flip(0)):
        metric = ClassificationTask([f"c{n}" for n in range(7)]).metric()
        for indices in order.split(700):
            metric.update(logits[indices], batch_of([targets[n] for n in indices.tolist()]))
        results.append(metric.compute())
    assert results[0]["reliability"] == results[1]["reliability"]
    assert results[0]["metrics"]["ece"] == results[1]["metrics"]["ece"]
    confidences = logits.softmax(1).max(1).values.numpy()
    assert confidences.cumsum()[-1] != confidences[::-1].cumsum()[-1]


def test_decoding_returns_the_scores_of_each_image_in_order():
    predictions = ClassificationTask(("a", "b")).decode(
        torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), [ImageMeta("one"), ImageMeta("two")]
    )
    assert all(isinstance(prediction, Classification) for prediction in predictions)
    assert [prediction.name for prediction in predictions] == ["one", "two"]
    assert predictions[0].scores == pytest.approx((0.25, 0.75))
    assert predictions[0].top(1)[0].label == "b"
    assert predictions[1].scores == pytest.approx((0.5, 0.5))


def test_decoded_scores_of_half_precision_logits_sum_to_one():
    logits = torch.randn(2, 1000).bfloat16()
    for prediction in ClassificationTask([f"c{n}" for n in range(1000)]).decode(
        logits, [ImageMeta("a"), ImageMeta("b")]
    ):
        assert sum(prediction.scores) == pytest.approx(1, abs=1e-5)
