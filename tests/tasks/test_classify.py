"""The classification task against numbers worked out by hand and by numpy."""

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

from van.engine.loader import seeded
from van.errors import ShapeError
from van.results import Classes
from van.tasks.base import Batch, Frame, Task
from van.tasks.classify import MOST_CLASSES_IN_A_TABLE, Classify
from van.tasks.mix import MixSettings


class Answers(nn.Module):
    """A network that gives the logits it was made with, and keeps what it was shown."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen: Any = None

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen = pictures
        rows = torch.arange(len(pictures)) % len(self.logits)
        return self.logits[rows]


def batch_of(targets: list[int], pictures: torch.Tensor | None = None, valid: list[bool] | None = None) -> Batch:
    count = len(targets)
    return Batch(
        pictures=torch.zeros(count, 3, 4, 4) if pictures is None else pictures,
        targets=torch.tensor(targets),
        frames=tuple(Frame(f"picture {n}") for n in range(count)),
        valid=torch.tensor([True] * count if valid is None else valid),
    )


def cross_entropy(logits: list[list[float]], soft: np.ndarray) -> float:
    """The definition: the mean over pictures of -sum of target times log softmax."""
    losses = []
    for row, target in zip(logits, soft, strict=True):
        log_total = math.log(sum(math.exp(value) for value in row))
        losses.append(-sum(t * (value - log_total) for t, value in zip(target, row, strict=True)))
    return sum(losses) / len(losses)


def accept(task: Task) -> Task:
    """Only what satisfies the protocol type-checks here; at run time its members are asked for below."""
    return task


def test_classify_is_a_task():
    task = accept(Classify(("ant", "bee")))
    assert (task.name, task.headline, task.labels) == ("classify", "top1", ("ant", "bee"))
    members = [name for name in vars(Task) if not name.startswith("_")]
    assert {"stack", "collate", "loss", "meter", "decode"} <= set(members)
    assert all(callable(getattr(task, name)) for name in members)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_loss_is_cross_entropy_with_smoothing_worked_out_by_hand(smoothing):
    logits = [[1.0, 2.0, -1.0], [0.5, 0.0, 0.0]]
    soft = np.eye(3)[[1, 0]] * (1 - smoothing) + smoothing / 3
    model = Answers(torch.tensor(logits, dtype=torch.float64))
    task = Classify(("a", "b", "c"), MixSettings(label_smoothing=smoothing))
    loss = task.loss(model, batch_of([1, 0]))
    assert loss.item() == pytest.approx(cross_entropy(logits, soft), abs=1e-12)
    loss.backward()
    gradient = (F.softmax(torch.tensor(logits, dtype=torch.float64), dim=1) - torch.from_numpy(soft)) / 2
    torch.testing.assert_close(model.logits.grad, gradient)


def mixed_targets(mix: MixSettings, targets: list[int], num_classes: int, seed: int) -> torch.Tensor:
    """The soft targets of a mixed batch, read off the gradient of the loss: softmax - target, over the batch size."""
    model = Answers(torch.zeros(len(targets) + len(targets) % 2, num_classes, dtype=torch.float64))
    with seeded(seed):
        Classify([f"c{n}" for n in range(num_classes)], mix).loss(model, batch_of(targets)).backward()
    assert model.logits.grad is not None
    return 1 / num_classes - model.logits.grad * len(model.logits)


@settings(deadline=None, max_examples=30)
@given(
    targets=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    strengths=st.sampled_from([(0.4, 0.0), (0.0, 0.7), (1.0, 1.0)]),
    seed=st.integers(0, 2**20),
)
def test_mixed_targets_add_up_to_one_and_blend_only_the_batch_s_classes(targets, strengths, seed):
    """Also for odd batches, where the first picture is taken twice."""
    mix = MixSettings(mixup=strengths[0], cutmix=strengths[1], label_smoothing=0.1)
    rows = mixed_targets(mix, targets, 4, seed)
    assert len(rows) == len(targets) + len(targets) % 2
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(len(rows), dtype=torch.float64))
    others = [c for c in range(4) if c not in targets]
    torch.testing.assert_close(rows[:, others], torch.full((len(rows), len(others)), 0.1 / 4, dtype=torch.float64))
    assert rows.min() > 0.1 / 4 - 1e-6


def test_mixup_blends_each_picture_with_its_opposite_and_labels_by_the_same_share():
    """Pictures 0 and 1, one flat and bright, one flat and dark: what is seen tells the share of the blend."""
    pictures = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).double()
    model = Answers(torch.zeros(2, 2, dtype=torch.float64))
    task = Classify(("dark", "bright"), MixSettings(mixup=8.0, label_smoothing=0.0))
    with seeded(2):
        task.loss(model, batch_of([0, 1], pictures)).backward()
    soft = 0.5 - model.logits.grad * 2
    share = model.seen[0].unique()
    assert len(share) == 1
    assert 0.05 < share.item() < 0.95
    torch.testing.assert_close(soft[0], torch.stack([1 - share[0], share[0]]), atol=1e-6, rtol=0)


def test_cutmix_pastes_a_rectangle_and_labels_by_its_area():
    pictures = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]).double()
    model = Answers(torch.zeros(2, 2, dtype=torch.float64))
    task = Classify(("dark", "bright"), MixSettings(cutmix=1.0, label_smoothing=0.0))
    with seeded(3):
        task.loss(model, batch_of([0, 1], pictures)).backward()
    area = model.seen[0].mean().item()
    assert model.seen.unique().tolist() == [0, 1]
    assert 0 < area < 1
    soft = 0.5 - model.logits.grad * 2
    assert soft[0, 1].item() == pytest.approx(area, abs=1e-6)


def test_mixing_leaves_the_batch_s_own_pictures_alone():
    pictures = torch.rand(4, 3, 4, 4)
    batch = batch_of([0, 1, 0, 1], pictures.clone())
    task = Classify(("a", "b"), MixSettings(mixup=0.8, cutmix=1.0))
    model = Answers(torch.zeros(4, 2))
    with seeded(1):
        task.loss(model, batch)
    assert batch.pictures.equal(pictures)
    assert not model.seen.equal(pictures)


def test_without_mixing_the_network_sees_the_pictures_themselves():
    pictures = torch.rand(3, 3, 4, 4)
    model = Answers(torch.zeros(3, 2))
    Classify(("a", "b")).loss(model, batch_of([0, 1, 0], pictures))
    assert model.seen is pictures


def counted(logits: np.ndarray, targets: np.ndarray, valid: np.ndarray, num_classes: int) -> dict[str, Any]:
    """Top-1, top-5, loss and confusion by plain loops."""
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
def test_the_meter_agrees_with_counting_by_hand_and_padding_never_counts(num_classes, sizes, seed):
    rng = np.random.default_rng(seed)
    meter = Classify([f"c{n}" for n in range(num_classes)]).meter()
    rows, answers, masks = [], [], []
    for place, size in enumerate(sizes):
        logits = rng.standard_normal((size, num_classes)).astype(np.float32)
        targets = rng.integers(0, num_classes, size)
        valid = rng.random(size) < 0.7
        valid[0] |= place == 0  # at least one counts
        meter.update(torch.from_numpy(logits), batch_of(targets.tolist(), valid=valid.tolist()))
        rows.append(logits), answers.append(targets), masks.append(valid)
    wanted = counted(np.concatenate(rows), np.concatenate(answers), np.concatenate(masks), num_classes)
    found = meter.compute()
    np.testing.assert_array_equal(found["confusion"], wanted.pop("confusion"))
    assert set(found["metrics"]) == {"top1", "top5", "loss", "ece"}
    assert sum(found["reliability"]["right"]) == found["confusion"].trace()
    for name, value in wanted.items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-5)  # float32 sums of up to 36 losses
    assert all(isinstance(value, float) for value in found["metrics"].values())


def test_a_batch_of_nothing_but_padding_changes_nothing():
    meter = Classify(("a", "b", "c")).meter()
    meter.update(torch.tensor([[5.0, 0.0, 0.0]]), batch_of([0]))
    before = meter.compute()
    meter.update(torch.tensor([[0.0, 5.0, 0.0]] * 3), batch_of([0, 0, 0], valid=[False] * 3))
    after = meter.compute()
    assert after["metrics"] == before["metrics"]
    assert after["confusion"].sum() == 1


def test_with_fewer_than_five_classes_top5_is_always_right():
    meter = Classify(("a", "b", "c")).meter()
    meter.update(torch.randn(6, 3), batch_of([0, 1, 2, 0, 1, 2]))
    assert meter.compute()["metrics"]["top5"] == 1.0


def test_one_class_is_always_right_and_has_no_table():
    task = Classify(("only",), MixSettings(mixup=0.5))
    meter = task.meter()
    meter.update(torch.randn(3, 1), batch_of([0, 0, 0]))
    found = meter.compute()
    assert found.pop("metrics") == {"top1": 1.0, "top5": 1.0, "loss": 0.0}
    assert found == {"confusion": None, "reliability": None, "per_class": {}}
    assert task.loss(Answers(torch.zeros(2, 1)), batch_of([0, 0])).item() == 0.0


def test_twenty_two_thousand_classes_are_counted_without_a_table():
    num_classes = 21_841
    assert num_classes > MOST_CLASSES_IN_A_TABLE
    meter = Classify([f"c{n}" for n in range(num_classes)]).meter()
    logits = torch.zeros(3, num_classes)
    logits[0, 7], logits[1, [1, 2, 3, 9]], logits[2, 11] = 5.0, torch.tensor([4.0, 3.0, 2.0, 1.0]), -5.0
    meter.update(logits, batch_of([7, 9, 11]))  # best, fourth, last
    found = meter.compute()
    assert found["confusion"] is None
    assert found["metrics"]["top1"] == pytest.approx(1 / 3)
    assert found["metrics"]["top5"] == pytest.approx(2 / 3)


def test_the_largest_table_is_kept():
    labels = [f"c{n}" for n in range(MOST_CLASSES_IN_A_TABLE)]
    meter = Classify(labels).meter()
    meter.update(torch.eye(len(labels))[:2], batch_of([0, 1]))
    assert meter.compute()["confusion"].diagonal().sum() == 2


def test_half_precision_answers_are_counted_in_full_precision():
    meter = Classify(("a", "b")).meter()
    meter.update(torch.tensor([[2.0, 0.0]], dtype=torch.bfloat16), batch_of([0]))
    assert meter.compute()["metrics"]["loss"] == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


def test_an_answer_that_is_no_number_spoils_the_loss_for_all_to_see():
    """Left out of the mean, it would make a broken network look like a good one."""
    meter = Classify(("a", "b")).meter()
    meter.update(torch.tensor([[2.0, 0.0], [float("nan"), 0.0]]), batch_of([0, 1]))
    found = meter.compute()
    assert math.isnan(found["metrics"]["loss"])
    assert math.isnan(found["metrics"]["ece"])
    assert math.isnan(found["reliability"]["confidence"][0])
    assert (sum(found["reliability"]["count"]), sum(found["reliability"]["right"])) == (2, 1)


def logits_of(confidences: list[float], answers: list[int]) -> torch.Tensor:
    """Logits of two classes, so that the softmax of each row has that confidence in that answer."""
    rows = torch.tensor([[math.log(sure), math.log1p(-sure)] for sure in confidences], dtype=torch.float64)
    return torch.where(torch.tensor(answers)[:, None] == 0, rows, rows.flip(1)).float()


def test_reliability_counts_answers_right_ones_and_confidence_in_bins():
    """By hand: 0.55 lies in the ninth of fifteen bins, 0.90 in the fourteenth, 0.97 and 1 in the last."""
    meter = Classify(("a", "b")).meter()
    meter.update(logits_of([0.55, 0.55, 0.9, 0.97], [0, 1, 0, 1]), batch_of([0, 0, 0, 1]))
    meter.update(torch.tensor([[300.0, 0.0]]), batch_of([1]))  # sure, and wrong
    found = meter.compute()
    table = found["reliability"]
    answered = {8: (2, 1, 1.1), 13: (1, 1, 0.9), 14: (2, 1, 1.97)}
    wanted = [answered.get(place, (0, 0, 0.0)) for place in range(15)]
    count, right, confidence = (list(column) for column in zip(*wanted, strict=True))
    assert (table["count"], table["right"]) == (count, right)
    assert table["confidence"] == pytest.approx(confidence, abs=1e-6)
    assert found["metrics"]["ece"] == pytest.approx((0.1 + 0.1 + 0.97) / 5, abs=1e-6)


def test_a_confidence_next_to_the_edge_of_two_bins_is_counted_exactly():
    """A bin is (m/15, (m+1)/15]; in float32 a third is a hair above 5/15, a fifth above 3/15, and 1 is 15/15."""
    for classes in (3, 5, 6, 15, 30):
        meter = Classify([f"c{n}" for n in range(classes)]).meter()
        meter.update(torch.zeros(1, classes), batch_of([0]))
        sure = Fraction(torch.zeros(classes).softmax(0)[0].item())
        assert meter.compute()["reliability"]["count"].index(1) == math.ceil(sure * 15) - 1


@settings(deadline=None, max_examples=20)
@given(num_classes=st.integers(2, 9), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0))
def test_the_calibration_error_is_that_of_torchmetrics(num_classes, sizes, seed):
    rng = np.random.default_rng(seed)
    meter, peer = Classify([f"c{n}" for n in range(num_classes)]).meter(), MulticlassCalibrationError(num_classes, 15)
    for size in sizes:
        logits = torch.from_numpy(3 * rng.standard_normal((size, num_classes))).float()
        targets = torch.from_numpy(rng.integers(0, num_classes, size))
        meter.update(logits, batch_of(targets.tolist()))
        peer.update(logits, targets)
    assert meter.compute()["metrics"]["ece"] == pytest.approx(float(peer.compute()), abs=1e-5)


def test_sums_of_confidence_are_the_same_in_any_order():
    """The control: in float32 they are not."""
    logits = torch.randn(3000, 7, generator=torch.Generator().manual_seed(0))
    targets = [n % 7 for n in range(3000)]
    found = []
    for order in (torch.arange(3000), torch.arange(3000).flip(0)):
        meter = Classify([f"c{n}" for n in range(7)]).meter()
        for part in order.split(700):
            meter.update(logits[part], batch_of([targets[n] for n in part.tolist()]))
        found.append(meter.compute())
    assert found[0]["reliability"] == found[1]["reliability"]
    assert found[0]["metrics"]["ece"] == found[1]["metrics"]["ece"]
    sure = logits.softmax(1).max(1).values.numpy()
    assert sure.cumsum()[-1] != sure[::-1].cumsum()[-1]


def test_a_fresh_meter_starts_from_nothing():
    task = Classify(("a", "b"))
    task.meter().update(torch.tensor([[1.0, 0.0]]), batch_of([1]))
    meter = task.meter()
    meter.update(torch.tensor([[1.0, 0.0]]), batch_of([0]))
    assert meter.compute()["metrics"]["top1"] == 1.0


def test_decoding_gives_each_name_its_probabilities_in_order():
    answers = Classify(("a", "b")).decode(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), [Frame("one"), Frame("two")])
    assert all(isinstance(answer, Classes) for answer in answers)
    assert [answer.name for answer in answers] == ["one", "two"]
    assert answers[0].probabilities == pytest.approx((0.25, 0.75))
    assert answers[0].top(1)[0].label == "b"
    assert answers[1].probabilities == pytest.approx((0.5, 0.5))


def test_decoding_half_precision_still_adds_up_to_one():
    logits = torch.randn(2, 1000).bfloat16()
    for answer in Classify([f"c{n}" for n in range(1000)]).decode(logits, [Frame("a"), Frame("b")]):
        assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)


def test_decoding_answers_that_are_no_numbers_is_refused():
    with pytest.raises(ShapeError, match="look at the weights"):
        Classify(("a", "b")).decode(torch.tensor([[float("nan"), 0.0]]), [Frame("one")])
    with pytest.raises(ValueError, match="zip"):
        Classify(("a", "b")).decode(torch.zeros(2, 2), [Frame("one")])


def test_collating_stacks_what_was_read_and_names_the_rest():
    samples = [
        {"picture": torch.ones(3, 2, 2), "target": 1, "name": "a"},
        {"name": "b", "unreadable": "is empty"},
        {"picture": torch.zeros(3, 2, 2), "target": 0, "name": "c", "valid": False},
        {"name": "d", "unreadable": "padding", "valid": False},
        {"picture": torch.zeros(3, 2, 2), "target": 0, "name": "f", "passed_over": (("e", "is damaged"),)},
        {"name": "b", "unreadable": "is empty"},
    ]
    batch = Classify(("x", "y")).collate(samples)
    assert batch.names == ("a", "c", "f")
    assert batch.targets.tolist() == [1, 0, 0]
    assert batch.valid.tolist() == [True, False, True]
    assert batch.pictures.shape == (3, 3, 2, 2)
    assert batch.unreadable == (("b", "is empty"), ("e", "is damaged"))  # each once, padding not at all


def test_collating_nothing_readable_gives_an_empty_batch():
    batch = Classify(("x", "y")).collate([{"name": "b", "unreadable": "is empty"}])
    assert len(batch) == 0
    assert batch.to(torch.device("cpu")).unreadable == (("b", "is empty"),)
