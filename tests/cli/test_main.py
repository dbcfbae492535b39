"""The ``van`` command: imports little, handles closed pipes and interrupts, prints one line per error."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from van import __version__
from van.cli.main import VERBS, main

HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "safetensors", "accelerate", "huggingface_hub")


def start(*arguments: object, **options) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "van", *map(str, arguments)]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # as for most users: a print may fail only at the very end
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=buffered, **options)


def test_help_lists_every_verb_and_three_examples(van):
    for arguments in (["--help"], ["-h"], ["help"]):
        ran = van(*arguments)
        assert (ran.status, ran.err) == (0, "")
        assert all(f"  {verb} " in ran.out for verb in VERBS)
        examples = ran.out.split("Examples:")[1].split("\n\n")[0].split("\n  ")[1:]
        assert len(examples) == 3
        assert {example.split()[1] for example in examples} <= set(VERBS)


def test_no_verb_prints_the_help_with_status_2(van):
    ran = van()
    assert ran.status == 2
    assert "usage: van VERB" in ran.out


def test_an_unknown_verb_or_option_is_status_2(van):
    for unknown in ("nonsense", "--verbose"):
        ran = van(unknown, "digits")
        assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert unknown in ran.err
        assert 'See "van --help"' in ran.err


def test_the_version_is_that_of_the_package(van):
    assert van("--version").out == f"van {__version__}\n"


LOADED = """
import contextlib, sys
from van.cli.main import main
with contextlib.suppress(SystemExit):
    main(sys.argv[2:])
print("LOADED", [name for name in sys.argv[1].split() if name in sys.modules])
"""


def test_help_version_and_unknown_verbs_import_no_dependency(subtests, run_python):
    for arguments in [["--help"], ["--version"], ["nonsense"]]:
        with subtests.test(arguments=arguments):
            printed = run_python(LOADED, " ".join((*HEAVY, "rich", "json")), *arguments)
            assert printed.split("LOADED ")[1].strip() == "[]"


def test_help_wrong_usage_and_tables_import_no_heavy_dependency(subtests, run_python):
    for arguments in [
        *([f"{verb}", "--help"] for verb in VERBS),
        ["train", "digits", "--help"],
        ["train", "imagenet1k", "--epochs", "x"],
        ["data", "digits", "--help"],
        ["models"],
        ["design"],
    ]:
        with subtests.test(arguments=arguments):
            printed = run_python(LOADED, " ".join(HEAVY), *arguments)
            assert printed.split("LOADED ")[1].strip() == "[]"


def test_the_package_runs_as_a_module():
    done = start("--version", stdout=subprocess.PIPE)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out.decode(), err) == (0, f"van {__version__}\n", b"")
    done = start("nonsense", stdout=subprocess.PIPE)
    assert b"nonsense" in done.communicate(timeout=60)[1]
    assert done.returncode == 2


def test_a_closed_pipe_is_status_1_without_a_message(subtests):
    """As in ``van models | head -1``, but without a race: the other end of the pipe is already closed."""
    for arguments in [["--help"], ["models"], ["models", "--help"]]:
        with subtests.test(arguments=arguments):
            reading, writing = os.pipe()
            os.close(reading)
            done = start(*arguments, stdout=writing)
            os.close(writing)
            err = done.communicate(timeout=60)[1]
            assert (done.returncode, err) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_status_1():
    with Path("/dev/full").open("wb") as full:
        done = start("models", stdout=full)
        err = done.communicate(timeout=60)[1].decode()
    assert done.returncode == 1
    assert err == "van: [Errno 28] No space left on device\n"


class InterruptingInput(io.StringIO):
    """Standard input that raises SIGINT when it is read."""

    def read(self, size: int | None = -1) -> str:
        signal.raise_signal(signal.SIGINT)
        return ""


def test_control_c_is_one_line_and_status_1(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", InterruptingInput())
    assert main(["predict", str(checkpoint), "-"]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "van: interrupted\n")


def test_control_c_during_a_long_prediction_ends_the_process(checkpoint, colors):
    """The list is longer than a pipe holds, so the process cannot have ended before the signal comes."""
    listed = f"{next(colors.rglob('*.png'))}\n".encode() * 3000
    process = start("predict", checkpoint, "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(listed)
    process.stdin.close()
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read().splitlines()
    assert process.stderr is not None
    assert (process.wait(timeout=60), process.stderr.read()) == (1, b"van: interrupted\n")
    process.stdout.close(), process.stderr.close()
    assert b".png: " in first
    assert len(rest) < 2999


def test_out_of_memory_on_a_device_is_one_line_and_status_1(monkeypatch, capsys):
    """torch's own exception, raised inside a verb."""
    import torch

    from van.cli import models

    def exhaust(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(models, "run", exhaust)
    assert main(["models"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("van: out of memory")
    assert "--batch-size" in err
    assert "--device cpu" in err


def test_other_runtime_errors_are_not_caught(monkeypatch):
    from van.cli import models

    def fail(arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(models, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["models"])
