"""Flags from frozen dataclasses, by tyro, with examples at the end of --help."""

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from van.errors import VanError

Settings = TypeVar("Settings")


def parse(
    settings: type[Settings],
    arguments: Sequence[str],
    *,
    verb: str,
    description: str,
    examples: Sequence[str],
    default: Any = None,
) -> Settings:
    """Read ``arguments`` into ``settings``; --help and bad flags end the process (status 0 and 2).

    Raises:
        UsageError: a value is refused by the dataclass.
    """
    text = "\n".join([description, "", "examples:", *(f"  {example}" for example in examples)])
    try:
        return tyro.cli(
            settings,
            prog=f"van {verb}",
            description=text,
            args=list(arguments),
            default=default,
            # with stored settings a flag may be on by default, and --resume must still be understood
            config=(tyro.conf.OmitArgPrefixes, *([tyro.conf.FlagCreatePairsOff] if default is None else [])),
            console_outputs=True,
            use_underscores=False,
        )
    except VanError:
        raise
    except SystemExit as ending:
        sys.stdout.flush()
        raise ending
