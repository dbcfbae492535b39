"""Settings dataclasses built from flat values, where nested fields go by their own names; checks of options."""

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from van.errors import UsageError

Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True)
class Positional:
    """Makes a field a positional argument of the command line: ``model: Annotated[str, Positional("MODEL")]``.

    ``required`` demands at least one value of a field with several.
    """

    metavar: str
    required: bool = False


@dataclasses.dataclass(frozen=True)
class Choices:
    """Limits a field to the names that ``list_names`` returns: ``head: Annotated[str, Choices(list_heads)]``.

    Unlike ``Literal`` it takes what other packages have registered.
    """

    list_names: Callable[[], Sequence[str]]


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return the default value of a field, ``dataclasses.MISSING`` if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def build_settings(kind: type[Settings], values: Mapping[str, Any], default: Settings | None = None) -> Settings:
    """Build settings from the values of their fields and those of nested dataclasses.

    Lists become tuples and the names of files paths, so that values may come from JSON. Values of other names are
    ignored, and fields without a value keep that of ``default``, or their own.

    Raises:
        TypeError: a field without a default is missing.
    """
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    fields: Any = dataclasses.fields(kind)  # pyrefly: ignore[bad-argument-type] - a dataclass
    for field in fields:
        if dataclasses.is_dataclass(hints[field.name]):
            nested = default_of(field) if default is None else getattr(default, field.name)
            nested = None if nested is dataclasses.MISSING else nested
            given[field.name] = build_settings(hints[field.name], values, nested)
        elif field.name in values:
            value = values[field.name]
            is_path = isinstance(value, str) and hints[field.name] in (Path, Path | None)
            given[field.name] = Path(value) if is_path else tuple(value) if isinstance(value, list) else value
    replaced: Any = default
    return kind(**given) if default is None else dataclasses.replace(replaced, **given)


def field_names(kind: Any) -> list[str]:
    """Return the names of the fields, and of those of nested dataclasses."""
    hints = typing.get_type_hints(kind)
    names = [
        field_names(hints[field.name]) if dataclasses.is_dataclass(hints[field.name]) else [field.name]
        for field in dataclasses.fields(kind)
    ]
    return [name for several in names for name in several]


def check_at_least(minimum: int, **values: float | None) -> None:
    """Check options by name; None is not given.

    Raises:
        UsageError: a value is less than ``minimum``.
    """
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise UsageError(f"{name}: expected at least {minimum}, got {value}")


def check_suffix(suffixes: str | tuple[str, ...], **paths: str | Path | None) -> None:
    """Check file names by option; None is not given.

    Raises:
        UsageError: a name has none of the suffixes.
    """
    first = suffixes if isinstance(suffixes, str) else suffixes[0]
    for name, path in paths.items():
        if path is not None and not str(path).lower().endswith(suffixes):
            raise UsageError(f"{name}: expected a file name ending in {first}, got {path}")


def check_folder(**paths: str | Path | None) -> None:
    """Check folders to write to, by option; they need not exist yet, and None is not given.

    Raises:
        UsageError: one is a file, or not writable.
    """
    for name, path in paths.items():
        if path is None:
            continue
        existing = next(parent for parent in (Path(path), *Path(path).absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise UsageError(f"{name}: expected a folder, got {path} with the file {existing}")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UsageError(f"{name}: {existing} is not writable; choose another folder than {path}")
