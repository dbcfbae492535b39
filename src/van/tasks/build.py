"""Construction of a task from its name, class names and options, as a checkpoint stores them."""

from collections.abc import Mapping, Sequence
from typing import Any

from van.errors import UsageError
from van.tasks.base import Task

_OPTIONS = {
    "classify": (),
    "detect": ("category_ids", "min_score"),
    "instances": ("category_ids", "min_score"),
    "segment": (),
    "panoptic": ("things",),
}
TASKS = tuple(_OPTIONS)
"""Task names, as in checkpoints and in the output of ``van eval --json``."""


def make_task(name: str, class_names: Sequence[str], options: Mapping[str, Any] | None = None) -> Task:
    """Return the task ``name`` for the given classes.

    Args:
        name: one of ``TASKS``.
        class_names: class names, in the order of the network's outputs.
        options: the ``Task.options`` to restore.

    Raises:
        UsageError: there is no such task, it has no such option, or a required option is missing.
    """
    given = dict(options or {})
    if name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    if unknown := sorted(set(given) - set(_OPTIONS[name])):
        known = ", ".join(_OPTIONS[name]) or "none"
        raise UsageError(f"options of task {name}: expected {known}, got {', '.join(unknown)}")
    if name == "classify":
        from van.tasks.classification import ClassificationTask

        return ClassificationTask(class_names, **given)
    if name in ("detect", "instances"):
        from van.tasks.detection import DetectionTask

        return DetectionTask(class_names, masks=name == "instances", **given)
    if name == "segment":
        from van.tasks.segmentation import SegmentationTask

        return SegmentationTask(class_names, **given)
    from van.tasks.panoptic import PanopticTask

    if "things" not in given:
        raise UsageError("options of task panoptic: things is missing; expected a bool per class: True if countable")
    return PanopticTask(class_names, **given)
