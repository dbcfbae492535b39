"""Which answer is about which mark, worked out by hand."""

import torch

from van.report.matching import match


def things(boxes, labels, scores=None, crowds=None):
    found = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels).long()}
    if scores is not None:
        found["scores"] = torch.tensor(scores)
    if crowds is not None:
        found["iscrowd"] = torch.tensor(crowds)
    return found


SQUARE, SHIFTED, FAR = [0, 0, 10, 10], [0, 2, 10, 12], [50, 50, 60, 60]


def test_each_mark_goes_to_the_surest_answer_of_its_class_that_overlaps_it():
    """10 x 8 of 10 x 12 pixels are shared: IoU 0.67. The second answer on the same mark is one too many."""
    found = things([SHIFTED, SQUARE, FAR], [1, 1, 2], [0.9, 0.8, 0.7])
    matched = match(found, things([SQUARE, FAR], [1, 2]))
    assert matched == ([(0, 0), (2, 1)], [], [1], [])
    assert matched.mistakes == 1


def test_an_overlap_of_another_class_is_one_mistake_and_not_two():
    found, target = things([SQUARE], [1], [0.9]), things([SQUARE, FAR], [2, 2])
    assert match(found, target) == ([], [(0, 0)], [], [1])
    assert match(found, target).mistakes == 2


def test_less_than_half_an_overlap_is_none():
    """A shift by 4 of 10 columns leaves an IoU of 60 / 140, one by 3 of 70 / 130."""
    assert match(things([[4, 0, 14, 10]], [1], [0.9]), things([SQUARE], [1])) == ([], [], [0], [0])
    assert match(things([[3, 0, 13, 10]], [1], [0.9]), things([SQUARE], [1])) == ([(0, 0)], [], [], [])


def test_a_crowd_is_nobodys_mistake_and_excuses_answers_of_its_class():
    crowd = things([[0, 0, 100, 100]], [1], crowds=[1])
    assert match(things([SQUARE], [1], [0.9]), crowd) == ([], [], [], [])
    assert match(things([SQUARE], [2], [0.9]), crowd) == ([], [], [0], [])  # the control: of another class it stays


def test_outlines_count_where_there_are_any_though_boxes_agree():
    upper, lower = torch.zeros(1, 10, 10, dtype=torch.bool), torch.zeros(1, 10, 10, dtype=torch.bool)
    upper[:, :5], lower[:, 5:] = True, True
    found, target = things([SQUARE], [1], [0.9]), things([SQUARE], [1])
    assert match(found, target).mistakes == 0
    assert match({**found, "masks": upper}, {**target, "masks": lower}).mistakes == 2
    assert match({**found, "masks": upper}, {**target, "masks": upper}).mistakes == 0


def test_nothing_found_and_nothing_marked_are_understood():
    nothing = things([], [], [])
    assert match(nothing, things([SQUARE], [1])) == ([], [], [], [0])
    assert match(things([SQUARE], [1], [0.5]), things([], [])) == ([], [], [0], [])
    assert match(nothing, things([], [])) == ([], [], [], [])
