"""Tasks are rebuilt from their name, class names and options."""

import json

import pytest

from van.errors import ShapeError, UsageError
from van.tasks.base import Task
from van.tasks.build import TASKS, make_task
from van.tasks.classification import ClassificationTask
from van.tasks.detection import DetectionTask
from van.tasks.panoptic import PanopticTask
from van.tasks.segmentation import SegmentationTask

LABELS = ("cat", "sky", "road")
EXAMPLES: tuple[Task, ...] = (
    ClassificationTask(LABELS),
    DetectionTask(LABELS, category_ids=(1, 18, 90)),
    DetectionTask(LABELS),
    DetectionTask(LABELS, masks=True, category_ids=(4, 2, 7)),
    SegmentationTask(LABELS),
    PanopticTask(LABELS, things=(True, False, False)),
)


@pytest.mark.parametrize("task", EXAMPLES, ids=lambda task: task.name)
def test_a_task_is_rebuilt_from_its_json(task):
    name, labels, options = json.loads(json.dumps([task.name, task.class_names, task.options]))
    rebuilt = make_task(name, labels, options)
    assert type(rebuilt) is type(task)
    for attribute in ("name", "monitor", "class_names", "options"):
        assert getattr(rebuilt, attribute) == getattr(task, attribute)
    assert vars(rebuilt) == vars(task)


def test_every_task_name_has_an_example():
    assert {task.name for task in EXAMPLES} == set(TASKS)


def test_omitted_options_have_defaults():
    assert make_task("detect", ["cat"]).options == {"category_ids": []}
    assert make_task("detect", ["cat"], {"min_score": 0.7}).min_score == 0.7


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("depth", {}, "classify, detect, instances, segment, panoptic.*'depth'"),
        ("segment", {"things": [True]}, "segment.*none.*things"),
        ("detect", {"masks": True}, "detect.*category_ids, min_score.*masks"),
        ("panoptic", {}, "panoptic.*things"),
    ],
)
def test_unknown_tasks_and_options_and_missing_options_raise(name, options, reason):
    with pytest.raises(UsageError, match=reason):
        make_task(name, LABELS, options)


def test_options_of_another_number_of_classes_raise():
    with pytest.raises(ShapeError, match="things"):
        make_task("panoptic", LABELS, {"things": [True]})
    with pytest.raises(ShapeError, match="category_ids"):
        make_task("instances", LABELS, {"category_ids": [1]})
