"""The panoptic task and its metric, against the paper's definition written with sets of pixels.

Source: Kirillov et al. 2019, arXiv:1801.00868, section 4.
"""

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.errors import DataError, ShapeError
from van.tasks.base import Batch, Frame, Task
from van.tasks.panoptic import Panoptic

LABELS = ("cat", "dog", "sky", "road")
THINGS = (True, True, False, False)
TASK: Task = Panoptic(LABELS, things=THINGS)

Segments = list[tuple[int, set[int]]]
"""Class and pixels of each segment of a picture; segments do not overlap."""


def definition(pictures: list[tuple[Segments, Segments]]) -> dict[str, dict[str, float]]:
    """pq, sq and rq of each class that is there or found, from (answer, target) of each picture, in exact fractions."""
    overlaps: dict[int, list[Fraction]] = {}
    wrong: dict[int, int] = {}
    missed: dict[int, int] = {}
    for answer, target in pictures:
        known = set().union(*(pixels for _, pixels in target))
        matched_there, matched_said = set(), set()
        for there, (label, pixels) in enumerate(target):
            for said, (answered, all_said) in enumerate(answer):
                counted = all_said & known
                overlap = Fraction(len(pixels & counted), len(pixels | counted))
                if label == answered and overlap > Fraction(1, 2):
                    overlaps.setdefault(label, []).append(overlap)
                    assert there not in matched_there, "the paper proves that a match is the only one"
                    assert said not in matched_said
                    matched_there.add(there)
                    matched_said.add(said)
        for there, (label, _) in enumerate(target):
            missed[label] = missed.get(label, 0) + (there not in matched_there)
        for said, (label, pixels) in enumerate(answer):
            excused = Fraction(len(pixels - known), len(pixels)) > Fraction(1, 2)
            wrong[label] = wrong.get(label, 0) + (said not in matched_said and not excused)
    found = {}
    for label, name in enumerate(LABELS):
        own = overlaps.get(label, [])
        weight = len(own) + Fraction(wrong.get(label, 0) + missed.get(label, 0), 2)
        if weight:
            quality = sum(own, Fraction(0)) / len(own) if own else Fraction(0)
            recognised = len(own) / weight
            found[name] = {"pq": float(quality * recognised), "sq": float(quality), "rq": float(recognised)}
    return found


def numbered(rows: list[str], classes: dict[str, int]) -> Segments:
    """Segments from a drawing: a letter for each, a dot for none."""
    text = "".join(rows)
    return [(label, {place for place, letter in enumerate(text) if letter == own}) for own, label in classes.items()]


def output_of(segments: Segments, size: tuple[int, int]) -> dict[str, Tensor]:
    """What a network would give to be understood so: a query for each segment, and one that says nothing."""
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
        pictures=[torch.zeros(3, *size)] * len(targets),
        targets=[target_of(segments, size) for segments in targets],
        frames=tuple(Frame(f"{n}", size, size) for n in range(len(targets))),
        valid=torch.tensor([True] * len(targets) if valid is None else valid),
    )


def measured(pictures: list[tuple[Segments, Segments]], size: tuple[int, int]) -> dict[str, Any]:
    meter = TASK.meter()
    for answer, target in pictures:
        meter.update([output_of(answer, size)], batch_of([target], size))
    return meter.compute()


def test_panoptic_is_a_task():
    assert (TASK.name, TASK.headline, TASK.labels) == ("panoptic", "pq", LABELS)
    assert TASK.options == {"things": [True, True, False, False]}
    with pytest.raises(ShapeError, match="things is said of 2 classes, and there are 4"):
        Panoptic(LABELS, things=(True, False))


def test_an_example_worked_out_by_hand():
    """One cat agrees in 4 of 5 pixels, one is missed, one invented; the dog lies where nothing is marked."""
    target = numbered(["aaaaa.", "bbbb..", "ssssss", "sss...", "......"], {"a": 0, "b": 0, "s": 2})
    answer = numbered(["aaaa.a", "......", "sssscc", "ss.ddd", "......"], {"a": 0, "c": 0, "s": 2, "d": 1})
    found = measured([(answer, target)], (5, 6))
    assert found["per_class"] == {
        "cat": {"pq": 0.4, "sq": 0.8, "rq": 0.5},  # 1 / (1 + 1 / 2 + 1 / 2)
        "sky": {"pq": 6 / 9, "sq": 6 / 9, "rq": 1.0},
    }
    metrics = {"pq": (0.4 + 6 / 9) / 2, "sq": (0.8 + 6 / 9) / 2, "rq": 0.75, "pq_things": 0.4, "pq_stuff": 6 / 9}
    assert found["metrics"] == pytest.approx(metrics)


