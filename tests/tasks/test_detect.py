"""The detection task: what reaches the network, and what of its answer reaches the picture."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.results import Boxes
from van.tasks.base import Batch, Frame, Task
from van.tasks.detect import Detect, in_own_pixels

LABELS = ("cat", "dog", "fox")
FRAME = Frame("x.jpg", (40, 90), (20, 30))
"""Rows twice, columns three times what the network sees."""


def found(*boxes: list[float], labels: list[int] | None = None, scores: list[float] | None = None) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        "scores": torch.tensor(scores or [0.9] * len(boxes)),
    }


def batch_of(targets: list[dict[str, Tensor]], *frames: Frame, valid: list[bool] | None = None) -> Batch:
    return Batch(
        pictures=[torch.zeros(3, *frame.seen) for frame in frames],
        targets=targets,
        frames=frames,
        valid=torch.tensor([True] * len(frames) if valid is None else valid),
    )


@pytest.mark.parametrize(("masks", "name", "headline"), [(False, "detect", "box_ap"), (True, "instances", "mask_ap")])
def test_detect_is_a_task_and_with_masks_it_is_another(masks, name, headline):
    task: Task = Detect(LABELS, masks=masks, category_ids=(1, 5, 7))
    assert (task.name, task.headline, task.labels) == (name, headline, LABELS)
    assert task.options == {"category_ids": [1, 5, 7]}


@pytest.mark.parametrize("min_score", [-0.1, 1.5, math.nan])
def test_settings_that_mean_nothing_are_refused(min_score):
    with pytest.raises(UsageError, match=f"min_score is {min_score}; wanted 0 to 1"):
        Detect(LABELS, min_score=min_score)
    with pytest.raises(ShapeError, match="there are 2 category_ids for 3 labels"):
        Detect(LABELS, category_ids=(1, 2))


class Losses(nn.Module):
    """A network in training: gives losses, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, pictures: Any, targets: Any) -> dict[str, Tensor]:
        self.seen = (pictures, targets)
        return {"classes": self.weight * 3, "boxes": (self.weight**2).bfloat16()}


@pytest.mark.parametrize("masks", [False, True])
def test_the_loss_is_the_sum_of_the_networks_losses_over_what_the_task_has_marked(masks):
    target = {
        "boxes": torch.tensor([[1.0, 2, 3, 4]]),
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 20, 30, dtype=torch.bool),
        "area": torch.tensor([4.0]),
    }
    network, batch = Losses(), batch_of([target, {**target, "labels": torch.tensor([1])}], FRAME, FRAME)
    loss = Detect(LABELS, masks=masks).loss(network, batch)
    loss.backward()
    assert (loss.item(), loss.dtype, network.weight.grad.item()) == (10.0, torch.float32, 7.0)
    pictures, targets = network.seen
    assert pictures is batch.pictures
    assert [set(one) for one in targets] == [{"boxes", "labels", "masks"} if masks else {"boxes", "labels"}] * 2
    assert all(one["boxes"] is target["boxes"] for one in targets)
    assert [one["labels"].item() for one in targets] == [2, 1]


def test_boxes_are_carried_to_the_pictures_own_pixels():
    answer = Detect(LABELS).decode([found([3, 5, 10, 20])], [FRAME])[0]
    assert isinstance(answer, Boxes)
    assert answer.found[0].box == (9.0, 10.0, 30.0, 40.0)
    assert (answer.name, answer.size, answer.labels) == ("x.jpg", (40, 90), LABELS)
    turned = Detect(LABELS).decode([found([3, 5, 10, 20])], [Frame("x.jpg", (90, 40), (30, 20))])[0]
    assert turned.found[0].box != answer.found[0].box  # a mix-up of rows and columns would show


def test_masks_are_carried_to_the_pictures_own_pixels():
    """Each seen pixel covers 2 rows and 3 columns; the edge lies where the probability passes a half."""
    mask = torch.zeros(1, 1, 20, 30)
    mask[0, 0, 4:10, 6:20] = 1.0
    answer = Detect(LABELS, masks=True).decode([{**found([6, 4, 20, 10]), "masks": mask}], [FRAME])[0]
    shown = answer.found[0].mask
    assert (shown.shape, shown.dtype) == ((40, 90), np.bool_)
    wanted = np.zeros((40, 90), bool)
    wanted[8:20, 18:60] = True
    assert (shown != wanted).sum() <= 4  # of 504 pixels; at the corners interpolation rounds
    assert not np.array_equal(shown, np.roll(wanted, 1, axis=1))


def test_masks_of_the_right_size_are_cut_at_a_half():
    mask = torch.tensor([0.499, 0.5, 1.0, 0.0]).reshape(1, 1, 2, 2)
    moved = in_own_pixels({**found([0, 0, 2, 2]), "masks": mask}, Frame("x", (2, 2), (2, 2)))
    assert moved["masks"].tolist() == [[[False, True], [True, False]]]


def test_without_things_there_is_an_answer_all_the_same():
    nothing = {**found(), "masks": torch.zeros(0, 1, 20, 30)}
    assert in_own_pixels(nothing, FRAME)["masks"].shape == (0, 40, 90)
    answer = Detect(LABELS, masks=True).decode([nothing], [FRAME])[0]
    assert answer.found == ()
    assert Detect(LABELS).decode([], []) == []


