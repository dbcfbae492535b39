"""The panoptic task and its metric against the paper's definition, written with sets of pixels.

Source: Kirillov et al. 2019, arXiv:1801.00868, section 4.
"""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.errors import DataError
from van.tasks.base import Batch, ImageMeta, Task
from van.tasks.panoptic import PanopticTask

LABELS = ("cat", "dog", "sky", "road")
THINGS = (True, True, False, False)
TASK: Task = PanopticTask(LABELS, things=THINGS)

Segments = list[tuple[int, set[int]]]
"""Class and pixels of each segment of an image; segments do not overlap."""


def reference_quality(images: list[tuple[Segments, Segments]]) -> dict[str, dict[str, float]]:
    """Return pq, sq and rq of each annotated or predicted class from (prediction, target) pairs, in exact fractions."""
    ious: dict[int, list[Fraction]] = {}
    false_positives: dict[int, int] = {}
    false_negatives: dict[int, int] = {}
    for prediction, target in images:
        labeled = set().union(*(pixels for _, pixels in target))
        matched_targets, matched_predictions = set(), set()
        for target_index, (label, pixels) in enumerate(target):
            for prediction_index, (predicted_label, all_pixels) in enumerate(prediction):
                visible = all_pixels & labeled
                iou = Fraction(len(pixels & visible), len(pixels | visible))
                if label == predicted_label and iou > Fraction(1, 2):
                    ious.setdefault(label, []).append(iou)
                    assert target_index not in matched_targets, "the paper proves that a match is the only one"
                    assert prediction_index not in matched_predictions
                    matched_targets.add(target_index)
                    matched_predictions.add(prediction_index)
        for target_index, (label, _) in enumerate(target):
            false_negatives[label] = false_negatives.get(label, 0) + (target_index not in matched_targets)
        for prediction_index, (label, pixels) in enumerate(prediction):
            mostly_void = Fraction(len(pixels - labeled), len(pixels)) > Fraction(1, 2)
            false_positives[label] = false_positives.get(label, 0) + (
                prediction_index not in matched_predictions and not mostly_void
            )
    results = {}
    for label, name in enumerate(LABELS):
        matches = ious.get(label, [])
        weight = len(matches) + Fraction(false_positives.get(label, 0) + false_negatives.get(label, 0), 2)
        if weight:
            quality = sum(matches, Fraction(0)) / len(matches) if matches else Fraction(0)
            recognition = len(matches) / weight
            results[name] = {"pq": float(quality * recognition), "sq": float(quality), "rq": float(recognition)}
    return results


def parse_segments(rows: list[str], classes: dict[str, int]) -> Segments:
    """Return the segments of a text drawing: a letter for each segment, a dot for void."""
    text = "".join(rows)
    return [(label, {pixel for pixel, letter in enumerate(text) if letter == name}) for name, label in classes.items()]


