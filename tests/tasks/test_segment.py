"""The semantic segmentation task against counting by hand and against its definitions."""

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
from van.tasks.base import Batch, Frame, Task
from van.tasks.segment import AUXILIARY_WEIGHT, Segment


def batch_of(targets: list[Tensor], *, size: tuple[int, int] | None = None, valid: list[bool] | None = None) -> Batch:
    return Batch(
        pictures=[torch.zeros(3, 4, 4)] * len(targets),
        targets=targets,
        frames=tuple(Frame(f"{n}", size or tuple(target.shape), (4, 4)) for n, target in enumerate(targets)),
        valid=torch.tensor([True] * len(targets) if valid is None else valid),
    )


def counted(maps: list[np.ndarray], targets: list[np.ndarray], classes: int) -> np.ndarray:
    """Pixels by true and answered class, by plain loops."""
    confusion = np.zeros((classes, classes), np.int64)
    for answered, target in zip(maps, targets, strict=True):
        for one, other in zip(answered.reshape(-1).tolist(), target.reshape(-1).tolist(), strict=True):
            if other != -1:
                confusion[other, one] += 1
    return confusion


def figures(confusion: np.ndarray) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics and those of each class, from their definitions."""
    per_class: dict[str, dict[str, float]] = {}
    for label in range(len(confusion)):
        right, there, said = confusion[label, label], confusion[label].sum(), confusion[:, label].sum()
        if there + said:
            per_class[f"c{label}"] = {"pixels": int(there), "iou": right / (there + said - right)}
            if there:
                per_class[f"c{label}"]["accuracy"] = right / there
    metrics = {
        "mean_iou": np.mean([values["iou"] for values in per_class.values()]),
        "mean_accuracy": np.mean([values["accuracy"] for values in per_class.values() if "accuracy" in values]),
        "pixel_accuracy": np.trace(confusion) / confusion.sum(),
    }
    return metrics, per_class


def assert_figures(found: dict[str, Any], confusion: np.ndarray) -> None:
    np.testing.assert_array_equal(found["confusion"], confusion)
    metrics, per_class = figures(confusion)
    assert found["metrics"] == pytest.approx(metrics, abs=1e-12)
    assert list(found["per_class"]) == list(per_class)
    for label, values in per_class.items():
        assert found["per_class"][label] == pytest.approx(values, abs=1e-12)


def test_segment_is_a_task():
    task: Task = Segment(("a", "b"))
    assert (task.name, task.headline, task.labels, task.options) == ("segment", "mean_iou", ("a", "b"), {})


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 7),
    sizes=st.lists(st.tuples(st.integers(1, 13), st.integers(1, 11)), min_size=1, max_size=4),
)
def test_the_meter_agrees_with_counting_by_hand(seed, classes, sizes):
    """Logits smaller and larger than the picture, and finished maps; a class may be nowhere; padding never counts."""
    random = np.random.default_rng(seed)
    meter = Segment([f"c{n}" for n in range(classes)]).meter()
    maps, targets = [], []
    for place, size in enumerate(sizes):
        target = random.integers(-1, classes, size)
        target[0, 0] = 0 if place == 0 else target[0, 0]  # at least one pixel counts
        if random.random() < 0.3:
            output = torch.from_numpy(random.integers(0, classes, size)).int()
            answered = output
        else:
            output = torch.from_numpy(random.standard_normal((classes, *random.integers(1, 9, 2))).astype(np.float32))
            enlarged = F.interpolate(output[None], size=size, mode="bilinear", align_corners=False)[0]
            answered = enlarged.argmax(0)
        valid = place == 0 or random.random() < 0.7
        meter.update([output], batch_of([torch.from_numpy(target)], valid=[valid]))
        if valid:
            maps.append(answered.numpy())
            targets.append(target)
    assert_figures(meter.to(torch.device("cpu")).compute(), counted(maps, targets, classes))


def test_an_example_worked_out_by_hand():
    """Of class a 2 of 3 pixels are right, b is never there, c never answered, d neither; one pixel is not known."""
    meter = Segment(("a", "b", "c", "d")).meter()
    meter.update([torch.tensor([[0, 0, 1], [1, 0, 0]])], batch_of([torch.tensor([[0, 0, 0], [2, 2, -1]])]))
    found = meter.compute()
    assert found["per_class"] == {
        "a": {"pixels": 3, "iou": 2 / 4, "accuracy": 2 / 3},
        "b": {"pixels": 0, "iou": 0.0},
        "c": {"pixels": 2, "iou": 0.0, "accuracy": 0.0},
    }
    assert found["metrics"] == pytest.approx({"mean_iou": 1 / 6, "mean_accuracy": 1 / 3, "pixel_accuracy": 2 / 5})
    assert found["confusion"].tolist() == [[2, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("label", [-1, None], ids=["only pixels that are not known", "no picture"])
def test_a_set_without_labels_is_refused(label):
    meter = Segment(("a", "b")).meter()
    if label is not None:
        meter.update([torch.zeros(2, 2).int()], batch_of([torch.full((2, 2), label)]))
    with pytest.raises(DataError, match="no pixel of the set has a label"):
        meter.compute()


def test_more_than_255_classes_are_counted_and_decoded():
    labels = [f"c{n}" for n in range(300)]
    target = torch.tensor([[299, 256, 255], [0, -1, 1]])
    meter = Segment(labels).meter()
    answered = torch.tensor([[299, 256, 254], [0, 7, 257]])
    logits = F.one_hot(answered, 300).permute(2, 0, 1).float()
    meter.update([logits], batch_of([target]))
    found = meter.compute()
    assert {label for label, values in found["per_class"].items() if values["iou"] == 1} == {"c299", "c256", "c0"}
    assert found["metrics"]["pixel_accuracy"] == 3 / 5
    masks = Segment(labels).decode([logits], [Frame("a", (2, 3), (2, 3))])[0]
    assert masks.ids.tolist() == answered.tolist()


def test_answers_are_decoded_into_the_pictures_own_pixels():
    """Logits of 2 x 3 for a picture of 4 x 9, and a finished map; classes that are not there have no region."""
    logits = torch.full((3, 2, 3), -9.0)
    logits[2, :, 0], logits[0, :, 1], logits[0, :, 2] = 9.0, 9.0, 9.0
    finished = torch.tensor([[1, 1], [2, 1]], dtype=torch.int32)
    task = Segment(("a", "b", "c"))
    first, second = task.decode([logits, finished], [Frame("x", (4, 9), (2, 3)), Frame("y", (2, 2), (8, 8))])
    assert first.ids.tolist() == [[2, 2, 2, 0, 0, 0, 0, 0, 0]] * 4
    assert [(region.id, region.label, region.index) for region in first.regions] == [(0, "a", 0), (2, "c", 2)]
    assert (first.name, first.panoptic, second.name) == ("x", False, "y")
    assert second.ids.tolist() == [[1, 1], [2, 1]]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (torch.zeros(3, 5).int(), r"is \(3, 5\); wanted a map \(4, 6\) or logits \(2, rows, columns\)"),
        (torch.zeros(3, 4, 6), r"is \(3, 4, 6\); wanted a map"),
        (torch.full((2, 4, 6), math.nan), "logits for x are not all finite; wanted numbers, so look at the weights"),
        (torch.tensor([math.inf, 0.0]).repeat(12, 2).reshape(2, 4, 6), "look at the weights"),
    ],
    ids=["a map of another size", "logits of other classes", "NaN", "infinity"],
)
def test_answers_that_are_none_are_refused(output, reason):
    """NaN would else be read as the first class."""
    task = Segment(("a", "b"))
    with pytest.raises(ShapeError, match=reason):
        task.decode([output], [Frame("x", (4, 6), (4, 6))])
    batch = batch_of([torch.zeros(4, 6).long()])
    with pytest.raises(ShapeError, match=reason.replace("x are", "0 are")):
        task.meter().update([output], batch)


class Logits(nn.Module):
    """A network in training that gives what it was made with, and keeps what it was shown."""

    def __init__(self, logits: Tensor, auxiliary: Tensor | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.auxiliary = None if auxiliary is None else nn.Parameter(auxiliary)

    def forward(self, pictures: Any) -> Any:
        self.seen = pictures
        return SimpleNamespace(logits=self.logits, auxiliary=self.auxiliary)


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """Mean of -log of the true class's share, over the pixels that are known."""
    losses = []
    for picture, target in zip(logits.double(), targets, strict=True):
        for row, column in np.ndindex(*target.shape):
            if target[row, column] != -1:
                values = picture[:, row, column]
                losses.append(float(values.exp().sum().log() - values[target[row, column]]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("with_auxiliary", [False, True])
def test_the_loss_is_the_mean_over_known_pixels_with_the_auxiliary_heads_at_two_fifths(with_auxiliary):
    """Pictures with different numbers of known pixels: all pixels weigh the same, not all pictures."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(-1, 5, (2, 3, 7), generator=generator)
    targets[0, :2] = -1
    logits, auxiliary = torch.randn(2, 2, 5, 3, 7, generator=generator)
    network = Logits(logits, auxiliary if with_auxiliary else None)
    batch = batch_of(list(targets))
    loss = Segment([f"c{n}" for n in range(5)]).loss(network, batch)
    wanted = cross_entropy(logits, targets)
    if with_auxiliary:
        wanted += 0.4 * cross_entropy(auxiliary, targets)
    assert AUXILIARY_WEIGHT == 0.4
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    assert network.seen is batch.pictures
    loss.backward()
    unknown = (targets == -1)[:, None].expand_as(logits)
    assert network.logits.grad[unknown].eq(0).all()
    assert network.logits.grad[~unknown].ne(0).all()


def test_a_batch_without_known_pixels_has_no_loss_and_a_gradient_all_the_same():
    network = Logits(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    loss = Segment(("a", "b", "c")).loss(network, batch_of([torch.full((4, 4), -1)] * 2))
    loss.backward()
    assert loss.item() == 0.0
    assert network.logits.grad.eq(0).all()
    assert network.auxiliary.grad.eq(0).all()


def test_half_precision_logits_lose_nothing_in_the_loss():
    logits = torch.randn(1, 4, 5, 5).bfloat16()
    targets = torch.randint(0, 4, (1, 5, 5))
    loss = Segment(("a", "b", "c", "d")).loss(Logits(logits), batch_of(list(targets)))
    assert loss.item() == pytest.approx(cross_entropy(logits, targets), rel=1e-6)


def test_pictures_of_different_sizes_are_put_together_with_their_own_sizes():
    samples = [
        {"picture": torch.zeros(3, 4, 6), "target": torch.zeros(8, 12).long(), "size": (8, 12), "name": "a"},
        {"name": "b", "unreadable": "is empty"},
        {
            "picture": torch.zeros(3, 5, 5),
            "target": torch.ones(5, 5).long(),
            "size": (5, 5),
            "name": "c",
            "valid": False,
        },
    ]
    batch = Segment(("x", "y")).collate(samples)
    assert batch.frames == (Frame("a", (8, 12), (4, 6)), Frame("c", (5, 5), (5, 5)))
    assert [tuple(picture.shape) for picture in batch.pictures] == [(3, 4, 6), (3, 5, 5)]
    assert [target.sum().item() for target in batch.targets] == [0, 25]
    assert (batch.valid.tolist(), batch.unreadable) == ([True, False], (("b", "is empty"),))
