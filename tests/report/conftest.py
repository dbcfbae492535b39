"""Fixtures of the report tests: a finished run on images whose class names contain markup, and a browser."""

from pathlib import Path

import pytest

from browser import browser_page, chromium  # noqa: F401
from report.synthetic_run import HOSTILE, write_images, write_run


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Four images of each class, without splits. Read only."""
    return write_images(tmp_path_factory.mktemp("images") / "classes", sorted(HOSTILE))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, images) -> Path:
    """A run on these images. Read only."""
    return write_run(tmp_path_factory.mktemp("run") / "run", data=images, class_names=sorted(HOSTILE))
