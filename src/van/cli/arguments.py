"""Commands with flags: settings dataclasses read from the command line, with --help and errors of one line.

Each verb, recipe and sub-command is a ``Command`` beside its settings dataclass. How to add a flag:

1. add a field to the dataclass, with its help text as the string below it;
2. add the field's name to one of the command's ``groups``, which are the headings of --help::

       COMMAND = Command(
           "predict",
           PredictSettings,
           summary="Predict classes, boxes, masks or maps of images.",
           examples=("van predict van_b2 cat.jpg", ...),
           groups={INPUT: ("model", "images"), RUNTIME: ("batch_size", "device")},
       )

Fields of nested dataclasses (``train: TrainSettings``) are flags of their own and are grouped by their own names.
``tests/cli/test_help.py`` checks that every flag has a group and every command at least three examples.
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from van.cli.help import format_help, format_list
from van.cli.suggestions import OPTIONS, did_you_mean, suggest, unknown_name
from van.cli.verbs import VERBS
from van.errors import UsageError
from van.settings import Choices, Positional, build_settings, default_of

INPUT, DATA, MODEL, OUTPUT = "Input", "Data", "Model", "Output"
TRAINING, OPTIMIZATION = "Training", "Optimization"
AUGMENTATION, REGULARIZATION = "Augmentation", "Regularization"
RUNTIME, SYSTEM, DISPLAY = "Runtime", "System", "Display"

Settings = TypeVar("Settings")


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

    def convert(self, value: str) -> Any:
        """Return a valid value in its type; a ``Literal`` gives the member of that text."""
        if typing.get_origin(self.kind) is Literal:
            return typing.get_args(self.kind)[self.choices.index(value)]
        return self.kind(value)


@dataclasses.dataclass(frozen=True)
class Command(Generic[Settings]):
    """A verb, recipe or sub-command: its settings, and what --help shows of it."""

    path: str
    """The words after ``van``, such as ``train digits``."""
    settings: type[Settings]
    """The dataclass of its flags."""
    _: dataclasses.KW_ONLY
    summary: str
    """One sentence; a list of commands shows it, too."""
    details: str = ""
    """More about it, for --help only."""
    examples: tuple[str, ...]
    """Command lines that work as they stand, at least three."""
    groups: Mapping[str, tuple[str, ...]]
    """Heading to the names of its fields, in the order of --help."""

    def flags(self, default: Any = None) -> list[Flag]:
        """List its options and positional arguments; ``default`` is an instance that gives the default values."""
        return list_flags(self.settings, default)

    def grouped_flags(self) -> dict[str, list[Flag]]:
        """Sort its flags under their headings; ``Other options`` has those that no group names."""
        flags = {flag.name: flag for flag in self.flags()}
        grouped = {title: [flags.pop(name) for name in names if name in flags] for title, names in self.groups.items()}
        grouped["Other options"] = list(flags.values())
        return {title: members for title, members in grouped.items() if members}

    def error(self, message: str) -> UsageError:
        """Return an error that ends with a reference to --help."""
        return UsageError(f'{message} See "van {self.path} --help"')


def parse(command: Command[Settings], arguments: Sequence[str], *, default: Any = None) -> Settings:
    """Read ``arguments`` into the command's settings; --help prints and ends the process with status 0.

    Args:
        command: what to read.
        arguments: those after the command's path.
        default: settings of an earlier run, whose values replace the defaults.

    Raises:
        UsageError: an option is unknown, missing or has a wrong value, or the dataclass rejects a value.
    """
    options = itertools.takewhile(lambda argument: argument != "--", arguments)
    if any(argument in ("-h", "--help") for argument in options):
        usage, groups = f"van {command.path}", command.grouped_flags()
        print(format_help(usage, command.summary, command.details, groups, command.examples))
        sys.stdout.flush()
        raise SystemExit(0)
    return build_settings(command.settings, _read_values(command, arguments, default), default)


Subcommands = Mapping[str, tuple[Command[Any], Callable[[Sequence[str]], int]]]
"""Name of a sub-command to its flags and the function that runs it."""


def run_subcommand(verb: str, subcommands: Subcommands, arguments: Sequence[str]) -> int:
    """Run the sub-command that the first argument names, or list all of them, and return the exit status.

    Raises:
        UsageError: there is no such sub-command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        entries = {name: command.summary for name, (command, _) in subcommands.items()}
        examples = [command.examples[-1] for command, _ in subcommands.values()]
        usage = f"van {verb} SUBCOMMAND [OPTIONS]"
        print(format_list(usage, VERBS[verb], entries, examples, title="Sub-commands"))
        print(f'\nSee "van {verb} SUBCOMMAND --help" for the options of one.')
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in subcommands:
        raise UsageError(unknown_name("sub-command", name, subcommands, {}, of=f"van {verb}"))
    return subcommands[name][1](rest)


