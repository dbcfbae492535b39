"""Fixtures for tests of the command line: ``van`` in this process, small datasets and checkpoints."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from datasets.synthetic import COLORS, process_state, write_checkpoint, write_classes
from datasets.synthetic_annotated import write_dense_checkpoint, write_scenes
from van.cli.main import main


class Ran(NamedTuple):
    """The exit status and output of a command."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def check_no_leaked_processes() -> Iterator[None]:
    before = process_state()
    yield
    assert process_state() == before


@pytest.fixture
def van(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run ``van`` with these arguments in this process; fails on a traceback."""
    monkeypatch.setenv("COLUMNS", "300")  # so that --help wraps no line below the widest layout

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ending:  # --help
            status = int(ending.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return Ran(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def colors(tmp_path_factory) -> Path:
    """Class folders of three colors: four training and three validation images each. Read-only."""
    root = tmp_path_factory.mktemp("data") / "colors"
    write_classes(root / "train", dict.fromkeys(COLORS, 4))
    write_classes(root / "val", dict.fromkeys(COLORS, 3), first_seed=500)
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A van_b0 classifier of the three colors, 32 px. Read-only."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.safetensors")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Two training and four validation scenes of digits, 64 px, in COCO and ADE20K formats. Read-only."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=2)


@pytest.fixture(scope="session")
def dense_checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Return the checkpoint of a task for the classes of ``scenes``, written on first use. Read-only."""
    folder = tmp_path_factory.mktemp("dense")

    def checkpoint_of(task: str) -> Path:
        path = folder / f"{task}.safetensors"
        return path if path.exists() else write_dense_checkpoint(path, task)

    return checkpoint_of
