"""Fixtures of the recipe tests: small datasets, and a check that a run restores the state of its process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets.synthetic import COLORS, process_state, write_checkpoint, write_classes
from datasets.synthetic_annotated import write_scenes


@pytest.fixture(autouse=True)
def check_process_state() -> Iterator[None]:
    before = process_state()
    yield
    assert process_state() == before


@pytest.fixture(scope="session")
def colors(tmp_path_factory) -> Path:
    """Three colors with eight training and two validation images each. Read only."""
    root = tmp_path_factory.mktemp("data") / "colors"
    write_classes(root / "train", dict.fromkeys(COLORS, 8))
    write_classes(root / "val", dict.fromkeys(COLORS, 2), first_seed=500)
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of a van_b0 for the three colors, 32 px. Read only."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "start.safetensors")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Ten training and four validation digit scenes of 64 px in the layouts of COCO and ADE20K. Read only."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes")