def output_of(segments: Segments, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return network outputs that decode to the segments: a query for each, and one for the no-object class."""
    classes = torch.full((len(segments) + 1, len(LABELS) + 1), -10.0)
    masks = torch.full((len(segments) + 1, size[0] * size[1]), -10.0)
    classes[-1, -1] = 10.0
    for query, (label, pixels) in enumerate(segments):
        classes[query, label] = 10.0
        masks[query, list(pixels)] = 10.0
    return {"class_logits": classes, "mask_logits": masks.reshape(-1, *size)}


def target_of(segments: Segments, size: tuple[int, int]) -> dict[str, Tensor]:
    masks = torch.zeros(len(segments), size[0] * size[1], dtype=torch.bool)
    for row, (_, pixels) in enumerate(segments):
        masks[row, list(pixels)] = True
    labels = torch.tensor([label for label, _ in segments], dtype=torch.int64)
    return {"labels": labels, "masks": masks.reshape(-1, *size)}


def batch_of(targets: list[Segments], size: tuple[int, int], valid: list[bool] | None = None) -> Batch:
    return Batch(
        images=[torch.zeros(3, *size)] * len(targets),
        targets=[target_of(segments, size) for segments in targets],
        image_metas=tuple(ImageMeta(f"{n}", size, size) for n in range(len(targets))),
        valid=torch.tensor([True] * len(targets) if valid is None else valid),
    )


def evaluate(images: list[tuple[Segments, Segments]], size: tuple[int, int]) -> dict[str, Any]:
    metric = TASK.metric()
    for prediction, target in images:
        metric.update([output_of(prediction, size)], batch_of([target], size))
    return metric.compute()


def test_metrics_of_a_small_example():
    """One cat matches in 4 of 5 pixels, one is missed, one is a false positive; the dog is on void pixels."""
    target = parse_segments(["aaaaa.", "bbbb..", "ssssss", "sss...", "......"], {"a": 0, "b": 0, "s": 2})
    prediction = parse_segments(["aaaa.a", "......", "sssscc", "ss.ddd", "......"], {"a": 0, "c": 0, "s": 2, "d": 1})
    results = evaluate([(prediction, target)], (5, 6))
    assert results["per_class"] == {
        "cat": {"pq": 0.4, "sq": 0.8, "rq": 0.5},  # 1 / (1 + 1 / 2 + 1 / 2)
        "sky": {"pq": 6 / 9, "sq": 6 / 9, "rq": 1.0},
    }
    metrics = {"pq": (0.4 + 6 / 9) / 2, "sq": (0.8 + 6 / 9) / 2, "rq": 0.75, "pq_things": 0.4, "pq_stuff": 6 / 9}
    assert results["metrics"] == pytest.approx(metrics)


def test_pixels_without_a_prediction_are_not_ignored():
    """Neither in the count nor in the IoU (torchmetrics 1.9 ignores them in both)."""
    empty = evaluate([([], [(0, {0, 1, 2})])], (2, 3))
    assert empty["per_class"] == {"cat": {"pq": 0.0, "sq": 0.0, "rq": 0.0}}
    partial = evaluate([([(0, {0, 1})], [(0, {0, 1, 2})])], (2, 3))
    assert partial["per_class"]["cat"]["sq"] == 2 / 3


def test_an_unmatched_prediction_is_ignored_if_more_than_half_of_it_is_void(subtests):
    for overlap, ignored in [(2, False), (1, True)]:
        with subtests.test(overlap=str(overlap), ignored=str(ignored)):
            prediction = [(0, {*range(overlap), 8, 9})]
            results = evaluate([(prediction, [(1, set(range(8)))])], (2, 5))["per_class"]
            assert ("cat" not in results) is ignored


def test_an_iou_of_exactly_one_half_is_no_match():
    half = evaluate([([(0, {0, 1, 2})], [(0, set(range(6)))])], (1, 6))["per_class"]["cat"]
    more = evaluate([([(0, {0, 1, 2, 3})], [(0, set(range(6)))])], (1, 6))["per_class"]["cat"]
    assert (half["rq"], more["rq"]) == (0.0, 1.0)


def test_stuff_of_one_class_is_one_segment_and_things_are_separate():
    """Two patches in the target and three in the prediction cover the same pixels."""
    patches = [{0, 1}, {2, 3}]
    pieces = [{0}, {1, 2}, {3}]
    for label, rq in ((2, 1.0), (0, 0.0)):
        prediction, target = [(label, pixels) for pixels in pieces], [(label, pixels) for pixels in patches]
        assert evaluate([(prediction, target)], (1, 4))["per_class"][LABELS[label]]["rq"] == rq


def random_segments(ids: np.ndarray, labels: np.ndarray) -> Segments:
    """Return the segments of an id map with 0 for void, with one segment per stuff class."""
    segments: Segments = []
    stuff: dict[int, set[int]] = {}
    for segment_id in np.unique(ids[ids > 0]).tolist():
        label, pixels = int(labels[segment_id]), set(np.flatnonzero(ids.reshape(-1) == segment_id).tolist())
        if THINGS[label]:
            segments.append((label, pixels))
        elif label in stuff:
            stuff[label] |= pixels
        else:
            stuff[label] = pixels
            segments.append((label, pixels))
    return segments


def random_image(random: np.random.Generator, size: tuple[int, int]) -> tuple[Segments, Segments]:
    """Return a partly wrong prediction and a target of blocks, some of them void."""
    count = int(random.integers(1, 7))
    blocks = random.integers(0, count + 1, (-(-size[0] // 3), -(-size[1] // 3)))
    ids = blocks.repeat(3, 0).repeat(3, 1)[: size[0], : size[1]]
    labels = random.integers(0, len(LABELS), count + 1)
    predicted = np.where(random.random(size) < random.uniform(0, 0.5), random.integers(0, count + 1, size), ids)
    relabeled = np.where(random.random(count + 1) < 0.2, random.integers(0, len(LABELS), count + 1), labels)
    return random_segments(predicted, relabeled), random_segments(ids, labels)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 13), columns=st.integers(1, 11), count=st.integers(1, 4))
def test_metrics_of_random_segments_equal_the_definition(seed, rows, columns, count):
    random = np.random.default_rng(seed)
    size = (rows, columns)
    images = [random_image(random, size) for _ in range(count)]
    expected = reference_quality(images)
    if not any(target for _, target in images):
        with pytest.raises(DataError, match="annotated segment"):
            evaluate(images, size)
        return
    results = evaluate(images, size)
    assert list(results["per_class"]) == list(expected)
    for label, values in expected.items():
        assert results["per_class"][label] == pytest.approx(values, abs=1e-12), label
    for name in ("pq", "sq", "rq"):
        mean = np.mean([values[name] for values in expected.values()])
        assert results["metrics"][name] == pytest.approx(mean, abs=1e-12)
    for name, is_thing in (("pq_things", True), ("pq_stuff", False)):
        own = [values["pq"] for label, values in expected.items() if THINGS[LABELS.index(label)] is is_thing]
        assert results["metrics"].get(name) == (pytest.approx(np.mean(own), abs=1e-12) if own else None)


def test_the_random_segments_cover_every_case():
    random = np.random.default_rng(0)
    images = [random_image(random, (12, 11)) for _ in range(30)]
    results = reference_quality(images)
    assert list(results) == list(LABELS)
    for values in results.values():
        assert 0.1 < values["pq"] < values["sq"] < 0.95
    other = reference_quality(images[1:])["sky"]
    assert evaluate(images, (12, 11))["per_class"]["sky"] != pytest.approx(other, abs=1e-3)


def test_padding_is_ignored_and_batching_does_not_matter():
    random = np.random.default_rng(3)
    images = [random_image(random, (9, 10)) for _ in range(3)]
    metric = TASK.metric()
    outputs = [output_of(prediction, (9, 10)) for prediction, _ in images]
    metric.update(outputs, batch_of([target for _, target in images], (9, 10), [True, False, True]))
    assert metric.to(torch.device("cpu")).compute() == evaluate([images[0], images[2]], (9, 10))
    assert metric.compute() != evaluate(images, (9, 10))


def test_the_result_does_not_depend_on_the_order_of_images():
    random = np.random.default_rng(0)
    images = [random_image(random, (12, 11)) for _ in range(60)]
    assert evaluate(images[::-1], (12, 11)) == evaluate(images, (12, 11))


def test_an_empty_target_segment_is_no_false_negative():
    everything: Segments = [(0, {0, 1, 2, 3})]
    assert evaluate([(everything, [*everything, (1, set())])], (2, 2))["per_class"].keys() == {"cat"}


def test_an_image_without_target_segments_does_not_affect_the_others():
    with pytest.raises(DataError, match="annotated segment"):
        evaluate([([(0, {0, 1})], [])], (2, 2))
    prediction: Segments = [(0, {0, 1})]
    assert evaluate([(prediction, []), (prediction, prediction)], (2, 2))["per_class"]["cat"]["pq"] == 1.0


def test_outputs_are_decoded_in_original_pixels():
    """Input 4 x 6, file 8 x 18: every value is repeated twice and three times, except at edges."""
    segments = parse_segments(["aaa...", "aaa...", "sss..t", "sss..t"], {"a": 1, "s": 2, "t": 2})
    image_metas = [ImageMeta("x.jpg", (8, 18), (4, 6))]
    prediction = TASK.decode([output_of(segments, (4, 6))], image_metas)[0]
    assert (prediction.name, prediction.panoptic, prediction.class_names, prediction.segment_ids.shape) == (
        "x.jpg",
        True,
        LABELS,
        (8, 18),
    )
    assert [(segment.label, segment.index, segment.is_thing) for segment in prediction.segments] == [
        ("dog", 1, True),
        ("sky", 2, False),
    ]
    dog, sky = (segment.id for segment in prediction.segments)
    assert (
        prediction.segment_ids[1, 2],
        prediction.segment_ids[6, 2],
        prediction.segment_ids[6, 16],
        prediction.segment_ids[1, 16],
    ) == (dog, sky, sky, -1)
    assert all(0.99 < segment.score <= 1 for segment in prediction.segments)


class Losses(nn.Module):
    """A network in training mode that returns losses and stores its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.inputs = SimpleNamespace()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.inputs = SimpleNamespace(images=images, targets=targets)
        return {"mask": self.weight * 3, "dice": (self.weight**2).bfloat16()}


def test_the_loss_is_the_sum_of_the_networks_losses():
    network = Losses()
    batch = batch_of([[(0, {0, 1})], [(2, {2})]], (2, 2))
    loss = TASK.loss(network, batch)
    loss.backward()
    assert loss.item() == 10.0
    assert loss.dtype == torch.float32
    assert network.weight.grad == 7.0
    assert network.inputs.images is batch.images
    assert network.inputs.targets is batch.targets
