"""What every test of a verb has: the command line in this process, tiny folders, a network of three colours."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from data.made import COLOURS, running, write_checkpoint, write_classes
from data.made_marked import write_marked_checkpoint, write_scenes
from van.cli.main import main


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = running()
    yield
    assert running() == before


@pytest.fixture
def van(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run ``van`` with these arguments in this process; nothing it prints may look like a crash."""
    monkeypatch.setenv("COLUMNS", "300")  # so that no message is broken over lines

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ending:  # --help and flags that cannot be read end here
            status = int(ending.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return Ran(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """Three colours: four pictures each to learn from and three held out. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "colours"
    write_classes(root / "train", dict.fromkeys(COLOURS, 4))
    write_classes(root / "val", dict.fromkeys(COLOURS, 3), first_seed=500)
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A van_b0 of the three colours, 32 px. Not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.safetensors")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Two digit scenes of 64 px to learn from and four held out, in COCO's and ADE20K's layouts. Not to be changed."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=2)


@pytest.fixture(scope="session")
def marked(tmp_path_factory) -> Callable[[str], Path]:
    """The checkpoint of a task over the scenes' classes, made when first asked for. Not to be changed."""
    folder = tmp_path_factory.mktemp("marked")

    def checkpoint_of(task: str) -> Path:
        path = folder / f"{task}.safetensors"
        return path if path.exists() else write_marked_checkpoint(path, task)

    return checkpoint_of
