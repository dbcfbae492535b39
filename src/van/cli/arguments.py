"""Commands with flags: settings dataclasses read by tyro, with our own --help and one-line errors.

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

import contextlib
import dataclasses
import io
import itertools
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import tyro

from van.cli.flags import ANY, Flag, list_flags
from van.cli.help import format_help, format_list
from van.cli.suggestions import OPTIONS, did_you_mean, suggest, unknown_name
from van.cli.verbs import VERBS
from van.errors import UsageError, VanError

INPUT, DATA, MODEL, OUTPUT = "Input", "Data", "Model", "Output"
TRAINING, OPTIMIZATION = "Training", "Optimization"
AUGMENTATION, REGULARIZATION = "Augmentation", "Regularization"
RUNTIME, SYSTEM, DISPLAY = "Runtime", "System", "Display"


Settings = TypeVar("Settings")


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
    extra_flags: tuple[Flag, ...] = ()
    """Options that the caller of ``parse`` reads itself; listed in ``groups`` by their names."""
    replacements: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Options that do not exist here, and what to write instead; for error messages."""

    def flags(self, default: Any = None) -> list[Flag]:
        """List its options and positional arguments; ``default`` is an instance that gives the default values."""
        return [*list_flags(self.settings, default), *self.extra_flags]

    def grouped_flags(self) -> dict[str, list[Flag]]:
        """Sort its flags under their headings; ``Other options`` has those that no group names."""
        flags = {flag.name: flag for flag in self.flags()}
        grouped = {title: [flags.pop(name) for name in names if name in flags] for title, names in self.groups.items()}
        grouped["Other options"] = list(flags.values())
        return {title: members for title, members in grouped.items() if members}


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
        print(
            format_help(
                f"van {command.path}", command.summary, command.details, command.grouped_flags(), command.examples
            )
        )
        sys.stdout.flush()
        raise SystemExit(0)
    _check_arguments(command, arguments, default)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            return tyro.cli(
                command.settings,
                prog=f"van {command.path}",
                args=list(arguments),
                default=default,
                # with stored settings a switch may be on by default, so that both --x and --no-x are needed
                config=(tyro.conf.OmitArgPrefixes, *([tyro.conf.FlagCreatePairsOff] if default is None else [])),
                use_underscores=False,
            )
    except VanError:
        raise
    except SystemExit as ending:  # an error that _check_arguments does not know
        lines = [line.strip(" │╭╮╰╯─") for line in printed.getvalue().splitlines()]
        raise UsageError(f"{'; '.join(filter(None, lines))}. {_see(command)}") from ending


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


def _check_arguments(command: Command[Any], arguments: Sequence[str], default: Any) -> None:
    """Reject the first argument that tyro would reject, with a message of one line."""
    flags = command.flags(default)
    options = {flag.option: flag for flag in flags if flag.option}
    if default is not None:
        opposites = {_opposite(flag.option): flag for flag in flags if flag.count == 0}
        options = {**opposites, **options}
    given: set[str] = set()
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
        given.add(flag.name)
        values = [value] if equals else []
        values += _take_values(remaining, flag.count if flag.count == ANY else flag.count - len(values))
        _check_values(command, flag, option, values)
    _check_positional(command, [flag for flag in flags if not flag.option], positional)
    for flag in flags:
        if flag.option and flag.required and flag.name not in given and default is None:
            raise UsageError(f"missing required option {flag.option}: expected {flag.label}, got none. {_see(command)}")


def _take_values(remaining: deque[str], count: int) -> list[str]:
    """Remove and return up to ``count`` values (any number for ``ANY``), up to the next option."""
    values: list[str] = []
    while remaining and not _is_option(remaining[0]) and (count == ANY or len(values) < count):
        values.append(remaining.popleft())
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


def _opposite(option: str) -> str:
    return f"--{option[5:]}" if option.startswith("--no-") else f"--no-{option[2:]}"


def _check_values(command: Command[Any], flag: Flag, option: str, values: Sequence[str]) -> None:
    if flag.count == 0 and values:
        raise UsageError(f"{option}: expected no value, got {values[0]!r}. {_see(command)}")
    if flag.count > 0 and len(values) != flag.count:
        number = "one value" if flag.count == 1 else f"{flag.count} values"
        got = " ".join(values) or "none"
        raise UsageError(f"{option}: expected {number} ({flag.metavar}), got {got}. {_see(command)}")
    for value in values:
        _check_value(command, flag, option, value)


def _check_value(command: Command[Any], flag: Flag, label: str, value: str) -> None:
    expected = flag.check_value(value)
    if expected:
        hint = did_you_mean(suggest(value, flag.choices, {}))
        raise UsageError(f"{label}: expected {expected}, got {value!r}{hint}. {_see(command)}")


def _check_positional(command: Command[Any], flags: Sequence[Flag], values: Sequence[str]) -> None:
    """Match positional values with their arguments; the last argument may take any number."""
    single = [flag for flag in flags if flag.count == 1]
    for flag in single[len(values) :]:
        if flag.required:
            raise UsageError(f"missing argument {flag.metavar}: expected one, got none. {_see(command)}")
    extra = values[len(single) :]
    if extra and len(flags) == len(single):
        expected = f"only {' '.join(flag.metavar for flag in flags)}" if flags else "options only"
        raise UsageError(
            f'unexpected argument {extra[0]!r} for "van {command.path}": expected {expected}. {_see(command)}'
        )
    for flag, value in zip(single, values, strict=False):
        _check_value(command, flag, flag.metavar, value)


def _unknown_option(command: Command[Any], name: str, options: Mapping[str, Flag], flags: Sequence[Flag]) -> str:
    option = name.replace("_", "-")
    if option in command.replacements:
        similar = [command.replacements[option]]
    else:
        positional = [flag.metavar for flag in flags if not flag.option]
        similar = suggest(option, [*options, *positional], OPTIONS)
        similar = [f"the argument {name}" if name in positional else name for name in similar]
    hint = did_you_mean(similar) or (f": expected one of {', '.join(options)}." if len(options) < 6 else ".")
    return f'unknown option {name} for "van {command.path}"{hint} {_see(command)}'


def _see(command: Command[Any]) -> str:
    return f'See "van {command.path} --help"'
