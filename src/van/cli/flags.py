"""The flags of a settings dataclass as data: for --help, for error messages and for shell completion."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

ANY = -1
"""``Flag.count`` of an option that takes any number of values."""

_TYPE_NAMES: Mapping[Any, str] = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
_EXPECTED: Mapping[Any, str] = {int: "an integer", float: "a number"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One option or positional argument of a command."""

    name: str
    """The field's name, such as batch_size."""
    option: str
    """What users type, such as --batch-size; empty for a positional argument."""
    metavar: str = ""
    """What follows the option in --help, such as INT; the name of a positional argument."""
    help: str = ""
    count: int = 1
    """How many values it takes: 0 for a switch, or ``ANY``."""
    kind: Any = str
    """The type of one value."""
    choices: tuple[str, ...] = ()
    completions: tuple[str, ...] = ()
    """What a shell completes beside ``choices``, which are the only valid values."""
    required: bool = False
    default: Any = None

    @property
    def label(self) -> str:
        """The option with its metavar, as --help shows it."""
        return f"{self.option} {self.metavar}".strip()

    @property
    def takes_path(self) -> bool:
        """Whether its values are completed from file names; positional arguments may be file names, too."""
        return self.kind is Path or (not self.option and not self.choices)

    def describe_default(self) -> str:
        """Return ``(required)``, ``(default: 64)``, or nothing where "not given" has no value to show."""
        if self.required:
            return "(required)"
        if self.count == 0 or self.default in (None, (), ""):
            return ""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return f"(default: {' '.join(map(str, values))})"

    def check_value(self, value: str) -> str:
        """Return what is expected instead of ``value``, or nothing where it is valid."""
        if self.choices:
            return "" if value in self.choices else f"one of {', '.join(self.choices)}"
        if self.kind in (int, float):
            try:
                self.kind(value)
            except ValueError:
                return _EXPECTED[self.kind]
        return ""


def list_flags(settings: Any, default: Any = None, *, hidden: bool = False) -> list[Flag]:
    """List the flags of a settings dataclass; fields of nested dataclasses count as its own.

    Args:
        settings: the dataclass.
        default: an instance that gives the default values.
        hidden: also list fields that ``tyro.conf.Suppress`` gives no flag.
    """
    hints = typing.get_type_hints(settings, include_extras=True)
    docs = _field_docs(settings)
    flags: list[Flag] = []
    for field in dataclasses.fields(settings):
        kind, *extras = _unwrap_annotated(hints[field.name])
        if tyro.conf.Suppress in extras and not hidden:
            continue
        value = _default_of(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(kind):
            flags += list_flags(kind, None if value is dataclasses.MISSING else value, hidden=hidden)
        else:
            flags.append(_flag_of(field.name, kind, extras, value, docs.get(field.name, "")))
    return flags


def _flag_of(name: str, kind: Any, extras: Sequence[Any], value: Any, doc: str) -> Flag:
    """Build the flag of one field."""
    argument = next((extra for extra in extras if hasattr(extra, "metavar")), None)
    option = "--" + (getattr(argument, "name", None) or name).replace("_", "-")
    metavar = getattr(argument, "metavar", None) or ""
    positional = tyro.conf.Positional in extras
    if kind is bool:
        option = option if value is not True else f"--no-{option[2:]}"
        return Flag(name=name, option=option, help=doc, count=0, kind=bool, default=value)
    scalar, count = _value_type(kind)
    choices = tuple(map(str, typing.get_args(scalar))) if typing.get_origin(scalar) is Literal else ()
    shown = f"{{{','.join(choices)}}}" if choices else _TYPE_NAMES.get(scalar, "VALUE")
    shown = f"[{shown} ...]" if count == ANY else " ".join([shown] * count)
    hint = getattr(argument, "help_behavior_hint", None)
    return Flag(
        name=name,
        option="" if positional else option,
        metavar=metavar or (name.upper() if positional else shown),
        help=doc,
        count=count,
        kind=scalar,
        choices=choices,
        required=value is dataclasses.MISSING or hint == "(required)",
        default=None if value is dataclasses.MISSING else value,
    )


def _value_type(kind: Any) -> tuple[Any, int]:
    """Return the type of one value, and how many values: ``tuple[float, float] | None`` is (float, 2)."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(member for member in typing.get_args(kind) if member is not type(None))
    if typing.get_origin(kind) is tuple:
        members = typing.get_args(kind)
        return members[0], ANY if members[-1] is Ellipsis else len(members)
    return kind, 1


def _unwrap_annotated(hint: Any) -> tuple[Any, ...]:
    """Split ``Annotated[T, ...]`` into T and its metadata."""
    metadata = getattr(hint, "__metadata__", None)
    return (hint,) if metadata is None else (typing.get_args(hint)[0], *metadata)


def _default_of(field: "dataclasses.Field[Any]") -> Any:
    factory: Callable[[], Any] | Any = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def _field_docs(settings: Any) -> dict[str, str]:
    """Read the string below each field, of a dataclass and its bases, from the source."""
    docs: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs
