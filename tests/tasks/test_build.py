"""A task is made again from what a checkpoint says of it."""

import json

import pytest

from van.errors import ShapeError, UsageError
from van.tasks.base import Task
from van.tasks.build import TASKS, make_task
from van.tasks.classify import Classify
from van.tasks.detect import Detect
from van.tasks.panoptic import Panoptic
from van.tasks.segment import Segment

LABELS = ("cat", "sky", "road")
MADE: tuple[Task, ...] = (
    Classify(LABELS),
    Detect(LABELS, category_ids=(1, 18, 90)),
    Detect(LABELS),
    Detect(LABELS, masks=True, category_ids=(4, 2, 7)),
    Segment(LABELS),
    Panoptic(LABELS, things=(True, False, False)),
)


@pytest.mark.parametrize("task", MADE, ids=lambda task: task.name)
def test_a_task_comes_back_from_what_json_keeps_of_it(task):
    name, labels, options = json.loads(json.dumps([task.name, task.labels, task.options]))
    again = make_task(name, labels, options)
    assert type(again) is type(task)
    for attribute in ("name", "headline", "labels", "options"):
        assert getattr(again, attribute) == getattr(task, attribute)
    assert vars(again) == vars(task)


def test_every_name_is_that_of_a_task():
    assert {task.name for task in MADE} == set(TASKS)


def test_without_options_there_are_defaults():
    assert make_task("detect", ["cat"]).options == {"category_ids": []}
    assert make_task("detect", ["cat"], {"min_score": 0.7}).min_score == 0.7


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("depth", {}, "there is no task 'depth'; known: classify, detect, instances, segment, panoptic"),
        ("segment", {"things": [True]}, "segment has no option things; known: none"),
        ("detect", {"masks": True}, "detect has no option masks; known: category_ids, min_score"),
        ("panoptic", {}, "panoptic lacks the option things"),
    ],
)
def test_what_is_not_known_is_refused(name, options, reason):
    with pytest.raises(UsageError, match=reason):
        make_task(name, LABELS, options)


def test_options_that_do_not_fit_the_labels_are_refused():
    with pytest.raises(ShapeError, match="things"):
        make_task("panoptic", LABELS, {"things": [True]})
    with pytest.raises(ShapeError, match="category_ids"):
        make_task("instances", LABELS, {"category_ids": [1]})