def test_what_scores_less_is_left_out_and_the_best_comes_first():
    outputs = found(
        [0, 0, 3, 3], [1, 1, 4, 4], [2, 2, 5, 5], [3, 3, 6, 6], labels=[0, 2, 1, 0], scores=[0.5, 0.49, 0.9, 0.7]
    )
    outputs["masks"] = torch.zeros(4, 1, 20, 30)
    for place in range(4):
        outputs["masks"][place, 0, place] = 1
    answer = Detect(LABELS, min_score=0.5).decode([outputs], [FRAME])[0]
    assert [(thing.label, thing.index) for thing in answer.found] == [("dog", 1), ("cat", 0), ("cat", 0)]
    assert [thing.score for thing in answer.found] == pytest.approx([0.9, 0.7, 0.5])
    assert [int(thing.mask[:, 0].argmax()) // 2 for thing in answer.found] == [2, 3, 0]  # each its own mask
    assert len(Detect(LABELS, min_score=0.0).decode([outputs], [FRAME])[0].found) == 4
    assert len(Detect(LABELS, min_score=1.0).decode([outputs], [FRAME])[0].found) == 0


def test_equal_scores_keep_the_networks_order():
    outputs = found([0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 3, 1], scores=[0.5, 0.5, 0.5])
    assert [thing.box[0] for thing in Detect(LABELS).decode([outputs], [FRAME])[0].found] == [0.0, 3.0, 6.0]


def test_result_files_use_the_data_sets_numbers_for_classes():
    outputs = found([0, 0, 3, 3], labels=[2])
    for category_ids, wanted in (((1, 5, 90), 90), ((), 2)):
        answer = Detect(LABELS, category_ids=category_ids).decode([outputs], [FRAME])[0]
        assert answer.to_coco(7)[0]["category_id"] == wanted


def test_rounding_puts_no_box_over_the_pictures_edge():
    assert float(torch.tensor(333.0) * torch.tensor(367 / 333)) > 367
    outputs = found([-1e-4, -2e-5, 333, 333.00003])
    box = Detect(LABELS).decode([outputs], [Frame("x", (367, 367), (333, 333))])[0].found[0].box
    assert box == (0.0, 0.0, 367.0, 367.0)


def test_half_precision_answers_are_carried_in_full_precision():
    """bfloat16 has 8 bits: 7 / 3 would become 2.328125, and 90 x 7 / 3 wrong by half a pixel."""
    outputs = found([0, 0, 90, 60])
    outputs = {name: values if name == "labels" else values.bfloat16() for name, values in outputs.items()}
    moved = in_own_pixels(outputs, Frame("x", (140, 210), (60, 90)))
    assert moved["boxes"].tolist() == [[0, 0, 210, 140]]
    assert moved["boxes"].dtype == moved["scores"].dtype == torch.float32


@pytest.mark.parametrize("name", ["boxes", "scores"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_refused(name, value):
    """A score of NaN is not above any threshold, and would be taken for nothing found."""
    outputs = found([0, 0, 3, 3], [1, 1, 4, 4])
    outputs[name][1] = value
    with pytest.raises(ShapeError, match=f"the {name} for x.jpg are not all finite; .*look at the weights"):
        Detect(LABELS).decode([outputs], [FRAME])
    target = {"boxes": torch.tensor([[0.0, 0, 3, 3]]), "labels": torch.tensor([0])}
    with pytest.raises(ShapeError, match="look at the weights"):
        Detect(LABELS).meter().update([outputs], batch_of([target], FRAME))


def test_scores_that_are_no_probabilities_are_refused():
    with pytest.raises(ShapeError, match=r"score of thing 0 is 1\.5"):
        Detect(LABELS).decode([found([0, 0, 3, 3], scores=[1.5])], [FRAME])


def test_the_meter_measures_in_the_pictures_own_pixels_and_leaves_padding_out():
    """The target lies in the file's pixels; what scores little counts, too; padding would halve the recall."""
    target = {"boxes": torch.tensor([[9.0, 10, 30, 40]]), "labels": torch.tensor([1])}
    meter = Detect(LABELS).meter().to(torch.device("cpu"))
    outputs = [found([3, 5, 10, 20], labels=[1], scores=[0.01]), found()]
    meter.update(outputs, batch_of([target, target], FRAME, FRAME._replace(name="y"), valid=[True, False]))
    assert meter.compute()["metrics"]["box_ap"] == 1.0
    meter.update(outputs[1:], batch_of([target], FRAME._replace(name="y")))
    assert meter.compute()["metrics"]["box_ar100"] == 0.5
    assert meter.compute()["per_class"].keys() == {"dog"}


def test_the_meter_measures_masks_where_the_task_has_them():
    mask = torch.zeros(1, 40, 90, dtype=torch.bool)
    mask[0, 8:20, 18:60] = True
    target = {"boxes": torch.tensor([[18.0, 8, 60, 20]]), "labels": torch.tensor([0]), "masks": mask}
    seen = mask[:, None, ::2, ::3].float()
    for masks, headlines in ((False, {"box_ap": 1.0}), (True, {"box_ap": 1.0, "mask_ap": 1.0})):
        meter = Detect(LABELS, masks=masks).meter()
        meter.update([{**found([6, 4, 20, 10]), "masks": seen}], batch_of([target], FRAME))
        metrics = meter.compute()["metrics"]
        assert {name: value for name, value in metrics.items() if name.endswith("_ap")} == headlines
