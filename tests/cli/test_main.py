"""The command line as a process: quick to answer, quiet when the reader leaves, one line when it fails."""

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


def test_help_names_every_verb_and_says_how_to_start(van):
    for arguments in (["--help"], ["-h"], ["help"]):
        ran = van(*arguments)
        assert (ran.status, ran.err) == (0, "")
        assert all(f"  {verb} " in ran.out for verb in VERBS)
        assert "Start with: van train digits --out runs/digits" in ran.out


def test_no_verb_shows_the_help_and_is_bad_usage(van):
    ran = van()
    assert ran.status == 2
    assert "usage: van VERB" in ran.out


def test_an_unknown_verb_is_named_with_the_known_ones(van):
    ran = van("trian", "digits")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"van: there is no verb 'trian'; known: {', '.join(VERBS)}; see van --help\n"


def test_the_version_is_the_package_s(van):
    assert van("--version").out == f"van {__version__}\n"


LOADED = """
import contextlib, sys
from van.cli.main import main
with contextlib.suppress(SystemExit):
    main(sys.argv[2:])
print("LOADED", [name for name in sys.argv[1].split() if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"]], ids=" ".join)
def test_the_first_answers_load_nothing(run_python, arguments):
    printed = run_python(LOADED, " ".join((*HEAVY, "tyro", "rich", "json")), *arguments)
    assert printed.split("LOADED ")[1].strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [*([f"{verb}", "--help"] for verb in VERBS), ["train", "digits", "--help"],
     ["train", "imagenet1k", "--epochs", "x"], ["data", "digits", "--help"], ["models"], ["design"]],
    ids=" ".join,
)  # fmt: skip
def test_flags_tables_and_the_calculator_load_only_the_reader_of_flags(run_python, arguments):
    printed = run_python(LOADED, " ".join((*HEAVY, "tyro")), *arguments)
    assert printed.split("LOADED ")[1].strip() == "['tyro']"


def test_the_package_runs_as_a_module():
    done = start("--version", stdout=subprocess.PIPE)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out.decode(), err) == (0, f"van {__version__}\n", b"")
    done = start("nonsense", stdout=subprocess.PIPE)
    assert b"there is no verb" in done.communicate(timeout=60)[1]
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["models", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_crash(arguments):
    """As in ``van models | head -1``, but certain: nobody holds the other end of the pipe any more."""
    reading, writing = os.pipe()
    os.close(reading)
    done = start(*arguments, stdout=writing)
    os.close(writing)
    err = done.communicate(timeout=60)[1]
    assert (done.returncode, err) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("wb") as full:
        done = start("models", stdout=full)
        err = done.communicate(timeout=60)[1].decode()
    assert done.returncode == 1
    assert err == "van: [Errno 28] No space left on device\n"


class PressesControlC(io.StringIO):
    """Standard input of somebody who has changed their mind."""

    def read(self, size: int | None = -1) -> str:
        signal.raise_signal(signal.SIGINT)
        return ""


def test_control_c_ends_with_one_line(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", PressesControlC())
    assert main(["predict", str(checkpoint), "-"]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "van: stopped\n")


def test_control_c_in_the_middle_of_many_pictures_ends_the_process(checkpoint, colours):
    """The list is longer than a pipe holds, so the process cannot have ended before the signal comes."""
    listed = f"{next(colours.rglob('*.png'))}\n".encode() * 3000
    process = start("predict", checkpoint, "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(listed)
    process.stdin.close()
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read().splitlines()
    assert process.stderr is not None
    assert (process.wait(timeout=60), process.stderr.read()) == (1, b"van: stopped\n")
    process.stdout.close(), process.stderr.close()
    assert b".png: " in first
    assert len(rest) < 2999


def test_memory_that_runs_out_on_a_device_is_one_line(monkeypatch, capsys):
    """torch's own error, raised where a verb would meet it."""
    import torch

    from van.cli import models

    def exhaust(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(models, "run", exhaust)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == "van: the device is out of memory; lower --batch-size, or use --device cpu\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    from van.cli import models

    def stumble(arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(models, "run", stumble)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["models"])
