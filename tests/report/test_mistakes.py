"""The worst answers are kept while an evaluation runs, whatever the batches, and nothing else changes."""

import math

import numpy as np
import pytest
import torch

from van.report.judges import judge_of
from van.report.mistakes import Watched
from van.tasks.base import Batch, Frame
from van.tasks.build import make_task

LABELS = ("ant", "bee", "cat")


def classify_batches(logits, targets, size, valid=None):
    valid = torch.ones(len(targets), dtype=torch.bool) if valid is None else torch.tensor(valid)
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        frames = tuple(Frame(f"picture-{number}") for number in range(start, min(start + size, len(targets))))
        yield logits[part], Batch(pictures=logits[part], targets=targets[part], frames=frames, valid=valid[part])


def kept(task, batches, most):
    meter = Watched(task, most=most).meter().to(torch.device("cpu"))
    for outputs, batch in batches:
        meter.update(outputs, batch)
    return meter.compute()


def test_the_surest_mistakes_come_first_and_then_the_least_sure_right_answers():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(97, 3, generator=generator)
    targets = torch.randint(3, (97,), generator=generator)
    probabilities, answers = logits.softmax(1), logits.argmax(1)
    wrong = [i for i in range(97) if answers[i] != targets[i]]
    wrong.sort(key=lambda i: -float(probabilities[i].max()))
    right = sorted(set(range(97)) - set(wrong), key=lambda i: float(probabilities[i, targets[i]]))
    for size, most in ((97, 5), (10, 5), (1, 12), (64, len(wrong) + 4)):
        details = kept(make_task("classify", LABELS), classify_batches(logits, targets, size), most)
        assert [one.name for one in details["mistakes"]] == [f"picture-{i}" for i in (wrong + right)[:most]]
        assert details["wrong"] == len(wrong)
        assert [one.wrong for one in details["mistakes"]] == [i < len(wrong) for i in range(most)]
    first = details["mistakes"][0]
    assert first.says == f"{LABELS[targets[wrong[0]]]} taken for {LABELS[answers[wrong[0]]]}"
    assert first.suspects == (int(answers[wrong[0]]), int(targets[wrong[0]]))


def test_the_metrics_are_those_of_the_task_itself():
    logits, targets = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    task = make_task("classify", LABELS)
    plain = task.meter()
    for outputs, batch in classify_batches(logits, targets, 7):
        plain.update(outputs, batch)
    watched, alone = kept(task, classify_batches(logits, targets, 7), 2), plain.compute()
    assert watched["metrics"] == alone["metrics"]
    np.testing.assert_array_equal(watched["confusion"], alone["confusion"])


def test_padding_and_answers_that_are_no_numbers_are_in_no_ranking():
    logits = torch.tensor([[9.0, 0, 0], [5.0, 0, 0], [math.nan, 0, 0]])
    targets = torch.tensor([1, 1, 1])
    details = kept(make_task("classify", LABELS), classify_batches(logits[:2], targets[:2], 2, valid=[False, True]), 5)
    assert [one.name for one in details["mistakes"]] == ["picture-1"]
    judged = judge_of(make_task("classify", LABELS)).severities(logits, next(classify_batches(logits, targets, 3))[1])
    assert math.isnan(judged[2])
    assert judged[0] > judged[1] > 1


def test_none_are_kept_where_none_are_asked_for():
    details = kept(make_task("classify", LABELS), classify_batches(torch.eye(3), torch.tensor([1, 2, 0]), 3), 0)
    assert details["mistakes"] == ()
    assert details["wrong"] == 3


def whole(outputs, targets, sizes):
    frames = tuple(Frame(f"picture-{place}", size, size) for place, size in enumerate(sizes))
    return [
        (outputs, Batch(pictures=[], targets=targets, frames=frames, valid=torch.ones(len(sizes), dtype=torch.bool)))
    ]


def test_a_detectors_worst_picture_is_the_one_with_most_mistakes():
    def found(boxes, labels, scores):
        return {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels).long(),
                "scores": torch.tensor(scores)}  # fmt: skip

    square, far = [0, 0, 10, 10], [20, 20, 30, 30]
    answers = [
        found([square, far], [0, 1], [0.9, 0.8]),  # both right
        found([square, far], [2, 1], [0.9, 0.2]),  # an ant taken for a cat; the bee is found, but not surely
        found([square], [0], [0.9]),  # a bee missed
    ]
    target = {"boxes": torch.tensor([square, far]).float(), "labels": torch.tensor([0, 1])}
    target |= {"iscrowd": torch.zeros(2, dtype=torch.int64), "area": torch.full((2,), 100.0)}
    details = kept(make_task("detect", LABELS), whole(answers, [target] * 3, [(40, 40)] * 3), 3)
    assert [one.name for one in details["mistakes"]] == ["picture-1", "picture-2", "picture-0"]
    assert [one.says for one in details["mistakes"]] == [
        "1 missed (bee); 1 taken for another (ant as cat)", "1 missed (bee)", "All as marked",
    ]  # fmt: skip
    assert details["wrong"] == 2
    worst = details["mistakes"][0]
    assert (worst.suspects, worst.box) == ((2,), (0.0, 0.0, 10.0, 10.0))
    assert [thing.label for thing in worst.truth.found] == ["ant", "bee"]
    assert [thing.label for thing in worst.answer.found] == ["cat"]


def test_a_segmenters_worst_picture_is_the_one_that_overlaps_least():
    target = torch.zeros(4, 4, dtype=torch.int64)
    target[:2] = 1
    target[3, 3] = -1  # unknown: no mistake whatever is answered
    right, half = target.clone(), target.clone()
    right[3, 3], half[3, 3] = 2, 0
    half[0] = 2
    details = kept(make_task("segment", LABELS), whole([right, half], [target, target], [(4, 4)] * 2), 2)
    worst, best = details["mistakes"]
    assert (worst.name, best.name) == ("picture-1", "picture-0")
    assert worst.says == "Mean IoU 50\u202f%"  # ant 7/7, bee 4/8, cat 0/4
    assert worst.details == ("4 px of bee taken for cat",)
    assert worst.suspects == (2, 1)
    assert (best.says, best.wrong, details["wrong"]) == ("Every pixel as marked", False, 1)
    assert worst.truth.ids[3, 3] == -1


def test_a_panoptic_network_is_ranked_by_each_pictures_own_quality():
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, :3], masks[1, 3:] = True, True
    target = {"labels": torch.tensor([0, 1]), "masks": masks}

    def says(first, second):
        classes = torch.full((2, 4), -9.0)
        classes[0, first], classes[1, second] = 9.0, 9.0
        return {"class_logits": classes, "mask_logits": torch.where(masks, 9.0, -9.0)}

    task = make_task("panoptic", LABELS, {"things": [True, True, False]})
    details = kept(task, whole([says(0, 1), says(0, 2)], [target, target], [(6, 6)] * 2), 2)
    worst, best = details["mistakes"]
    assert (worst.name, best.name, details["wrong"]) == ("picture-1", "picture-0", 1)
    assert worst.says == "Panoptic quality 33\u202f%"  # ant right, bee missed, cat made up
    assert worst.suspects == (2,)
    assert best.says == "Panoptic quality 100\u202f%"
    assert [region.label for region in worst.truth.regions] == ["ant", "bee"]


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_what_the_engine_asks_of_a_task_is_that_of_the_task(task):
    plain = make_task(task, LABELS)
    watched = Watched(plain, most=3)
    assert (watched.name, watched.headline, watched.labels) == (plain.name, plain.headline, plain.labels)
    assert watched.options == plain.options
