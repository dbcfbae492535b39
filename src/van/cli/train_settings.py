"""Settings of ``van train`` beside the flags: ``--set NAME=VALUE``, and those of the run that --resume continues."""

import dataclasses
import itertools
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from van.cli.arguments import ANY, Flag, list_flags
from van.errors import DataError, UsageError
from van.recipes import recipe_name


def list_hidden_flags(settings_class: Any) -> dict[str, Flag]:
    """List the rarely used settings, which have no flag of their own, by name."""
    visible = {flag.name for flag in list_flags(settings_class)}
    return {flag.name: flag for flag in list_flags(settings_class, hidden=True) if flag.name not in visible}


def split_set_options(arguments: Sequence[str], hidden: Mapping[str, Flag]) -> tuple[list[str], dict[str, Any]]:
    """Separate ``--set NAME=VALUE`` from the other arguments.

    Args:
        arguments: those of the recipe.
        hidden: name to setting, as ``list_hidden_flags`` returns them.

    Returns:
        The other arguments, and name to value.

    Raises:
        UsageError: no such setting, or a value of another type.
    """
    rest: list[str] = []
    changes: dict[str, Any] = {}
    remaining = iter(arguments)
    for argument in remaining:
        if argument != "--set" and not argument.startswith("--set="):
            rest.append(argument)
            continue
        text = next(remaining, "") if argument == "--set" else argument.removeprefix("--set=")
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if name not in hidden or not equals:
            raise UsageError(f"--set: expected NAME=VALUE with NAME one of {', '.join(hidden)}, got {text!r}")
        changes[name] = _convert(hidden[name], value)
    return rest, changes


def _convert(flag: Flag, text: str) -> Any:
    """Convert a value of ``--set``; a setting with several values takes them with commas between."""
    several = flag.count == ANY
    for value in text.split(",") if several else [text]:
        expected = flag.check_value(value)
        if expected:
            expected = "integers such as 8,11" if several else expected
            raise UsageError(f"--set {flag.name}: expected {expected}, got {text!r}")
    return tuple(flag.kind(value) for value in text.split(",")) if several else flag.kind(text)


def replace_settings(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Return the settings with some fields replaced, their own or those of nested dataclasses."""
    replaced: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            replaced[field.name] = replace_settings(value, changes)
        elif field.name in changes:
            replaced[field.name] = changes[field.name]
    return dataclasses.replace(settings, **replaced)


def load_stored_settings(settings_class: Any, arguments: Sequence[str]) -> Any:
    """With --resume, return the settings of the run in --out, so that no flag has to be repeated; else None.

    Raises:
        UsageError: the run is one of another recipe.
        DataError: its settings.json is damaged.
    """
    out = _find_out(arguments)
    if "--resume" not in arguments or out is None:
        return None
    path = out / "settings.json"
    if not path.exists():
        print(f"--resume: {out} holds no run yet; starting a new one", file=sys.stderr)
        return None
    try:
        recipe = dict(json.loads(path.read_text(encoding="utf-8"))["recipe"])
        expected = recipe_name(settings_class)
        if recipe.get("recipe") != expected:
            raise UsageError(
                f"--resume: {out} holds a run of another recipe: expected {expected}, got {recipe.get('recipe')}"
            )
        return _from_flat(settings_class, {**recipe, "out": out, "resume": True})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), so the run cannot be resumed; start a new run in another --out"
        ) from error


def _find_out(arguments: Sequence[str]) -> Path | None:
    """Return the value of --out before the other flags are parsed: they need the stored settings as defaults."""
    given = [value for flag, value in itertools.pairwise(arguments) if flag == "--out"]
    given += [argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out=")]
    return Path(given[-1]) if given else None


def _from_flat(settings_class: Any, values: dict[str, Any]) -> Any:
    """Build settings from one flat dictionary, as settings.json stores them."""
    hints = get_type_hints(settings_class)
    fields = {}
    for field in dataclasses.fields(settings_class):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            fields[field.name] = _from_flat(kind, values)
        elif field.name in values:
            fields[field.name] = _from_json(kind, values[field.name])
    return settings_class(**fields)


def _from_json(kind: Any, value: Any) -> Any:
    """Restore the types that JSON does not have: tuples and paths."""
    if isinstance(value, list):
        return tuple(value)
    is_path = kind is Path or (isinstance(kind, types.UnionType) and Path in kind.__args__)
    return Path(value) if is_path and value is not None else value
