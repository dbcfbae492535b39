"""Write the CLI reference from the commands themselves: ``python scripts/cli_reference.py docs/cli.md``."""

import sys
from pathlib import Path

from van.cli.arguments import Command, Flag
from van.cli.commands import list_commands
from van.cli.verbs import VERBS

HEAD = """\
# CLI reference

`van VERB --help` prints the same text in a terminal. Exit status: 0 done, 1 failed, 2 bad usage. Unknown verbs, recipes
and options are rejected with a suggestion. This page is generated from the commands by `make docs`.

| verb | |
|---|---|
"""


def escape(text: str) -> str:
    """Return ``text`` for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")


def row(flag: Flag) -> str:
    """Return the table row of an option or positional argument."""
    label = (flag.label or flag.metavar).replace("|", "\\|")
    return f"| `{label}` | {escape(f'{flag.help} {flag.describe_default()}')} |"


def section(command: Command) -> str:
    """Return the section of a command: summary, a table for each group of options, examples."""
    lines = [f"### van {command.path}", "", escape(command.summary), ""]
    if command.details:
        lines += [escape(command.details), ""]
    lines += ["```text", *command.examples, "```", ""]
    for title, flags in command.grouped_flags().items():
        lines += [f"| {title} | |", "|---|---|", *(row(flag) for flag in flags), ""]
    return "\n".join(lines)


def reference() -> str:
    """Return the page."""
    commands = list_commands()
    parts = [
        HEAD + "\n".join(f"| [`van {verb}`](#van-{verb}) | {escape(text)} |" for verb, text in VERBS.items()) + "\n"
    ]
    for verb, text in VERBS.items():
        own = [command for path, command in commands.items() if path.split()[0] == verb]
        parts.append(f"## van {verb}\n\n{escape(text)}.\n")
        if [command.path for command in own] == [verb]:
            body = section(own[0]).split("\n", 4)[4]
            parts.append(body)
        else:
            parts += [section(command) for command in own]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
