"""The registry of tasks, and their construction from name, class names and options, as a checkpoint stores them.

Ours are imported when they are built, so that tasks can be listed without torch. A package of your own decorates its
class with ``@register_task``, in a module that it names under the entry point group ``van.tasks``.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from van.errors import UsageError
from van.registry import Registry

if TYPE_CHECKING:
    from van.tasks.base import Task

Builder = Callable[..., "Task"]
"""Maps class names and, by keyword, options to a task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A task: its name, as in checkpoints; its builder; the names of its options, of which some are required."""

    name: str
    build: Builder
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


TASKS: Registry[TaskEntry] = Registry("task", group="van.tasks")
"""All tasks by name, as in the output of ``van eval --json``."""


def register_task(name: str, *, options: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Register the decorated class or function as the builder of the task ``name``; arguments as of ``TaskEntry``.

    Raises:
        UsageError: the name is taken.
    """

    def register(build: Any) -> Any:
        TASKS.add(name, TaskEntry(name=name, build=build, options=(*options, *required), required=required))
        return build

    return register


def make_task(name: str, class_names: Sequence[str], options: Mapping[str, Any] | None = None) -> "Task":
    """Return the task ``name`` for the given classes.

    Args:
        name: one of ``TASKS``.
        class_names: class names, in the order of the network's outputs.
        options: the ``Task.options`` to restore.

    Raises:
        UsageError: there is no such task, it has no such option, or a required option is missing.
    """
    entry, given = TASKS.find(name), dict(options or {})
    if unknown := sorted(set(given) - set(entry.options)):
        raise UsageError(
            f"options of task {name}: expected {', '.join(entry.options) or 'none'}, got {', '.join(unknown)}"
        )
    if missing := sorted(set(entry.required) - set(given)):
        raise UsageError(f"options of task {name}: expected {', '.join(entry.required)}, {missing[0]} is missing")
    return entry.build(class_names, **given)


def _import(module: str, name: str, **fixed: Any) -> Builder:
    """Return a builder that imports the task when it is called."""

    def build(class_names: Sequence[str], **options: Any) -> "Task":
        return getattr(importlib.import_module(f"van.tasks.{module}"), name)(class_names, **fixed, **options)

    return build


register_task("classify")(_import("classification", "ClassificationTask"))
register_task("detect", options=("category_ids", "min_score"))(_import("detection", "DetectionTask"))
register_task("instances", options=("category_ids", "min_score"))(_import("detection", "DetectionTask", masks=True))
register_task("segment")(_import("segmentation", "SegmentationTask"))
register_task("panoptic", required=("things",))(_import("panoptic", "PanopticTask"))
