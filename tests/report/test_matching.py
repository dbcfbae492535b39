"""Matching of detections to targets, checked by hand."""

import torch

from van.report.matching import match


def objects(boxes, labels, scores=None, crowds=None):
    values = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels).long()}
    if scores is not None:
        values["scores"] = torch.tensor(scores)
    if crowds is not None:
        values["iscrowd"] = torch.tensor(crowds)
    return values


SQUARE, SHIFTED, FAR = [0, 0, 10, 10], [0, 2, 10, 12], [50, 50, 60, 60]


def test_each_target_is_matches_to_the_detection_of_its_class_with_the_highest_score():
    """10 x 8 of 10 x 12 pixels overlap: IoU 0.67. The second detection of the same target is a false positive."""
    detections = objects([SHIFTED, SQUARE, FAR], [1, 1, 2], [0.9, 0.8, 0.7])
    matches = match(detections, objects([SQUARE, FAR], [1, 2]))
    assert matches == ([(0, 0), (2, 1)], [], [1], [])
    assert matches.num_errors == 1


def test_a_match_of_another_class_is_one_error():
    detections, target = objects([SQUARE], [1], [0.9]), objects([SQUARE, FAR], [2, 2])
    assert match(detections, target) == ([], [(0, 0)], [], [1])
    assert match(detections, target).num_errors == 2


def test_an_iou_below_one_half_is_no_match():
    """A shift by 4 of 10 columns leaves an IoU of 60 / 140, one by 3 of 70 / 130."""
    assert match(objects([[4, 0, 14, 10]], [1], [0.9]), objects([SQUARE], [1])) == ([], [], [0], [0])
    assert match(objects([[3, 0, 13, 10]], [1], [0.9]), objects([SQUARE], [1])) == ([(0, 0)], [], [], [])


def test_crowds_are_never_missed_and_ignore_detections_of_their_class():
    crowd = objects([[0, 0, 100, 100]], [1], crowds=[1])
    assert match(objects([SQUARE], [1], [0.9]), crowd) == ([], [], [], [])
    assert match(objects([SQUARE], [2], [0.9]), crowd) == ([], [], [0], [])  # negative control: another class


def test_masks_are_matched_instead_of_boxes_if_both_sides_have_them():
    upper, lower = torch.zeros(1, 10, 10, dtype=torch.bool), torch.zeros(1, 10, 10, dtype=torch.bool)
    upper[:, :5], lower[:, 5:] = True, True
    detections, target = objects([SQUARE], [1], [0.9]), objects([SQUARE], [1])
    assert match(detections, target).num_errors == 0
    assert match({**detections, "masks": upper}, {**target, "masks": lower}).num_errors == 2
    assert match({**detections, "masks": upper}, {**target, "masks": upper}).num_errors == 0


def test_images_without_detections_or_targets_are_matched():
    empty = objects([], [], [])
    assert match(empty, objects([SQUARE], [1])) == ([], [], [], [0])
    assert match(objects([SQUARE], [1], [0.5]), objects([], [])) == ([], [], [0], [])
    assert match(empty, objects([], [])) == ([], [], [], [])
