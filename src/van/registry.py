"""Registries: every list of names (heads, dataset formats, runtimes, recipes) is one, and other packages can add to it.

A package outside this one names its module under the registry's entry point group in its ``pyproject.toml``; the module
is imported when the registry is first read, and registers with the same decorator as ours::

    [project.entry-points."van.heads"]
    my_head = "my_package.my_head"
"""

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from van.errors import UsageError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Registered entries by name, in the order of registration; those of other packages come last.

    Args:
        kind: what an entry is, in one or two words, for error messages.
        group: the entry point group of other packages, such as ``van.heads``.
    """

    def __init__(self, kind: str, *, group: str) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def add(self, name: str, entry: Entry) -> Entry:
        """Register ``entry`` and return it.

        Raises:
            UsageError: the name is taken.
        """
        if name in self._entries:
            raise UsageError(f"{self.kind} {name!r} is already registered; expected a new name")
        self._entries[name] = entry
        return entry

    def find(self, name: str) -> Entry:
        """Return the entry of that name.

        Raises:
            UsageError: there is none.
        """
        if name not in self:
            raise UsageError(f"{self.kind}: expected one of {', '.join(self)}, got {name!r}")
        return self[name]

    def __getitem__(self, name: str) -> Entry:
        self._load_entry_points()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load_entry_points()
        return len(self._entries)

    def _load_entry_points(self) -> None:
        if not self._loaded:
            self._loaded = True  # first, because the modules may read the registry
            for entry_point in importlib.metadata.entry_points(group=self.group):
                entry_point.load()
