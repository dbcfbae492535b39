"""The ``van`` command: runs a verb and turns errors into one line and an exit status.

Nothing here imports torch, so that ``van --help`` is instant; a verb imports what it needs.
Exit status: 0 success, 1 failure, 2 wrong usage.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from van.cli.verbs import VERBS
from van.errors import UsageError, VanError

_HELP = """\
usage: van VERB [OPTIONS]

Train, evaluate, explain and deploy VAN, the Visual Attention Network, for image classification, detection and
segmentation.

Verbs:
{verbs}

Options:
  -h, --help  Show this help and exit.
  --version   Show the version and exit.

Examples:
  van train digits --out runs/digits
  van predict runs/digits/best.safetensors IMAGES
  van train classify --data flowers --out runs/flowers

See "van VERB --help" for the options of one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _accept_undecodable_names()
    try:
        status = _run(arguments)
        sys.stdout.flush()  # here, where a full disk or a closed pipe is still handled below
        return status
    except VanError as error:
        return _failed(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _failed("interrupted")
    except BrokenPipeError:  # the reader, such as head, closed the pipe
        return _failed("")
    except OSError as error:
        return _failed(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class, without importing torch
            raise
        return _failed("out of memory on the device; lower --batch-size or use --device cpu")


def command_line() -> NoReturn:
    """Run ``main`` and end the process with its status."""
    status = main()
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # torch 2.15 with gloo sometimes aborts at interpreter shutdown, after all work is done
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _failed(message: str, status: int = 1) -> int:
    """Flush standard output, print the message on standard error, and return the status."""
    try:
        sys.stdout.flush()
    except OSError:  # closed or full: without this, Python would flush again at exit and print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(f"van: {message}", file=sys.stderr)
    return status


def _accept_undecodable_names() -> None:
    """Read file names that are not valid UTF-8 from a pipe, and print them escaped."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import van

        print(f"van {van.__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise UsageError(_unknown_verb(verb))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    module = importlib.import_module(f"van.cli.{verb}")
    try:
        return module.run(rest)
    except UsageError as error:
        # functions name their argument, "batch_size: expected ..."; here it is called --batch-size
        name, colon, reason = str(error).partition(":")
        subcommands = getattr(module, "SUBCOMMANDS", {})
        command, _ = subcommands.get(rest[0] if rest else "", (getattr(module, "COMMAND", None), None))
        flags = command.flags() if colon and command is not None else []
        option = next((flag.option or flag.metavar for flag in flags if flag.name == name), None)
        if option is None:
            raise
        raise UsageError(f"{option}:{reason}") from error


def _unknown_verb(verb: str) -> str:
    """Return the message for an unknown verb; recipes and verbs of other tools lead to ours."""
    # imported here: a correct command line needs neither
    from van.cli import suggestions
    from van.recipes import RECIPES

    if verb.startswith("-"):
        return f'unknown option {verb} for "van": expected a verb, got {verb!r}. See "van --help"'
    if verb not in VERBS and verb in RECIPES and verb not in suggestions.VERBS:
        return f'unknown verb "{verb}"; did you mean train {verb}? See "van --help"'
    return suggestions.unknown_name("verb", verb, VERBS, suggestions.VERBS, of="van")
