"""The registry of dataset formats. A format is one file: how a folder of it is recognized, and its reader.

Adding a format:

1. write ``van/datasets/my_format.py`` with a reader under ``@register_format``, and import it in
   ``van/datasets/formats.py`` (a package of your own names it under the entry point group ``van.datasets`` instead);
2. add an example of it to ``tests/datasets/examples.py``, which the contract tests read, and its row to
   ``docs/dataset-formats.md``; a test compares the rows with the registry.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from van.datasets.annotations import CLASSES, TASK_TARGETS, AnnotatedDataset, Issues
from van.registry import Registry

Reader = Callable[[Path, str, Issues], AnnotatedDataset]
"""Reads the split ``train`` or ``val`` of a folder that the format recognizes.

Defects go to the issues, with file and location, and what they concern is skipped; ``DataError`` is raised where
nothing can be read.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFormat:
    """A format of datasets.

    Args:
        name: the key in the registry.
        title: for messages and documentation.
        tasks: the tasks that can be trained on it: classify, or keys of ``TASK_TARGETS``.
        files: its files, for messages and documentation; ``{split}`` stands for train or val.
        recognize: whether a folder has the given split in this format, from the names of its files only.
        read: the reader.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    files: str
    recognize: Callable[[Path, str], bool]
    read: Reader

    @property
    def target_types(self) -> tuple[str, ...]:
        """What the format can be read as: classes, boxes, masks, semantic or panoptic."""
        return tuple(TASK_TARGETS.get(task, CLASSES) for task in self.tasks)


FORMATS: Registry[DatasetFormat] = Registry("dataset format", group="van.datasets")
"""All formats by name; where a folder matches several, the first one is read. ``van.datasets.formats`` fills it."""


def register_format(name: str, **description: Any) -> Callable[[Reader], Reader]:
    """Register the decorated reader as the format ``name``; arguments as those of ``DatasetFormat``.

    Raises:
        UsageError: the name is taken.
    """

    def register(read: Reader) -> Reader:
        FORMATS.add(name, DatasetFormat(name=name, read=read, **description))
        return read

    return register
