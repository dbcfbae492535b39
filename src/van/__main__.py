"""``python -m van``: the command line, for ``torchrun -m van`` and for machines without scripts on the path."""

from van.cli.main import command_line

command_line()
