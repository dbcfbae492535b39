"""The text of --help: usage, summary, flags under headings, examples."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from van.cli.arguments import Flag

_WIDEST = 110
_HELP_COLUMN = 30


def format_help(
    usage: str, summary: str, details: str, grouped: "Mapping[str, Sequence[Flag]]", examples: Sequence[str]
) -> str:
    """Lay out --help of one command, as wide as the terminal, at most 110 characters.

    Args:
        usage: the command, such as ``van train digits``.
        summary: one sentence.
        details: further paragraphs; one that starts with a space is not wrapped.
        grouped: heading to flags.
        examples: command lines, never wrapped, so that they can be copied.
    """
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns - 1, _WIDEST))
    flags = [flag for members in grouped.values() for flag in members]
    required = [flag.label for flag in flags if flag.option and flag.required]
    positional = [flag.metavar for flag in flags if not flag.option]
    lines = [" ".join(["usage:", usage, *positional, *required, "[OPTIONS]"])]
    for paragraph in (f"{summary}.", *filter(None, details.split("\n\n"))):
        lines += ["", *([paragraph] if paragraph.startswith(" ") else textwrap.wrap(paragraph, width))]
    for title, members in grouped.items():
        lines += ["", f"{title}:"]
        for flag in members:
            lines += _flag_lines(flag, width)
    lines += ["", "Help:", f"  {'-h, --help':<{_HELP_COLUMN - 2}}Show this help and exit."]
    return "\n".join([*lines, "", "Examples:", *(f"  {example}" for example in examples)])


def format_list(usage: str, summary: str, entries: Mapping[str, str], examples: Sequence[str], *, title: str) -> str:
    """Lay out --help of a command that is followed by another name: its sub-commands or recipes, and examples."""
    longest = max(map(len, entries)) + 2
    listed = [f"  {name:<{longest}}{text}" for name, text in entries.items()]
    usage_line = f"usage: {usage}"
    return "\n".join(
        [usage_line, "", summary, "", f"{title}:", *listed, "", "Examples:", *(f"  {e}" for e in examples)]
    )


def _flag_lines(flag: "Flag", width: int) -> list[str]:
    """Lay out one flag: its label, and its help text in a column of its own."""
    default = flag.describe_default().replace(" ", "\N{NO-BREAK SPACE}")  # never broken over two lines
    wrapped = textwrap.wrap(
        f"{flag.help} {default}".strip(), width - _HELP_COLUMN, break_on_hyphens=False, break_long_words=False
    ) or [""]
    wrapped = [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]
    head = f"  {flag.label}"
    if len(head) + 2 > _HELP_COLUMN:
        return [head, *(" " * _HELP_COLUMN + line for line in wrapped)]
    return [f"{head:<{_HELP_COLUMN}}{wrapped[0]}", *(" " * _HELP_COLUMN + line for line in wrapped[1:])]
