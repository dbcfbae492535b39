"""``van``: finds the verb, runs it, turns errors into one clear line and an exit status.

Nothing here imports torch: ``van --help`` answers at once, and a verb loads what it needs.
Exit status: 0 done, 1 failed, 2 bad usage.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from van.errors import UsageError, VanError

VERBS = {
    "train": "train a network by a recipe, to classify, detect or segment; on your own pictures or embedded ones",
    "eval": "measure a checkpoint on labelled pictures",
    "predict": "say what is in pictures",
    "explain": "draw which parts of a picture an answer rests on, and measure how far that can be believed",
    "report": "write a run's results into one page to look at",
    "export": "write a network for another runtime, compared with PyTorch before it is kept",
    "serve": "answer over HTTP, with a page to try it on",
    "models": "list the networks, their sizes and their public weights",
    "convert": "turn any public VAN weights into a checkpoint of this package",
    "data": "find what is wrong in a data set; write the embedded sets out as files",
    "bench": "measure operators and whole networks side by side, each checked first",
    "design": "find the best dilation for a kernel size, and what it costs",
}

_HELP = """\
usage: van VERB ...

VAN, the Visual Attention Network: train, evaluate and use it.

{verbs}

van VERB --help says more, with examples. van --version prints the version.
Start with: van train digits --out runs/digits
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _tolerate_any_name()
    try:
        status = _run(arguments)
        sys.stdout.flush()  # here, where a full disk or a closed pipe is still an error like any other
        return status
    except VanError as error:
        return _failed(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _failed("stopped")
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return _failed("")
    except OSError as error:
        return _failed(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's own, which may not be imported here
            raise
        return _failed("the device is out of memory; lower --batch-size, or use --device cpu")


def command_line() -> NoReturn:
    """``main`` as a process of its own."""
    status = main()
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # torch 2.15 with gloo now and then aborts while the interpreter is taken down, when all work is done
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _failed(message: str, status: int = 1) -> int:
    """Print what was still to be printed, then the message."""
    try:
        sys.stdout.flush()
    except OSError:  # nobody can take it; without this Python would try again at exit, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(f"van: {message}", file=sys.stderr)
    return status


def _tolerate_any_name() -> None:
    """Let file names that are no valid text come in through a pipe and be printed, escaped."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import van

        print(f"van {van.__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise UsageError(f"there is no verb {verb!r}; known: {', '.join(VERBS)}; see van --help")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    module = importlib.import_module(f"van.cli.{verb}")
    return module.run(rest)
