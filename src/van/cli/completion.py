"""``van completion SHELL``: the completion script for bash, zsh or fish, with every verb, recipe, option and choice.

The scripts are made from the list of commands and hold all names themselves: completing starts no Python.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from van.cli.arguments import OUTPUT, Command, parse
from van.cli.completion_scripts import write_bash, write_fish, write_zsh
from van.cli.verbs import VERBS
from van.settings import Positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionSettings:
    """Flags of ``van completion``."""

    shell: Annotated[Literal["bash", "zsh", "fish"], Positional("SHELL")]
    """bash, zsh or fish; the script is printed on standard output."""


COMMAND = Command(
    "completion",
    CompletionSettings,
    summary=VERBS["completion"],
    details="Source the script in the shell's startup file, or save it where the shell finds completions.",
    examples=(
        "van completion bash > ~/.local/share/bash-completion/completions/van",
        "van completion zsh > ~/.zfunc/_van",
        "van completion fish > ~/.config/fish/completions/van.fish",
    ),
    groups={OUTPUT: ("shell",)},
)


def run(arguments: Sequence[str]) -> int:
    """Print the script."""
    settings = parse(COMMAND, arguments)
    from van.cli.commands import list_commands

    write = {"bash": write_bash, "zsh": write_zsh, "fish": write_fish}[settings.shell]
    from van.recipes import ALIASES

    commands = list_commands()
    commands |= {f"train {alias}": commands[f"train {recipe}"] for alias, recipe in ALIASES.items()}
    print(write(commands, list_names(commands)), end="")
    return 0


def list_names(commands: Mapping[str, Command[Any]]) -> dict[str, dict[str, str]]:
    """Return what may follow ``van`` (under an empty path) and each verb that has sub-commands, with summaries."""
    names: dict[str, dict[str, str]] = {"": dict(VERBS)}
    for path, command in commands.items():
        verb, _, name = path.partition(" ")
        if name:
            names.setdefault(verb, {})[name] = command.summary
    return names
