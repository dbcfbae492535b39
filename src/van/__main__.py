"""``python -m van``: the command line, for ``torchrun -m van`` and where scripts are not on the path."""

from van.cli.main import command_line

command_line()