def _read_values(command: Command[Any], arguments: Sequence[str], default: Any) -> dict[str, Any]:
    """Return the values of the fields that the arguments set, by field name."""
    flags = command.flags(default)
    options = {flag.option: flag for flag in flags if flag.option}
    if default is not None:  # a switch may be on in the stored settings, so that both --x and --no-x are needed
        switches = [flag for flag in flags if flag.count == 0]
        options = {
            f"{sign}{flag.name.replace('_', '-')}": flag for sign in ("--", "--no-") for flag in switches
        } | options
    values: dict[str, Any] = {}
    positional: list[str] = []
    remaining = deque(arguments)
    while remaining:
        argument = remaining.popleft()
        if argument == "--":  # all that follows is positional, such as a file name that starts with a dash
            positional += remaining
            break
        if not _is_option(argument):
            positional.append(argument)
            continue
        name, equals, value = argument.partition("=")
        option = f"--{name[2:].replace('_', '-')}" if name.startswith("--") else name
        if option not in options:
            raise UsageError(_unknown_option(command, name, options, flags))
        flag = options[option]
        given = [value] if equals else []
        while remaining and not _is_option(remaining[0]) and (flag.count == ANY or len(given) < flag.count):
            given.append(remaining.popleft())
        if flag.count == 0 and given:
            raise command.error(f"{option}: expected no value, got {given[0]!r}.")
        if flag.count > 0 and len(given) != flag.count:
            number = "one value" if flag.count == 1 else f"{flag.count} values"
            raise command.error(f"{option}: expected {number} ({flag.metavar}), got {' '.join(given) or 'none'}.")
        converted = tuple(_convert(command, flag, option, text) for text in given)
        switch = not option.startswith("--no-")
        values[flag.name] = switch if flag.count == 0 else converted[0] if flag.count == 1 else converted
    values |= _read_positional(command, [flag for flag in flags if not flag.option], positional)
    for flag in flags:
        if flag.option and flag.required and flag.name not in values and default is None:
            raise command.error(f"missing required option {flag.option}: expected {flag.label}, got none.")
    return values


def _is_option(argument: str) -> bool:
    """Whether an argument starts an option: a dash alone is standard input, and negative numbers are values."""
    if not argument.startswith("-") or argument == "-":
        return False
    try:
        float(argument)
    except ValueError:
        return True
    return False


def _convert(command: Command[Any], flag: Flag, label: str, text: str) -> Any:
    expected = flag.check_value(text)
    if expected:
        hint = did_you_mean(suggest(text, flag.choices, {}))
        raise command.error(f"{label}: expected {expected}, got {text!r}{hint}.")
    return flag.convert(text)


def _read_positional(command: Command[Any], flags: Sequence[Flag], texts: Sequence[str]) -> dict[str, Any]:
    """Match positional values with their arguments; the last argument may take any number."""
    single = [flag for flag in flags if flag.count == 1]
    for flag in single[len(texts) :]:
        raise command.error(f"missing argument {flag.metavar}: expected one, got none.")
    extra = texts[len(single) :]
    if extra and len(flags) == len(single):
        expected = f"only {' '.join(flag.metavar for flag in flags)}" if flags else "options only"
        raise command.error(f'unexpected argument {extra[0]!r} for "van {command.path}": expected {expected}.')
    values = {flag.name: _convert(command, flag, flag.metavar, text) for flag, text in zip(single, texts, strict=False)}
    return values | {flag.name: tuple(map(flag.convert, extra)) for flag in flags if flag.count == ANY}


def _unknown_option(command: Command[Any], name: str, options: Mapping[str, Flag], flags: Sequence[Flag]) -> str:
    option = name.replace("_", "-")
    positional = [flag.metavar for flag in flags if not flag.option]
    similar = suggest(option, [*options, *positional], OPTIONS)
    similar = [f"the argument {name}" if name in positional else name for name in similar]
    hint = did_you_mean(similar) or (f": expected one of {', '.join(options)}." if len(options) < 6 else ".")
    return f'unknown option {name} for "van {command.path}"{hint} See "van {command.path} --help"'


def list_flags(settings: Any, default: Any = None) -> list[Flag]:
    """List the flags of a settings dataclass; fields of nested dataclasses count as its own.

    Args:
        settings: the dataclass.
        default: an instance that gives the default values.
    """
    hints = typing.get_type_hints(settings, include_extras=True)
    docs = _field_docs(settings)
    flags: list[Flag] = []
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        extras = getattr(hint, "__metadata__", ())  # of Annotated
        kind = typing.get_args(hint)[0] if extras else hint
        value = default_of(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(kind):
            flags += list_flags(kind, None if value is dataclasses.MISSING else value)
        else:
            marker = next((extra for extra in extras if isinstance(extra, Positional)), None)
            choices = next((tuple(extra.list_names()) for extra in extras if isinstance(extra, Choices)), ())
            flags.append(_flag_of(field.name, kind, marker, value, docs.get(field.name, ""), choices=choices))
    return flags


def _flag_of(
    name: str, kind: Any, marker: Positional | None, value: Any, doc: str, *, choices: tuple[str, ...]
) -> Flag:
    """Build the flag of one field."""
    option = "--" + name.replace("_", "-")
    if kind is bool:
        option = option if value is not True else f"--no-{option[2:]}"
        return Flag(name=name, option=option, help=doc, count=0, kind=bool, default=value)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:  # of a type and None
        kind = next(member for member in typing.get_args(kind) if member is not type(None))
    count = 1
    if typing.get_origin(kind) is tuple:
        members = typing.get_args(kind)  # tuple[float, float] has two values, tuple[float, ...] any number
        kind, count = members[0], ANY if members[-1] is Ellipsis else len(members)
    if typing.get_origin(kind) is Literal:
        choices = tuple(map(str, typing.get_args(kind)))
    shown = f"{{{','.join(choices)}}}" if choices else _TYPE_NAMES.get(kind, "VALUE")
    shown = f"[{shown} ...]" if count == ANY else " ".join([shown] * count)
    return Flag(
        name=name,
        option="" if marker else option,
        metavar=marker.metavar if marker else shown,
        help=doc,
        count=count,
        kind=kind,
        choices=choices,
        required=value is dataclasses.MISSING or (marker is not None and marker.required),
        default=None if value is dataclasses.MISSING else value,
    )


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
