"""What every test of a recipe has: tiny folders, and the certainty that a run leaves its process as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.made import COLOURS, running, write_checkpoint, write_classes
from data.made_marked import write_scenes


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = running()
    yield
    assert running() == before


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """Three colours, eight pictures of each to learn from and two held out. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "colours"
    write_classes(root / "train", dict.fromkeys(COLOURS, 8))
    write_classes(root / "val", dict.fromkeys(COLOURS, 2), first_seed=500)
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A van_b0 of the three colours, 32 px. Not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "start.safetensors")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Ten digit scenes of 64 px to learn from and four held out, in COCO's and ADE20K's layouts. Not to be changed."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes")
