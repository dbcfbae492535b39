"""What every test of reports has: a finished run on pictures with hostile names, and a browser."""

from pathlib import Path

import pytest

from browser import browser_page, chromium  # noqa: F401
from report.made_run import HOSTILE, write_pictures, write_run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Four pictures of each hostile class, without a split. Not to be changed."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "classes", sorted(HOSTILE))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, pictures) -> Path:
    """A run on them. Not to be changed."""
    return write_run(tmp_path_factory.mktemp("run") / "run", data=pictures, labels=sorted(HOSTILE))
