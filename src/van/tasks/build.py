"""A task from what a checkpoint says of it."""

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
"""Tasks by name, as checkpoints and ``van eval --json`` call them."""


def make_task(name: str, labels: Sequence[str], options: Mapping[str, Any] | None = None) -> Task:
    """The task ``name`` over ``labels``.

    Args:
        name: one of ``TASKS``.
        labels: class names, in the order of the network's outputs.
        options: what ``Task.options`` was.

    Raises:
        UsageError: there is no task of that name, or it has no such option, or one is missing.
    """
    given = dict(options or {})
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}; known: {', '.join(TASKS)}")
    if unknown := sorted(set(given) - set(_OPTIONS[name])):
        raise UsageError(f"{name} has no option {', '.join(unknown)}; known: {', '.join(_OPTIONS[name]) or 'none'}")
    if name == "classify":
        from van.tasks.classify import Classify

        return Classify(labels, **given)
    if name in ("detect", "instances"):
        from van.tasks.detect import Detect

        return Detect(labels, masks=name == "instances", **given)
    if name == "segment":
        from van.tasks.segment import Segment

        return Segment(labels, **given)
    from van.tasks.panoptic import Panoptic

    if "things" not in given:
        raise UsageError("panoptic lacks the option things; wanted for each class whether it is countable")
    return Panoptic(labels, **given)