def test_a_thing_for_which_the_network_says_nothing_is_missed():
    """Pixels without an answer are not excused, in the count or in the IoU (torchmetrics 1.9 excuses both)."""
    nothing = measured([([], [(0, {0, 1, 2})])], (2, 3))
    assert nothing["per_class"] == {"cat": {"pq": 0.0, "sq": 0.0, "rq": 0.0}}
    part = measured([([(0, {0, 1})], [(0, {0, 1, 2})])], (2, 3))
    assert part["per_class"]["cat"]["sq"] == 2 / 3


@pytest.mark.parametrize(("own", "excused"), [(2, False), (1, True)], ids=["half", "more than half"])
def test_an_answer_is_excused_if_more_than_half_of_it_lies_where_nothing_is_marked(own, excused):
    answer = [(0, {*range(own), 8, 9})]
    found = measured([(answer, [(1, set(range(8)))])], (2, 5))["per_class"]
    assert ("cat" not in found) is excused


def test_half_is_no_match_and_a_little_more_is_one():
    half = measured([([(0, {0, 1, 2})], [(0, set(range(6)))])], (1, 6))["per_class"]["cat"]
    more = measured([([(0, {0, 1, 2, 3})], [(0, set(range(6)))])], (1, 6))["per_class"]["cat"]
    assert (half["rq"], more["rq"]) == (0.0, 1.0)


def test_stuff_of_one_class_is_one_segment_and_things_are_not():
    """Two patches in the target, three in the answer, which cover the same pixels."""
    patches = [{0, 1}, {2, 3}]
    pieces = [{0}, {1, 2}, {3}]
    for label, rq in ((2, 1.0), (0, 0.0)):
        answer, target = [(label, pixels) for pixels in pieces], [(label, pixels) for pixels in patches]
        assert measured([(answer, target)], (1, 4))["per_class"][LABELS[label]]["rq"] == rq


def random_segments(ids: np.ndarray, labels: np.ndarray) -> Segments:
    """Segments of a map with 0 for none, stuff of a class as one."""
    segments: Segments = []
    stuff: dict[int, set[int]] = {}
    for number in np.unique(ids[ids > 0]).tolist():
        label, pixels = int(labels[number]), set(np.flatnonzero(ids.reshape(-1) == number).tolist())
        if THINGS[label]:
            segments.append((label, pixels))
        elif label in stuff:
            stuff[label] |= pixels
        else:
            stuff[label] = pixels
            segments.append((label, pixels))
    return segments


