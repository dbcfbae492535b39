"""All commands of ``van``, for shell completion and for tests; importing them does not import torch."""

import importlib
from typing import Any

from van.cli.arguments import Command
from van.cli.verbs import VERBS


def list_commands() -> dict[str, Command[Any]]:
    """List every verb without sub-commands, every recipe and every sub-command by its path, such as ``bench ops``.

    A verb's module has ``COMMAND``, or ``SUBCOMMANDS`` with a command for each name; ``van train`` has its recipes.
    """
    commands: list[Command[Any]] = []
    for verb in VERBS:
        module = importlib.import_module(f"van.cli.{verb}")
        if verb == "train":
            commands += [module.make_command(name) for name in module.RECIPES]
        elif hasattr(module, "SUBCOMMANDS"):
            commands += [command for command, _ in module.SUBCOMMANDS.values()]
        else:
            commands.append(module.COMMAND)
    return {command.path: command for command in commands}
