"""Fixtures for tests that write datasets."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[], Path]:
    """Make a new, empty folder at each call, for one case of a test that has several."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / f"case-{next(numbers)}"
        folder.mkdir()
        return folder

    return make