def random_picture(random: np.random.Generator, size: tuple[int, int]) -> tuple[Segments, Segments]:
    """A target of blocks, some without a mark, and an answer that has part of it wrong."""
    count = int(random.integers(1, 7))
    blocks = random.integers(0, count + 1, (-(-size[0] // 3), -(-size[1] // 3)))
    ids = blocks.repeat(3, 0).repeat(3, 1)[: size[0], : size[1]]
    labels = random.integers(0, len(LABELS), count + 1)
    answered = np.where(random.random(size) < random.uniform(0, 0.5), random.integers(0, count + 1, size), ids)
    relabelled = np.where(random.random(count + 1) < 0.2, random.integers(0, len(LABELS), count + 1), labels)
    return random_segments(answered, relabelled), random_segments(ids, labels)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 13), columns=st.integers(1, 11), count=st.integers(1, 4))
def test_random_maps_are_measured_as_the_paper_defines_it(seed, rows, columns, count):
    random = np.random.default_rng(seed)
    size = (rows, columns)
    pictures = [random_picture(random, size) for _ in range(count)]
    wanted = definition(pictures)
    if not any(target for _, target in pictures):
        with pytest.raises(DataError, match="nothing to measure"):
            measured(pictures, size)
        return
    found = measured(pictures, size)
    assert list(found["per_class"]) == list(wanted)
    for label, values in wanted.items():
        assert found["per_class"][label] == pytest.approx(values, abs=1e-12), label
    for name in ("pq", "sq", "rq"):
        mean = np.mean([values[name] for values in wanted.values()])
        assert found["metrics"][name] == pytest.approx(mean, abs=1e-12)
    for name, kind in (("pq_things", True), ("pq_stuff", False)):
        own = [values["pq"] for label, values in wanted.items() if THINGS[LABELS.index(label)] is kind]
        assert found["metrics"].get(name) == (pytest.approx(np.mean(own), abs=1e-12) if own else None)


def test_the_random_maps_hold_every_case():
    random = np.random.default_rng(0)
    pictures = [random_picture(random, (12, 11)) for _ in range(30)]
    found = definition(pictures)
    assert list(found) == list(LABELS)
    for values in found.values():
        assert 0.1 < values["pq"] < values["sq"] < 0.95
    other = definition(pictures[1:])["sky"]
    assert measured(pictures, (12, 11))["per_class"]["sky"] != pytest.approx(other, abs=1e-3)


def test_padding_does_not_count_and_a_batch_is_its_pictures():
    random = np.random.default_rng(3)
    pictures = [random_picture(random, (9, 10)) for _ in range(3)]
    meter = TASK.meter()
    outputs = [output_of(answer, (9, 10)) for answer, _ in pictures]
    meter.update(outputs, batch_of([target for _, target in pictures], (9, 10), [True, False, True]))
    assert meter.to(torch.device("cpu")).compute() == measured([pictures[0], pictures[2]], (9, 10))
    assert meter.compute() != measured(pictures, (9, 10))


def test_the_order_in_which_pictures_are_counted_does_not_matter_in_the_last_digit():
    random = np.random.default_rng(0)
    pictures = [random_picture(random, (12, 11)) for _ in range(60)]
    assert measured(pictures[::-1], (12, 11)) == measured(pictures, (12, 11))


def test_a_segment_without_pixels_cannot_be_missed():
    everything: Segments = [(0, {0, 1, 2, 3})]
    assert measured([(everything, [*everything, (1, set())])], (2, 2))["per_class"].keys() == {"cat"}


def test_a_target_without_segments_leaves_the_rest_to_be_measured():
    with pytest.raises(DataError, match="nothing to measure"):
        measured([([(0, {0, 1})], [])], (2, 2))
    answer: Segments = [(0, {0, 1})]
    assert measured([(answer, []), (answer, answer)], (2, 2))["per_class"]["cat"]["pq"] == 1.0


def test_answers_are_decoded_into_the_pictures_own_pixels():
    """4 x 6 seen, 8 x 18 in the file: every number is repeated twice and three times, edges apart."""
    segments = numbered(["aaa...", "aaa...", "sss..t", "sss..t"], {"a": 1, "s": 2, "t": 2})
    frames = [Frame("x.jpg", (8, 18), (4, 6))]
    answer = TASK.decode([output_of(segments, (4, 6))], frames)[0]
    assert (answer.name, answer.panoptic, answer.labels, answer.ids.shape) == ("x.jpg", True, LABELS, (8, 18))
    assert [(region.label, region.index, region.is_thing) for region in answer.regions] == [
        ("dog", 1, True),
        ("sky", 2, False),
    ]
    dog, sky = (region.id for region in answer.regions)
    assert (answer.ids[1, 2], answer.ids[6, 2], answer.ids[6, 16], answer.ids[1, 16]) == (dog, sky, sky, -1)
    assert all(0.99 < region.score <= 1 for region in answer.regions)


@pytest.mark.parametrize("name", ["class_logits", "mask_logits"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_refused(name, value):
    output = output_of([(0, {0, 1})], (2, 2))
    output[name][0, 0] = value
    with pytest.raises(ShapeError, match=f"the {name} for 0 are not all finite.*look at the weights"):
        TASK.decode([output], [Frame("0", (2, 2), (2, 2))])
    with pytest.raises(ShapeError, match="look at the weights"):
        TASK.meter().update([output], batch_of([[]], (2, 2)))


class Losses(nn.Module):
    """A network in training: gives losses, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen = SimpleNamespace()

    def forward(self, pictures: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.seen = SimpleNamespace(pictures=pictures, targets=targets)
        return {"mask": self.weight * 3, "dice": (self.weight**2).bfloat16()}


def test_the_loss_is_the_sum_of_the_networks_losses():
    network = Losses()
    batch = batch_of([[(0, {0, 1})], [(2, {2})]], (2, 2))
    loss = TASK.loss(network, batch)
    loss.backward()
    assert loss.item() == 10.0
    assert loss.dtype == torch.float32
    assert network.weight.grad == 7.0
    assert network.seen.pictures is batch.pictures
    assert network.seen.targets is batch.targets
